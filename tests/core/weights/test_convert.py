"""Checkpoints of every known format, both ways, and those that must be refused."""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import VideoModel
from vmae.core.model.masking import sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.weights.checkpoint import load_model, save_model
from vmae.core.weights.convert import read_model, write_model
from vmae.core.weights.foreign import load_pickle
from vmae.core.weights.models import Loaded
from vmae.core.weights.official import to_official

SIZE: dict[str, Any] = {
    "frames": 4,
    "height": 16,
    "width": 24,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 4,
}
HEADS = {"num_heads": 4, "decoder_num_heads": 2}
CLIP = {"frames": 4, "height": 16, "width": 24}


def perturb(model: torch.nn.Module) -> None:
    """Move biases, norms and the mask token off 0 and 1, so that a swapped one shows."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def pretrain(**overrides: Any) -> VideoMAE:
    torch.manual_seed(0)
    model = VideoMAE(VideoMAEConfig.from_size("tiny", **(SIZE | {"decoder_embed_dim": 16} | overrides)))
    perturb(model)
    return model


def classifier(**overrides: Any) -> VideoClassifier:
    torch.manual_seed(0)
    model = VideoClassifier(VideoClassifierConfig.from_size("tiny", **(SIZE | overrides)), 5)
    perturb(model)
    return model


BUILD: dict[str, Callable[..., VideoModel]] = {"pretrain": pretrain, "classifier": classifier}


def clip() -> Tensor:
    return torch.rand(2, 3, 4, 16, 24, generator=torch.Generator().manual_seed(5))


def same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    left, right = a.state_dict(), b.state_dict()
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
    assert a.config == b.config


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize(("to", "layout"), [("official", "v4"), ("hf", "v4"), ("hf", "v5"), ("vmae", "v4")])
def test_written_and_read_back_bit_for_bit(tmp_path: Path, kind: str, to: str, layout: str) -> None:
    # Hugging Face fixes the head norm's eps; any other value is noted and cannot come back.
    model = BUILD[kind](head_norm_eps=1e-5)
    notes = write_model(tmp_path / "out", model, to, {"labels": list("abcde")}, hf_layout=layout)
    assert bool(notes) == (to == "official")
    loaded = read_model(tmp_path / "out")
    same(model, loaded.model)
    assert loaded.format == to
    if kind == "classifier":
        assert loaded.meta["labels"] == list("abcde")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["folder", "one.safetensors"])
def test_our_format_keeps_dtype_meta_and_every_bit(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    model = pretrain(pos_grid=(2, 4, 6), drop_path=0.1).to(dtype)
    save_model(tmp_path / name, model, {"epoch": 3, "labels": ["ä"]})
    loaded, meta = load_model(tmp_path / name)
    same(model, loaded)
    assert next(loaded.parameters()).dtype == dtype
    assert meta == {"epoch": 3, "labels": ["ä"]}


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("outer", ["model", "module", None])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_official_files_with_their_wrappings(
    tmp_path: Path, kind: str, outer: str | None, prefix: str
) -> None:
    model = BUILD[kind]()
    state = {prefix + k: v for k, v in to_official(model)[0].items()}
    args = argparse.Namespace(input_size=224, num_frames=4, lr=1e-3, normlize_target=True)
    file = tmp_path / "checkpoint-799.pth"
    torch.save({outer: state, "epoch": 799, "args": args} if outer else state, file)
    heads = HEADS if kind == "pretrain" else {"num_heads": 4}
    loaded = read_model(file, **CLIP, **heads)
    same(model, loaded.model)
    if outer:
        assert loaded.meta == {"epoch": 799}


def test_official_args_fill_in_and_assumptions_are_told(tmp_path: Path) -> None:
    model = pretrain(height=24)
    state = to_official(model)[0]
    file = tmp_path / "c.pth"
    args = argparse.Namespace(input_size=24, num_frames=4, normlize_target=False)
    torch.save({"model": state, "args": args}, file)
    loaded = read_model(file, **HEADS)
    assert loaded.model.config.grid == model.config.grid and loaded.notes == ()
    assert loaded.model.config.target == "raw"
    torch.save({"model": state}, file)
    loaded = read_model(file, frames=4, **HEADS)
    assert loaded.model.config.height == 224
    assert "assumed height 224, width 224" in loaded.notes[0]


def test_heads_are_never_guessed(tmp_path: Path) -> None:
    file = tmp_path / "c.pth"
    torch.save({"model": to_official(pretrain())[0]}, file)
    with pytest.raises(CheckpointError, match="--num-heads"):
        read_model(file)
    with pytest.raises(CheckpointError, match="--decoder-num-heads"):
        read_model(file, num_heads=4)


def test_published_widths_need_no_heads(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = VideoMAE(VideoMAEConfig.from_size("small"))
    state = {k: torch.zeros(v.shape) for k, v in to_official(model.to_empty(device="cpu"))[0].items()}
    torch.save({"model": state}, tmp_path / "small.pth")
    config = read_model(tmp_path / "small.pth").model.config
    assert config == VideoMAEConfig.from_size("small")


def test_unmatched_keys_are_listed_on_both_sides(tmp_path: Path) -> None:
    state = to_official(classifier())[0]
    state["blocks.0.attn.k_bias"] = state.pop("blocks.1.attn.q_bias")
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError) as e:
        read_model(tmp_path / "c.pth", num_heads=4, **CLIP)
    assert "missing in the file: blocks.1.attn.q_bias" in str(e.value)
    assert "unknown to the model: blocks.0.attn.k_bias" in str(e.value)


def test_wrong_shapes_are_told(tmp_path: Path) -> None:
    state = to_official(classifier())[0]
    state["blocks.1.mlp.fc2.bias"] = torch.zeros(7)
    torch.save({"model": state}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"encoder.blocks.1.mlp.fc2.bias: expected \[32\], got \[7\]"):
        read_model(tmp_path / "c.pth", num_heads=4, **CLIP)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(3, 4).state_dict()}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"not a VideoMAE checkpoint: .*got keys bias, weight"):
        read_model(tmp_path / "c.pth")
    torch.save(torch.zeros(3), tmp_path / "t.pth")
    with pytest.raises(CheckpointError, match="expected a dict with 'model' or 'module', got Tensor"):
        read_model(tmp_path / "t.pth")
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match=r"expected model_type videomae .*got 'bert'"):
        read_model(folder)


class _Payload:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_asks_for_more_is_refused_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {"model": to_official(classifier())[0], "args": _Payload()}
    torch.save(state, tmp_path / "evil.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"refused: its pickle asks for \w+\.system"):
        read_model(tmp_path / "evil.pth")
    assert not (tmp_path / "pwned").exists()
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(_Payload(), protocol=2))
    with pytest.raises(CheckpointError):
        load_pickle(tmp_path / "raw.pth")
    assert not (tmp_path / "pwned").exists()


def test_harmless_extras_are_allowed(tmp_path: Path) -> None:
    import numpy as np

    extra = argparse.Namespace(output_dir=tmp_path, betas=(0.9, 0.95), max_accuracy=np.float64(81.5))
    torch.save({"model": {}, "args": extra}, tmp_path / "c.pth")
    assert load_pickle(tmp_path / "c.pth")["args"].max_accuracy == 81.5


@pytest.mark.parametrize("to", ["official", "hf", "vmae"])
@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_files_cut_short_are_recognised(tmp_path: Path, to: str, keep: float) -> None:
    write_model(tmp_path / "c", classifier(), to)
    file = tmp_path / "c" if to == "official" else tmp_path / "c" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(CheckpointError, match="cut short"):
        read_model(tmp_path / "c")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    with pytest.raises(CheckpointError, match=r"pipe.pth: expected a file or a folder"):
        read_model(tmp_path / "pipe.pth")


def test_a_text_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "notes.pth").write_text("hi\n")
    with pytest.raises(CheckpointError, match=r"not a file of torch\.save"):
        read_model(tmp_path / "notes.pth")


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="encoder norm"):
        write_model(tmp_path / "out.pth", pretrain(encoder_norm=False), "official")
    with pytest.raises(CheckpointError, match="transformers cannot express"):
        write_model(tmp_path / "out", pretrain(pos_grid=(2, 4, 4)), "hf")
    for to in ("official", "hf"):
        with pytest.raises(CheckpointError, match="background subtract"):
            write_model(tmp_path / "out", classifier(background="subtract"), to)
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_kept_unless_forced(tmp_path: Path) -> None:
    write_model(tmp_path / "out", classifier(), "hf")
    with pytest.raises(InputError, match="exists"):
        write_model(tmp_path / "out", pretrain(), "hf")
    write_model(tmp_path / "out", pretrain(), "hf", overwrite=True)
    assert isinstance(read_model(tmp_path / "out").model, VideoMAE)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_edited_config_beside_the_weights_is_noticed(tmp_path: Path) -> None:
    save_model(tmp_path, classifier())
    values = json.loads((tmp_path / "config.json").read_text())
    values["config"]["num_heads"] = 8
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="not to edit"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    same(load_model(tmp_path)[0], classifier())


def hf_directory(folder: Path, model: VideoModel) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    write_model(folder, model, "hf")
    return load_file(folder / "model.safetensors")


def test_hf_bin_files_shards_and_key_biases(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = classifier(head_norm_eps=1e-5)
    folder = tmp_path / "hf"
    state = hf_directory(folder, model)
    for i in range(2):
        # Some early transformers 5 files carry a key bias; it cannot change attention.
        state[f"videomae.encoder.layer.{i}.attention.attention.key.bias"] = torch.randn(32)
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    loaded = read_model(folder)
    same(model, loaded.model)
    assert "dropped 2 key biases" in loaded.notes[0]

    (folder / "pytorch_model.bin").unlink()
    parts: dict[str, dict[str, Tensor]] = {"a.safetensors": {}, "b.safetensors": {}}
    for i, (key, value) in enumerate(state.items()):
        parts[sorted(parts)[i % 2]][key] = value
    for name, part in parts.items():
        save_file(part, folder / name)
    index = {"weight_map": {k: n for n, part in parts.items() for k in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same(model, read_model(folder).model)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expected the part b.safetensors"):
        read_model(folder)


def test_a_key_bias_has_no_effect_on_attention() -> None:
    # What the note above claims.
    q, k, v = torch.randn(3, 2, 7, 8, dtype=torch.float64).unbind(0)
    plain = (q @ k.transpose(-2, -1)).softmax(-1) @ v
    shifted = (q @ (k + torch.randn(8, dtype=torch.float64)).transpose(-2, -1)).softmax(-1) @ v
    torch.testing.assert_close(plain, shifted)


def test_hf_heads_are_taken_as_stated_and_doubted_aloud(tmp_path: Path) -> None:
    with torch.device("meta"):
        small = VideoClassifier(VideoClassifierConfig.from_size("small", num_heads=16), 3)
    small.to_empty(device="cpu")
    with torch.no_grad():
        for weights in small.state_dict().values():
            weights.zero_()
    write_model(tmp_path / "hf", small, "hf")
    loaded = read_model(tmp_path / "hf")
    assert loaded.model.config.num_heads == 16
    assert "16 heads where the published model of width 384 has 6" in loaded.notes[0]
    assert read_model(tmp_path / "hf", num_heads=6).model.config.num_heads == 6


def test_sizes_are_refused_where_the_file_states_them(tmp_path: Path) -> None:
    write_model(tmp_path / "c", classifier(), "vmae")
    with pytest.raises(InputError, match="expected no frames: a vmae checkpoint states it"):
        read_model(tmp_path / "c", frames=8)
    with pytest.raises(CheckpointError, match="no such file"):
        read_model(tmp_path / "nowhere")


@pytest.mark.parametrize("layout", ["v4", "v5"])
@pytest.mark.parametrize("kind", BUILD)
def test_transformers_loads_what_we_write(tmp_path: Path, kind: str, layout: str) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    # 1e-5 before the head is what transformers fixes.
    model = BUILD[kind](head_norm_eps=1e-5, norm_eps=1e-6).eval()
    write_model(tmp_path / "out", model, "hf", hf_layout=layout)
    name = {"pretrain": "VideoMAEForPreTraining", "classifier": "VideoMAEForVideoClassification"}[kind]
    peer, info = getattr(transformers, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    compare_with_transformers(model, peer.eval())


@pytest.mark.parametrize("kind", BUILD)
@pytest.mark.parametrize("mean_pooling", [True, False])
@pytest.mark.parametrize("safe", [True, False])
def test_we_load_what_transformers_writes(tmp_path: Path, kind: str, mean_pooling: bool, safe: bool) -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    torch.manual_seed(1)
    config = transformers.VideoMAEConfig(
        image_size=[16, 24],
        patch_size=8,
        num_frames=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        use_mean_pooling=mean_pooling,
        num_labels=5,
    )
    name = {"pretrain": "VideoMAEForPreTraining", "classifier": "VideoMAEForVideoClassification"}[kind]
    peer = getattr(transformers, name)(config)
    perturb(peer)
    peer.save_pretrained(tmp_path / "peer")
    if not safe:
        from safetensors.torch import load_file

        torch.save(load_file(tmp_path / "peer" / "model.safetensors"), tmp_path / "peer/pytorch_model.bin")
        (tmp_path / "peer" / "model.safetensors").unlink()
    loaded: Loaded = read_model(tmp_path / "peer")
    compare_with_transformers(loaded.model.eval(), peer.eval())


def compare_with_transformers(model: VideoModel, peer: Any) -> None:
    """Both in float64 on a random clip: outputs and, in pre-training, loss and gradients."""
    model.double()
    peer.double()
    video = clip().double()
    c = model.config
    assert c.mean is not None and c.std is not None
    normalised = (video - torch.tensor(c.mean).view(3, 1, 1, 1)) / torch.tensor(c.std).view(3, 1, 1, 1)
    frames = normalised.transpose(1, 2)  # transformers wants [B, T, C, H, W]
    if isinstance(model, VideoClassifier):
        torch.testing.assert_close(model(video), peer(frames).logits, rtol=1e-7, atol=1e-7)
        return
    mask = sample_mask("random", 0.5, model.grid, 2, torch.Generator().manual_seed(4))
    out = peer(frames, bool_masked_pos=mask.to_bool())
    torch.testing.assert_close(model.predict(video, mask), out.logits, rtol=1e-7, atol=1e-7)
    loss = model(video, mask)
    torch.testing.assert_close(loss, out.loss, rtol=1e-7, atol=1e-7)
    loss.backward()
    out.loss.backward()
    assert model.mask_token.grad is not None
    torch.testing.assert_close(model.mask_token.grad, peer.mask_token.grad, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(
        model.encoder.patch_embed.proj.bias.grad,
        peer.videomae.embeddings.patch_embeddings.projection.bias.grad,
        rtol=1e-6,
        atol=1e-9,
    )
