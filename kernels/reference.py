"""Every op's plain torch reference in one place: the specification that tests compare with."""

from __future__ import annotations

from vmae.kernels.attention.reference import fused_attention_reference as fused_attention
from vmae.kernels.decoder_tokens.reference import assemble_decoder_tokens_reference as assemble_decoder_tokens
from vmae.kernels.patch_gather.reference import gather_patches_reference as gather_patches
from vmae.kernels.patch_loss.reference import masked_patch_loss_reference as masked_patch_loss
from vmae.kernels.patch_loss.reference import patch_targets_reference as patch_targets

__all__ = [
    "assemble_decoder_tokens",
    "fused_attention",
    "gather_patches",
    "masked_patch_loss",
    "patch_targets",
]
