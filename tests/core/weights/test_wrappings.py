"""Checkpoints as other programs, other versions of Python and numpy, and other precisions leave them."""

from __future__ import annotations

import argparse
import collections
import pathlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vmae.core.errors import CheckpointError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import VideoModel
from vmae.core.model.layers import sincos_pos_embed
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.convert import read_model
from vmae.core.weights.foreign import load_pickle
from vmae.core.weights.official import to_official

CLIP: dict[str, Any] = {"frames": 4, "height": 16, "width": 16}
SIZE: dict[str, Any] = {**CLIP, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}


def pretrained() -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(VideoMAEConfig.from_size("tiny", **SIZE, decoder_embed_dim=16))


def classifier() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(VideoClassifierConfig.from_size("tiny", **SIZE), 5)


def read(path: Path, content: Any, *, decoder: bool = True) -> VideoModel:
    torch.save(content, path)
    return read_model(path, num_heads=4, **({"decoder_num_heads": 2} if decoder else {}), **CLIP).model


def same(one: VideoModel, other: VideoModel) -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for key, value in mine.items():
        assert torch.equal(value.float(), theirs[key].float()), key


def rewritten(source: Path, target: Path, old: bytes, new: bytes) -> Path:
    """A file as another version would have written it: it differs in a name in its pickle."""
    with zipfile.ZipFile(source) as a, zipfile.ZipFile(target, "w") as b:
        for entry in a.infolist():
            data = a.read(entry)
            assert not entry.filename.endswith("data.pkl") or old in data
            b.writestr(entry, data.replace(old, new) if entry.filename.endswith("data.pkl") else data)
    return target


@pytest.mark.parametrize("code", "?bhilqBHILQefdgFD")
def test_numpy_scalars_and_arrays_of_both_numpys(tmp_path: Path, code: str) -> None:
    scalar, array = np.dtype(code).type(1), np.arange(3).astype(code)
    torch.save({"x": scalar, "y": [array]}, tmp_path / "now.pth")
    there, here = (b"numpy.core", b"numpy._core")
    if b"numpy._core" not in zipfile.ZipFile(tmp_path / "now.pth").read("now/data.pkl"):
        there, here = here, there
    other = rewritten(tmp_path / "now.pth", tmp_path / "other.pth", here + b".multi", there + b".multi")
    for path in (tmp_path / "now.pth", other):
        found = load_pickle(path)
        assert found["x"] == scalar and found["x"].dtype == scalar.dtype
        assert found["y"][0].dtype == array.dtype and (found["y"][0] == array).all()


def test_texts_and_random_states_of_numpy(tmp_path: Path) -> None:
    content = {"rng": np.random.RandomState(3).get_state(), "name": np.str_("x"), "none": np.array([])}
    torch.save(content, tmp_path / "c.pth")
    found = load_pickle(tmp_path / "c.pth")
    assert found["name"] == "x" and (found["rng"][1] == content["rng"][1]).all()


def test_paths_of_every_python(tmp_path: Path) -> None:
    own = type(pathlib.Path()).__module__.encode()
    torch.save({"args": argparse.Namespace(out=pathlib.Path("/a/b"))}, tmp_path / "now.pth")
    for module in (b"pathlib", b"pathlib._local"):
        for name in (b"PosixPath", b"WindowsPath", b"PureWindowsPath"):
            old, new = b"c" + own + b"\nPosixPath\n", b"c" + module + b"\n" + name + b"\n"
            other = rewritten(tmp_path / "now.pth", tmp_path / "other.pth", old, new)
            assert load_pickle(other)["args"].out.parts[1:] == ("a", "b")


@pytest.mark.parametrize("wrap", ["model", "module", "state_dict", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix", ["", "model.", "net.backbone.", "module.", "_orig_mod.", "_fsdp_wrapped_module.", "encoder."]
)
def test_wrappings_of_other_trainers(tmp_path: Path, wrap: str, prefix: str) -> None:
    for model in (pretrained(), classifier()):
        state = {f"{prefix}{k}": v for k, v in to_official(model)[0].items()}
        content = {wrap: state, "epoch": 3, "hyper_parameters": {"lr": 0.1}, "callbacks": {}}
        same(read(tmp_path / "c.pth", content, decoder=isinstance(model, VideoMAE)), model)


def test_wrappers_between_names(tmp_path: Path) -> None:
    """FSDP wraps every block, activation checkpointing inside it, DDP and torch.compile around all."""
    inner = ".blocks.0._fsdp_wrapped_module._checkpoint_wrapped_module."
    state = {
        f"module._orig_mod.module.{k.replace('.blocks.0.', inner)}": v
        for k, v in to_official(pretrained())[0].items()
    }
    same(read(tmp_path / "c.pth", {"state_dict": {"model": state}}), pretrained())


def test_two_models_in_one_file_are_told(tmp_path: Path) -> None:
    state = to_official(pretrained())[0]
    both = {f"{p}.{k}": v for p in ("student", "teacher") for k, v in state.items()}
    with pytest.raises(CheckpointError, match=r"expected one model, got 2 \(under 'student.', 'teacher.'\)"):
        read(tmp_path / "c.pth", {"state_dict": both})


def of_mmaction(model: VideoClassifier, positions: Tensor) -> dict[str, Any]:
    """A file of mmaction2's `Recognizer3D` with its `VisionTransformer` (`vit_mae.py`) and a linear head."""
    state = {"backbone.pos_embed": positions}
    for key, value in to_official(model)[0].items():
        name = key.replace("patch_embed.proj.", "patch_embed.projection.")
        name = name.replace("mlp.fc1.", "mlp.layers.0.0.").replace("mlp.fc2.", "mlp.layers.1.")
        state[f"cls_head.fc_cls.{name[5:]}" if name.startswith("head.") else f"backbone.{name}"] = value
    return {"meta": {"epoch": 3, "CLASSES": None}, "state_dict": state}


def test_names_of_mmaction2(tmp_path: Path) -> None:
    model = classifier()
    content = of_mmaction(model, sincos_pos_embed(8, 32)[None])
    same(read(tmp_path / "c.pth", content, decoder=False), model)
    with pytest.raises(
        CheckpointError, match=r"expected the fixed sinusoids .*got other positions \[1, 8, 32\]"
    ):
        read(tmp_path / "c.pth", of_mmaction(model, torch.zeros(1, 8, 32)), decoder=False)


@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_mixed_precision_keeps_every_value(tmp_path: Path, narrow: torch.dtype) -> None:
    """Matrices narrow, norms and biases wide: all are held in the wider one, bit for bit the same values."""
    state = {k: v.to(narrow) if v.dim() > 1 else v for k, v in to_official(pretrained())[0].items()}
    model = read(tmp_path / "c.pth", {"module": state})
    found = to_official(model)[0]
    assert {v.dtype for v in found.values()} == {torch.float32}
    assert all(torch.equal(found[k], v.float()) for k, v in state.items())


def test_two_halves_are_held_in_single_precision(tmp_path: Path) -> None:
    state = {
        k: v.to(torch.bfloat16 if v.dim() > 1 else torch.float16)
        for k, v in to_official(pretrained())[0].items()
    }
    assert next(read(tmp_path / "c.pth", {"model": state}).parameters()).dtype == torch.float32
    halves = {k: v.half() for k, v in state.items()}
    assert next(read(tmp_path / "c.pth", {"model": halves}).parameters()).dtype == torch.float16


def test_integer_weights_are_named(tmp_path: Path) -> None:
    state = to_official(pretrained())[0]
    state["encoder.norm.bias"] = state["encoder.norm.bias"].to(torch.int8)
    with pytest.raises(CheckpointError, match=r"floating-point tensors, got encoder.norm.bias of torch.int8"):
        read(tmp_path / "c.pth", {"model": state})


class Config:
    """A class of a training script."""


def test_a_refusal_names_what_it_met(tmp_path: Path) -> None:
    torch.save({"model": {}, "cfg": Config()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"asks for [\w.]*test_wrappings.Config, and unpickling"):
        load_pickle(tmp_path / "c.pth")
    torch.save({"model": {}, "x": np.array([None])}, tmp_path / "o.pth")
    with pytest.raises(CheckpointError, match=r"asks for numpy\.dtypes\.ObjectDType"):
        load_pickle(tmp_path / "o.pth")
    torch.save({"model": {}, "x": collections.deque([1])}, tmp_path / "d.pth")
    with pytest.raises(CheckpointError, match=r"asks for collections\.deque"):
        load_pickle(tmp_path / "d.pth")


def test_an_array_that_claims_a_petabyte(tmp_path: Path) -> None:
    torch.save({"x": np.zeros(3)}, tmp_path / "c.pth")
    huge = (2**50).to_bytes(7, "little")
    path = rewritten(tmp_path / "c.pth", tmp_path / "h.pth", b"K\x00\x85", b"\x8a\x07" + huge + b"\x85")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_pickle(path)
