"""Joint embedding: the statistic against numbers known otherwise, the loss against its parts."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.model.joint import JointEncoder, draw_directions, pretraining_model, sigreg
from vmae.core.model.masking import MaskConfig, sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.plan import make_plan, training_flops
from vmae.core.weights.checkpoint import load_model, save_model

CONFIG = VideoMAEConfig(
    frames=4, height=32, width=32, patch_size=8, tubelet_size=2, embed_dim=32, depth=2, num_heads=2,
    target="sigreg", target_dim=8,
)  # fmt: skip


def test_the_statistic_is_the_integral_of_the_definition() -> None:
    g = torch.Generator().manual_seed(0)
    z, a = torch.randn(6, 3, generator=g, dtype=torch.float64) * 1.7, draw_directions(3, g, 5).double()
    t = np.linspace(-5, 5, 17)
    found = []
    for m in range(5):
        x = (z @ a[:, m]).numpy()
        phi = np.exp(1j * np.outer(t, x)).mean(1)
        error = np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        found.append(6 * np.trapezoid(error, t))
    assert sigreg(z, a).item() == pytest.approx(float(np.mean(found)), rel=1e-12)
    assert torch.allclose(a.norm(dim=0), torch.ones(5, dtype=torch.float64), atol=1e-6)


def test_a_normal_cloud_is_near_and_others_are_far() -> None:
    g = torch.Generator().manual_seed(0)
    a, x = draw_directions(16, g), torch.randn(2000, 16, generator=g)
    near = sigreg(x, a).item()
    # Its expectation under the null: the integral of (1 - exp(-t^2)) exp(-t^2 / 2), whatever N is.
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert near == pytest.approx(expected, rel=0.15)
    collapsed, wide, line = torch.zeros_like(x), 3 * x, x[:, :1].expand(-1, 16)
    for far in (collapsed, wide, line):
        assert sigreg(far, a).item() > 20 * near


def test_the_loss_is_agreement_and_spread() -> None:
    torch.manual_seed(0)
    model, g = JointEncoder(CONFIG), torch.Generator().manual_seed(1)
    video = torch.randint(0, 256, (8, 3, 4, 32, 32), generator=g, dtype=torch.uint8)
    mask, a = sample_mask("random", 0.75, CONFIG.grid, 8, g), draw_directions(8, g)
    with torch.no_grad():
        z = model.projector(model.encoder(video, mask.visible).mean(1)).reshape(4, 2, 8)
        agree = ((z[:, 0] - z[:, 1]) / 2).square().mean()  # each view's distance to the mean of two
        spread = (sigreg(z[:, 0], a) + sigreg(z[:, 1], a)) / 2
        assert model(video, mask, a, 2).item() == pytest.approx(
            (0.95 * agree + 0.05 * spread).item(), rel=1e-5
        )
        only = JointEncoder(replace(CONFIG, sigreg=0.0))
        only.load_state_dict(model.state_dict())
        assert only(video, mask, a, 2).item() == pytest.approx(agree.item(), rel=1e-5)
    with pytest.raises(InputError, match=r"2 or more views that divide 8 clips, got 3"):
        model(video, mask, a, 3)


def test_it_is_kept_loaded_and_counted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = pretraining_model(CONFIG)
    assert isinstance(model, JointEncoder) and isinstance(
        pretraining_model(replace(CONFIG, target="raw", target_dim=None)), VideoMAE
    )
    save_model(tmp_path / "model", model, {})
    again = load_model(tmp_path / "model")[0]
    video = torch.randint(0, 256, (2, 3, 4, 32, 32), dtype=torch.uint8)
    assert isinstance(again, JointEncoder)
    assert torch.equal(again.eval().encode(video), model.eval().encode(video))
    assert not any("decoder" in n for n in model.state_dict())
    mask = MaskConfig(type="random", ratio=0.75)
    flops = training_flops(CONFIG, mask)
    assert flops < training_flops(replace(CONFIG, target="normalized", target_dim=None), mask)
    plan = make_plan(CONFIG, mask, batch=2, gpu="h200", gpus=1, videos=2, epochs=1, utilisation=1.0)
    counted = sum(p.numel() for p in model.projector.parameters())
    assert plan.decoder.parameters == counted
    matrices = sum(p.numel() for p in model.projector.parameters() if p.ndim == 2)
    assert plan.decoder.training_flops == 3 * 2 * matrices  # of one pooled token, forward and twice backward
    with pytest.raises(InputError, match=r"sigreg in \[0, 1\], got 2"):
        replace(CONFIG, sigreg=2)
