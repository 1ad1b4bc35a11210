"""What can be looked at: checkpoints of runs (best first), then files; data sets, their clips.

Everything the browser may choose is an entry of a list made here, with an id; the id is looked up, never
joined to a path.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vmae.core.errors import VmaeError
from vmae.core.video.annotations import FORMATS, AnnotationFormat, read_annotations
from vmae.core.video.samples import Sample
from vmae.core.weights.checkpoint import WEIGHTS_NAME
from vmae.core.weights.files import ModelFile
from vmae.dashboard.settings import Settings
from vmae.experiments.runs import Run, list_runs
from vmae.experiments.stages import SCORES, pretrain
from vmae.experiments.tracking import tags

if TYPE_CHECKING:
    import pandas as pd

    from vmae.dashboard.clips import ClipInfo


@dataclass(frozen=True, kw_only=True)
class CheckpointEntry:
    """A checkpoint that the viewer offers. `stamp` changes when the file does."""

    id: str
    label: str
    path: str
    stamp: int
    run_id: str = ""
    dataset_id: str = ""
    ratio: float | None = None
    mask_type: str = ""
    score: float | None = None
    """Accuracy of the run's probe in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """A list of clips, from a csv."""

    id: str
    label: str
    csv: str
    data_root: str
    frames: int = 16
    sampling: Literal["dense", "uniform"] = "dense"
    sampling_rate: int = 1
    fps: float = 0.0
    format: AnnotationFormat = "auto"

    def stride(self, clip: ClipInfo, frames: int) -> int:
        """Frames of a video from one of a clip's `frames` to the next, as the run cut its clips."""
        if self.sampling == "uniform":
            return max(1, clip.num_frames // frames)
        return max(1, round(clip.fps / self.fps)) if self.fps else self.sampling_rate


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """Everything there is to choose from, best checkpoints first."""

    checkpoints: tuple[CheckpointEntry, ...]
    datasets: tuple[DatasetEntry, ...]

    def checkpoint(self, id: str) -> CheckpointEntry:
        """The entry with this id; the first one where it is unknown."""
        return next((c for c in self.checkpoints if c.id == id), self.checkpoints[0])

    def dataset(self, id: str) -> DatasetEntry | None:
        """The entry with this id; the first where it is unknown; None where there is none."""
        return next((d for d in self.datasets if d.id == id), self.datasets[0] if self.datasets else None)


# What of a run decides whether and how its checkpoint is offered: a tenth of the time of reading all of it.
_COLUMNS = (
    tags.KIND,
    tags.SWEEP,
    tags.CHECKPOINT,
    "mask.ratio",
    "mask.type",
    "data.val_csv",
    "data.data_root",
    "data.frames",
    "data.sampling",
    "data.sampling_rate",
    "data.fps",
    "data.annotation_format",
    *SCORES,
)


def read_catalog(settings: Settings, files: Sequence[ModelFile] = ()) -> Catalog:
    """Read the store; the command line's additions and `files` come after its runs."""
    runs = list_runs(settings.store, columns=_COLUMNS)
    datasets = {d.id: d for d in _datasets(settings, runs)}
    entries = [e for e in (_of_run(r, settings) for r in runs) if e is not None]
    entries.sort(key=lambda e: -1.0 if e.score is None else e.score, reverse=True)
    unique: dict[str, CheckpointEntry] = {}
    for entry in [*entries, *map(_of_file, files)]:
        # A probe of a run names the same folder: the first (best) entry stands for it.
        unique.setdefault(str(Path(entry.path).resolve()), entry)
    found = _told_apart(list(unique.values()), {r.run_id: r.sweep for r in runs}, datasets)
    return Catalog(checkpoints=tuple(found), datasets=tuple(datasets.values()))


def _told_apart(
    entries: Sequence[CheckpointEntry], sweeps: dict[str, str], datasets: dict[str, DatasetEntry]
) -> list[CheckpointEntry]:
    """Entries of one label with their sweep and data set (or, of a file, its folder) beside it."""
    counts = Counter(e.label for e in entries)

    def more(entry: CheckpointEntry) -> str:
        data = datasets.get(entry.dataset_id)
        facts = [sweeps.get(entry.run_id, ""), data.label if data else ""]
        return " · ".join(filter(None, facts)) or str(Path(entry.path).parent)

    return [replace(e, label=f"{e.label} · {more(e)}") if counts[e.label] > 1 else e for e in entries]


def short_id(text: str) -> str:
    """Ten hexadecimal digits that stand for a path in links."""
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def weights_file(path: Path) -> Path | None:
    """The safetensors file of a checkpoint, or None where there is none."""
    file = path / WEIGHTS_NAME if path.is_dir() else path
    return file if file.is_file() else None


def probe_score(metrics: dict[str, float]) -> float | None:
    """The downstream accuracy on held-out videos that a run is ranked by, or None."""
    return next((metrics[name] for name in SCORES if name in metrics), None)


def _of_run(run: Run, settings: Settings) -> CheckpointEntry | None:
    if run.checkpoint is None or run.kind not in (pretrain.STAGE.name, "trial", ""):
        return None
    file = weights_file(run.checkpoint)
    if file is None:
        return None
    score = probe_score(run.metrics)
    ratio = _number(run.params.get("mask.ratio"))
    parts = [run.name or run.run_id[:8]]
    if ratio is not None and f"{ratio:g}" not in run.name:
        parts.append(f"ratio {ratio:g}")
    if score is not None:
        parts.append(f"top-1 {score:.1%}")
    if run.status == "RUNNING":
        parts.append("running")
    csv = run.params.get("data.val_csv") or ""
    return CheckpointEntry(
        id=run.run_id[:12],
        label=" · ".join(parts),
        path=str(file),
        stamp=file.stat().st_mtime_ns,
        run_id=run.run_id,
        dataset_id=short_id(str(settings.resolve(csv))) if csv else "",
        ratio=ratio,
        mask_type=run.params.get("mask.type", ""),
        score=score,
    )


def _of_file(file: ModelFile) -> CheckpointEntry:
    return CheckpointEntry(
        id=short_id(str(Path(file.path).resolve())),
        label=f"{file.name} (file)",
        path=file.path,
        stamp=file.stamp,
        ratio=file.ratio,
        mask_type=file.mask_type,
    )


def _datasets(settings: Settings, runs: Sequence[Run]) -> Iterable[DatasetEntry]:
    given: list[tuple[str, str, str, dict[str, str]]] = [
        (c, settings.data_root, settings.annotation_format, {}) for c in settings.data
    ]
    of_runs = [
        (
            r.params[name],
            r.params.get("data.data_root") or "",
            r.params.get("data.annotation_format", "auto"),
            r.params,
        )
        for r in runs
        for name in ("data.val_csv",)
        if r.params.get(name)
    ]
    for csv, root, form, params in [*given, *of_runs]:
        path = settings.resolve(csv)
        if path.is_file():
            yield DatasetEntry(
                id=short_id(str(path)),
                label=f"{path.parent.name}/{path.name}",
                csv=str(path),
                data_root=str(settings.resolve(root)) if root and root != "null" else "",
                frames=int(_number(params.get("data.frames")) or 16),
                sampling="uniform" if params.get("data.sampling") == "uniform" else "dense",
                sampling_rate=int(_number(params.get("data.sampling_rate")) or 1),
                fps=_number(params.get("data.fps")) or 0.0,
                format=form if form in FORMATS else "auto",  # type: ignore[arg-type]
            )


def read_samples(dataset: DatasetEntry) -> list[Sample]:
    """The clips of a data set; empty where its csv cannot be read any more."""
    try:
        return read_annotations(dataset.csv, dataset.data_root or None, format=dataset.format)
    except VmaeError:
        return []


def check_report(dataset: DatasetEntry) -> tuple[str, pd.DataFrame] | None:
    """When `vmae data check` last reported on a list, and the report, one row a file; None without."""
    import datetime

    import pandas as pd

    file = Path(dataset.csv).with_suffix(".report.csv")
    try:
        table = pd.read_csv(file, keep_default_na=False)
    except (OSError, ValueError):
        return None
    if "status" not in table.columns:
        return None
    return datetime.datetime.fromtimestamp(file.stat().st_mtime).strftime("%d %b %Y %H:%M"), table


def class_names(dataset: DatasetEntry) -> dict[int, str]:
    """Class names by label from `classes.txt` beside the csv (one name a line); empty where there is none."""
    file = Path(dataset.csv).with_name("classes.txt")
    if not file.is_file():
        return {}
    return dict(enumerate(line.strip() for line in file.read_text().splitlines()))


def class_name(label: int, names: dict[int, str]) -> str:
    """The class's name, or its number."""
    return names.get(label, f"class {label}" if label >= 0 else "no label")


def sample_name(sample: Sample, names: dict[int, str]) -> str:
    """What a line of a list says of its clip: class, classes, numbers, or the key frame's time."""
    if sample.time_s is not None:
        return f"at {sample.time_s:g} s"
    if sample.values:
        return ", ".join(f"{v:g}" for v in sample.values)
    if sample.labels is not None:
        return ", ".join(class_name(label, names) for label in sample.labels) or "no label"
    return class_name(sample.label, names)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None
