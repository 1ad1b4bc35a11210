"""`assemble_decoder_tokens`: checks, then the path that dispatch chooses."""

from __future__ import annotations

import torch
from torch import Tensor

from vmae.kernels.checks import FLOAT_DTYPES, check_indices, describe, require
from vmae.kernels.decoder_tokens import library
from vmae.kernels.decoder_tokens.reference import assemble_decoder_tokens_reference
from vmae.kernels.dispatch import choose


def assemble_decoder_tokens(
    visible: Tensor,
    mask_token: Tensor,
    pos: Tensor,
    visible_indices: Tensor,
    masked_indices: Tensor,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the decoder's input `[B, N_vis + N_mask, D]`: visible tokens first, then mask tokens.

    visible: float `[B, N_vis, D]`, the encoder's output after encoder_to_decoder. mask_token: D numbers in
    any shape (`[D]`, `[1, 1, D]`). pos: `[N, D]` position embedding. visible_indices `[B, N_vis]` and
    masked_indices `[B, N_mask]`: int64 in [0, N), both with at least one column. Row i is
    `visible[:, i] + pos[visible_indices[:, i]]`, then `mask_token + pos[masked_indices[:, j]]`; sums are
    float32 (float64 if any operand is), the result has `dtype` (None: visible's dtype).

    Gradients flow to visible, mask_token (summed over clips and masked positions) and pos.

    Raises KernelInputError (a ValueError) for a wrong shape, dtype or device, and for an index out of range
    where that is checked (see `gather_patches`).

    Source: `PretrainVisionTransformer.forward` of the official `modeling_pretrain.py`; V2's dual masking
    passes the decoded subset as masked_indices.
    """
    require(isinstance(visible, Tensor) and visible.ndim == 3, "visible [B, N_vis, D]", describe(visible))
    require(visible.dtype in FLOAT_DTYPES, "visible of a float dtype", describe(visible))
    b, _, d = visible.shape
    for name, x in (("mask_token", mask_token), ("pos", pos)):
        require(isinstance(x, Tensor), f"{name} a tensor", describe(x))
    require(mask_token.numel() == d, f"mask_token with {d} numbers", describe(mask_token))
    require(pos.ndim == 2 and pos.shape[1] == d, f"pos [N, {d}]", describe(pos))
    for name, x in (("mask_token", mask_token), ("pos", pos)):
        require(x.dtype in FLOAT_DTYPES, f"{name} of a float dtype", describe(x))
        require(x.device == visible.device, f"{name} on {visible.device}", describe(x))
    check_indices(visible_indices, b, pos.shape[0], visible, "visible_indices")
    check_indices(masked_indices, b, pos.shape[0], visible, "masked_indices")
    require(
        visible_indices.shape[1] == visible.shape[1],
        f"visible_indices [{b}, {visible.shape[1]}]",
        describe(visible_indices),
    )
    require(dtype is None or dtype in FLOAT_DTYPES, "dtype None or a float dtype", dtype)
    kinds = (visible.dtype, mask_token.dtype, pos.dtype, dtype)
    unsupported = "float64 is computed by the reference only" if torch.float64 in kinds else None
    way = choose(
        "assemble_decoder_tokens",
        visible,
        unsupported=unsupported,
        dims=library.site_dims(visible, masked_indices),
        layout=str(dtype or visible.dtype).removeprefix("torch."),
        dtype=visible.dtype,
    )
    if way.startswith("triton"):
        return torch.ops.vmae.decoder_tokens(
            visible, mask_token, pos, visible_indices, masked_indices, dtype or visible.dtype
        )
    return assemble_decoder_tokens_reference(
        visible, mask_token, pos, visible_indices, masked_indices, dtype=dtype
    )
