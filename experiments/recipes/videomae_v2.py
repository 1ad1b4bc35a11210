"""VideoMAE V2 (arXiv 2303.16727): dual masking, as OpenGVLab/VideoMAEv2's pre-training scripts have it.

The scripts' data set is a mixture that is not public; any list of videos serves.
"""

from __future__ import annotations

from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.optim import OptimConfig
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.recipes.recipe import recipe


def pretraining(
    size: str,
    *,
    epochs: int,
    batch: int,
    base_lr: float = 1e-3,
    warmup: float = 30,
    clip_grad: float | None = None,
) -> ExperimentConfig:
    """What the V2 scripts share: tube 0.9, running cell 0.5 in the decoder (4 blocks), 4 repeated samples."""
    return ExperimentConfig(
        model=VideoMAEConfig.from_size(size, decoder_embed_dim=512, decoder_num_heads=8, decoder_depth=4)
        if size == "huge"
        else VideoMAEConfig.from_size(size, decoder_depth=4),
        mask=MaskConfig(type="tube", ratio=0.9, decoder_type="running_cell", decoder_ratio=0.5),
        data=DataConfig(
            frames=16,
            sampling_rate=4,
            size=(224, 224),
            augment="multi_scale_crop",
            repeats=4,
            workers=10,
        ),
        optim=OptimConfig(
            base_lr=base_lr,
            min_lr=1e-5,
            warmup_epochs=warmup,
            betas=(0.9, 0.95),
            weight_decay=0.05,
            clip_grad=clip_grad,
        ),
        train=TrainConfig(epochs=epochs, batch_size=batch, checkpoint_every=20, picture_every=20),
        evaluation_ratio=0.9,
    )


@recipe
def v2_base_pretrain() -> ExperimentConfig:
    """ViT-B with dual masking, 200 epochs. Script: 32 GPUs of 32 clips.

    Cost: 145 GFLOP a clip, 116 TFLOP a video over the run.
    """
    return pretraining("base", epochs=200, batch=1024, warmup=20)


@recipe
def v2_large_pretrain() -> ExperimentConfig:
    """ViT-L with dual masking, 300 epochs (the script's job name says 1200). Script: 48 GPUs of 32 clips.

    Cost: 396 GFLOP a clip, 475 TFLOP a video over the run.
    """
    return pretraining("large", epochs=300, batch=1536)


@recipe
def v2_huge_pretrain() -> ExperimentConfig:
    """ViT-H with dual masking, 300 epochs. Script: 32 clips a GPU; 64 GPUs are our assumption.

    Cost: 715 GFLOP a clip, 858 TFLOP a video over the run.
    """
    return pretraining("huge", epochs=300, batch=2048)


@recipe
def v2_giant_pretrain() -> ExperimentConfig:
    """ViT-g (patch 14) with dual masking, 300 epochs, gradients clipped at 0.02.

    Script: 32 clips a GPU; 64 GPUs are our assumption. Shard it: --set train.shard=fsdp.
    Cost: 1,431 GFLOP a clip, 1,717 TFLOP a video over the run.
    """
    return pretraining("giant", epochs=300, batch=2048, base_lr=6e-4, clip_grad=0.02)
