"""The named sweeps. Each reproduces the shape of one of VideoMAE's ablation tables (arXiv 2203.12602).

Nothing here needs torch: a name that does not exist is refused before anything heavy is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmae.core.errors import InputError, nearest
from vmae.experiments.stages import finetune

if TYPE_CHECKING:
    from vmae.experiments.config import ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A named sweep: which field varies over which values.

    `fixed` is what all its trials have, whatever the recipe says (`--set` still goes before it).
    `published` is the paper's table as {value: {column: number}}, where there is one.
    """

    name: str
    title: str
    path: str
    values: tuple[Any, ...]
    doc: str = ""
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)
    brings: Callable[[ExperimentConfig], Mapping[str, Mapping[str, Any]]] = lambda _: {}
    """Of what the sweep starts from: by the text of a value, what else is set with it."""

    @property
    def label(self) -> str:
        """The swept field's last word, as a column title: `mask.ratio` -> `ratio`."""
        return self.path.rpartition(".")[2]


def masking_ratio() -> Definition:
    """How much to hide: tube masking at several ratios.

    Published (P1, figure 3 and table 1b, ViT-B, 800 epochs; top-1 on Something-Something V2 / Kinetics-400):
    tube 75%: 68.0 / 79.8; tube 90%: 69.6 / 80.0.
    The training loss at different ratios measures different tasks, so the trials are ranked by a probe on
    frozen features of held-out videos.
    """
    return _define(
        masking_ratio,
        path="mask.ratio",
        values=(0.5, 0.75, 0.9, 0.95),
        published={"0.75": {"ssv2": 68.0, "k400": 79.8}, "0.9": {"ssv2": 69.6, "k400": 80.0}},
    )


def masking_strategy() -> Definition:
    """Which tokens to hide, at the same ratio.

    Published (P1, table 1b; SSv2 / K400): tube 90%: 69.6 / 80.0; random 90%: 68.3 / 79.5; frame 87.5%:
    61.5 / 76.5.
    """
    return _define(
        masking_strategy,
        path="mask.type",
        values=("tube", "random", "frame", "block"),
        published={
            "tube": {"ssv2": 69.6, "k400": 80.0},
            "random": {"ssv2": 68.3, "k400": 79.5},
            "frame": {"ssv2": 61.5, "k400": 76.5},
        },
    )


def decoder_depth() -> Definition:
    """How many blocks the decoder has.

    Published (P1, table 1a; SSv2 / K400): 1: 68.5 / 79.0; 2: 69.2 / 79.2; 4: 69.6 / 80.0; 8: 69.3 / 79.7.
    """
    return _define(
        decoder_depth,
        path="model.decoder_depth",
        values=(1, 2, 4, 8),
        published={
            "1": {"ssv2": 68.5, "k400": 79.0},
            "2": {"ssv2": 69.2, "k400": 79.2},
            "4": {"ssv2": 69.6, "k400": 80.0},
            "8": {"ssv2": 69.3, "k400": 79.7},
        },
    )


def target() -> Definition:
    """What is predicted: pixels normalised per patch, or raw pixels."""
    return _define(target, path="model.target", values=("normalized", "raw"))


def objective() -> Definition:
    """What is learnt from: pixels, a frozen teacher's latents, or views that agree.

    `normalized` and `raw` are masked autoencoders on pixels, `sigreg` is a joint embedding of four views that
    see a quarter of their tokens (LeVJEPA, arXiv 2608.27395; in steps of 64 clips or more, whose embeddings
    its statistic is of), and --values normalized,teacher:RUN,sigreg adds a frozen model's latents (SALT,
    arXiv 2509.24317). Objectives differ in what an epoch costs: compare with --equal flops or --equal time.
    """

    def brings(base: ExperimentConfig) -> dict[str, dict[str, Any]]:
        batch = max(64, base.train.batch_size)
        views = {"data.repeats": 4, "mask.type": "random", "mask.ratio": 0.75}
        # base_lr is for 256 clips: a step's rate stays what it is.
        rate = base.optim.base_lr * base.train.batch_size / batch
        return {"sigreg": {**views, "train.batch_size": batch, "optim.base_lr": rate}}

    return _define(
        objective,
        path="model.target",
        values=("normalized", "raw", "sigreg"),
        brings=brings,
    )


def loss() -> Definition:
    """How predictions are compared with the target.

    Published (P1, table 1e; SSv2 / K400): L1 69.1 / 79.7; MSE 69.6 / 80.0; smooth L1 68.9 / 79.6.
    """
    return _define(
        loss,
        path="model.loss",
        values=("mse", "l1", "smooth_l1"),
        published={
            "l1": {"ssv2": 69.1, "k400": 79.7},
            "mse": {"ssv2": 69.6, "k400": 80.0},
            "smooth_l1": {"ssv2": 68.9, "k400": 79.6},
        },
    )


def sampling_rate() -> Definition:
    """How many frames lie between two that are taken (the papers: 4 on Kinetics, 2 on SSv2)."""
    return _define(sampling_rate, path="data.sampling_rate", values=(1, 2, 4))


def pretraining_epochs() -> Definition:
    """How long to pre-train: each trial is a whole run with its own schedule."""
    return _define(pretraining_epochs, path="train.epochs", values=(5, 10, 20, 40))


def repeated_sampling() -> Definition:
    """How many crops and masks are taken from one decoded clip.

    Published (MAE-ST, arXiv 2205.09113; K400): 1: 83.7; 2: 84.3; 4: 84.4, at 1.0 / 1.8 / 3.0 x speed.
    """
    return _define(
        repeated_sampling,
        path="data.repeats",
        values=(1, 2, 4),
        published={"1": {"k400": 83.7}, "2": {"k400": 84.3}, "4": {"k400": 84.4}},
    )


def learning_rate() -> Definition:
    """The base learning rate (for a total batch of 256)."""
    return _define(learning_rate, path="optim.base_lr", values=(1e-4, 3e-4, 1e-3, 3e-3))


def dual_masking() -> Definition:
    """The share of positions that the decoder leaves out (VideoMAE V2's running cell); 0 is V1."""
    return _define(
        dual_masking,
        path="mask.decoder_ratio",
        values=(0.0, 0.5, 0.75),
        fixed={"mask.decoder_type": "running_cell"},
    )


def data_size() -> Definition:
    """How many of the training videos are pre-trained on; the readout learns from all of them.

    The papers' claim of data efficiency (P1, section 4: VideoMAE learns from 3 to 4 thousand videos). The
    number of epochs is the same for every share, so a smaller share also takes fewer steps; to compare at
    equal steps, run the shares one by one with --set train.epochs.
    """
    return _define(data_size, path="data.train_share", values=(0.1, 0.3, 1.0))


def label_share() -> Definition:
    """How many labels fine-tuning has, at equal steps.

    The papers' claim that pre-training pays most where labels are few. With --param
    pipeline.scratch=false,true every share is also fine-tuned from random weights. Trials that would
    pre-train alike share one pre-training; no epoch is chosen.
    """
    return _define(
        label_share,
        path="pipeline.finetune_share",
        values=(0.1, 0.3, 1.0),
        fixed={
            "pipeline.then": finetune.STAGE.name,
            "pipeline.finetune_train.best_by": "none",
            "finetune.eval_every": "0",
        },
    )


ALL: dict[str, Callable[[], Definition]] = {
    f.__name__: f
    for f in (
        masking_ratio,
        masking_strategy,
        decoder_depth,
        target,
        objective,
        loss,
        sampling_rate,
        pretraining_epochs,
        repeated_sampling,
        learning_rate,
        dual_masking,
        data_size,
        label_share,
    )
}


def get(name: str) -> Definition:
    """The named sweep; InputError names the nearest where there is none."""
    if name not in ALL:
        raise InputError(f"expected a sweep among {', '.join(ALL)}; got '{name}'{nearest(name, list(ALL))}")
    return ALL[name]()


def _define(
    function: Callable[[], Definition],
    *,
    path: str,
    values: tuple[object, ...],
    published: dict[str, dict[str, float]] | None = None,
    fixed: dict[str, str] | None = None,
    brings: Callable[[ExperimentConfig], Mapping[str, Mapping[str, Any]]] = lambda _: {},
) -> Definition:
    doc = inspect.getdoc(function) or ""
    return Definition(
        name=function.__name__,
        title=doc.splitlines()[0].rstrip("."),
        path=path,
        values=values,
        doc=doc,
        published=published or {},
        fixed=fixed or {},
        brings=brings,
    )
