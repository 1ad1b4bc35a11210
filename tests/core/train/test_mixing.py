"""Mixup and CutMix: what is mixed is what the targets say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.train.mixing import MixConfig, mix_clips, soft_targets


def batch(n: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Clip i is filled with the value 10 * i, and is of class i."""
    video = torch.arange(n, dtype=torch.uint8).mul(10).reshape(n, 1, 1, 1, 1).expand(n, 3, 2, 16, 16).clone()
    return video, soft_targets(torch.arange(n), n, 0.0)


def test_soft_targets_are_the_smoothed_one_hot() -> None:
    targets = soft_targets(torch.tensor([2, 0]), 4, 0.1)
    assert torch.allclose(targets, torch.tensor([[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]]))


def test_mixup_mixes_pixels_and_targets_by_the_same_share() -> None:
    video, targets = batch()
    mixed, soft = mix_clips(video, targets, MixConfig(cutmix=0.0), np.random.default_rng(0))
    share = float(soft[0, 0])
    assert 0 < share < 1 and soft.sum(1).tolist() == pytest.approx([1.0] * 4)
    assert mixed.dtype == torch.float32
    for i in range(4):
        want = (share * 10 * i + (1 - share) * 10 * (3 - i)) / 255
        assert torch.allclose(mixed[i], torch.full_like(mixed[i], want), atol=1e-6)
        assert float(soft[i, i]) == pytest.approx(share)


def test_cutmix_swaps_one_box_in_all_frames_and_its_area_is_the_target() -> None:
    for seed in range(20):
        video, targets = batch()
        mixed, soft = mix_clips(video, targets, MixConfig(mixup=0.0), np.random.default_rng(seed))
        assert mixed.dtype == torch.uint8
        swapped = mixed[0] == 30
        assert (mixed[0][~swapped] == 0).all()
        # The same box in every channel and frame, and a box: the product of its rows and columns.
        plane = swapped[0, 0]
        assert (swapped == plane).all()
        assert int(plane.sum()) == int(plane.any(1).sum()) * int(plane.any(0).sum())
        assert float(soft[0, 3]) == pytest.approx(float(plane.float().mean()), abs=1e-6)


def test_shares_follow_their_beta_distribution_and_the_switch() -> None:
    """Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 * 2.6); half of the batches get CutMix."""
    rng, shares, cuts = np.random.default_rng(0), [], 0
    for _ in range(2000):
        video, targets = batch(2)
        mixed, soft = mix_clips(video, targets, MixConfig(), rng)
        if mixed.dtype == torch.uint8:
            cuts += 1
        else:
            shares.append(float(soft[0, 0]))
    assert cuts / 2000 == pytest.approx(0.5, abs=0.04)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.04)
    assert np.var(shares) == pytest.approx(1 / (4 * 2.6), abs=0.015)


def test_a_fixed_seed_gives_fixed_shares() -> None:
    video, targets = batch()
    _, soft = mix_clips(video, targets, MixConfig(cutmix=0.0), np.random.default_rng(7))
    assert float(soft[0, 0]) == pytest.approx(GOLDEN_SHARE, abs=1e-6)


GOLDEN_SHARE = 0.41116660833358765


def test_a_fixed_seed_cuts_a_fixed_box() -> None:
    video, targets = batch()
    mixed, soft = mix_clips(video, targets, MixConfig(mixup=0.0), np.random.default_rng(7))
    swapped = (mixed[0, 0, 0] == 30).numpy()
    rows, columns = (np.nonzero(swapped.any(axis))[0] for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == GOLDEN_BOX
    assert float(soft[0, 0]) == pytest.approx(1 - 10 * 9 / 256, abs=1e-6)


GOLDEN_BOX = (0, 9, 7, 15)


def test_cut_boxes_follow_their_beta_distribution() -> None:
    """CutMix draws its share from Beta(1, 1): uniform; a box cut off at the border gives back some of it.

    Sides are cut down to whole pixels, so shares are compared on a large picture.
    """
    rng, cut, kept = np.random.default_rng(1), [], []
    video = torch.zeros(2, 1, 1, 64, 64, dtype=torch.uint8)
    video[1] = 1
    for _ in range(3000):
        mixed, soft = mix_clips(video, torch.eye(2), MixConfig(mixup=0.0), rng)
        cut.append(float(mixed[0].float().mean()))
        kept.append(float(soft[0, 0]))
    np.testing.assert_allclose(np.array(cut), 1 - np.array(kept), atol=1e-6)
    # E[area of a box of sides s, s about a uniform centre, clipped] = E[(s - s^2/4)^2], s^2 = share uniform:
    # 1/2 - E[s^3]/2 + E[s^4]/16 = 1/2 - 1/5 + 1/48.
    assert np.mean(cut) == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.015)


@pytest.mark.parametrize("config", [MixConfig(mixup=0.0, cutmix=0.0), MixConfig(prob=0.0)])
def test_nothing_is_mixed_when_it_is_off(config: MixConfig) -> None:
    video, targets = batch()
    mixed, soft = mix_clips(video, targets, config, np.random.default_rng(0))
    assert mixed is video and soft is targets


@pytest.mark.parametrize(
    ("field", "value"), [("mixup", -0.1), ("cutmix", float("nan")), ("prob", 1.5), ("switch_prob", -1.0)]
)
def test_bad_values_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"expected mix\.{field} .*; got"):
        MixConfig(**{field: value})
