"""Checkpoints as versions of MLflow registered models, ready to predict from video paths."""

from __future__ import annotations

import json
import shutil
import tempfile
import warnings
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vmae
from vmae.core.config import to_dict
from vmae.core.errors import InputError, VmaeError
from vmae.core.video.config import DataConfig
from vmae.core.weights.checkpoint import load_model
from vmae.experiments import stages
from vmae.experiments.runs import Run, find
from vmae.experiments.served import MAX_MIB
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import TrialState, groups, winner
from vmae.experiments.tracking import Store, tags
from vmae.experiments.tracking.client import first_line, mlflow_client, quieten_mlflow
from vmae.experiments.weights import config_of_model

if TYPE_CHECKING:
    from vmae.core.model.encoder import VideoModel

_REQUIREMENTS = (
    "mlflow", "torch", "numpy", "einops", "safetensors", "decord", "av", "opencv-python-headless", "pillow",
    "pyyaml",
)  # fmt: skip
_PACKAGES = ("core", "kernels", "experiments")


def check_model_name(name: str) -> None:
    """Refuse what MLflow does not take as a model's name. Raises InputError."""
    if not name.strip() or any(c in name for c in "/:.%\\'"):
        raise InputError(f"expected a model name without / : . % ' \\, got '{name}'")


def register(store: Store, run: Run, name: str, *, classifier: bool = True) -> int:
    """Register a run's checkpoint as a version of the model `name`; returns the version.

    The model folder goes into the run's artifacts (`model/`): weights, how clips are cut, class names and a
    copy of the package, so that `mlflow.pyfunc.load_model(f"models:/{name}/{version}")` works where only the
    requirements are installed. Of a trial with a fine-tuned classifier it is the classifier, or with
    `classifier=False` the pre-trained model. A run that is a version of the model already is not registered
    twice.

    Raises:
        InputError: the name is not one MLflow takes, or the run has no checkpoint.
        VmaeError: the store refuses.
    """
    check_model_name(name)
    place = run.tags.get(tags.CHECKPOINT, "")
    if classifier and tags.CLASSIFIER in run.tags:
        place = run.tags[tags.CLASSIFIER]
    if "://" in place:
        from vmae.experiments.storage import fetched

        with tempfile.TemporaryDirectory() as folder:
            return _register(store, run, name, fetched(place, Path(folder)))
    return _register(store, run, name, Path(place) if place else None)


def _register(store: Store, run: Run, name: str, checkpoint: Path | None) -> int:
    from mlflow.exceptions import MlflowException

    if checkpoint is None or not checkpoint.exists():
        raise InputError(f"expected run '{run.name}' to have a checkpoint, got {checkpoint or 'none'}")
    client = mlflow_client(store.uri)
    try:
        for found in client.search_model_versions(f"name = '{name}'"):
            if found.run_id == run.run_id:
                return int(found.version)
        with tempfile.TemporaryDirectory() as folder:
            save_pyfunc(run, checkpoint, Path(folder) / "model")
            client.log_artifacts(run.run_id, str(Path(folder) / "model"), "model")
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        kept = {k: v for k, v in run.tags.items() if k in (tags.SWEEP, tags.RECIPE, tags.DATA_DIGEST)}
        made = client.create_model_version(
            name, f"runs:/{run.run_id}/model", run.run_id, tags=kept, description=f"run {run.name}"
        )
        return int(made.version)
    except MlflowException as e:
        raise VmaeError(
            f"expected {store.uri} to take a version of model '{name}', got: {first_line(e)}"
        ) from e


def write_served(store: Store, name: str) -> Path:
    """Write the folder that MLflow serves of a run's model (its best epoch's, where that counts) into the
    run's folder; returns it. Raises InputError for a run without a model on this machine."""
    run = find(store, name)
    place = run.tags.get(tags.CLASSIFIER) or run.tags.get(tags.CHECKPOINT, "")
    if not place or "://" in place or not Path(place).exists():
        raise InputError(f"expected run '{run.name}' to have a model on this machine, got {place or 'none'}")
    folder = store.layout.run(run.name).served
    with tempfile.TemporaryDirectory(dir=store.layout.run(run.name).path) as scratch:
        save_pyfunc(run, Path(place), Path(scratch) / "served")
        shutil.rmtree(folder, ignore_errors=True)
        (Path(scratch) / "served").rename(folder)
    return folder.resolve()


def register_best(store: Store, plan: Plan, states: list[TrialState], name: str) -> tuple[Run, int]:
    """Register the best trial of a sweep: of the winning value, the seed with the best metric.

    Raises:
        InputError: as `register`, or no trial finished.
    """
    best = winner(groups(states), plan.ranked_by)
    if best is None:
        raise InputError(f"expected a finished trial to register in sweep {plan.name}, found none")
    members = [
        s
        for s in states
        if not s.trial.baseline and s.trial.overrides == best.overrides and plan.metric in s.metrics
    ]
    top = max(members, key=lambda s: plan.ranked_by.score_of(s.metrics[plan.metric]))
    run = find(store, plan.trial_key(top.trial))
    return run, register(store, run, name, classifier=stages.model_tag(plan.ranked_by) == tags.CLASSIFIER)


def save_pyfunc(run: Run, checkpoint: Path, folder: Path) -> None:
    """Write an MLflow model folder of one of a run's checkpoints."""
    quieten_mlflow()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc

    model, meta = load_model(checkpoint)
    with tempfile.TemporaryDirectory() as scratch:
        facts = Path(scratch) / "facts.json"
        labels = meta.get("labels")
        facts.write_text(json.dumps({"data": to_dict(_data_of(run, model, meta)), "labels": labels}))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.pyfunc.save_model(
                path=str(folder),
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"checkpoint": str(checkpoint), "facts": str(facts)},
                code_paths=[str(_package(Path(scratch)))],
                model_config={"segments": 1, "crops": 1, "max_mib": MAX_MIB},
                pip_requirements=[f"{n}=={version(n).partition('+')[0]}" for n in _REQUIREMENTS],
                metadata={"run": run.name, "model": type(model).__name__},
            )


def _data_of(run: Run, model: VideoModel, meta: dict[str, Any]) -> DataConfig:
    """How the run cut its clips (from its parameters; from the checkpoint where it has none), no lists."""
    data = config_of_model(model, meta).data
    known = {k.removeprefix("data."): v for k, v in run.params.items() if k.startswith("data.")}
    kept: dict[str, Any] = {
        "sampling": known.get("sampling", data.sampling),
        "sampling_rate": int(known.get("sampling_rate", data.sampling_rate)),
        "fps": float(known.get("fps", data.fps)),
        "short_side": int(known.get("short_side", data.short_side)),
    }
    return replace(data, workers=0, cache=False, train_csv="", val_csv="", data_root="", **kept)


def _package(scratch: Path) -> Path:
    """A copy of the package without what only the command line and the dashboard need."""
    source = Path(vmae.__file__).parent
    target = scratch / "vmae"
    target.mkdir()
    shutil.copy(source / "__init__.py", target)
    for name in _PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__", "results", "*.md")
        shutil.copytree(source / name, target / name, ignore=ignored)
    return target
