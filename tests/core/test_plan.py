"""The plan's numbers, against the model itself, torch's FLOP counter and published figures."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vmae.core.errors import InputError
from vmae.core.model.encoder import SIZES
from vmae.core.model.masking import MaskConfig, sample_masks
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.plan import Plan, make_plan


def plan(size: str, mask: MaskConfig | None = None, **changes: object) -> Plan:
    options: dict[str, object] = {
        "batch": 32,
        "gpu": "h200",
        "gpus": 64,
        "videos": 240_000,
        "epochs": 800,
        "utilisation": 0.4,
    }
    return make_plan(VideoMAEConfig.from_size(size), mask or MaskConfig(), **(options | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_parameters_are_the_models(size: str) -> None:
    with torch.device("meta"):
        model = VideoMAE(VideoMAEConfig.from_size(size))
    p = plan(size, MaskConfig(ratio=0.75))
    assert p.parameters == sum(x.numel() for x in model.parameters())


MILLIONS = {"small": 24.0, "base": 94.2, "large": 343.0, "huge": 692.5, "giant": 1026}
# GFLOP of a clip at mask 0.9: forward, forward and backward
GFLOP = {"small": (21.4, 64.0), "base": (67.6, 202.3), "large": (280.8, 842), "huge": (469.7, 1408)}


@pytest.mark.parametrize("size", MILLIONS)
def test_published_parameters(size: str) -> None:
    assert plan(size).parameters / 1e6 == pytest.approx(MILLIONS[size], abs=0.6 if size == "giant" else 0.06)


@pytest.mark.parametrize("size", GFLOP)
def test_flops_of_the_published_settings(size: str) -> None:
    p = plan(size)
    forward, training = GFLOP[size]
    assert (p.num_visible, p.num_decoded) == (160, 1408)
    assert p.forward_flops / 1e9 == pytest.approx(forward, abs=0.06)
    assert p.training_flops / 1e9 == pytest.approx(training, rel=1e-3)


def test_dual_masking() -> None:
    p = plan("base", MaskConfig(decoder_type="running_cell"))
    assert (p.decoder.tokens, p.num_decoded) == (944, 784)
    assert p.forward_flops / 1e9 == pytest.approx(48.4, abs=0.06)
    assert p.training_flops / 1e9 == pytest.approx(144.7, abs=0.06)


@pytest.mark.parametrize("mask", [MaskConfig(ratio=0.75), MaskConfig(ratio=0.5, decoder_type="running_cell")])
def test_torch_counts_the_same(mask: MaskConfig) -> None:
    config = VideoMAEConfig.from_size("tiny")
    model = VideoMAE(config).double()  # in float64 every product is one that the counter knows
    p = plan("tiny", mask)
    token_mask, decode = sample_masks(mask, config.grid, 1)
    # Nor does it know every fused attention: written out, it is the same.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.rand(1, *config.grid.clip_shape, dtype=torch.float64), token_mask, decode)
    # Our last decoder block leaves out what nobody looks at: the visible tokens' own rows.
    d, visible, total = config.decoder_embed_dim, p.num_visible, p.decoder.tokens
    most = 2 * visible * d * (2 * d + 2 * config.decoder_mlp_dim) + 4 * visible * total * d
    assert 0 <= p.forward_flops - counter.get_total_flops() <= most


def test_hours_follow_from_the_numbers() -> None:
    p = plan("base")
    assert p.hours == pytest.approx(240_000 * 800 * 202.3e9 / (64 * 989e12 * 0.4) / 3600, rel=1e-3)
    assert p.gpu_hours == pytest.approx(64 * p.hours)
    assert plan("base", utilisation=0.2).hours == pytest.approx(2 * p.hours)
    assert p.steps == 118 * 800
    assert p.state_bytes == 16 * p.parameters
    assert plan("base", batch=64).activation_bytes == 2 * p.activation_bytes


def test_wrong_numbers_are_told() -> None:
    with pytest.raises(InputError, match=r"did you mean 'h[12]00'"):
        plan("base", gpu="h10")
    with pytest.raises(InputError, match="expected batch of at least 1, got 0"):
        plan("base", batch=0)
    with pytest.raises(InputError, match="expected a utilisation"):
        plan("base", utilisation=1.5)
