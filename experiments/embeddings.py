"""A model as the public video-embedding benchmark takes it (mteb, arXiv 2606.14958; the extra `mteb`).

`mteb.evaluate(embedder(store, "RUN"), tasks)` runs mteb's own tasks, data and measures. Frames are chosen by
mteb's code, as many as the model takes and evenly spaced over the video, as its own VideoMAE does it; they
are resized and cropped by ours (short side, central crop), and the model normalises them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmae.core.errors import InputError
from vmae.core.model.encoder import VideoModel
from vmae.core.numerics import autocast, clip_to_video, resolve_precision
from vmae.core.video import augment
from vmae.experiments.run import default_device
from vmae.experiments.tracking import Store
from vmae.experiments.windowed import load_for_windows


class Embedder:
    """mteb's `EncoderProtocol`: a feature [D] of each video, what `vmae features` gives of a clip."""

    def __init__(self, model: VideoModel, name: str, revision: str, *, device: str, precision: str) -> None:
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        self._model, self._device = model.to(device).eval(), torch.device(device)
        self._precision = resolve_precision(precision, self._device)
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": name,
                "revision": revision,
                "modalities": ["video"],
                "embed_dim": model.config.embed_dim,
                "n_parameters": sum(p.numel() for p in model.parameters()),
                "framework": ["PyTorch"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": False,
            }
        )

    @torch.no_grad()
    def encode(self, inputs: Any, *, task_metadata: Any, **more: Any) -> np.ndarray:
        """Features float32 [N, D] of mteb's loader of videos.

        Raises InputError for a task of anything but videos.
        """
        _require_videos(task_metadata)
        inputs.collate_fn = self._clips
        rows = []
        for clips in inputs:
            with autocast(self._precision, self._device):
                found = self._model.features(clip_to_video(clips, self._device))
            rows.append(found.float().cpu().numpy())
        return np.concatenate(rows)

    def _clips(self, rows: Sequence[dict[str, Any]]) -> torch.Tensor:
        """uint8 [B, T, H, W, C]."""
        from mteb.models.modality_collators import FramesCollator

        c = self._model.config
        out = np.empty((len(rows), c.frames, c.height, c.width, c.channels), np.uint8)
        for row, clip in zip(rows, out, strict=True):
            frames = FramesCollator.resample_video(row["video"], num_frames=c.frames)
            pixels = frames.permute(0, 2, 3, 1).numpy()  # [T, h, w, C]
            if len(pixels) < c.frames:  # the last frames could not be decoded
                pixels = pixels[np.minimum(np.arange(c.frames), len(pixels) - 1)]
            height, width = pixels.shape[1:3]
            (box,) = augment.view_boxes(height, width, 1, c.width / c.height)
            augment.crop_resize(np.ascontiguousarray(pixels), box, clip)
        return torch.from_numpy(out)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of every pair."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosine of each pair."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def embedder(store: Store, source: str, *, precision: str = "auto") -> Embedder:
    """A run's model, a path, a zoo name or hf://org/name for mteb; its revision is the weights' digest.

    Raises InputError where mteb is absent, or for a model that has no feature of a whole clip.
    """
    require_mteb()
    model, _, weights, _ = load_for_windows(store, source)
    name = f"vmae/{Path(source).name}"
    return Embedder(model, name, weights[:12], device=str(default_device()), precision=precision)


def named_tasks(names: Sequence[str]) -> list[Any]:
    """mteb's tasks of these names; InputError for an unknown one, or one on more than videos."""
    require_mteb()
    import mteb

    tasks = []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError as e:
            hint = str(e).partition("not found")[2].strip("'\" .")
            raise InputError(f"expected one of mteb's tasks on videos, got '{name}'. {hint}") from e
        _require_videos(tasks[-1].metadata)
    return tasks


def measure(
    store: Store, source: str, tasks: Sequence[Any], out: Path, *, batch_size: int = 8
) -> dict[str, float]:
    """The main score of a model on each of mteb's `tasks`, by name; InputError as `embedder`.

    mteb's result files lie under `out`, and a task that has one there is not run again.
    """
    model = embedder(store, source)
    import mteb

    cache = mteb.ResultCache(cache_path=out)
    found = mteb.evaluate(model, tasks, cache=cache, encode_kwargs={"batch_size": batch_size})
    return {r.task_name: float(r.get_score()) for r in found.task_results}


def _require_videos(metadata: Any) -> None:
    if list(metadata.modalities) != ["video"]:
        got = ", ".join(metadata.modalities)
        raise InputError(f"{metadata.name}: expected a task on videos alone, got one on {got}")


def require_mteb() -> None:
    """Raise InputError where the extra `mteb` is not installed."""
    absent = [p for p in ("mteb", "torchcodec") if importlib.util.find_spec(p) is None]
    if absent:
        raise InputError(f"expected {' and '.join(absent)}, not installed here: pip install 'vmae[mteb]'")
