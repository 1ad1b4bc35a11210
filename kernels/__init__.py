"""The step's heavy operations: one public function per op, one signature on every device.

Each op has a folder: `reference.py` (plain torch, the specification), `op.py` (checks and dispatch),
`triton_kernels.py`, `README.md` (derivation, bytes, evidence). `dispatch.py` says which
path is taken and why.
"""

from vmae.kernels.add_norm.op import add_layer_norm
from vmae.kernels.attention.op import fused_attention
from vmae.kernels.checks import KernelInputError
from vmae.kernels.decoder_tokens.op import assemble_decoder_tokens
from vmae.kernels.dispatch import KernelStatus, kernel_status, use_kernels
from vmae.kernels.gelu_mlp.op import mlp
from vmae.kernels.linear import linear
from vmae.kernels.patch_gather.op import gather_patches
from vmae.kernels.patch_loss.op import masked_patch_loss, patch_targets

__all__ = [
    "KernelInputError",
    "KernelStatus",
    "add_layer_norm",
    "assemble_decoder_tokens",
    "fused_attention",
    "gather_patches",
    "kernel_status",
    "linear",
    "masked_patch_loss",
    "mlp",
    "patch_targets",
    "use_kernels",
]
