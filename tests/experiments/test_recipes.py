"""Every recipe resolves, is documented, and has the published numbers of its row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmae.core.config import from_dict, override, to_dict
from vmae.core.errors import InputError
from vmae.core.plan import classifier_flops
from vmae.core.train.optim import lr_schedule
from vmae.core.weights.zoo import find as find_in_zoo
from vmae.experiments import recipes
from vmae.experiments.config import ExperimentConfig

# name -> size's (dim, depth), mask ratio, epochs, base lr, total batch, sampling rate, decoder depth
PRETRAIN = {
    "k400_small_pretrain": ((384, 12), 0.9, 1600, 1.5e-4, 1024, 4, 4),
    "k400_base_pretrain": ((768, 12), 0.9, 1600, 1.5e-4, 2048, 4, 4),
    "k400_base_800_pretrain": ((768, 12), 0.9, 800, 1.5e-4, 2048, 4, 4),
    "k400_large_pretrain": ((1024, 24), 0.9, 1600, 1.5e-4, 512, 4, 12),
    "k400_huge_pretrain": ((1280, 32), 0.9, 1600, 1.5e-4, 1024, 4, 12),
    "ssv2_small_pretrain": ((384, 12), 0.9, 2400, 1.5e-4, 1024, 2, 4),
    "ssv2_base_pretrain": ((768, 12), 0.9, 2400, 1.5e-4, 2048, 2, 4),
    "ssv2_base_800_pretrain": ((768, 12), 0.9, 800, 1.5e-4, 2048, 2, 4),
    "ucf101_base_pretrain": ((768, 12), 0.75, 3200, 3e-4, 192, 4, 4),
    "hmdb51_base_pretrain": ((768, 12), 0.75, 4800, 3e-4, 192, 2, 4),
    "v2_base_pretrain": ((768, 12), 0.9, 200, 1e-3, 1024, 4, 4),
    "v2_large_pretrain": ((1024, 24), 0.9, 300, 1e-3, 1536, 4, 4),
    "v2_huge_pretrain": ((1280, 32), 0.9, 300, 1e-3, 2048, 4, 4),
    "v2_giant_pretrain": ((1408, 40), 0.9, 300, 6e-4, 2048, 4, 4),
}
# name -> epochs, base lr, batch, layer decay, drop path, dropout, min_lr, segments x crops, flip
FINETUNE = {
    "k400_small_finetune": (150, 5e-4, 384, 0.75, 0.1, 0.0, 1e-6, (5, 3), True),
    "k400_base_finetune": (75, 5e-4, 384, 0.75, 0.1, 0.0, 1e-6, (5, 3), True),
    "k400_large_finetune": (35, 2e-3, 128, 0.75, 0.1, 0.0, 1e-6, (5, 3), True),
    "k400_huge_finetune": (50, 1e-3, 512, 0.75, 0.2, 0.5, 1e-5, (5, 3), True),
    "ssv2_small_finetune": (40, 1e-3, 384, 0.7, 0.1, 0.0, 1e-6, (2, 3), False),
    "ssv2_base_finetune": (30, 5e-4, 384, 0.75, 0.1, 0.0, 1e-6, (2, 3), False),
    "ucf101_base_finetune": (100, 5e-4, 128, 0.7, 0.2, 0.5, 1e-5, (5, 3), True),
    "hmdb51_base_finetune": (50, 1e-3, 128, 0.7, 0.2, 0.0, 1e-6, (10, 3), True),
}


@pytest.mark.parametrize("name", recipes.ALL)
def test_every_recipe_resolves_is_documented_and_survives_a_file(name: str, tmp_path: Path) -> None:
    config = recipes.get(name)
    assert config.recipe == config.name == name
    assert len(recipes.doc(name)) > 40
    assert f"Cost: {recipes.cost(config)}" in " ".join(recipes.doc(name).split())
    config.save(tmp_path / "run.yaml")
    assert ExperimentConfig.load(tmp_path / "run.yaml") == config
    assert from_dict(ExperimentConfig, to_dict(config)) == config


@pytest.mark.parametrize("name", PRETRAIN)
def test_pretraining_rows(name: str) -> None:
    (dim, depth), ratio, epochs, base_lr, batch, rate, decoder_depth = PRETRAIN[name]
    c = recipes.get(name)
    v2 = name.startswith("v2")
    assert (c.model.embed_dim, c.model.depth, c.model.decoder_depth) == (dim, depth, decoder_depth)
    assert (c.mask.type, c.mask.ratio) == ("tube", ratio)
    assert (c.mask.decoder_type, c.data.repeats) == (("running_cell", 4) if v2 else (None, 1))
    assert (c.train.epochs, c.optim.base_lr, c.train.batch_size) == (epochs, base_lr, batch)
    assert (c.data.sampling_rate, c.data.frames, c.data.size) == (rate, 16, (224, 224))
    assert c.optim.warmup_epochs == (20 if name == "v2_base_pretrain" else 30 if v2 else 40)
    assert (c.optim.betas, c.optim.weight_decay, c.optim.min_lr) == ((0.9, 0.95), 0.05, 1e-5)
    assert (c.data.augment, c.data.flip, c.model.drop_path) == ("multi_scale_crop", False, 0.0)
    assert c.optim.clip_grad == (0.02 if name == "v2_giant_pretrain" else None)
    peak = max(lr_schedule(c.optim, epochs=epochs, steps_per_epoch=3, total_batch=batch))
    assert peak == pytest.approx(base_lr * batch / 256)


@pytest.mark.parametrize("name", FINETUNE)
def test_finetuning_rows(name: str) -> None:
    epochs, base_lr, batch, decay, drop_path, dropout, min_lr, views, flip = FINETUNE[name]
    c = recipes.get(name)
    assert c.job == "finetune"
    assert (c.train.epochs, c.optim.base_lr, c.train.batch_size) == (epochs, base_lr, batch)
    assert (c.optim.layer_decay, c.optim.min_lr, c.optim.warmup_epochs) == (decay, min_lr, 5)
    assert (c.finetune.drop_path, c.finetune.dropout, c.finetune.label_smoothing) == (drop_path, dropout, 0.1)
    assert (c.data.segments, c.data.crops) == views and c.data.flip is flip and c.data.repeats == 2
    assert (c.finetune.mix.mixup, c.finetune.mix.cutmix) == (0.8, 1.0)
    assert (c.data.rand_augment, c.data.random_erasing) == ("rand-m7-n4-mstd0.5-inc1", 0.25)
    assert c.data.sampling == ("uniform" if name.startswith("ssv2") else "dense")
    assert (c.optim.betas, c.optim.weight_decay) == ((0.9, 0.999), 0.05)


def test_what_the_small_recipes_pretrain_is_what_they_fine_tune() -> None:
    """Shape and cut of a clip; the background is decided by the list."""
    for size in ("small_clips", "small_clips_gpu"):
        first, then = recipes.get(f"{size}_pretrain"), recipes.get(f"{size}_finetune")
        assert replace(first.model, background=then.model.background) == then.model
        assert first.data == then.data


def test_costs_are_those_of_the_published_models() -> None:
    """ViT-B at 16x224x224: 180 G multiply-adds of one inference view in the paper's tables, 360 GFLOP."""
    tuned = recipes.get("k400_base_finetune")
    assert classifier_flops(tuned.model) / 3 == pytest.approx(2 * 180e9, rel=0.01)
    assert recipes.cost(tuned).startswith("1,078 GFLOP a clip, 162 TFLOP a video")
    assert classifier_flops(recipes.get("k400_large_finetune").model) / 3 == pytest.approx(
        2 * 597e9, rel=0.01
    )


def test_the_high_resolution_and_long_rows() -> None:
    for name in ("k400_large_320_finetune", "k400_huge_320_finetune"):
        c = recipes.get(name)
        assert c.data.size == (320, 320) and c.data.frames == 32 and (c.data.segments, c.data.crops) == (4, 3)
    c = recipes.get("ssv2_large_32_finetune")
    assert c.data.frames == 32 and (c.data.segments, c.data.crops) == (1, 3)


def test_the_linear_probe_row() -> None:
    c = recipes.get("ssv2_base_linear")
    assert (c.optim.optimizer, c.optim.base_lr, c.optim.betas[0], c.optim.weight_decay) == (
        "sgd",
        0.1,
        0.9,
        0,
    )
    assert (c.train.batch_size, c.train.epochs, c.optim.warmup_epochs) == (1024, 100, 10)
    assert c.finetune.freeze_encoder


def test_overrides_are_typed_and_name_the_nearest() -> None:
    base = recipes.get("demo_finetune")
    assert override(base, {"finetune.mix.mixup": "0.2"}).finetune.mix.mixup == 0.2
    with pytest.raises(InputError, match=r"finetune.drop_pth' \(did you mean 'finetune.drop_path'"):
        override(base, {"finetune.drop_pth": "0.1"})
    with pytest.raises(InputError, match=r"optim.base_lr: expected a number, got 'fast'"):
        override(base, {"optim.base_lr": "fast"})
    with pytest.raises(InputError, match=r"got 'demo_pretrian' \(did you mean 'demo_pretrain'"):
        recipes.get("demo_pretrian")


def test_is_my_loss_normal() -> None:
    demo = recipes.get("demo_pretrain")
    line = recipes.loss_comparison(demo, 1.0, 0.771)
    assert line is not None and "0.771 at 100% of demo_pretrain" in line and "as recorded" in line
    high = recipes.loss_comparison(demo, 13 / 26, 1.0)
    assert high is not None and "15% above it: check the data" in high
    small = recipes.get("k400_small_pretrain")
    assert recipes.loss_comparison(small, 0.5, 0.7) is None
    assert recipes.loss_comparison(recipes.get("ssv2_base_pretrain"), 1.0, 0.7) is None
    with_lists = override(small, {"data.train_csv": "my/train.csv", "data.workers": 3, "train.seed": 5})
    assert recipes.loss_comparison(with_lists, 1.0, 0.6) is not None


def test_another_run_than_the_recorded_one_is_not_compared() -> None:
    demo = recipes.get("demo_pretrain")
    changed = override(demo, {"train.epochs": 3, "mask.ratio": 0.9, "data.train_csv": "my/train.csv"})
    assert recipes.loss_comparison(changed, 1.0, 0.771) is None
    assert recipes.why_not_compared(changed) == (
        "is my loss normal? Not compared with the recorded run of demo_pretrain: "
        "mask.ratio, data.train_csv, train.epochs differ"
    )
    assert recipes.why_not_compared(demo) is None
    assert recipes.why_not_compared(recipes.get("ssv2_base_pretrain")) is None
    tuned = recipes.get("demo_finetune")
    assert recipes.differences(tuned) == ["init"]
    assert recipes.differences(override(tuned, {"init": "runs/a/model"})) == []


@pytest.mark.parametrize("name", recipes.REFERENCE_LOSS)
def test_recorded_curves_are_of_recipes_and_in_order(name: str) -> None:
    shares = [s for s, _ in recipes.REFERENCE_LOSS[name]]
    assert name in recipes.ALL and shares == sorted(set(shares)) and shares[-1] == 1.0


# name -> dim, base lr, layer decay, epochs, whether the weights are the zoo's, published mAP
AVA = {
    "ava_small": (384, 1e-3, 0.6, 30, False, "22.5"),
    "ava_small_labels": (384, 5e-4, 0.6, 30, True, "28.4"),
    "ava_base": (768, 2.5e-4, 0.75, 30, True, "26.7"),
    "ava_base_labels": (768, 5e-4, 0.75, 30, True, "31.8"),
    "ava_large": (1024, 2.5e-4, 0.75, 30, True, "34.3"),
    "ava_large_labels": (1024, 5e-4, 0.8, 20, True, "37.0"),
    "ava_huge": (1280, 5e-4, 0.8, 20, False, "36.5"),
    "ava_huge_labels": (1280, 5e-4, 0.8, 20, True, "39.5"),
    "ava_k700_large": (1024, 2.5e-4, 0.75, 30, False, "36.1"),
    "ava_k700_large_labels": (1024, 5e-4, 0.8, 20, False, "39.3"),
}


@pytest.mark.parametrize("name", AVA)
def test_detection_rows(name: str) -> None:
    dim, base_lr, decay, epochs, zoo, published = AVA[name]
    c = recipes.get(name)
    assert c.job == "detection" and c.model.embed_dim == dim and published in recipes.doc(name)
    assert (c.optim.base_lr, c.optim.layer_decay, c.train.epochs) == (base_lr, decay, epochs)
    assert (c.train.batch_size, c.optim.warmup_epochs, c.detect.drop_path) == (128, 5, 0.2)
    assert (c.data.size, c.data.short_side, c.data.augment, c.data.flip) == (
        (224, 224),
        256,
        "random_crop",
        True,
    )
    assert (c.detect.num_classes, c.detect.min_score, c.detect.roi_aligned) == (80, 0.8, False)
    assert bool(c.init) == zoo
    if zoo:
        assert find_in_zoo(c.init).size == c.init.split("-")[1]
