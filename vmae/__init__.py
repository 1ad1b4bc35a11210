"""vmae: a workbench for video masked autoencoders.

The code lives in five folders beside this one (`core`, `kernels`, `experiments`, `cli`,
`dashboard`); the links in this folder give them one import name, `vmae.core` and so on.

For scripts and notebooks (docs/api.md):

    model = vmae.load("my_run")           # a run, a folder, hf://org/name
    model.features(["a.mp4", "b.mp4"])    # float32 [2, D]
    model.predict(["a.mp4"]).top(3)       # of a classifier
    model.reconstruct("a.mp4")            # of a pre-trained model
    vmae.ClipDataset(["a.mp4", "b.mp4"])  # clips by index
    vmae.pretrain("train.csv"), vmae.finetune("train.csv", init="my_run")
    vmae.runs()                           # a pandas DataFrame

`import vmae` loads none of it: each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmae.experiments.api import (
        ClipDataset,
        DataConfig,
        Model,
        Predictions,
        Trained,
        finetune,
        load,
        pretrain,
        runs,
        save_film,
    )

__version__ = "0.1.0"
__all__ = [
    "ClipDataset",
    "DataConfig",
    "Model",
    "Predictions",
    "Trained",
    "finetune",
    "load",
    "pretrain",
    "runs",
    "save_film",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from vmae.experiments import api

        return getattr(api, name)
    raise AttributeError(f"module 'vmae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
