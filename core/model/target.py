"""What the decoder predicts: pixels, which a kernel compares without making labels; a frozen teacher's
latents (`teacher:PLACE`, see `vmae.core.model.teacher`); or a target of one's own.

A target of one's own is one function `(video, indices, grid) -> float [B, K, Q]`, named `module:function` in
`model.target`: for the clips `video`, uint8 (or floating point in [0, 1]) `[B, C, T, H, W]`, the numbers to
predict at the tokens `indices`, int64 `[B, K]`. It runs on the device of the video, without gradient. Q is
`model.target_dim`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vmae.core.errors import InputError, nearest
from vmae.core.model.grid import TokenGrid
from vmae.core.named import is_object_name, load_object

PIXEL_TARGETS = ("normalized", "raw")
LOSSES = ("mse", "l1", "smooth_l1", "cosine")
"""`cosine`: one less the cosine of prediction and target, of targets that are no pixels."""
SIGREG = "sigreg"
"""No target: views of a clip agree in an embedding (`vmae.core.model.joint`), without a decoder."""
TEACHER = "teacher:"
"""How a target begins that a frozen model makes; its place (a run, a path, hf://org/name) follows."""
Target = Callable[[Tensor, Tensor, TokenGrid], Tensor]

_ELEMENTWISE: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
}


def teacher_of(target: str) -> str | None:
    """The place of the teacher that a target names; None where it names none."""
    return target.removeprefix(TEACHER) if target.startswith(TEACHER) else None


def check_loss(loss: str, target: str) -> None:
    """Raise InputError for an unknown loss, or one that the target does not have."""
    if loss not in LOSSES:
        raise InputError(f"expected loss among {', '.join(LOSSES)}; got {loss!r}{nearest(str(loss), LOSSES)}")
    if loss == "cosine" and target in PIXEL_TARGETS:
        raise InputError(f"expected loss mse, l1 or smooth_l1 of pixels, got cosine with target {target}")


def check_target(target: str, target_dim: int | None) -> None:
    """Raise InputError for a name that cannot be a target's; a user's module is not imported."""
    place = teacher_of(str(target))
    own = bool(place) or target == SIGREG or (place is None and is_object_name(str(target)))
    if target not in PIXEL_TARGETS and not own:
        raise InputError(
            f"expected target among {', '.join((*PIXEL_TARGETS, SIGREG))}; got {target!r}"
            f"{nearest(str(target), (*PIXEL_TARGETS, SIGREG))}; a frozen model's is {TEACHER}RUN, "
            "one of your own module:function"
        )
    if target_dim is not None and (not own or target_dim < 1):
        raise InputError(
            f"expected target_dim of at least 1, for a target of one's own; got {target_dim} with {target}"
        )


def target_function(target: str) -> Target:
    """The function that `module:function` names; InputError, one line, where it cannot be used."""
    if teacher_of(target) is not None:
        raise InputError(f"expected the teacher of {target} to be given to the model (VideoMAE.learn_from)")
    function: Target = load_object(target, "model.target")
    try:
        inspect.signature(function).bind(None, None, None)
    except (TypeError, ValueError) as e:
        raise InputError(
            f"model.target: expected {target} to be a function (video, indices, grid), got {e}"
        ) from e
    return function


@torch.no_grad()
def own_target(
    target: str,
    target_dim: int,
    video: Tensor,
    indices: Tensor,
    grid: TokenGrid,
    function: Target | None = None,
) -> Tensor:
    """What `function`, or the one that `module:function` names, gives for the tokens `indices`,
    `[B, K, target_dim]`. Raises InputError for another shape or dtype, with what came.
    """
    made = (function or target_function(target))(video, indices, grid)
    wanted = (*indices.shape, target_dim)
    if not isinstance(made, Tensor) or not made.is_floating_point() or tuple(made.shape) != wanted:
        got = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise InputError(f"model.target: expected {target} to give float {list(wanted)}, got {got}")
    return made


def own_target_loss(pred: Tensor, target: Tensor, weights: Tensor | None, loss: str) -> Tensor:
    """The mean loss over tokens, weighted by `[B, K]`; float32 (float64 if `pred` is).

    What `vmae.kernels.masked_patch_loss` computes for pixels, with the target given.
    """
    work = torch.float64 if pred.dtype == torch.float64 else torch.float32
    if loss == "cosine":
        each = 1 - F.cosine_similarity(pred.to(work), target.to(work), dim=2)[..., None]  # [B, K, 1]
    else:
        each = _ELEMENTWISE[loss](pred.to(work), target.to(work), reduction="none")  # [B, K, Q]
    if weights is None:
        return each.mean()
    weight = weights.to(work)
    return (each * weight[..., None]).sum() / (weight.sum() * each.shape[2])
