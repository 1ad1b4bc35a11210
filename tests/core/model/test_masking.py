"""Masks: exact published counts, disjoint and covering indices, one seed one mask, structure of each type."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae.core.errors import InputError
from vmae.core.model.grid import TokenGrid
from vmae.core.model.masking import (
    MASK_TYPES,
    Draws,
    MaskConfig,
    TokenMask,
    mask_counts,
    mask_from_bool,
    sample_mask,
    sample_masks,
)

AT_224 = TokenGrid(frames=16, height=224, width=224)
AT_112 = TokenGrid(frames=16, height=112, width=112)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grids() -> st.SearchStrategy[TokenGrid]:
    return st.builds(
        lambda t, h, w, p, s, c: TokenGrid(
            frames=t * s, height=h * p, width=w * p, patch_size=p, tubelet_size=s, channels=c
        ),
        st.integers(1, 6),
        st.integers(1, 7),
        st.integers(1, 7),
        st.sampled_from([1, 2, 3]),
        st.integers(1, 3),
        st.integers(1, 8),
    )


@settings(max_examples=150, deadline=None)
@given(
    type=st.sampled_from(MASK_TYPES),
    ratio=st.floats(0.01, 0.99),
    grid=grids(),
    batch=st.integers(1, 3),
    seed=st.integers(0, 2**31),
)
def test_counts_are_exact_and_indices_sorted_disjoint_and_covering(
    type: str, ratio: float, grid: TokenGrid, batch: int, seed: int
) -> None:
    try:
        n_vis, n_mask = mask_counts(type, ratio, grid)
    except InputError:
        return
    mask = sample_mask(type, ratio, grid, batch, seeded(seed))
    assert mask.visible.shape == (batch, n_vis) and mask.masked.shape == (batch, n_mask)
    both = torch.cat((mask.visible, mask.masked), dim=1).sort(1).values
    assert torch.equal(both, torch.arange(grid.num_tokens).expand(batch, -1))
    for part in (mask.visible, mask.masked):
        assert (part.diff(dim=1) > 0).all()
    again = sample_mask(type, ratio, grid, batch, seeded(seed))
    assert torch.equal(again.visible, mask.visible)
    assert torch.equal(mask_from_bool(mask.to_bool()).visible, mask.visible)


@pytest.mark.parametrize(
    ("type", "ratio", "grid", "visible"),
    [
        ("tube", 0.9, AT_224, 160),
        ("tube", 0.75, AT_224, 392),
        ("tube", 0.95, AT_224, 80),
        ("tube", 0.5, AT_224, 784),
        ("tube", 0.5, AT_112, 200),
        ("tube", 0.75, AT_112, 104),
        ("tube", 0.9, AT_112, 40),
        ("tube", 0.95, AT_112, 24),
        ("random", 0.9, AT_224, 1568 - 1411),
        ("frame", 0.875, AT_224, 196),
        ("causal", 0.5, AT_224, 784),
        ("running_cell", 0.5, AT_224, 784),
        ("running_cell", 0.9, AT_224, 392),
    ],
)
def test_published_counts(type: str, ratio: float, grid: TokenGrid, visible: int) -> None:
    assert mask_counts(type, ratio, grid) == (visible, grid.num_tokens - visible)


def test_the_decimal_ratio_is_meant() -> None:
    # int(0.29 * 100) is 28
    grid = TokenGrid(frames=2, height=10, width=10, patch_size=1)
    assert mask_counts("random", 0.29, grid) == (71, 29)


@pytest.mark.parametrize(
    ("type", "ratio", "message"),
    [
        ("tube", 0.001, "leaves 1568 visible and 0 masked of 1568 tokens"),
        ("frame", 0.1, "leaves 1568 visible and 0 masked"),
        ("running_cell", 0.2, "leaves 1568 visible and 0 masked"),
        ("random", 1.0, "between 0 and 1 .both excluded., got 1.0"),
        ("tube", 0, "got 0"),
        ("tube", "0.9", "got '0.9'"),
        ("tubes", 0.9, "did you mean 'tube'"),
    ],
)
def test_impossible_masks_are_told(type: str, ratio: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sample_mask(type, ratio, AT_224, 2)


def test_a_single_slot_cannot_be_split_by_frames() -> None:
    with pytest.raises(InputError, match="masked by the time slot"):
        mask_counts("causal", 0.9, TokenGrid(frames=2, height=32, width=32))


def test_running_cells_need_an_even_grid() -> None:
    with pytest.raises(InputError, match=r"even number .* got 7x7 \(112x112 pixels at patch 16\)"):
        sample_mask("running_cell", 0.5, AT_112, 1)


def test_tube_masks_the_same_places_in_every_slot_and_differs_by_clip() -> None:
    mask = sample_mask("tube", 0.9, AT_224, 4, seeded(0)).to_bool().view(4, 8, 196)
    assert (mask == mask[:, :1]).all()
    assert not torch.equal(mask[0], mask[1])


def test_frame_and_causal_mask_whole_slots() -> None:
    frame = sample_mask("frame", 0.5, AT_224, 8, seeded(0)).to_bool().view(8, 8, 196)
    assert (frame == frame[:, :, :1]).all()
    assert len({tuple(x.tolist()) for x in frame[:, :, 0]}) > 1
    causal = sample_mask("causal", 0.5, AT_224, 2, seeded(0)).to_bool().view(2, 8, 196)
    assert causal[:, 4:].all() and not causal[:, :4].any()


def test_block_masks_hang_together() -> None:
    def neighbours(type: str) -> float:
        mask = sample_mask(type, 0.5, AT_224, 8, seeded(0)).to_bool().view(8, 8, 14, 14)
        same = [(mask.diff(dim=d) == 0).float().mean() for d in (1, 2, 3)]
        return float(torch.stack(same).mean())

    assert neighbours("block") > 0.75
    assert neighbours("random") < 0.55


def test_random_places_are_uniform() -> None:
    for type in ("random", "tube", "block"):
        share = sample_mask(type, 0.5, AT_112, 2000, seeded(1)).to_bool().float().mean(0)
        spread = 0.06 if type != "block" else 0.2
        assert (share - 0.5).abs().max() < spread, type


def test_running_cell_is_the_published_pattern() -> None:
    grid = TokenGrid(frames=16, height=64, width=64)
    masks = sample_mask("running_cell", 0.5, grid, 64, seeded(0)).to_bool().view(64, 8, 4, 4)
    cells = masks[:, :, :2, :2].flatten(2).int()
    assert (masks == masks.roll((2, 2), (2, 3))).all()  # tiled
    assert (cells.sum(-1) == 2).all()
    # One step per slot: the flattened tile rolls by one place against its order.
    assert all(torch.equal(cells[:, i + 1], cells[:, i].roll(-1, dims=1)) for i in range(7))
    assert len({tuple(c.flatten().tolist()) for c in cells}) == 4


def test_dual_masking_counts_at_224() -> None:
    config = MaskConfig(type="tube", ratio=0.9, decoder_type="running_cell", decoder_ratio=0.5)
    mask, decode = sample_masks(config, AT_224, 3, seeded(0))
    assert decode is not None and decode.shape == (3, 784)
    assert mask.visible.shape[1] + decode.shape[1] == 944
    assert mask.to_bool().gather(1, decode).sum(1).tolist() == [704] * 3


def test_no_decoder_mask_decodes_all_masked() -> None:
    assert sample_masks(MaskConfig(), AT_112, 2, seeded(0))[1] is None
    zero = MaskConfig(decoder_type="running_cell", decoder_ratio=0)
    assert sample_masks(zero, AT_112, 2, seeded(0))[1] is None


def test_unequal_counts_in_a_batch_are_refused() -> None:
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, :3] = True
    mask[1, :4] = True
    with pytest.raises(InputError, match=r"same number of masked tokens in every clip, got \[3, 4\]"):
        mask_from_bool(mask)
    with pytest.raises(InputError, match="at least one visible and one masked token, got 8 visible and 0"):
        mask_from_bool(torch.zeros(2, 8, dtype=torch.bool))
    with pytest.raises(InputError, match="expected a mask bool"):
        mask_from_bool(mask.float())
    with pytest.raises(InputError, match="expected visible indices int64"):
        TokenMask(mask.int(), mask.int())
    with pytest.raises(InputError, match="expected one batch size"):
        TokenMask(torch.zeros(2, 1).long(), torch.ones(3, 1).long())


@pytest.mark.parametrize(
    ("type", "digest"),
    [
        ("tube", "18859d3b274e3f2e"),
        ("random", "b361beb5bb6a1f2f"),
        ("frame", "85995073b7a2be51"),
        ("block", "394d5bb869957e18"),
        ("causal", "9398563edd004c23"),
        ("running_cell", "41da47a5e6bb6f95"),
    ],
)
def test_masks_stay_the_same_bit_for_bit(type: str, digest: str) -> None:
    """Recorded when all clips' masks were still drawn and sorted at once: resumed runs need the same ones."""
    grid, found = TokenGrid(frames=16, height=64, width=96, patch_size=8), hashlib.sha256()
    for seed in range(40):
        mask = sample_mask(type, 0.75, grid, 33, seeded(seed))
        found.update(mask.visible.numpy().tobytes() + mask.masked.numpy().tobytes())
    assert found.hexdigest()[:16] == digest


class Coarse(Draws):
    """Draws so coarse that most rows have equal numbers at the threshold."""

    def rand(self, *shape: int) -> torch.Tensor:
        return (super().rand(*shape) * 8).floor() / 8


@pytest.mark.parametrize("k", [1, 20, 98, 176, 195])
def test_of_equal_numbers_the_first_is_chosen_as_by_sorting(k: int) -> None:
    chosen = Coarse(64, seeded(0)).choice(196, k)
    order = torch.argsort(Coarse(64, seeded(0)).rand(196), dim=1, stable=True)
    assert torch.equal(chosen, torch.zeros(64, 196, dtype=torch.bool).scatter_(1, order[:, :k], True))
