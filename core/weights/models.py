"""The models that a checkpoint can hold, by the names they have there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier
from vmae.core.model.detector import VideoDetector
from vmae.core.model.encoder import VideoModel
from vmae.core.model.videomae import VideoMAE

FORMAT = "vmae-1"
M = TypeVar("M", bound=VideoModel)

MODELS: dict[str, type[VideoModel]] = {
    "VideoMAE": VideoMAE,
    "VideoClassifier": VideoClassifier,
    "VideoDetector": VideoDetector,
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model read from a file of any known format."""

    model: VideoModel
    meta: dict[str, Any] = field(default_factory=dict)
    """JSON values that came with it (labels, results); what there is depends on the source."""
    format: str
    """One of `vmae.core.weights.convert.FORMATS`."""
    notes: tuple[str, ...] = ()
    """What was assumed or changed while reading, one sentence each, to be shown to the user."""


def describe_model(model: VideoModel, meta: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about itself: format, model, configuration, meta.

    Raises CheckpointError for a model that is none of MODELS.
    """
    names = {kind: name for name, kind in MODELS.items()}
    # A sharded model's own class is one that FSDP made.
    name = next((names[c] for c in type(model).__mro__ if c in names), None)
    if name is None:
        raise CheckpointError(f"expected a {' or '.join(MODELS)} to save, got {type(model).__name__}")
    return {"format": FORMAT, "model": name, **model.describe(), "meta": meta}


def build_model(header: dict[str, Any]) -> VideoModel:
    """The model (fresh weights) that a checkpoint's header describes; CheckpointError for an unknown one."""
    kind = header.get("model")
    if kind not in MODELS:
        raise CheckpointError(f"expected a checkpoint of {' or '.join(MODELS)}, got {kind!r}")
    return MODELS[kind].from_description(header)


def expect_model(model: VideoModel, kind: type[M], where: object, *, wanted: str = "") -> M:
    """`model` as the `kind` that a task needs; InputError names what is at `where` instead."""
    if not isinstance(model, kind):
        raise InputError(f"expected {wanted or kind.title}, got {model.title} at {where}")
    return model
