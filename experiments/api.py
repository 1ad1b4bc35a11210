"""The public API for scripts and notebooks, as `import vmae` hands it out (docs/api.md).

Videos are paths, or arrays of frames `[T, H, W, C]`: uint8, or floating point in [0, 1].
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch

from vmae.core.errors import InputError
from vmae.core.files import write_bytes
from vmae.core.measure.evaluate import evaluate
from vmae.core.measure.films import KINDS, Rows, film, film_rows
from vmae.core.measure.probe import Pooling
from vmae.core.measure.reconstruct import FORMS, Reconstruction, reconstruct
from vmae.core.measure.similarity import token_colours
from vmae.core.model.encoder import VideoModel, all_indices
from vmae.core.model.masking import sample_mask
from vmae.core.model.videomae import VideoMAE
from vmae.core.numerics import autocast, clip_to_video, make_generator, resolve_precision
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.fit import fit, to_channels
from vmae.core.video.loader import build_loader
from vmae.core.video.probe_store import cached_info
from vmae.core.video.reader import read_clip
from vmae.core.video.samples import Sample
from vmae.core.video.sampling import dense_indices
from vmae.core.weights.models import expect_classes, expect_model
from vmae.experiments import jobs, stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.request import held_out_beside, resolve_config
from vmae.experiments.run import default_device
from vmae.experiments.runs import Filter, as_columns, check_columns, list_runs
from vmae.experiments.tracking import Store, store_at
from vmae.experiments.weights import clip_of_init, config_of_model, load_model_at

if TYPE_CHECKING:
    import pandas as pd

    from vmae.core.train.task import Report, TrainResult
    from vmae.core.video.cache import DecodedCache

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

Video = str | os.PathLike[str] | np.ndarray
Videos = Video | Sequence[Video]
Folder = str | os.PathLike[str] | None


def load(
    source: str | os.PathLike[str], *, runs_dir: Folder = None, device: str | torch.device | None = None
) -> Model:
    """A trained model: a run's name, a folder or file of weights, a name of `vmae zoo list`, `hf://org/name`.

    Official `.pth` files and Hugging Face folders are read too. `runs_dir` is where a run's name is looked up
    (`$VMAE_RUNS` or `./runs`), `device` the first GPU or the CPU.

    Raises:
        InputError: no such run or name; the nearest is named.
        CheckpointError: weights that cannot be read, or do not match.
    """
    model, meta, notes = load_model_at(store_at(_folder(runs_dir)), os.fspath(source))
    place = torch.device(device) if device is not None else default_device()
    return Model(
        module=model.to(place).eval(), meta=meta, notes=notes, source=os.fspath(source), device=place
    )


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """What a classifier says of videos."""

    probs: np.ndarray
    """float32 `[M, C]`: softmax, mean over the views."""
    names: list[str]
    """Of the classes; their numbers where the checkpoint has none."""

    def top(self, count: int = 5) -> list[list[tuple[str, float]]]:
        """The most probable classes of each video with their probabilities, the first first."""
        order = np.argsort(-self.probs, axis=1, kind="stable")[:, :count]
        return [[(self.names[c], float(p[c])) for c in row] for p, row in zip(self.probs, order, strict=True)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model to ask; from `load`."""

    module: VideoModel = field(repr=False)
    """The torch module, in evaluation mode on `device`: uint8 `[B, C, T, H, W]` goes in."""
    meta: dict[str, Any] = field(repr=False)
    """What the checkpoint says of its training."""
    notes: tuple[str, ...] = ()
    """What was changed on loading."""
    source: str = ""
    device: torch.device = field(default_factory=default_device)

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of the clips that it sees."""
        c = self.module.config
        return c.frames, c.height, c.width, c.channels

    @torch.no_grad()
    def features(
        self,
        videos: Videos,
        *,
        pooling: Pooling = "mean",
        segments: int = 1,
        crops: int = 1,
        batch_size: int = 8,
        sampling_rate: int | None = None,
    ) -> np.ndarray:
        """Features of the frozen encoder, float32 `[M, D]`, of pre-trained models and classifiers.

        `pooling`: `mean` over all tokens (of a classifier what its head reads), `time` over space with the
        time slots side by side `[M, t*D]`, `tokens` all of them `[M, N, D]`. With several views of a video
        (`segments` clips x `crops`) there is one more axis: `[M, V, D]`.

        Raises:
            InputError: an array that is no clip (see `clip_of`).
            VideoError: a file that cannot be read.
        """
        parts = self._map(videos, self._features(pooling), segments, crops, batch_size, sampling_rate)
        return parts if segments * crops > 1 else parts[:, 0]

    def predict(
        self,
        videos: Videos,
        *,
        segments: int = 1,
        crops: int = 1,
        batch_size: int = 8,
        sampling_rate: int | None = None,
    ) -> Predictions:
        """Class probabilities, softmax averaged over `segments` x `crops` views of each video.

        Raises InputError for a model without classes, else as `features`.
        """
        model = expect_classes(self.module, self.meta, self.source)
        found = np.empty((len(_listed(videos)), model.num_classes), np.float32)
        for index, dataset in self._datasets(videos, segments, crops, sampling_rate, "test"):
            made = evaluate(
                model, dataset, num_classes=model.num_classes, batch_size=batch_size, device=self.device
            )
            found[index] = np.stack([cast("np.ndarray", p.probs) for p in made.predictions])
        named = self.meta.get("labels")
        names = (
            [str(n) for n in named] if isinstance(named, list) else [str(c) for c in range(model.num_classes)]
        )
        return Predictions(probs=found, names=names)

    def reconstruct(
        self,
        video: Video,
        *,
        ratio: float | None = None,
        mask: str = "tube",
        seed: int = 0,
        start: int | None = None,
        sampling_rate: int | None = None,
    ) -> Reconstruction:
        """Hide most of one clip and let the model fill it in (see `Reconstruction`; one clip, so B is 1).

        `ratio` is the share of masked tokens (as trained, else 0.9), `start` the clip's first frame (the
        central clip), `sampling_rate` the stride between frames (the checkpoint's, else 4).

        Raises InputError for a model without a decoder, which predicts no pixels; else as `features`.
        """
        why = "a pre-trained model, whose decoder predicts pixels"
        model = expect_model(self.module, VideoMAE, self.source, wanted=why)
        grid = model.config.grid
        share = float(self.meta.get("mask", {}).get("ratio", 0.9)) if ratio is None else ratio
        drawn = sample_mask(mask, share, grid, 1, make_generator(seed, "picture"))
        frames = self._one_clip(video, start, sampling_rate)
        return reconstruct(
            model, clip_to_video(torch.from_numpy(frames)[None], self.device), drawn.to(self.device)
        )

    def token_colours(
        self, video: Video, *, start: int | None = None, sampling_rate: int | None = None
    ) -> np.ndarray:
        """One clip's tokens by their first three principal components, uint8 `[T, H, W, 3]`.

        See `vmae.core.measure.similarity.token_colours`; the clip is chosen as `reconstruct` does.
        """
        frames = torch.from_numpy(self._one_clip(video, start, sampling_rate))
        found: np.ndarray = token_colours(self.module, clip_to_video(frames[None], self.device))[0]
        return found

    def _one_clip(self, video: Video, start: int | None, sampling_rate: int | None) -> np.ndarray:
        """uint8 `[T, H, W, C]` at the model's size."""
        grid = self.module.grid
        rate = sampling_rate or int(self.meta.get("sampling", {}).get("sampling_rate", 4))
        array = None if _is_path(video) else clip_of(cast("np.ndarray", video))
        info = None if array is not None else cached_info(os.fspath(cast("str", video)))
        count = len(array) if array is not None else cast("Any", info).num_frames
        if start is not None and not 0 <= start < count:
            raise InputError(f"start: expected a frame below {count} (the video's), got {start}")
        if start is not None:
            indices = np.minimum(start + rate * np.arange(grid.frames), count - 1)
        elif array is not None and count == grid.frames:
            indices = np.arange(count)  # a clip, not a video to cut one from
        else:
            indices = dense_indices(count, grid.frames, rate)
        frames = array[indices] if array is not None else read_clip(cast("str", video), indices, info=info)
        return to_channels(fit(frames, grid.height, grid.width), grid.channels)

    def _features(self, pooling: Pooling) -> Callable[[torch.Tensor], torch.Tensor]:
        def run(video: torch.Tensor) -> torch.Tensor:
            if pooling == "mean":
                return self.module.features(video)
            tokens = self.module.encoder(video, all_indices(video, self.module.grid))  # [B, N, D]
            by_time = tokens.unflatten(1, (self.module.grid.t, -1)).mean(2).flatten(1)
            return tokens if pooling == "tokens" else by_time

        return run

    def _map(
        self,
        videos: Videos,
        work: Callable[[torch.Tensor], torch.Tensor],
        segments: int,
        crops: int,
        batch_size: int,
        sampling_rate: int | None,
    ) -> np.ndarray:
        """`work` on every view of every video: float32 `[M, V, ...]`."""
        found: list[np.ndarray] = [np.empty(0)] * len(_listed(videos))
        precision = resolve_precision("auto", self.device)
        for index, dataset in self._datasets(videos, segments, crops, sampling_rate, "test"):
            parts = []
            for batch in build_loader(dataset, batch_size, shuffle=False, drop_last=False):
                with autocast(precision, self.device):
                    parts.append(work(clip_to_video(batch["clip"], self.device)).float().cpu().numpy())
            rows = np.concatenate(parts)
            rows = rows.reshape(len(index), segments * crops, *rows.shape[1:])
            for place, row in zip(index, rows, strict=True):
                found[place] = row
        return np.stack(found)

    def _datasets(
        self,
        videos: Videos,
        segments: int,
        crops: int,
        sampling_rate: int | None,
        mode: Literal["val", "test"],
    ) -> list[tuple[list[int], ClipDataset]]:
        """The files and the arrays among the videos, each with their places."""
        listed = _listed(videos)
        if self.module.config.channels != 3:
            raise InputError(f"expected a model of 3 channels, got one of {self.module.config.channels}")
        data = config_of_model(self.module, self.meta).data
        rate = sampling_rate or data.sampling_rate
        fps = 0.0 if sampling_rate else data.fps
        data = replace(data, sampling_rate=rate, fps=fps, segments=segments, crops=crops, workers=0)
        files = [i for i, v in enumerate(listed) if _is_path(v)]
        arrays = [(i, clip_of(cast("np.ndarray", v))) for i, v in enumerate(listed) if i not in files]
        found = []
        if files:
            samples = [Sample(path=os.fspath(cast("str", listed[i])), label=0) for i in files]
            found.append((files, ClipDataset(samples, data, mode)))
        for place, frames in arrays:
            # A clip of the model's length is taken as it is.
            own = replace(data, fps=0.0, sampling="uniform" if len(frames) == data.frames else data.sampling)
            cache = cast("DecodedCache", _InMemory(frames))
            found.append(([place], ClipDataset([Sample(path="array", label=0)], own, mode, cache=cache)))
        return found


@dataclass(frozen=True)
class _InMemory:
    """An array where decoded files are kept."""

    array: np.ndarray

    def frames(self, path: str) -> np.ndarray:
        return self.array


def clip_of(array: Any) -> np.ndarray:
    """An array of frames as uint8 `[T, H, W, 3]`: uint8, or floating point in [0, 1]; one channel is grey.

    Raises InputError for another shape or type, for values outside [0, 1], and for NaN.
    """
    frames = np.asarray(array)
    if frames.ndim != 4 or 0 in frames.shape or frames.shape[-1] not in (1, 3):
        raise InputError(f"expected a clip [T, H, W, C] with 3 channels (or 1), got the shape {frames.shape}")
    if np.issubdtype(frames.dtype, np.floating):
        low, high = float(frames.min()), float(frames.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise InputError(
                f"expected floating-point frames in [0, 1], got {low:g} to {high:g} (0 to 255 is uint8's)"
            )
        frames = (frames * 255).round().astype(np.uint8)
    if frames.dtype != np.uint8:
        raise InputError(f"expected frames of uint8, or floating point in [0, 1]; got {frames.dtype}")
    return np.ascontiguousarray(frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1))


def _is_path(video: object) -> bool:
    return isinstance(video, str | os.PathLike)


def _listed(videos: Videos) -> list[Video]:
    """One video, a batch `[B, T, H, W, C]` or a sequence of videos as a list."""
    if _is_path(videos):
        return [cast("Video", videos)]
    if hasattr(videos, "ndim") and cast("Any", videos).ndim != 5:
        return [cast("Video", videos)]
    listed = list(cast("Sequence[Video]", videos))
    if not listed:
        raise InputError("expected at least one video, got none")
    return listed


def save_film(
    made: Reconstruction,
    file: str | os.PathLike[str],
    *,
    forms: Sequence[str] = FORMS,
    fps: float = 8.0,
    more: Rows = (),
) -> Path:
    """Write original, masked input, reconstruction (each of `forms`), error and `more` as .png, .gif or .mp4.

    `more`: rows of pictures, each a label and uint8 `[T, H, W, 3]` (`Model.token_colours`).
    """
    path = Path(file)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in KINDS:
        raise InputError(f"expected a name ending in {', '.join(f'.{k}' for k in KINDS)}; got '{path}'")
    rows = film_rows(made, forms[:1] if made.target == "raw" else forms)
    write_bytes(path, film(kind, [*rows, *more], fps))
    return path


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training run."""

    name: str
    """Of the run: what `load`, `init` and every verb take."""
    model_path: Path
    metrics: dict[str, float]
    """The last epoch's; of a pre-training also `eval/loss`, of a fine-tuning `test/*`, or `val/final_*` where
    the list that it is measured on chose the epoch."""
    stopped: bool
    """Whether it was interrupted (Ctrl-C) and can go on with `vmae ... --resume NAME`."""

    def load(self) -> Model:
        """The model; of a fine-tuning the best epoch's."""
        return load(self.model_path)


def pretrain(
    data: str | os.PathLike[str],
    *,
    val: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    budget_s: float | None = None,
    name: str | None = None,
    init: str | None = None,
    settings: Mapping[str, Any] | None = None,
    runs_dir: Folder = None,
    report: Report | None = None,
) -> Trained:
    """Pre-train on the list `data` (paths, with labels or without; `val` beside it by default), as
    `vmae pretrain` does.

    Without a `recipe` it trains as `vmae recommend` says, in about `budget_s` seconds. `settings` are what
    `--set` takes, `{"train.epochs": 3}`; `report(event, facts)` hears of every step.
    Raises InputError for a bad setting or list, VideoError for a held-out video that cannot be read.
    """
    store = store_at(_folder(runs_dir))
    wanted = _config(store, stages.pretrain.STAGE.name, recipe, budget_s, data, val, init, settings)
    config = jobs.named(store, wanted, name)
    outcome = jobs.pretrain_run(config, store, report=report)
    more = {} if outcome.eval_loss is None else {"eval/loss": outcome.eval_loss}
    return _trained(config, outcome.result, more)


def finetune(
    data: str | os.PathLike[str],
    *,
    val: str | os.PathLike[str] | None = None,
    recipe: str | None = None,
    budget_s: float | None = None,
    name: str | None = None,
    init: str | None = None,
    settings: Mapping[str, Any] | None = None,
    runs_dir: Folder = None,
    report: Report | None = None,
) -> Trained:
    """Fine-tune a classifier from `init` (a run, a folder, hf://...; None: fresh weights).

    As `vmae finetune`; arguments and errors as of `pretrain`.
    """
    store = store_at(_folder(runs_dir))
    wanted = _config(store, stages.finetune.STAGE.name, recipe, budget_s, data, val, init, settings)
    config = jobs.named(store, wanted, name)
    outcome = jobs.task_run(config, store, report=report)
    found = outcome.tested
    more = {} if found is None else {f"{found.on.prefix}{k}": v for k, v in found.numbers.items()}
    return _trained(config, outcome.result, more)


def runs(*, runs_dir: Folder = None, where: Sequence[str] = (), kind: str | None = None) -> pd.DataFrame:
    """The runs of a run directory, newest first: one row each, columns `metrics.*`, `params.*`, `tags.*`.

    `where` are conditions as of `vmae runs list --where` ("probe/top1 > 0.3"). Raises InputError for a
    condition on what no run has.
    """
    import pandas as pd

    store = store_at(_folder(runs_dir))
    filters = [Filter.parse(w) for w in where]
    check_columns(store, [f.column for f in filters])
    if kind is not None:
        filters.append(Filter(column="kind", op="=", value=kind))
    columns = as_columns(list_runs(store, where=filters))
    table = pd.DataFrame(columns)
    table.insert(4, "started", pd.to_datetime(table.pop("start_ms"), unit="ms", utc=True))
    ended = pd.to_datetime(table.pop("end_ms"), unit="ms", utc=True)
    table.insert(5, "minutes", (ended - table["started"]).dt.total_seconds() / 60)
    return table


def _config(
    store: Store,
    job: str,
    recipe: str | None,
    budget_s: float | None,
    data: str | os.PathLike[str],
    val: str | os.PathLike[str] | None,
    init: str | None,
    settings: Mapping[str, Any] | None,
) -> ExperimentConfig:
    from vmae.core.config import override
    from vmae.experiments.advice import advise
    from vmae.experiments.recommend import recipe_for

    lists: dict[str, Any] = {"train_csv": Path(data), "val_csv": None if val is None else Path(val)}
    lists["needs_val"] = stages.STAGES[job].labels
    given: dict[str, Any] = {"data_root": None, "size": None, "epochs": None, "assignments": (), "init": init}
    taken = None if init is None else clip_of_init(store, init)[0]
    if recipe is not None:
        if budget_s is not None:
            raise InputError("expected recipe or budget_s, got both")
        config = resolve_config(recipe=recipe, **lists, **given, taken=taken)
    else:
        device = default_device()
        base = recipe_for(job, gpu=device.type == "cuda")  # type: ignore[arg-type]
        start = resolve_config(recipe=None, start=base, **lists, **given, taken=taken)
        advice = advise(
            job,  # type: ignore[arg-type]
            lists["train_csv"],
            held_out_beside(lists["train_csv"], lists["val_csv"], lists["needs_val"]),
            device=device,
            budget_s=budget_s,
            start=start if taken else None,
            annotation_format=(settings or {}).get("data.annotation_format", "auto"),
        )
        config = resolve_config(recipe=None, start=advice.found.config, **lists, **given)
    if config.job != job:
        raise InputError(f"expected a recipe for {job}, got '{recipe}', which is for {config.job}")
    return override(config, dict(settings or {}))


def _trained(config: ExperimentConfig, result: TrainResult, more: dict[str, float]) -> Trained:
    return Trained(
        name=config.name,
        model_path=Path(result.best_model_path or result.model_path),
        metrics={**result.metrics, **more},
        stopped=result.stopped,
    )


def _folder(runs_dir: Folder) -> Path | str | None:
    return None if runs_dir is None else os.fspath(runs_dir)
