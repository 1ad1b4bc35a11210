"""Our format's writes, and checkpoints loaded for another clip shape."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import config_pos_embed
from vmae.core.model.masking import sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.train.state import save_state
from vmae.core.weights.checkpoint import adapt_model, load_model, save_model
from vmae.core.weights.convert import read_model, write_model

SIZE: dict[str, Any] = {"frames": 8, "height": 32, "width": 32, "embed_dim": 32, "depth": 2}


def build(**overrides: Any) -> VideoMAE:
    torch.manual_seed(0)
    return VideoMAE(VideoMAEConfig.from_size("tiny", **(SIZE | overrides)))


def video(model: Any, batch: int = 2) -> Tensor:
    return torch.rand(batch, *model.grid.clip_shape, generator=torch.Generator().manual_seed(1))


def test_same_shape_is_the_same_model() -> None:
    model = build()
    assert adapt_model(model, frames=8, height=32) == (model, ())


def test_another_resolution_interpolates_positions_where_they_were_trained() -> None:
    model = build()
    bigger, notes = adapt_model(model, height=64, width=64)
    assert notes == ("positions of the 4x8x8 grid interpolated in the 4x4x4 grid that was trained",)
    old = model.encoder.pos_embed.view(4, 4, 4, 32)
    new = bigger.encoder.pos_embed.view(4, 8, 8, 32)
    # Twice the cells along h and w: new cell 1 lies a quarter of the way from old cell 0 to old cell 1.
    rows = old[:, 0] * 0.75 + old[:, 1] * 0.25  # [t, w, D] at new row 1
    torch.testing.assert_close(new[:, 1, 1], rows[:, 0] * 0.75 + rows[:, 1] * 0.25)
    torch.testing.assert_close(new[:, 0, 0], old[:, 0, 0])
    # Re-indexing the flat table, as official code does, would be another thing altogether.
    flat = config_pos_embed(bigger.config.from_dict(bigger.config.to_dict() | {"pos_grid": None}), 32)
    assert (flat - bigger.encoder.pos_embed).abs().max() > 0.5
    assert bigger(video(bigger), sample_mask("tube", 0.75, bigger.grid, 2)).isfinite()


def test_a_longer_clip_keeps_rows_and_columns() -> None:
    model = build()
    longer, notes = adapt_model(model, frames=16)
    assert "8x4x4 grid interpolated in the 4x4x4 grid" in notes[0]
    old = model.encoder.pos_embed.view(4, 16, 32)
    new = longer.encoder.pos_embed.view(8, 16, 32)
    torch.testing.assert_close(new[0], old[0])
    torch.testing.assert_close(new[1], old[0] * 0.75 + old[1] * 0.25)
    torch.testing.assert_close(new[2], old[0] * 0.25 + old[1] * 0.75)


def test_adapted_models_save_load_and_adapt_back(tmp_path: Path) -> None:
    model = build()
    bigger, _ = adapt_model(model, height=64, width=48)
    save_model(tmp_path / "c", bigger)
    loaded, _ = load_model(tmp_path / "c")
    assert loaded.config.pos_grid == (4, 4, 4)
    torch.testing.assert_close(loaded.encoder.pos_embed, bigger.encoder.pos_embed)
    back, notes = adapt_model(loaded, height=32, width=32)
    assert back.config == model.config and notes == ()
    torch.testing.assert_close(back.encode(video(model)), model.encode(video(model)))


def test_patch_changes_are_refused_unless_asked_for() -> None:
    model = build()
    with pytest.raises(InputError, match=r"2x8x8; changing patch_size 8 to 16 .*--resize-patch-embed"):
        adapt_model(model, patch_size=16)
    with pytest.raises(InputError, match="tubelet_size 2 to 4"):
        adapt_model(model, tubelet_size=4)


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_resized_patches_see_the_same_picture(kind: str) -> None:
    source: Any = build()
    if kind == "classifier":
        source = VideoClassifier(VideoClassifierConfig.from_encoder(source.config), 3)
    finer, notes = adapt_model(
        source, patch_size=16, height=64, width=64, tubelet_size=4, frames=16, resize_patch_embed=True
    )
    assert "patch weights resampled" in notes[-1]
    assert finer.grid.num_tokens == source.grid.num_tokens
    clip = video(source)
    # Nearest-neighbour magnification by 2 in t, h and w holds in smooth clips what linear resampling does.
    smooth = torch.nn.functional.interpolate(clip[:, :, ::8, ::32, ::32], size=(8, 32, 32), mode="nearest")
    large = torch.nn.functional.interpolate(smooth, size=(16, 64, 64), mode="nearest")
    indices = torch.arange(source.grid.num_tokens).expand(2, -1)
    torch.testing.assert_close(
        finer.encoder.embed(large, indices), source.encoder.embed(smooth, indices), rtol=1e-4, atol=1e-4
    )
    if kind == "pretrain":
        assert finer.decoder.head.weight.shape[0] == finer.grid.patch_dim
        assert finer(large, sample_mask("tube", 0.75, finer.grid, 2)).isfinite()


def test_indivisible_sizes_are_told() -> None:
    with pytest.raises(InputError, match="expected height to be a multiple of patch_size 8, got 30"):
        adapt_model(build(), height=30)


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    save_model(tmp_path / "c", model, {"epoch": 1})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(tmp_path / "c", model, {"epoch": 2})
    monkeypatch.undo()
    assert load_model(tmp_path / "c")[1] == {"epoch": 1}
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["config.json", "model.safetensors"]


def test_what_is_not_ours_is_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="its header has none"):
        load_model(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="expected a checkpoint"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a VideoMAE or .* to save, got Linear"):
        save_model(tmp_path / "y", torch.nn.Linear(1, 1))
    assert not (tmp_path / "y" / "model.safetensors").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    model = build()
    with torch.no_grad():
        model.encoder.blocks[0].mlp.fc1.weight[3, 1] = value
    save_model(tmp_path / "m", model)
    message = (
        r"expected finite weights, got NaN or infinite ones in 1 of \d+ tensors .encoder.blocks.0.mlp.fc1"
    )
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "m")
    for form in ("official", "hf"):
        write_model(tmp_path / form, model, form)
        with pytest.raises(CheckpointError, match=message):
            read_model(tmp_path / form)


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o027, 0o640), (0o022, 0o644), (0o002, 0o664)])
def test_weights_have_the_modes_that_the_user_asks_for(umask: int, mode: int, tmp_path: Path) -> None:
    model = build()
    before = os.umask(umask)
    try:
        save_model(tmp_path / "model", model)
        save_model(tmp_path / "one.safetensors", model)
        save_state(tmp_path / "checkpoints", 1, {"step": 1})
        write_model(tmp_path / "hf", model, "hf")
        write_model(tmp_path / "official.pth", model, "official")
    finally:
        os.umask(before)
    made = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(made) == 9
    assert {oct(p.stat().st_mode & 0o777) for p in made} == {oct(mode)}
