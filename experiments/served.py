"""What a registered model does with what it is asked: paths, bytes or base64 of videos to answers.

MLflow's server hands over the JSON of a request; `vmae.experiments.pyfunc_model` is the door, this the house.
"""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vmae.core.errors import InputError, VideoError
from vmae.core.measure.detect import detect
from vmae.core.measure.evaluate import evaluate
from vmae.core.measure.heads import predict_videos
from vmae.core.measure.probe import extract_features
from vmae.core.model.classifier import VideoClassifier
from vmae.core.model.detector import Detector, VideoDetector
from vmae.core.model.encoder import VideoModel
from vmae.core.model.end_to_end import EndToEndDetector
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.probe_store import cached_info
from vmae.core.video.samples import PersonBox, Sample
from vmae.core.video.whole import WholeFrames

MAX_MIB = 64.0
"""Of a video that comes in a request (`model_config={"max_mib": ...}`)."""
_SHOWN = 60


class Answering:
    """A model with what belongs to it: how clips are cut, the names of its classes, the limit on requests."""

    def __init__(
        self,
        model: VideoModel,
        meta: dict[str, Any],
        data: DataConfig,
        names: list[str] | None,
        *,
        device: str,
        max_mib: float = MAX_MIB,
    ) -> None:
        self.model, self.meta, self.data, self.names = model, meta, data, names
        self.device, self.max_mib = device, max_mib

    def answer(self, asked: Sequence[Any]) -> list[dict[str, Any]]:
        """A row for each item, in their order; `path` is the path given, or `input 0` of a video sent along.

        An item is a path, the bytes of a video, or them as base64 (also as a data URL). A detector's is
        `{"video": one of these, "time_s": second, "boxes": [[x1, y1, x2, y2], ...]}`, boxes in shares of the
        frame; an end-to-end one's has no `boxes`. A pre-trained model gives `features` (mean over tokens), a
        classifier `label`, `name`, `probability` and `probabilities`, a regression `values`, a multi-label
        model `probabilities`, a detector for each of its `people` the `box` and the `scores` of every action.

        Raises InputError for what is none of these, is too large, or is no video that can be read.
        """
        if isinstance(self.model, Detector):
            return self._detected(asked)
        with self._videos(asked) as (paths, names):
            samples = [Sample(path=p, label=0) for p in paths]
            rows = self._rows(samples)
            return [{"path": name, **row} for name, row in zip(names, rows, strict=True)]

    def _rows(self, samples: list[Sample]) -> list[dict[str, Any]]:
        if not isinstance(self.model, VideoClassifier):
            found = extract_features(
                self.model, ClipDataset(samples, self.data, "val"), batch_size=8, device=self.device
            )
            return [{"features": x.tolist()} for x in found.x]
        dataset = ClipDataset(samples, self.data, "test")
        task = self.meta.get("task")
        if task is not None:
            table = predict_videos(
                self.model, dataset, kind=task, scale=self.meta.get("scale"), batch_size=1, device=self.device
            )
            word = "values" if task == "regression" else "probabilities"
            return [{word: self._named(row.tolist())} for row in table]
        result = evaluate(
            self.model, dataset, num_classes=self.model.num_classes, batch_size=1, device=self.device
        )
        rows = []
        for p in result.predictions:
            assert p.probs is not None
            label = int(p.probs.argmax())
            row: dict[str, Any] = {"label": label, "probability": float(p.probs[label])}
            if self.names is not None:
                row["name"] = self.names[label]
            rows.append({**row, "probabilities": p.probs.tolist()})
        return rows

    def _named(self, values: list[float]) -> Any:
        return values if self.names is None else dict(zip(self.names, values, strict=False))

    def _detected(self, asked: Sequence[Any]) -> list[dict[str, Any]]:
        assert isinstance(self.model, VideoDetector | EndToEndDetector)
        alone = isinstance(self.model, EndToEndDetector)
        wanted = [_key_frame(item, k, alone=alone) for k, item in enumerate(asked)]
        with self._videos([w[0] for w in wanted]) as (paths, names):
            samples = [
                Sample(
                    path=path,
                    label=-1,
                    time_s=time_s,
                    boxes=tuple(PersonBox(box=b, actions=(), person=i) for i, b in enumerate(boxes)),
                )
                for path, (_, time_s, boxes) in zip(paths, wanted, strict=True)
            ]
            whole = WholeFrames(samples, self.data, multiple=self.model.config.patch_size)
            found = detect(self.model, whole, device=self.device)
        rows = []
        for k, name in enumerate(names):
            people = [
                {"box": found.box[i].tolist(), "scores": self._named(found.scores[i].tolist())}
                for i in np.flatnonzero(found.frame == k)
            ]
            rows.append({"path": name, "time_s": samples[k].time_s, "people": people})
        return rows

    @contextmanager
    def _videos(self, asked: Sequence[Any]) -> Iterator[tuple[list[str], list[str]]]:
        """Paths of the videos and what the answer calls them; those sent along are files meanwhile."""
        with tempfile.TemporaryDirectory(prefix="vmae-asked-") as folder:
            paths, names = [], []
            for k, item in enumerate(asked):
                content = self._content(item, k)
                names.append(f"input {k}" if content is not None else str(item))
                paths.append(str(item) if content is None else str(Path(folder) / f"{k}.mp4"))
                if content is not None:
                    Path(paths[-1]).write_bytes(content)
                _require_video(paths[-1], names[-1])
            try:
                yield paths, names
            except VideoError as e:
                called = dict(zip(paths, names, strict=True)).get(e.path, e.path)
                raise InputError(
                    f"{called}: expected a video that can be read, got {e.reason}: {e.detail}"
                ) from e

    def _content(self, item: Any, number: int) -> bytes | None:
        """The bytes of a video that is sent along; None of a path."""
        if isinstance(item, bytes | bytearray):
            self._fits(len(item), number)
            return bytes(item)
        if not isinstance(item, str) or not item:
            got = type(item).__name__
            raise InputError(f"input {number}: expected the path of a video, its bytes or base64, got {got}")
        text = item.partition("base64,")[2] if item.startswith("data:") else item
        if text is item and (len(item) < 4096 and (os.path.exists(item) or not _is_base64(item))):
            return None
        self._fits(len(text) * 3 // 4, number)
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InputError(
                f"input {number}: expected the path of a video or base64, got '{item[:_SHOWN]}...'"
            ) from None

    def _fits(self, size: int, number: int) -> None:
        if size > self.max_mib * 2**20:
            got = f"{size / 2**20:.1f} MiB"
            raise InputError(f"input {number}: expected a video of at most {self.max_mib:g} MiB, got {got}")


def _is_base64(text: str) -> bool:
    """Whether a text that names no file can only be meant as one: long, and of base64's letters alone."""
    try:
        return len(text) >= 64 and bool(base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        return False


def _require_video(path: str, name: str) -> None:
    try:
        cached_info(path)
    except VideoError as e:
        raise InputError(f"{name}: expected a video that can be read, got {e.reason}: {e.detail}") from e


def _key_frame(
    item: Any, number: int, *, alone: bool
) -> tuple[Any, float, list[tuple[float, float, float, float]]]:
    """The video, the second and the boxes that a detector is asked about; none of one that finds them."""
    where = f"input {number}"
    if alone and (not isinstance(item, dict) or set(item) != {"video", "time_s"}):
        raise InputError(f"{where}: expected video and time_s and no more (this detector finds its people)")
    if not alone and (not isinstance(item, dict) or not {"video", "time_s", "boxes"} <= set(item)):
        raise InputError(f"{where}: expected video, time_s and boxes (a detector names no people by itself)")
    try:
        time_s = float(item["time_s"])
        boxes = np.asarray(item.get("boxes", []), np.float64).reshape(-1, 4)
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: expected numbers in time_s and in boxes [[x1, y1, x2, y2], ...]"
        ) from None
    fits = np.isfinite(boxes).all() and (boxes >= 0).all() and (boxes <= 1).all()
    if bool(len(boxes)) == alone or not fits or not (boxes[:, 2:] > boxes[:, :2]).all():
        raise InputError(
            f"{where}: expected boxes 0 <= x1 < x2 <= 1, 0 <= y1 < y2 <= 1 in shares of the frame"
        )
    return item["video"], time_s, [(x1, y1, x2, y2) for x1, y1, x2, y2 in boxes.tolist()]
