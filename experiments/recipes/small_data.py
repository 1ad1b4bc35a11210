"""Data sets of one to ten thousand clips, where most people fail.

What the papers show: a small set can be pre-trained on alone, but only for thousands of epochs at a lower
mask ratio (UCF101 3,200, HMDB51 4,800), and starting from Kinetics-400 weights is better by 5 to 11 points
(UCF101 91.3 -> 96.1, HMDB51 62.6 -> 73.3) at a fraction of the cost. So: first `small_data_transfer`; then,
if your videos look unlike Kinetics, `small_data_adapt` before it; `small_data_10k_pretrain` when no foreign
weights may be used. None of these has a measured result of ours.
"""

from __future__ import annotations

from dataclasses import replace

from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes.recipe import recipe
from vmae.experiments.recipes.videomae_v1 import pretraining, ucf101_base_finetune


@recipe
def small_data_10k_pretrain() -> ExperimentConfig:
    """ViT-B on about 10k clips of your own from fresh weights: the UCF101 row (mask 0.75, 3200 epochs).

    For 3k clips use 4800 epochs (the HMDB51 row): the number of steps is what matters. `data.cache` decodes
    each video once, so that epochs after the first cost no decoding.
    Cost: 335 GFLOP a clip, 1,073 TFLOP a video over the run.
    """
    config = pretraining("base", epochs=3200, batch=192, ratio=0.75, base_lr=3e-4)
    return replace(config, data=replace(config.data, cache=True))


@recipe
def small_data_1k_pretrain() -> ExperimentConfig:
    """ViT-S on about 1k clips of your own from fresh weights, 4800 epochs, batch 64.

    An extrapolation of the UCF101 and HMDB51 rows to less data: a smaller model, more epochs, a smaller batch
    so that an epoch still has some 15 steps. Expect `small_data_transfer` to be better.
    Cost: 101 GFLOP a clip, 484 TFLOP a video over the run.
    """
    config = pretraining("small", epochs=4800, batch=64, ratio=0.75, base_lr=3e-4, sampling_rate=2)
    return replace(config, data=replace(config.data, cache=True))


@recipe
def small_data_adapt() -> ExperimentConfig:
    """Continue Kinetics-400 pre-training on your clips for 400 epochs, mask 0.9, then small_data_transfer.

    For videos that look unlike Kinetics (medical, driving, screen, infrared). `init` is ViT-B of the zoo.
    Cost: 202 GFLOP a clip, 80.9 TFLOP a video over the run.
    """
    config = pretraining("base", epochs=400, batch=192, base_lr=1.5e-4)
    return replace(config, init="hf-base", data=replace(config.data, cache=True))


@recipe
def small_data_transfer() -> ExperimentConfig:
    """Fine-tune Kinetics-400 weights (ViT-B of the zoo) on your clips: the UCF101 row, 50 epochs.

    On UCF101 this road gives 96.1 against 91.3 without foreign weights, on HMDB51 73.3 against 62.6.
    Where left and right are classes, keep `data.flip` off (it is, here).
    Cost: 1,078 GFLOP a clip, 108 TFLOP a video over the run.
    """
    row = small_data_finetune()
    return replace(
        row,
        init="hf-base",
        train=replace(row.train, epochs=50),
    )


@recipe
def small_data_finetune() -> ExperimentConfig:
    """Fine-tune your own pre-training (--init RUN) on your clips: the UCF101 row, 100 epochs, no flip.

    Cost: 1,078 GFLOP a clip, 216 TFLOP a video over the run.
    """
    row = ucf101_base_finetune()
    return replace(
        row,
        data=replace(row.data, flip=False),
    )
