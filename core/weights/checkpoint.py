"""Our checkpoint format (safetensors with a JSON configuration), and loading for another clip shape."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmae.core.errors import CheckpointError, InputError
from vmae.core.files import fsync, read_record, replacing, write_text
from vmae.core.model.encoder import VideoModel
from vmae.core.model.grid import TokenGrid
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.weights.models import FORMAT, build_held, build_model, describe_model

WEIGHTS_NAME = "model.safetensors"
CONFIG_NAME = "config.json"
_WIDE = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def save_model(path: str | os.PathLike[str], model: VideoModel, meta: dict[str, Any] | None = None) -> Path:
    """Write a model of `vmae.core.weights.models.MODELS` with its configuration and `meta` (JSON values).

    A `path` ending in `.safetensors` becomes one file, which carries the configuration in its header; any
    other becomes a directory with `model.safetensors` (the same file) and a readable `config.json`. Writes
    are atomic (write, fsync, rename). Returns the path of the safetensors file.
    """
    from safetensors.torch import save_file

    target = Path(path)
    single = target.suffix == ".safetensors"
    folder = target.parent if single else target
    folder.mkdir(parents=True, exist_ok=True)
    file = target if single else target / WEIGHTS_NAME
    header = describe_model(model, meta or {})
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    with replacing(file, durable=True) as temporary:
        save_file(state, temporary, metadata={"vmae": json.dumps(header, sort_keys=True)})
        if not single:
            fsync(temporary)  # a full disk is known before anything goes
            # A crash between the two leaves the weights' own header, never another run's config.json.
            (folder / CONFIG_NAME).unlink(missing_ok=True)
    if not single:
        text = json.dumps(header, indent=2, sort_keys=True) + "\n"
        write_text(folder / CONFIG_NAME, text, durable=True)
    return file


def load_model(path: str | os.PathLike[str]) -> tuple[VideoModel, dict[str, Any]]:
    """Read what `save_model` wrote: `(model, meta)`, on the CPU, in training mode, in the saved dtype.

    Raises CheckpointError where the file is missing, cut short, of another format or does not match its
    own configuration, with what was expected and found.
    """
    target = Path(path)
    file = target / WEIGHTS_NAME if target.is_dir() else target
    if not file.is_file():
        raise CheckpointError(f"{target}: expected a checkpoint ({WEIGHTS_NAME} or a directory with one)")
    state, metadata = open_safetensors(file)
    try:
        header = json.loads(metadata.get("vmae", "null"))
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{file}: expected JSON in the header, got {e}") from e
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise CheckpointError(
            f"{file}: expected a vmae checkpoint (format {FORMAT}); its header has none:"
            " `vmae convert` reads official and Hugging Face files"
        )
    if target.is_dir() and (target / CONFIG_NAME).is_file():
        # A copy that was cut short says nothing: the weights' own header does.
        beside = read_record(target / CONFIG_NAME)
        if beside is not None and beside != header:
            raise CheckpointError(
                f"{target / CONFIG_NAME}: expected the configuration in {WEIGHTS_NAME}'s header, got another:"
                " it is a copy to read, not to edit"
            )
    model = build_held(header, state, str(file))
    match_dtype(model, state, str(file))
    load_matching(model, state, str(file))
    return model, header["meta"]


def open_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of a safetensors file. Raises CheckpointError where it is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, f.metadata() or {}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError, ValueError) as e:
        raise CheckpointError(f"{file}: not a readable safetensors file (cut short?): {e}") from e


def match_dtype(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give `model` the dtype of `state`'s tensors, so that loading changes no value.

    Where they have several (mixed precision keeps norms wider), the narrowest that holds all of them exactly.
    Raises CheckpointError for tensors that are no floating-point ones.
    """
    dtypes = {v.dtype for v in state.values()}
    others = [f"{k} of {v.dtype}" for k, v in state.items() if not v.is_floating_point()]
    if not dtypes or others:
        raise CheckpointError(
            f"{source}: expected floating-point tensors, got {', '.join(others[:3]) or 'none'}"
        )
    if not dtypes <= _WIDE:
        # Eight-bit ones are for storage: nothing is computed in them.
        dtypes = dtypes & _WIDE | {torch.float32}
    model.to(functools.reduce(torch.promote_types, dtypes))


def load_matching(model: nn.Module, state: dict[str, Any], source: str) -> None:
    """Load `state` into `model`; every key and shape must match, else a CheckpointError lists both sides.

    Weights that are NaN or infinite are refused too: every number that they give would be wrong.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    unknown = sorted(state.keys() - own.keys())
    shapes = [
        f"{k}: expected {list(own[k].shape)}, got {list(state[k].shape)}"
        for k in sorted(own.keys() & state.keys())
        if own[k].shape != state[k].shape
    ]
    if missing or unknown or shapes:
        parts = []
        if missing:
            parts.append(f"missing in the file: {', '.join(missing)}")
        if unknown:
            parts.append(f"unknown to the model: {', '.join(unknown)}")
        if shapes:
            parts.append(f"other shapes: {'; '.join(shapes)}")
        raise CheckpointError(f"{source}: keys do not match; " + "; ".join(parts))
    broken = [
        k for k, v in state.items() if v.is_floating_point() and not v.to(own[k].dtype).isfinite().all()
    ]
    if broken:
        raise CheckpointError(
            f"{source}: expected finite weights, got NaN or infinite ones in {len(broken)} of {len(state)} "
            f"tensors ({', '.join(broken[:3])}{', ...' if len(broken) > 3 else ''})"
        )
    model.load_state_dict(state)


def adapt_model(
    model: VideoModel,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    patch_size: int | None = None,
    tubelet_size: int | None = None,
    resize_patch_embed: bool = False,
) -> tuple[VideoModel, tuple[str, ...]]:
    """The same weights for another clip shape: `(model, notes)`, a new model where anything changes.

    Another resolution or frame count changes no weight; the fixed positions of the new grid are interpolated
    in the trained (t, h, w) grid, so that a token keeps the position its place had in training (the official
    code re-indexes the flat table, which moves every row and slot).
    Another patch or tubelet size changes what a token is: InputError unless `resize_patch_embed`, which
    resizes the embedding by the pseudo-inverse of linear resampling (FlexiViT, arXiv 2212.08013, here in
    three axes) and the pre-training head by the resampling itself. `notes` say what was done, for the user.
    """
    old = model.config
    wanted: dict[str, Any] = {
        k: v
        for k, v in (
            ("frames", frames),
            ("height", height),
            ("width", width),
            ("patch_size", patch_size),
            ("tubelet_size", tubelet_size),
        )
        if v is not None and v != getattr(old, k)
    }
    if not wanted:
        return model, ()
    before, trained = old.grid, old.pos_grid or (old.grid.t, old.grid.h, old.grid.w)
    patch_changes = {"patch_size", "tubelet_size"} & wanted.keys()
    if patch_changes and not resize_patch_embed:
        changes = ", ".join(f"{k} {getattr(old, k)} to {wanted[k]}" for k in sorted(patch_changes))
        raise InputError(
            f"the checkpoint embeds patches of {before.tubelet_size}x{before.patch_size}x{before.patch_size};"
            f" changing {changes} resamples its weights: ask for it (--resize-patch-embed), or keep them"
            f" (--set model.patch_size={old.patch_size} --set model.tubelet_size={old.tubelet_size})"
        )
    if patch_changes and isinstance(old, VideoMAEConfig) and not old.predicts_pixels:
        raise InputError(f"expected a model that predicts pixels to resample its patches; got {old.target}")
    config = dataclasses.replace(old, **wanted, pos_grid=None)
    after = config.grid
    own = (after.t, after.h, after.w)
    notes = []
    if own != trained:
        config = dataclasses.replace(config, pos_grid=trained)
        notes.append(
            f"positions of the {after.t}x{after.h}x{after.w} grid interpolated in the"
            f" {trained[0]}x{trained[1]}x{trained[2]} grid that was trained"
        )
    new = build_model(describe_model(model, {}) | {"config": config.to_dict()})
    new.to(next(model.parameters()).dtype)
    state = model.state_dict()
    if patch_changes:
        operator = _resampling(before, after).to(next(model.parameters()))
        _resize_patches(state, operator, before.channels)
        notes.append(f"patch weights resampled from {before.describe()} to {after.describe()}")
    new.load_state_dict(state)
    new.train(model.training)
    return new.to(next(model.parameters()).device), tuple(notes)


def _resampling(before: TokenGrid, after: TokenGrid) -> Tensor:
    """The matrix [new pixels, old pixels] that resamples one patch's (p0, p1, p2) values linearly."""
    old = (before.tubelet_size, before.patch_size, before.patch_size)
    new = (after.tubelet_size, after.patch_size, after.patch_size)
    n = old[0] * old[1] * old[2]
    basis = torch.eye(n, dtype=torch.float64).view(n, 1, *old)
    out = torch.nn.functional.interpolate(basis, size=new, mode="trilinear", align_corners=False)
    return out.view(n, -1).T


def _resize_patches(state: dict[str, Tensor], operator: Tensor, channels: int) -> None:
    embed = "encoder.patch_embed.proj.weight"
    weight = state[embed].unflatten(1, (-1, channels)).double()  # [D, old pixels, C]
    inverse = torch.linalg.pinv(operator.double())  # [old, new]
    # <resampled patch, new weight> = <patch, old weight> as nearly as possible
    resized = torch.einsum("on,doc->dnc", inverse, weight)
    state[embed] = resized.flatten(1).to(state[embed])
    for key in ("decoder.head.weight", "decoder.head.bias"):
        if key in state:
            rows = state[key].unflatten(0, (-1, channels)).double()  # [old pixels, C, ...]
            state[key] = torch.einsum("no,oc...->nc...", operator.double(), rows).flatten(0, 1).to(state[key])
