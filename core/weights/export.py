"""Models as graphs for other runtimes: ONNX and torch.export, any number of clips at a time.

The graph takes what a decoder gives, `video` uint8 `[B, T, H, W, C]` (RGB), and holds everything after it:
scaling, normalisation, positions, blocks, head. A classifier's graph gives `logits` [B, classes], a
pre-trained model's `features` [B, D] (the mean of its normed tokens), a detector's takes `boxes` float32
[K, 4] (`x1, y1, x2, y2` in pixels) and `clips` int64 [K] too and gives `scores` [K, classes] after the
sigmoid, an end-to-end detector's gives the people that it finds, `boxes` [B, Q, 4] in shares of the frame
and `scores` [B, Q, classes] (an action's times a person's). How frames are chosen, resized and cropped
before it is JSON in the file (`vmae`).
"""

from __future__ import annotations

import importlib.util
import json
import logging
import math
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vmae.core.errors import CheckpointError, InputError
from vmae.core.files import replacing
from vmae.core.model.classifier import VideoClassifier
from vmae.core.model.detector import Detector, VideoDetector
from vmae.core.model.dropping import key_frame_first
from vmae.core.model.encoder import PretrainedModel, VideoModel, model_input
from vmae.core.model.end_to_end import EndToEndDetector, Guesses
from vmae.core.model.grid import patchify
from vmae.core.model.layers import run_blocks
from vmae.core.model.roi import roi_align_reference
from vmae.kernels import use_kernels

RUNTIMES = ("onnx", "torch-export")
METADATA = "vmae"
"""The key under which a file says what it is."""
TOLERANCE = 1e-4
"""Largest difference of a graph's fp32 outputs from the model's."""


class ClipGraph(nn.Module):
    """A model's inference in operations that every runtime has: whole clips, so nothing is gathered."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: VideoModel) -> None:
        super().__init__()
        self.model = model
        c = model.config
        mean, std = c.mean or (0.0,) * c.channels, c.std or (1.0,) * c.channels
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)

    def tokens(self, video: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] to [B, N, D], final norm applied where the encoder has one."""
        encoder = self.model.encoder
        return encoder.norm(run_blocks(encoder.blocks, self.embedded(video), recompute=False))

    def embedded(self, video: Tensor) -> Tensor:
        """Every token of a clip with its position, [B, N, D], before the blocks."""
        encoder, grid = self.model.encoder, self.model.grid
        whole = model_input(video.permute(0, 4, 1, 2, 3).float() / 255, self.model.config)
        pixels = (patchify(whole, grid).unflatten(2, (-1, grid.channels)) - self.mean) / self.std
        return encoder.patch_embed.proj(pixels.flatten(2)) + encoder.pos_embed


class FeatureGraph(ClipGraph):
    def forward(self, video: Tensor) -> Tensor:
        return self.tokens(video).mean(1)


class ClassifierGraph(ClipGraph):
    model: VideoClassifier

    def forward(self, video: Tensor) -> Tensor:
        tokens, model = self.tokens(video), self.model
        pooled = model.fc_norm(tokens.mean(1)) if model.config.pool == "mean" else tokens[:, 0]
        return model.head(pooled)


class DetectorGraph(ClipGraph):
    model: VideoDetector

    def forward(self, video: Tensor, boxes: Tensor, clips: Tensor) -> Tensor:
        c, grid = self.model.config, self.model.grid
        maps = self.tokens(video).unflatten(1, (grid.t, grid.h, grid.w)).mean(1).permute(0, 3, 1, 2)
        edges = torch.tensor([c.width, c.height, c.width, c.height], dtype=boxes.dtype)
        bins = roi_align_reference(
            maps,
            torch.minimum(boxes.clamp_min(0), edges),
            clips,
            output_size=c.roi_size,
            spatial_scale=1 / c.patch_size,
            sampling_ratio=c.roi_points,
            aligned=c.roi_aligned,
            most_points=_most_points(self.model),
        )
        return self.model.head(bins.amax((2, 3))).sigmoid()


class EndToEndGraph(ClipGraph):
    model: EndToEndDetector

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor]:
        model, grid = self.model, self.model.grid
        order = key_frame_first(grid)
        x = self.embedded(video)[:, order]
        tokens, places = model.encode(x, order.expand(x.shape[0], -1), grid.tokens_per_frame)
        cut = partial(roi_align_reference, most_points=_most_points(model))
        return people_of(model.guess(tokens, places, grid, cut))


def people_of(guesses: Guesses) -> tuple[Tensor, Tensor]:
    """Boxes [B, Q, 4] in shares of the frame, and scores [B, Q, C]: an action's times a person's."""
    return guesses.box, guesses.actions.sigmoid() * guesses.person.sigmoid()[..., None]


def _most_points(model: VideoDetector | EndToEndDetector) -> int:
    """Of a box inside the frame no bin has more sampling points along an axis."""
    c, grid = model.config, model.grid
    return c.roi_points or math.ceil(max(grid.h, grid.w) / c.roi_size)


_GRAPHS: dict[type[VideoModel], tuple[type[ClipGraph], tuple[str, ...]]] = {
    PretrainedModel: (FeatureGraph, ("features",)),
    VideoClassifier: (ClassifierGraph, ("logits",)),
    VideoDetector: (DetectorGraph, ("scores",)),
    EndToEndDetector: (EndToEndGraph, ("boxes", "scores")),
}


def graph_of(model: VideoModel) -> tuple[ClipGraph, tuple[str, ...]]:
    """The graph of a model and the names of its outputs. Raises InputError for a model that has none."""
    for kind, (graph, outputs) in _GRAPHS.items():
        if isinstance(model, kind):
            return graph(model).eval(), outputs
    known = ", ".join(kind.title for kind in _GRAPHS)
    raise InputError(f"expected {known} to export, got {model.title}")


def describe_graph(model: VideoModel, sampling: dict[str, Any], labels: list[str] | None) -> dict[str, Any]:
    """What a graph's file says of itself: inputs, output, and how a video becomes a clip.

    `sampling` says how frames are chosen (`sampling`, and `sampling_rate` or `fps`).
    """
    c, outputs = model.config, graph_of(model)[1]
    inputs: dict[str, dict[str, Any]]
    inputs = {"video": {"dtype": "uint8", "shape": ["B", *_clip_shape(model)], "channels": "RGB"}}
    if isinstance(model, VideoDetector):
        inputs["boxes"] = {"dtype": "float32", "shape": ["K", 4], "order": "x1, y1, x2, y2 in pixels"}
        inputs["clips"] = {"dtype": "int64", "shape": ["K"]}
    return {
        "format": "vmae-graph-1",
        "model": model.title.split(maxsplit=1)[1],
        "input": inputs,
        "output": outputs[0] if len(outputs) == 1 else list(outputs),
        "preprocessing": {
            "frames": c.frames,
            **sampling,
            "resize": f"bilinear, aspect ratio kept, shorter side to {min(c.height, c.width)}",
            "crop": [c.height, c.width],
            "crop_place": "centre",
            **({"key_frame": c.frames // 2} if isinstance(model, Detector) else {}),
        },
        "inside": {"scale": 1 / 255, "mean": list(c.mean or ()), "std": list(c.std or ())},
        **({"labels": labels} if labels else {}),
    }


def export_graph(path: Path, model: VideoModel, to: str, facts: dict[str, Any]) -> None:
    """Write `model` as `to` (one of RUNTIMES), with `facts` (JSON values) inside; whole or not at all.

    Raises InputError where ONNX's packages are absent (the extra `export`), CheckpointError for a model in
    other than float32.
    """
    if to not in RUNTIMES:
        raise InputError(f"expected a runtime among {', '.join(RUNTIMES)}; got {to!r}")
    if to == "onnx":
        require_onnx("onnx", "onnxscript")
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes != {torch.float32}:
        raise CheckpointError(f"expected a model of float32 to export, got {', '.join(map(str, dtypes))}")
    graph, outputs = graph_of(model)
    example = example_inputs(model, 2)
    batch, people = torch.export.Dim("B"), torch.export.Dim("K")
    dynamic = {k: {0: batch if k == "video" else people} for k in example}
    text = json.dumps(facts)
    with torch.no_grad(), use_kernels("torch"), _quiet():
        program = torch.export.export(graph, (), example, dynamic_shapes=dynamic)
        with replacing(path) as temporary:
            if to == "torch-export":
                torch.export.save(program, temporary, extra_files={METADATA: text})
                return
            made = torch.onnx.export(
                program,
                (),
                kwargs=example,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=list(example),
                output_names=list(outputs),
                verbose=False,
            )
            assert made is not None  # with dynamo there is one
            made.model.metadata_props[METADATA] = text
            made.save(temporary)


def example_inputs(model: VideoModel, clips: int) -> dict[str, Tensor]:
    """Random clips (and, for a detector, three boxes in each) as the model's graph takes them."""
    generator = torch.Generator().manual_seed(0)
    shape = (clips, *_clip_shape(model))
    inputs = {"video": torch.randint(256, shape, dtype=torch.uint8, generator=generator)}
    if isinstance(model, VideoDetector):
        size = torch.tensor([model.config.width, model.config.height])
        corner = torch.rand(3 * clips, 2, generator=generator) * 0.6
        far = corner + 0.1 + torch.rand(3 * clips, 2, generator=generator) * 0.3
        inputs["boxes"] = torch.cat((corner * size, far * size), 1)
        inputs["clips"] = torch.arange(3 * clips) % clips
    return inputs


def run_graph(path: Path, to: str, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """The outputs of an exported file, by onnxruntime or torch.export's module, on the CPU.

    Raises InputError where onnxruntime is absent.
    """
    if to == "onnx":
        require_onnx("onnxruntime")
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        found: list[np.ndarray] = session.run(None, {k: v.numpy() for k, v in inputs.items()})
        return found
    with torch.no_grad(), _quiet():
        out: Tensor | tuple[Tensor, ...] = torch.export.load(path).module()(**inputs)
    return [x.numpy() for x in (out if isinstance(out, tuple) else (out,))]


def run_model(model: VideoModel, inputs: dict[str, Tensor]) -> list[np.ndarray]:
    """What the model itself gives for a graph's inputs, an array an output."""
    video = inputs["video"].permute(0, 4, 1, 2, 3)
    model.eval()
    out: tuple[Tensor, ...]
    with torch.no_grad():
        if isinstance(model, VideoDetector):
            out = (model(video, inputs["boxes"], inputs["clips"]).sigmoid(),)
        elif isinstance(model, EndToEndDetector):
            out = people_of(model(video))
        else:
            out = (model.features(video) if isinstance(model, PretrainedModel) else model(video),)
    return [x.numpy() for x in out]


def compare(path: Path, to: str, model: VideoModel, inputs: dict[str, Tensor]) -> tuple[str, float | None]:
    """What ran the exported `path` (with its version), and its largest difference from `model` on `inputs`.

    The difference is None where the program is not installed (transformers). One above TOLERANCE is a
    CheckpointError, and what was written is removed.
    """
    if to == "hf":
        if importlib.util.find_spec("transformers") is None:
            return "transformers", None
        import transformers

        runner, got = f"transformers {transformers.__version__}", [run_hf(path, model, inputs)]
    else:
        got = run_graph(path, to, inputs)
        runner = "torch.export" if to == "torch-export" else f"onnxruntime {version('onnxruntime')}"
    expected = run_model(model, inputs)
    apart = max(float(np.abs(a - b).max()) for a, b in zip(got, expected, strict=True))
    if not apart <= TOLERANCE:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise CheckpointError(
            f"{path}: expected {runner} to come within {TOLERANCE:g}, got {apart:g}; removed"
        )
    return runner, apart


def run_hf(folder: Path, model: VideoModel, inputs: dict[str, Tensor]) -> np.ndarray:
    """The logits, or the mean of the normed tokens, that the installed transformers gives for the clips."""
    import transformers

    c = model.config
    pixels = inputs["video"].permute(0, 1, 4, 2, 3).float() / 255  # [B, T, C, H, W]
    if c.mean is not None and c.std is not None:
        pixels = (pixels - torch.tensor(c.mean)[:, None, None]) / torch.tensor(c.std)[:, None, None]
    classifier = isinstance(model, VideoClassifier)
    kind = "VideoMAEForVideoClassification" if classifier else "VideoMAEForPreTraining"
    with _quiet(), torch.no_grad():
        other = getattr(transformers, kind).from_pretrained(folder).eval()
        out: Tensor = other(pixels).logits if classifier else other.videomae(pixels).last_hidden_state.mean(1)
    return out.numpy()


def require_onnx(*packages: str) -> None:
    """Raise InputError where a package of the extra `export` is not installed."""
    absent = [p for p in packages if importlib.util.find_spec(p) is None]
    if absent:
        raise InputError(f"expected {' and '.join(absent)}, not installed here: pip install 'vmae[export]'")


def _clip_shape(model: VideoModel) -> tuple[int, int, int, int]:
    c = model.config
    return c.frames, c.height, c.width, c.channels


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on packages that are not there, names of files, their own deprecations."""
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.export.pt2_archive")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
