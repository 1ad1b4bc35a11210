"""Masks and targets of a user's own: one function each, from the configuration to the checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae.core.config import from_dict, override, to_dict
from vmae.core.errors import CheckpointError, InputError
from vmae.core.measure.reconstruct import reconstruct
from vmae.core.model.grid import TokenGrid, patchify
from vmae.core.model.masking import MASK_TYPES, MaskConfig, check_mask, mask_counts, sample_masks
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.numerics import make_generator
from vmae.core.train.config import TrainConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.train.pretrain import check_objective, pretrain
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.weights.checkpoint import load_model, save_model
from vmae.core.weights.convert import write_model

GRID = TokenGrid(frames=4, height=32, width=32, patch_size=8)

MODULE = '''
import torch
from vmae.core.model.grid import patchify

def corner(config, grid, draws):
    """The first tokens, and none of them random."""
    mask = torch.zeros(draws.batch, grid.num_tokens, dtype=torch.bool)
    mask[:, : int(config.ratio * grid.num_tokens)] = True
    return mask

def motion(config, grid, draws, video, jitter: float = 0.0, invert: bool = False):
    """The tokens that change most from slot to slot are masked."""
    patches = patchify(video.float(), grid).unflatten(1, (grid.t, -1))  # [B, t, hw, P]
    change = (patches - patches.roll(1, 1)).abs().mean(-1).flatten(1)  # [B, N]
    change = (-change if invert else change) + jitter * draws.rand(grid.num_tokens)
    order = change.argsort(1, descending=True)
    mask = torch.zeros_like(change, dtype=torch.bool)
    return mask.scatter_(1, order[:, : int(config.ratio * grid.num_tokens)], True)

def needs(config, grid, draws, strength: int): ...
def uneven(config, grid, draws): return torch.rand(draws.batch, grid.num_tokens) < 0.5
def numbers(config, grid, draws): return draws.rand(grid.num_tokens)
def nothing(): ...

def means(video, indices, grid):
    """Mean of each patch, and how much it changes inside its tubelet."""
    x = video.float() / 255 if video.dtype == torch.uint8 else video.float()
    patches = patchify(x, grid).gather(1, indices[..., None].expand(-1, -1, grid.patch_dim))
    halves = patches.unflatten(2, (grid.tubelet_size, -1))
    return torch.stack((patches.mean(2), (halves[:, :, 1] - halves[:, :, 0]).mean(2)), dim=2)

def wide(video, indices, grid): return video.new_zeros((*indices.shape, 5), dtype=torch.float32)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the module `own_parts`."""
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "own_broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("own_parts", "own_broken"):
        sys.modules.pop(name, None)


def clips(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 4, 32, 32), dtype=torch.uint8, generator=make_generator("clips"))


def test_a_mask_of_ones_own_has_sorted_indices_and_one_count(own: Path) -> None:
    config = MaskConfig(type="own_parts:corner", ratio=0.75)
    mask, decode = sample_masks(config, GRID, 3, make_generator(0))
    assert decode is None and torch.equal(mask.masked, torch.arange(24).expand(3, -1))
    assert torch.equal(mask.visible, torch.arange(24, 32).expand(3, -1))
    both = replace(config, decoder_type="own_parts:corner", decoder_ratio=0.25)
    _, decode = sample_masks(both, GRID, 3, make_generator(0))
    assert decode is not None and torch.equal(decode, torch.arange(8, 32).expand(3, -1))


def test_a_mask_may_look_at_the_video_and_have_parameters(own: Path) -> None:
    video = torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8)
    video[0, :, 2:, :8, :8] = 200  # one patch of clip 0 moves
    config = MaskConfig(type="own_parts:motion", ratio=0.07)
    moving, _ = sample_masks(config, GRID, 2, make_generator(0), video=video)
    assert moving.masked[0].tolist() == [0, 16]
    still = replace(config, params={"invert": True})
    assert 0 not in sample_masks(still, GRID, 2, make_generator(0), video=video)[0].masked[0].tolist()
    with pytest.raises(InputError, match="own_parts:motion looks at the video, and there is none here"):
        sample_masks(config, GRID, 2, make_generator(0))


def test_a_clips_mask_does_not_depend_on_who_else_draws(own: Path) -> None:
    video, rows = clips(8), torch.tensor([1, 6])
    own_mask = MaskConfig(type="own_parts:motion", ratio=0.5, params={"jitter": 40})
    published = [MaskConfig(type=t, ratio=0.5, decoder_type="running_cell") for t in MASK_TYPES]
    for config in (own_mask, *published):
        whole, whole_decode = sample_masks(config, GRID, 8, make_generator(3), video=video)
        part, decode = sample_masks(config, GRID, 8, make_generator(3), rows=rows, video=video[rows])
        assert torch.equal(part.visible, whole.visible[rows]) and torch.equal(part.masked, whole.masked[rows])
        assert (decode is None) == (whole_decode is None)
        if decode is not None and whole_decode is not None:
            assert torch.equal(decode, whole_decode[rows])


@pytest.mark.parametrize(
    ("type", "params", "message"),
    [
        (
            "own_part:corner",
            {},
            "got 'own_part': ModuleNotFoundError: No module named 'own_part' .a module lies",
        ),
        ("own_broken:corner", {}, "mask.type: expected a module that can be imported, .* RuntimeError: two$"),
        ("own_parts:cornr", {}, r"an object of module own_parts, got 'cornr' \(did you mean 'corner'"),
        ("own_parts:nothing", {}, r"to be a function \(config, grid, draws, ...\), got too many positional"),
        ("own_parts:patchify", {"x": 1}, "to be a function .config, grid, draws, ...., got too many"),
        ("own_parts:torch", {}, "to be a function .* is not a callable object"),
        (
            "own_parts:motion",
            {"jiter": 1},
            r"no parameter 'jiter' \(did you mean 'jitter'\?\); it has jitter, in",
        ),
        ("own_parts:motion", {"video": 1}, "no parameter 'video'"),
        ("own_parts:motion", {"jitter": "much"}, "mask.params.jitter: expected a number, got 'much' .str."),
        ("own_parts:motion", {"invert": 1}, "mask.params.invert: expected true or false, got 1"),
        ("own_parts:needs", {}, "own_parts:needs needs a value for strength, got none"),
        ("tube", {"speed": 1}, "mask.params: tube masks have none, got speed"),
        ("tubes", {}, r"or module:function; got 'tubes' \(did you mean 'tube'\?\)"),
    ],
)
def test_a_mask_that_cannot_be_used_is_one_line(own: Path, type: str, params: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        check_mask(MaskConfig(type=type, params=params), GRID)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven", r"own_parts:uneven: expected the same number of masked tokens in every clip, got \["),
        ("numbers", r"to give bool \[4, 32\], got torch.float32 \[4, 32\]"),
    ],
)
def test_a_function_that_gives_no_mask_is_named(own: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_masks(MaskConfig(type=f"own_parts:{name}", ratio=0.5), GRID, 4, make_generator(0))


def test_they_are_read_from_text_and_saved_without_the_module() -> None:
    # Nothing here can be imported: lists of runs and checkpoints open all the same.
    config = override(
        MaskConfig(), {"type": "gone.parts:motion", "params.jitter": "0.5", "params.invert": "true"}
    )
    assert config.params == {"jitter": 0.5, "invert": True}
    assert from_dict(MaskConfig, to_dict(config)) == config
    assert override(config, {"params": "{'jitter': 1}"}).params == {"jitter": 1}
    assert mask_counts(config.type, 0.9, GRID) == (4, 28)
    with pytest.raises(InputError, match=r"unknown key 'ratio\.jitter'"):
        override(config, {"ratio.jitter": "1"})


def model(**changes: Any) -> VideoMAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VideoMAE(
            VideoMAEConfig(
                frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=1, num_heads=2,
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **changes,
            )
        )  # fmt: skip


def test_a_target_of_ones_own_is_what_the_loss_compares_with(own: Path) -> None:
    made = model(target="own_parts:means", target_dim=2)
    video = clips(3)
    mask, _ = sample_masks(MaskConfig(ratio=0.75), made.grid, 3, make_generator(0))
    pred = made.predict(video, mask)
    assert pred.shape == (3, 24, 2)
    patches = patchify(video.float() / 255, made.grid)
    wanted = patches.gather(1, mask.masked[..., None].expand(-1, -1, made.grid.patch_dim)).mean(2)
    error = (pred[..., 0] - wanted).square().mean()
    change = made(video, mask) * 2 - error
    assert 0 < error < change + error
    made.forward_loss(pred, video, mask.masked).backward()
    assert all(p.grad is not None for p in made.decoder.parameters())
    # Under dual masking only what the encoder does not see counts.
    everything = torch.arange(32).expand(3, -1)
    torch.testing.assert_close(
        made(video, mask, everything),
        made.forward_loss(
            made.forward_decoder(made.forward_encoder(video, mask.visible), mask.visible, everything),
            video,
            everything,
            mask.to_bool().float(),
        ),
    )


def test_its_model_opens_without_the_module_and_is_not_mistaken_for_a_picture(tmp_path: Path) -> None:
    made = model(target="gone.parts:means", target_dim=2, loss="smooth_l1")
    save_model(tmp_path / "m", made)
    loaded, _ = load_model(tmp_path / "m")
    assert isinstance(loaded, VideoMAE) and loaded.config == made.config
    assert loaded.encode(clips(1)).shape == (1, 32, 32)
    mask, _ = sample_masks(MaskConfig(), made.grid, 1, make_generator(0))
    with pytest.raises(InputError, match=r"a model that predicts pixels to show them; got gone\.parts:means"):
        reconstruct(loaded, clips(1), mask)
    for to in ("hf", "official"):
        with pytest.raises(CheckpointError, match="predicts pixels; this model was trained to predict gone"):
            write_model(tmp_path / to, loaded, to)
    with pytest.raises(
        InputError, match=r"model\.target: expected a module that can be imported, got 'gone\.par"
    ):
        loaded(clips(1), mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": "own_parts:wide", "target_dim": 2},
            r"to give float \[2, 28, 2\], got torch.float32 \[2, 28, 5",
        ),
        ({"target": "own_parts:nothing"}, r"to be a function \(video, indices, grid\), got too many"),
        ({"target": "own_parts:mean"}, "got 'mean' .did you mean 'means'"),
        ({"target_dim": 2}, "target_dim of at least 1, for a target of one's own; got 2 with normalized"),
        ({"target": "a:b", "target_dim": 0}, "target_dim of at least 1"),
    ],
)
def test_a_target_that_cannot_be_used_is_one_line(own: Path, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        made = model(**changes)
        check_objective(MaskConfig(), made.config)
        mask, _ = sample_masks(MaskConfig(), made.grid, 2, make_generator(0))
        made(clips(2), mask)
    assert "\n" not in str(caught.value)


def test_a_run_with_both_learns_and_continues_to_the_same_bits(own: Path, tiny_videos: Path) -> None:
    data = DataConfig(frames=4, sampling_rate=1, size=(32, 32), short_side=32, workers=0)

    def go(name: str, epochs: int) -> Any:
        return pretrain(
            model=model(target="own_parts:means", target_dim=2),
            mask=MaskConfig(type="own_parts:motion", ratio=0.75, params={"jitter": 1.0}),
            dataset=ClipDataset(read_annotations(tiny_videos / "train.csv"), data, mode="train", seed=0),
            optim=OptimConfig(base_lr=0.1, warmup_epochs=1),
            train=TrainConfig(epochs=6, batch_size=6),
            run_dir=own / name,
            should_stop=None if epochs == 6 else iter([False] * (4 * epochs - 1) + [True]).__next__,
        )

    whole = go("whole", 6)
    assert go("parts", 2).stopped
    parts = go("parts", 6)
    assert parts.history == whole.history
    assert whole.history[-1]["loss"] < 0.8 * whole.history[0]["loss"]
    _, meta = load_model(whole.model_path)
    assert meta["mask"]["params"] == {"jitter": 1.0}
