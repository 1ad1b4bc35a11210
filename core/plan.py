"""What a pre-training run will cost, from its shapes: parameters, FLOPs, memory, hours."""

from __future__ import annotations

from dataclasses import dataclass

from vmae.core.errors import InputError, nearest
from vmae.core.model.encoder import EncoderConfig
from vmae.core.model.masking import MaskConfig, mask_counts
from vmae.core.model.target import SIGREG
from vmae.core.model.videomae import VideoMAEConfig

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """Dense bf16 peak (TFLOP/s) and memory (GiB) as the vendor states them; `device`: as CUDA names it."""

    tflops: float
    memory_gib: float
    device: str = ""


GPUS: dict[str, Gpu] = {
    "v100": Gpu(tflops=125, memory_gib=32),  # fp16: it has no bf16
    "a100": Gpu(tflops=312, memory_gib=80),
    "h100": Gpu(tflops=989, memory_gib=80, device="NVIDIA H100 80GB HBM3"),
    "h200": Gpu(tflops=989, memory_gib=141, device="NVIDIA H200"),
    "b200": Gpu(tflops=2250, memory_gib=180),
    "4090": Gpu(tflops=165, memory_gib=24),
}


def peak_flops(device: str) -> float | None:
    """Return the dense bf16 peak, FLOP/s, of a GPU by the name CUDA gives it; None for one not listed."""
    return next((g.tflops * 1e12 for g in GPUS.values() if device and g.device == device), None)


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """One half of the model. FLOPs count a multiply-add as 2, matrix products only."""

    tokens: int
    parameters: int
    forward_flops: int
    """Of one clip."""
    training_flops: int
    """Forward and backward of one clip: each product has two in the backward pass, the embedding one, for
    pixels need no gradient."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything `vmae plan` prints."""

    config: VideoMAEConfig
    mask: MaskConfig
    num_visible: int
    num_decoded: int
    encoder: StageCost
    decoder: StageCost
    parameters: int
    batch_per_gpu: int
    activation_bytes: int
    """Of one GPU's batch, kept from forward to backward."""
    state_bytes: int
    """Weights, gradients and AdamW's moments, fp32."""
    hours: float
    gpu_hours: float
    clips_per_s: float
    """All GPUs together."""
    steps: int

    @property
    def forward_flops(self) -> int:
        """Of one clip."""
        return self.encoder.forward_flops + self.decoder.forward_flops

    @property
    def training_flops(self) -> int:
        """Of one clip, forward and backward."""
        return self.encoder.training_flops + self.decoder.training_flops


def make_plan(
    config: VideoMAEConfig,
    mask: MaskConfig,
    *,
    batch: int,
    gpu: str,
    gpus: int,
    videos: int,
    epochs: int,
    utilisation: float,
) -> Plan:
    """The cost of pre-training `config` on `videos` clips an epoch for `epochs`.

    `batch` is per GPU; `utilisation` the share of the GPU's dense bf16 peak that matrix products reach.
    FLOPs are exact for the published method (the whole last decoder block; we skip its visible rows). The
    activation estimate counts the tensors autograd keeps with bf16 autocast, fused attention and exact GELU.
    Raises InputError for an unknown GPU, numbers out of range, or an impossible mask.
    """
    if gpu not in GPUS:
        raise InputError(f"expected a GPU among {', '.join(GPUS)}; got {gpu!r}{nearest(gpu, list(GPUS))}")
    for name, value in (("batch", batch), ("gpus", gpus), ("videos", videos), ("epochs", epochs)):
        if value < 1:
            raise InputError(f"expected {name} of at least 1, got {value}")
    if not 0 < utilisation <= 1:
        raise InputError(f"expected a utilisation above 0 and at most 1, got {utilisation}")
    grid = config.grid
    visible, masked = mask_counts(mask.type, mask.ratio, grid)
    decoded = masked
    if mask.decoder_type is not None and mask.decoder_ratio > 0:
        decoded, _ = mask_counts(mask.decoder_type, mask.decoder_ratio, grid)
    d = config.embed_dim
    embedding = 2 * visible * grid.patch_dim * d
    encoder_forward = embedding + config.depth * _block_flops(visible, d, config.mlp_dim)
    encoder = StageCost(
        tokens=visible,
        parameters=_block_parameters(d, config.mlp_dim) * config.depth
        + (grid.patch_dim + 1) * d
        + (2 * d if config.encoder_norm else 0),
        forward_flops=encoder_forward,
        training_flops=3 * encoder_forward - embedding,
    )
    decoder = _decoder(config, visible, decoded)
    parameters = encoder.parameters + decoder.parameters
    kept = config.depth * _block_activations(visible, d, config.mlp_dim, config.checkpoint_activations)
    kept += 2 * visible * grid.patch_dim
    if config.target != SIGREG:
        kept += config.decoder_depth * _block_activations(
            decoder.tokens, config.decoder_embed_dim, config.decoder_mlp_dim, config.checkpoint_activations
        )
        kept += 6 * decoded * config.predicted_dim  # prediction in bf16, its fp32 difference
    training = encoder.training_flops + decoder.training_flops
    clips_per_s = gpus * GPUS[gpu].tflops * 1e12 * utilisation / training
    hours = videos * epochs / clips_per_s / 3600
    return Plan(
        config=config,
        mask=mask,
        num_visible=visible,
        num_decoded=decoded,
        encoder=encoder,
        decoder=decoder,
        parameters=parameters,
        batch_per_gpu=batch,
        activation_bytes=batch * kept,
        state_bytes=parameters * 16,
        hours=hours,
        gpu_hours=hours * gpus,
        clips_per_s=clips_per_s,
        steps=-(-videos // (batch * gpus)) * epochs,
    )


def _decoder(config: VideoMAEConfig, visible: int, decoded: int) -> StageCost:
    """What stands behind the encoder: the decoder, or the projector of a joint embedding (of one token)."""
    d, dd, q = config.embed_dim, config.decoder_embed_dim, config.predicted_dim
    if config.target == SIGREG:
        weights = 4 * d * d + 4 * d * q
        return StageCost(
            tokens=1,
            parameters=weights + 3 * 4 * d,
            forward_flops=2 * weights,
            training_flops=6 * weights,
        )
    total = visible + decoded
    forward = (
        2 * visible * d * dd
        + config.decoder_depth * _block_flops(total, dd, config.decoder_mlp_dim)
        + 2 * decoded * dd * q
    )
    return StageCost(
        tokens=total,
        parameters=_block_parameters(dd, config.decoder_mlp_dim) * config.decoder_depth
        + d * dd
        + dd
        + 2 * dd
        + (dd + 1) * q,
        forward_flops=forward,
        training_flops=3 * forward,
    )


def classifier_flops(config: EncoderConfig) -> int:
    """Matrix-product FLOPs of one clip's forward and backward in fine-tuning (all tokens; no head)."""
    n, d = config.grid.num_tokens, config.embed_dim
    embedding = 2 * n * config.grid.patch_dim * d
    return 2 * embedding + 3 * config.depth * _block_flops(n, d, config.mlp_dim)


def forward_flops(config: EncoderConfig, mask: MaskConfig | None = None) -> int:
    """Matrix-product FLOPs of the encoder's forward on one clip: visible tokens with `mask`, else all."""
    grid, d = config.grid, config.embed_dim
    tokens = grid.num_tokens if mask is None else mask_counts(mask.type, mask.ratio, grid)[0]
    return 2 * tokens * grid.patch_dim * d + config.depth * _block_flops(tokens, d, config.mlp_dim)


def training_flops(config: EncoderConfig, mask: MaskConfig | None = None) -> int:
    """Matrix-product FLOPs of one clip's forward and backward: pre-training with `mask`, else fine-tuning."""
    if mask is None:
        return classifier_flops(config)
    assert isinstance(config, VideoMAEConfig)
    return _one(config, mask, batch=1).training_flops


def training_bytes(config: EncoderConfig, mask: MaskConfig | None, batch: int, *, half: bool) -> int:
    """Weights, gradients, AdamW's moments and the activations of `batch` clips, as `training_flops`.

    `half`: bf16 autocast; without it (a CPU) activations are fp32, which doubles them at most.
    """
    if mask is not None:
        assert isinstance(config, VideoMAEConfig)
        plan = _one(config, mask, batch=batch)
        return plan.state_bytes + plan.activation_bytes * (1 if half else 2)
    n, d = config.grid.num_tokens, config.embed_dim
    kept = config.depth * _block_activations(n, d, config.mlp_dim, config.checkpoint_activations)
    kept += 2 * n * config.grid.patch_dim
    parameters = _block_parameters(d, config.mlp_dim) * config.depth + (config.grid.patch_dim + 1) * d + 2 * d
    return 16 * parameters + batch * kept * (1 if half else 2)


def _one(config: VideoMAEConfig, mask: MaskConfig, batch: int) -> Plan:
    """The plan of one step on one GPU."""
    return make_plan(config, mask, batch=batch, gpu="h200", gpus=1, videos=batch, epochs=1, utilisation=1.0)


def _block_parameters(dim: int, hidden: int) -> int:
    # qkv without a key bias, proj, two norms, two linears
    return 3 * dim * dim + 2 * dim + dim * dim + dim + 4 * dim + 2 * dim * hidden + hidden + dim


def _block_flops(tokens: int, dim: int, hidden: int) -> int:
    linear = 2 * tokens * dim * (3 * dim + dim + 2 * hidden)
    return linear + 4 * tokens * tokens * dim  # q k^T and the weighted sum of v


def _block_activations(tokens: int, dim: int, hidden: int, recompute: bool) -> int:
    """Bytes autograd keeps of one clip in one block."""
    if recompute:
        return 4 * tokens * dim
    # fp32: the stream before and after attention and MLP inputs' norms; bf16: norm outputs, qkv, attention's
    # output, fc1's output and GELU's.
    stream = 2 * 4 * tokens * dim
    half = 2 * tokens * (2 * dim + 3 * dim + dim + 2 * hidden)
    return stream + half
