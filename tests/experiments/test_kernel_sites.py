"""The sites of a run: what one forward and backward on fake tensors finds, for every recipe."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.masking import TokenMask, sample_masks
from vmae.core.model.videomae import VideoMAE
from vmae.core.plan import training_flops
from vmae.core.train.calibration import Work, find_work
from vmae.core.train.detect import Detecting
from vmae.core.train.task import Task
from vmae.experiments import recipes
from vmae.experiments.bench import calibration
from vmae.kernels.sites import Site, power_of_two, recorder

ROWS = 24


def work_of(name: str, *, compiled: bool = False, precision: str = "bf16") -> Work:
    """Of a recipe, with fewer blocks."""
    return calibration.work_of(
        calibration.shallow(recipes.get(name)), rows=ROWS, precision=precision, compiled=compiled
    )


@pytest.mark.parametrize("name", [n for n in recipes.ALL if recipes.get(n).job in ("pretrain", "finetune")])
def test_every_recipe(name: str) -> None:
    config = calibration.shallow(recipes.get(name))
    c, work = config.model, work_of(name)
    by_op: dict[str, int] = {}
    for site, times in work.calls.items():
        assert Site.parse(site.key) == site
        assert site.batch == power_of_two(ROWS)
        assert site.dtype == "bfloat16"
        by_op[site.op] = by_op.get(site.op, 0) + times
    again = 2 if c.checkpoint_activations else 1
    assert by_op["gather_patches"] == 1
    if config.job == "pretrain":
        assert by_op["fused_attention"] == again * (c.depth + c.decoder_depth)
        assert by_op["assemble_decoder_tokens"] == by_op["masked_patch_loss"] == 1
    else:
        assert by_op["fused_attention"] == again * c.depth
    if again == 1 and not config.finetune.freeze_encoder:
        # As the plan computes it from the configuration alone.
        planned = ROWS * training_flops(c, config.mask if config.job == "pretrain" else None)
        assert work.flops == pytest.approx(planned, rel=0.35)
    assert recorder() is None


def test_dual_masking_decodes_half_and_weighs_it() -> None:
    dual = [n for n in recipes.ALL if recipes.get(n).mask.decoder_type]
    assert dual
    sites = work_of(dual[0]).calls
    (loss,) = [s for s in sites if s.op == "masked_patch_loss"]
    assert loss.layout.endswith("+weights")
    assert loss.size("K") < sum(s.size("M") for s in sites if s.op == "assemble_decoder_tokens") + 1
    assert {s.size("first") > 0 for s in sites if s.op == "fused_attention"} == {True, False}


def test_what_is_compiled_is_a_site_of_its_own() -> None:
    eager, compiled = (work_of("demo_pretrain", compiled=c).calls for c in (False, True))
    assert {s.compiled for s in eager} == {False}
    assert {s.op for s in compiled if s.compiled} == {"fused_attention"}
    assert {s.op for s in compiled if not s.compiled} == {s.op for s in eager} - {"fused_attention"}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_precision_is_part_of_a_site(precision: str, dtype: str) -> None:
    work = work_of("demo_pretrain", precision=precision)
    assert {s.dtype for s in work.calls} == {dtype}


def test_a_detector() -> None:
    config = VideoDetectorConfig.from_size("tiny", drop_path=0.2)
    model = VideoDetector(config, 5)
    task = Detecting.__new__(Detecting)
    clip = torch.zeros(2, 3, config.frames, config.height, config.width, dtype=torch.uint8)
    boxes = torch.tensor([[1.0, 2.0, 30.0, 40.0]] * 3)
    inputs: Any = (clip, boxes, torch.tensor([0, 1, 1]), torch.zeros(3, 5))
    work = find_work(task, model, inputs, rows=8, precision="bf16", compiled=False)
    assert {s.op for s in work.calls} == {"gather_patches", "fused_attention"}
    assert all(p.grad is None for p in model.parameters())


def test_the_model_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    config = recipes.get("demo_pretrain").model
    model = VideoMAE(config).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    clip = torch.zeros(1, 3, config.frames, config.height, config.width, dtype=torch.uint8)
    mask, _ = sample_masks(recipes.get("demo_pretrain").mask, config.grid, 1, torch.Generator())

    class Plain(Task):
        def loss(self, module: nn.Module, *inputs: Tensor) -> Tensor:
            video, visible, masked = inputs
            loss: Tensor = module(video, TokenMask(visible, masked))
            return loss

    find_work(Plain(), model, (clip, mask.visible, mask.masked), rows=4, precision="fp32", compiled=True)
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_batches_are_rounded_to_a_power_of_two() -> None:
    assert [power_of_two(n) for n in (1, 2, 3, 5, 6, 45, 46, 64, 90, 91)] == [
        1,
        2,
        4,
        4,
        8,
        32,
        64,
        64,
        64,
        128,
    ]
