"""Learning rates, parameter groups and layer decay equal the official functions' values."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.train.optim import (
    OptimConfig,
    build_optimizer,
    cosine_schedule,
    lr_schedule,
    parameter_groups,
    set_lr,
)

GROUPS = json.loads((Path(__file__).parents[2] / "data" / "optimizer_groups.json").read_text())
SHAPE = {
    "frames": 4, "height": 16, "width": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2,
}  # fmt: skip


def as_table(groups: list[dict], drop_prefix: str = "") -> dict[str, list[float]]:
    return {
        name.removeprefix(drop_prefix): [g["weight_decay"], g["lr_scale"]]
        for g in groups
        for name in g["names"]
    }


def test_pretraining_groups_are_the_official_ones() -> None:
    # The golden file comes from a model of 2 encoder blocks and 1 decoder block.
    model = VideoMAE(
        VideoMAEConfig(**SHAPE, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2)  # type: ignore[arg-type]
    )
    assert as_table(parameter_groups(model, weight_decay=0.05)) == GROUPS["pretrain"]


def test_finetuning_groups_and_layer_decay_are_the_official_ones() -> None:
    model = VideoClassifier(VideoClassifierConfig(**SHAPE), num_classes=3)  # type: ignore[arg-type]
    groups = parameter_groups(model, weight_decay=0.05, layer_decay=0.75)
    assert as_table(groups, "encoder.") == GROUPS["finetune_layer_decay_0_75"]


@pytest.mark.parametrize(("depth", "decay"), [(12, 0.75), (12, 0.7), (24, 0.75), (32, 0.75), (40, 0.9)])
def test_layer_decay_of_every_size(depth: int, decay: float) -> None:
    """lr_scale = decay ** (depth + 1 - layer): layer 0 the patch embedding, depth + 1 the head."""
    config = VideoClassifierConfig(**{**SHAPE, "depth": depth})  # type: ignore[arg-type]
    table = as_table(
        parameter_groups(VideoClassifier(config, 2), weight_decay=0.05, layer_decay=decay), "encoder."
    )
    assert table["patch_embed.proj.weight"][1] == pytest.approx(decay ** (depth + 1), rel=1e-12)
    for i in range(depth):
        assert table[f"blocks.{i}.attn.qkv.weight"][1] == pytest.approx(decay ** (depth - i), rel=1e-12)
    assert table["head.weight"][1] == table["fc_norm.bias"][1] == 1.0


def official_schedule(
    base: float, final: float, epochs: int, per_epoch: int, warmup_epochs: int
) -> np.ndarray:
    """The official cosine_scheduler's formula, in numpy, as its specification."""
    warmup = np.linspace(0, base, warmup_epochs * per_epoch)
    n = epochs * per_epoch - len(warmup)
    return np.concatenate(
        (
            warmup,
            [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / n)) for i in range(n)],
        )
    )


@pytest.mark.parametrize(
    ("base_lr", "min_lr", "batch", "epochs", "warmup"),
    [
        pytest.param(1.5e-4, 1e-5, 1024, 1600, 40, id="v1 k400 small"),
        pytest.param(1.5e-4, 1e-5, 2048, 2400, 40, id="v1 ssv2 base"),
        pytest.param(3e-4, 1e-5, 192, 3200, 40, id="v1 ucf101"),
        pytest.param(1e-3, 1e-5, 1024, 200, 20, id="v2 base"),
        pytest.param(6e-4, 1e-5, 2048, 300, 30, id="v2 giant"),
        pytest.param(5e-4, 1e-6, 384, 75, 5, id="v1 finetune k400 base"),
        pytest.param(2e-3, 1e-6, 128, 35, 5, id="v1 finetune k400 large"),
    ],
)
def test_learning_rate_of_every_step(
    base_lr: float, min_lr: float, batch: int, epochs: int, warmup: int
) -> None:
    config = OptimConfig(base_lr=base_lr, min_lr=min_lr, warmup_epochs=warmup)
    got = lr_schedule(config, epochs=epochs, steps_per_epoch=13, total_batch=batch)
    want = official_schedule(base_lr * batch / 256, min_lr * batch / 256, epochs, 13, warmup)
    assert len(got) == epochs * 13
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-18)


# (step, lr) computed by hand from: lr = base * batch/256; warm-up base * s/(W-1);
# then min + (base - min)/2 * (1 + cos(pi * (s - W)/(S - W))).
V1_BASE = [  # 1.5e-4 x 2048/256 = 1.2e-3; min 8e-5; W = 400 of S = 8000 (800 epochs of 10 steps)
    (0, 0.0), (1, 1.2e-3 / 399), (57, 1.2e-3 / 7), (133, 4e-4), (266, 8e-4), (399, 1.2e-3), (400, 1.2e-3),
    (2300, 1.2e-3 - 1.12e-3 * (0.5 - 2**0.5 / 4)), (4200, 6.4e-4),
    (6100, 8e-5 + 1.12e-3 * (0.5 - 2**0.5 / 4)),
    (400 + 7600 // 3, 8e-5 + 1.12e-3 * 0.750060),
]  # fmt: skip
V2_BASE = [  # 1e-3 x 1024/256 = 4e-3; min 4e-5; W = 200 of S = 2000 (200 epochs of 10 steps)
    (0, 0.0), (1, 4e-3 / 199), (50, 4e-3 * 50 / 199), (100, 4e-3 * 100 / 199), (150, 4e-3 * 150 / 199),
    (199, 4e-3), (200, 4e-3), (500, 4e-5 + 3.96e-3 * (0.5 + 3**0.5 / 4)), (800, 4e-5 + 3.96e-3 * 0.75),
    (1100, 4e-5 + 3.96e-3 / 2), (1400, 4e-5 + 3.96e-3 * 0.25), (1700, 4e-5 + 3.96e-3 * (0.5 - 3**0.5 / 4)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "epochs", "batch", "points"),
    [
        (OptimConfig(base_lr=1.5e-4, min_lr=1e-5, warmup_epochs=40), 800, 2048, V1_BASE),
        (OptimConfig(base_lr=1e-3, min_lr=1e-5, warmup_epochs=20), 200, 1024, V2_BASE),
    ],
)
def test_learning_rate_at_steps_computed_by_hand(
    config: OptimConfig, epochs: int, batch: int, points: list[tuple[int, float]]
) -> None:
    got = lr_schedule(config, epochs=epochs, steps_per_epoch=10, total_batch=batch)
    for step, want in points:
        assert got[step] == pytest.approx(want, rel=1e-4, abs=1e-15), step


def test_a_short_run_warms_up_for_half_of_itself() -> None:
    got = lr_schedule(OptimConfig(warmup_epochs=40), epochs=4, steps_per_epoch=10, total_batch=256)
    assert got[19] == pytest.approx(1.5e-4)
    assert got[0] == 0 and got[-1] < got[20] == pytest.approx(1.5e-4)


def test_a_schedule_without_warmup_starts_at_the_base_value() -> None:
    assert cosine_schedule(2.0, 1.0, total_steps=2) == [2.0, pytest.approx(1.5)]


def test_set_lr_scales_every_group() -> None:
    model = VideoClassifier(VideoClassifierConfig(**SHAPE), num_classes=3)  # type: ignore[arg-type]
    optimizer = build_optimizer(model, OptimConfig(layer_decay=0.5))
    set_lr(optimizer, 0.1)
    rates = {round(g["lr"], 9) for g in optimizer.param_groups}
    assert rates == {0.1, 0.05, 0.025, 0.0125}
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == sum(
        p.numel() for p in model.parameters()
    )


def test_frozen_parameters_are_not_optimised() -> None:
    model = VideoClassifier(VideoClassifierConfig(**SHAPE), num_classes=3)  # type: ignore[arg-type]
    model.encoder.requires_grad_(False)
    assert set(as_table(parameter_groups(model, weight_decay=0.05))) == {
        "fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias",
    }  # fmt: skip


def test_adamw_is_torchs_to_the_last_bit() -> None:
    model = VideoClassifier(VideoClassifierConfig(**SHAPE), num_classes=3)  # type: ignore[arg-type]
    config = OptimConfig(weight_decay=0.1, layer_decay=0.5, betas=(0.9, 0.95))
    ours = build_optimizer(model, config)
    twin = copy.deepcopy(model)
    theirs = torch.optim.AdamW(
        parameter_groups(twin, weight_decay=0.1, layer_decay=0.5),
        lr=0.0, betas=(0.9, 0.95), eps=config.eps, fused=True,
    )  # fmt: skip
    for step in range(4):
        if step == 2:
            # What one saved the other goes on from.
            kept = copy.deepcopy(ours.state_dict())
            ours.load_state_dict(theirs.state_dict())
            theirs.load_state_dict(kept)
        for net, optimizer in ((model, ours), (twin, theirs)):
            generator = torch.Generator().manual_seed(step)
            for parameter in net.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            set_lr(optimizer, 0.1 / (step + 1))
            optimizer.step()
            assert all(p.grad is not None for p in net.parameters())
            optimizer.zero_grad()
            assert all(p.grad is None for p in net.parameters())
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_sgd_has_the_momentum_of_the_first_beta() -> None:
    model = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(model, OptimConfig(optimizer="sgd", betas=(0.9, 0.0), weight_decay=0.0))
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optimizer", "adam", "expected optim.optimizer to be one of adamw, sgd; got 'adam'.*did you mean"),
        ("base_lr", -1.0, "expected optim.base_lr > 0; got -1"),
        ("base_lr", math.nan, "expected optim.base_lr > 0"),
        ("betas", (0.9, 1.0), r"expected optim.betas to be two numbers in \[0, 1\); got \(0.9, 1.0\)"),
        ("layer_decay", 0.0, r"expected optim.layer_decay in \(0, 1\] or none; got 0.0"),
        ("clip_grad", 0.0, "expected optim.clip_grad > 0 or none; got 0.0"),
        ("min_lr", -1e-3, "expected optim.min_lr >= 0; got -0.001"),
    ],
)
def test_bad_values_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        OptimConfig(**{field: value})  # type: ignore[arg-type]
