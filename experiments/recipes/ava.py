"""AVA 2.2: the released scripts of MCG-NJU/VideoMAE-Action-Detection, one definition a row of its table.

Give the lists with `--data ava_train_v2.2.csv --val ava_val_v2.2.csv --data-root FILMS` (or its COCO-style
JSON), the label map, the excluded time stamps and the proposals with `--set` (docs/detection.md). Results
are the publishers' frame-mAP at IoU 0.5 over 60 actions, on proposals. The Kinetics-700 rows have no script:
they are the Kinetics-400 ones from other weights.

Departures: brightness, contrast and saturation are jittered, not the hue; pixels are normalised as the
initial weights were trained (the scripts: mean 122.8, 115.9, 103.0, deviation 57.4).
"""

from __future__ import annotations

from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.detect import DetectConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes.recipe import recipe
from vmae.experiments.stages import detection


def detecting(
    size: str, *, base_lr: float, layer_decay: float = 0.75, epochs: int = 30, init: str = ""
) -> ExperimentConfig:
    """What all scripts share.

    AdamW (0.9, 0.999), weight decay 0.05, 5 epochs of warm-up from 1e-6, batch 128, drop path 0.2, crop of
    224 from a short side of 256, flip, RoIAlign of the first form; L and H recompute activations.
    """
    model = VideoMAEConfig.from_size(size, checkpoint_activations=size in ("large", "huge"))
    return ExperimentConfig(
        job=detection.STAGE.name,
        init=init,
        model=model,
        data=DataConfig(
            frames=16,
            sampling_rate=4,
            size=(224, 224),
            short_side=256,
            augment="random_crop",
            flip=True,
            color_jitter=0.1,
            workers=10,
        ),
        optim=OptimConfig(
            base_lr=base_lr,
            min_lr=1e-6,
            warmup_lr=1e-6,
            warmup_epochs=5,
            betas=(0.9, 0.999),
            weight_decay=0.05,
            layer_decay=layer_decay,
        ),
        train=TrainConfig(epochs=epochs, batch_size=128, best_by=None),
        detect=DetectConfig(drop_path=0.2, roi_aligned=False, eval_every=10),
        evaluation_ratio=0.9,
    )


@recipe
def ava_small() -> ExperimentConfig:
    """ViT-S pre-trained on Kinetics-400 alone: 22.5. Name the weights with --init.

    Cost: 339 GFLOP a clip, 10.2 TFLOP a video over the run.
    """
    return detecting("small", base_lr=1e-3, layer_decay=0.6)


@recipe
def ava_small_labels() -> ExperimentConfig:
    """ViT-S fine-tuned on Kinetics-400's labels: 28.4. `init` is the zoo's.

    Cost: 339 GFLOP a clip, 10.2 TFLOP a video over the run.
    """
    return detecting("small", base_lr=5e-4, layer_decay=0.6, init="hf-small-finetuned-kinetics")


@recipe
def ava_base() -> ExperimentConfig:
    """ViT-B pre-trained on Kinetics-400 alone: 26.7. `init` is the zoo's.

    Cost: 1,078 GFLOP a clip, 32.4 TFLOP a video over the run.
    """
    return detecting("base", base_lr=2.5e-4, init="hf-base")


@recipe
def ava_base_labels() -> ExperimentConfig:
    """ViT-B fine-tuned on Kinetics-400's labels: 31.8. `init` is the zoo's.

    Cost: 1,078 GFLOP a clip, 32.4 TFLOP a video over the run.
    """
    return detecting("base", base_lr=5e-4, init="hf-base-finetuned-kinetics")


@recipe
def ava_large() -> ExperimentConfig:
    """ViT-L pre-trained on Kinetics-400 alone: 34.3. `init` is the zoo's.

    Cost: 3,576 GFLOP a clip, 107 TFLOP a video over the run.
    """
    return detecting("large", base_lr=2.5e-4, init="hf-large")


@recipe
def ava_large_labels() -> ExperimentConfig:
    """ViT-L fine-tuned on Kinetics-400's labels: 37.0. `init` is the zoo's.

    Cost: 3,576 GFLOP a clip, 71.5 TFLOP a video over the run.
    """
    return detecting("large", base_lr=5e-4, layer_decay=0.8, epochs=20, init="hf-large-finetuned-kinetics")


@recipe
def ava_huge() -> ExperimentConfig:
    """ViT-H pre-trained on Kinetics-400 alone: 36.5. Name the weights with --init.

    Cost: 7,140 GFLOP a clip, 143 TFLOP a video over the run.
    """
    return detecting("huge", base_lr=5e-4, layer_decay=0.8, epochs=20)


@recipe
def ava_huge_labels() -> ExperimentConfig:
    """ViT-H fine-tuned on Kinetics-400's labels: 39.5. `init` is the zoo's.

    Cost: 7,140 GFLOP a clip, 143 TFLOP a video over the run.
    """
    return detecting("huge", base_lr=5e-4, layer_decay=0.8, epochs=20, init="hf-huge-finetuned-kinetics")


@recipe
def ava_k700_large() -> ExperimentConfig:
    """ViT-L pre-trained on Kinetics-700 alone: 36.1. Name the weights with --init.

    Cost: 3,576 GFLOP a clip, 107 TFLOP a video over the run.
    """
    return detecting("large", base_lr=2.5e-4)


@recipe
def ava_k700_large_labels() -> ExperimentConfig:
    """ViT-L fine-tuned on Kinetics-700's labels: 39.3. Name the weights with --init.

    Cost: 3,576 GFLOP a clip, 71.5 TFLOP a video over the run.
    """
    return detecting("large", base_lr=5e-4, layer_decay=0.8, epochs=20)
