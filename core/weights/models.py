"""The models that a checkpoint can hold, by the names they have there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier
from vmae.core.model.detector import VideoDetector
from vmae.core.model.encoder import VideoModel
from vmae.core.model.end_to_end import EndToEndDetector
from vmae.core.model.joint import JointEncoder
from vmae.core.model.videomae import VideoMAE
from vmae.core.weights.claims import require_held

FORMAT = "vmae-1"
M = TypeVar("M", bound=VideoModel)

MODELS: dict[str, type[VideoModel]] = {
    "VideoMAE": VideoMAE,
    "VideoClassifier": VideoClassifier,
    "VideoDetector": VideoDetector,
    "EndToEndDetector": EndToEndDetector,
    "JointEncoder": JointEncoder,
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
    return _kind_of(header).from_description(header)


def build_held(header: dict[str, Any], state: Mapping[str, Tensor], source: str) -> VideoModel:
    """`build_model` of a file's header, which may say anything.

    CheckpointError too where it is no description of a model, or claims more than the file's tensors `state`
    hold (`require_held`).
    """
    kind = _kind_of(header)
    try:
        classes = header.get("num_classes", 0)
        if not isinstance(classes, int) or not isinstance(header["meta"], dict):
            raise TypeError("num_classes or meta of another type")
        if kind.config_class is not None:
            require_held(kind.config_class.from_dict(header["config"]), state, source, classes)
        return kind.from_description(header)
    except (InputError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as e:
        text = (str(e).splitlines() or [""])[0]
        raise CheckpointError(f"{source}: expected the description of a model, got: {text}") from e


def _kind_of(header: dict[str, Any]) -> type[VideoModel]:
    kind = header.get("model")
    if not isinstance(kind, str) or kind not in MODELS:
        raise CheckpointError(f"expected a checkpoint of {' or '.join(MODELS)}, got {kind!r}")
    return MODELS[kind]


def expect_model(model: VideoModel, kind: type[M], where: object, *, wanted: str = "") -> M:
    """`model` as the `kind` that a task needs; InputError names what is at `where` instead."""
    if not isinstance(model, kind):
        raise InputError(f"expected {wanted or kind.title}, got {model.title} at {where}")
    return model


def expect_classes(model: VideoModel, meta: dict[str, Any], where: object) -> VideoClassifier:
    """`model` as a classifier of one class a video; InputError for any other, such as a
    regression's."""
    found = expect_model(model, VideoClassifier, where, wanted="a fine-tuned classifier")
    if "task" in meta:
        raise InputError(
            f"expected a classifier of one class a video, got a model of task {meta['task']} at {where} "
            "(vmae evaluate measures it)"
        )
    return found
