"""Monitors: known spectra, known geometry, and what they may cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vmae.core.errors import InputError
from vmae.core.measure.monitors import (
    LIDAR_DELTA,
    MIN_CLIPS,
    MonitorConfig,
    against,
    knn_loo,
    lidar,
    linear_loo,
    monitor,
    of_features,
    participation_ratio,
    plan_monitors,
    rankme,
    spectrum,
)
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.plan import forward_flops, training_flops
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig

TINY = VideoMAEConfig(
    frames=8, height=32, width=32, patch_size=8, tubelet_size=2, embed_dim=32, depth=2, num_heads=2,
    decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


def with_spectrum(values: list[float], n: int = 64) -> torch.Tensor:
    """Centred features `[n, len(values)]` with exactly these singular values, and a large mean on top."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, len(values), generator=g, dtype=torch.float64)
    left, _ = torch.linalg.qr(x - x.mean(0))
    right, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=g, dtype=torch.float64))
    return left @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ right + 100.0


@pytest.mark.parametrize("k", [1, 3, 7])
def test_equal_directions_are_counted_whatever_the_mean(k: int) -> None:
    values = spectrum(with_spectrum([2.0] * k + [0.0] * (8 - k)))
    assert rankme(values) == pytest.approx(k, rel=1e-4)
    assert participation_ratio(values) == pytest.approx(k, rel=1e-6)


def test_the_published_formulas_on_a_spectrum_worked_by_hand() -> None:
    values = spectrum(with_spectrum([3.0, 1.0]))
    # p = 3/4, 1/4; squares 9, 1.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert rankme(values) == pytest.approx(math.exp(entropy), rel=1e-5)
    assert participation_ratio(values) == pytest.approx(100 / 82, rel=1e-9)


@given(st.integers(2, 40), st.integers(1, 24), st.integers(0, 2**31))
def test_ranks_stay_within_what_the_clips_allow(m: int, d: int, seed: int) -> None:
    x = torch.randn(m, d, generator=torch.Generator().manual_seed(seed))
    values = spectrum(x)
    most = min(m, d)
    assert 1 <= participation_ratio(values) <= rankme(values) * (1 + 1e-3) <= most * (1 + 1e-3)
    moved = spectrum(x * 7 + 3)
    assert participation_ratio(moved) == pytest.approx(participation_ratio(values), rel=1e-3)


def test_collapsed_features_have_rank_one() -> None:
    values = spectrum(torch.full((40, 8), 3.0))
    assert rankme(values) == 1.0 and participation_ratio(values) == 1.0
    assert lidar(torch.full((40, 4, 8), 3.0)) == 1.0


def test_lidar_counts_the_directions_in_which_clips_differ_more_than_their_masks() -> None:
    g = torch.Generator().manual_seed(0)
    clips = torch.zeros(4096, 1, 6)
    clips[..., :3] = torch.randn(4096, 1, 3, generator=g)
    noise = 0.05 * torch.randn(4096, 4, 6, generator=g)
    assert lidar(clips + noise) == pytest.approx(3, rel=0.05)
    # Against the definition, written out: W^-1/2 B W^-1/2.
    x = (clips + noise)[:50].double()
    centre = x.mean(1)
    between = torch.cov(centre.T)
    within = torch.stack([torch.cov(views.T) for views in x]).mean(0) + LIDAR_DELTA * torch.eye(6)
    values, basis = torch.linalg.eigh(within)
    root = basis @ torch.diag(values.rsqrt()) @ basis.T
    p = torch.linalg.eigvalsh(root @ between @ root)
    p = p / p.sum()
    assert lidar((clips + noise)[:50]) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-4)


def test_read_outs_tell_classes_and_only_those_left_out() -> None:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 4
    x = torch.randn(4, 16, generator=g)[labels] * 3 + torch.randn(120, 16, generator=g) + 50
    assert knn_loo(x, labels) > 0.95 and linear_loo(x, labels) > 0.95
    noise = torch.randn(120, 64, generator=g)
    # More features than clips over 2: a read-out that saw its own clip would be right on noise.
    assert knn_loo(noise, labels) < 0.4 and linear_loo(noise, labels) < 0.4


def test_the_closed_form_leaves_one_out_exactly() -> None:
    g = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (30,), generator=g)
    x = torch.randn(3, 8, generator=g)[labels] + torch.randn(30, 8, generator=g)
    decay = 0.1
    z = x.double()
    z = (z - z.mean(0)) / z.std(0)
    y = torch.nn.functional.one_hot(labels, 3).double()
    y -= y.mean(0)
    scale = decay * torch.linalg.eigvalsh(z @ z.T).clamp_min(0).mean()
    right = 0
    for i in range(30):
        keep = torch.arange(30) != i
        w = torch.linalg.solve(z[keep].T @ z[keep] + scale * torch.eye(8), z[keep].T @ y[keep])
        right += int((z[i] @ w).argmax() == labels[i])
    assert linear_loo(x, labels, decays=(decay,)) == pytest.approx(right / 30)


def test_what_is_not_finite_or_has_no_labels_is_said_so() -> None:
    x = torch.randn(40, 8)
    labels = torch.arange(40) % 2
    assert set(of_features(x, labels)) == {"rankme", "participation", "knn", "linear"}
    assert set(of_features(x, torch.full((40,), -1))) == {"rankme", "participation"}
    x[3, 2] = float("nan")
    found = of_features(x, labels, x[:, None].expand(-1, 2, -1))
    assert set(found) == {"rankme", "participation", "lidar", "knn", "linear"}
    assert all(math.isnan(v) for v in found.values())
    assert against({"a": 1.0}, {"a": 2.0}) == {"a": 1.0, "a_random": 2.0}
    with pytest.raises(InputError, match=r"at least 2 clips, got \[1, 8\]"):
        spectrum(x[:1])


@given(st.floats(0.001, 1), st.integers(32, 400), st.integers(20, 5000), st.integers(1, 200), st.booleans())
def test_the_monitors_cost_what_they_may(
    share: float, clips: int, videos: int, epochs: int, lidar: bool
) -> None:
    mask = MaskConfig(ratio=0.75)
    config = MonitorConfig(share=share, clips=clips, lidar=lidar)
    plan = plan_monitors(config, TINY, mask, videos=videos, clips_an_epoch=videos, epochs=epochs)
    training = videos * epochs * training_flops(TINY, mask)
    one = forward_flops(TINY) + (8 * forward_flops(TINY, mask) if lidar else 0)
    if plan is None:
        assert videos < MIN_CLIPS or share * training < one * 2 * MIN_CLIPS
        return
    assert MIN_CLIPS <= plan.clips <= min(clips, videos)
    assert (len(plan.epochs) + 1) * plan.clips * one <= share * training
    assert plan.epochs[-1] == epochs and plan.epochs[0] >= 1
    steps = {b - a for a, b in zip(plan.epochs, plan.epochs[1:], strict=False)}
    assert len(steps) <= 1


def test_none_at_share_zero() -> None:
    mask = MaskConfig(ratio=0.75)
    config = MonitorConfig(share=0)
    assert plan_monitors(config, TINY, mask, videos=9999, clips_an_epoch=9999, epochs=99) is None
    with pytest.raises(InputError, match=r"monitor.share: expected 0 to 1, got 2"):
        MonitorConfig(share=2)
    with pytest.raises(InputError, match=r"monitor.clips: expected at least 32, got 3"):
        MonitorConfig(clips=3)


def test_a_model_is_measured_alike_twice_and_left_as_it_was(mini_data: Path) -> None:
    torch.manual_seed(0)
    model = VideoMAE(TINY)
    data = DataConfig(frames=8, size=(32, 32), short_side=32, sampling_rate=1, workers=0)
    dataset = ClipDataset(read_annotations(mini_data / "train.csv")[:24], data, "val")
    masks = MaskConfig(ratio=0.75)
    state = torch.get_rng_state()
    first = monitor(model.train(), dataset, masks=masks)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    assert first == monitor(model, dataset, masks=masks, batch_size=24)
    assert first["lidar"] > 1 and first["rankme"] > 1
    wider = replace(TINY, embed_dim=64)
    torch.manual_seed(0)
    assert monitor(VideoMAE(wider), dataset) != first
