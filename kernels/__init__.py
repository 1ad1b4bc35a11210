"""The step's heavy operations: one public function per op, one signature on every device.

Each op has a folder: `reference.py` (plain torch, the specification), `op.py` (checks and dispatch),
`triton_kernels.py`, `spec.py` (how it is timed, compiled and tried), `README.md` (derivation, bytes,
resources). `dispatch.py` says which path is taken and why, `calibrate.py` measures it on a machine,
`registry.py` lists the ops.
"""

from vmae.kernels.attention.op import fused_attention
from vmae.kernels.checks import KernelInputError
from vmae.kernels.decoder_tokens.op import assemble_decoder_tokens
from vmae.kernels.dispatch import KernelStatus, use_kernels
from vmae.kernels.linear import linear
from vmae.kernels.patch_gather.op import gather_patches
from vmae.kernels.patch_loss.op import masked_patch_loss, patch_targets
from vmae.kernels.status import kernel_status

__all__ = [
    "KernelInputError",
    "KernelStatus",
    "assemble_decoder_tokens",
    "fused_attention",
    "gather_patches",
    "kernel_status",
    "linear",
    "masked_patch_loss",
    "patch_targets",
    "use_kernels",
]
