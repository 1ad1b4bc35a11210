"""The encoder that every model here has: its configuration, named sizes, patches, positions, blocks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError, nearest
from vmae.core.model.grid import TokenGrid
from vmae.core.model.layers import Block, Linear, gather_pos, init_weights, run_blocks, sincos_pos_embed
from vmae.kernels import gather_patches

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

BACKGROUNDS = ("keep", "subtract")


def _widths(*values: int) -> dict[str, Any]:
    names = ("embed_dim", "depth", "num_heads")
    return dict(zip(names + tuple(f"decoder_{n}" for n in names), values, strict=True))


# Encoder dim, depth, heads; decoder dim, depth, heads (V1's scripts; g: V2's).
_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "frames": 8,
        "height": 64,
        "width": 64,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 4,
        "num_heads": 4,
        "decoder_embed_dim": 64,
        "decoder_depth": 2,
        "decoder_num_heads": 2,
    },
    "small": _widths(384, 12, 6, 192, 4, 3),
    "base": _widths(768, 12, 12, 384, 4, 6),
    "large": _widths(1024, 24, 16, 512, 12, 8),
    "huge": _widths(1280, 32, 16, 640, 12, 8),
    "giant": _widths(1408, 40, 16, 512, 4, 8) | {"patch_size": 14, "mlp_ratio": 48 / 11},
}
SIZES = tuple(_SIZES)


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The clip's shape and the encoder: what pre-training and classification have in common."""

    frames: int = 16
    """Of a clip, T."""
    height: int = 224
    """Of a clip in pixels; a multiple of the patch size."""
    width: int = 224
    """Likewise."""
    channels: int = 3
    """Of a frame: 3, or what `.npy` videos have."""
    patch_size: int = 16
    """Pixels."""
    tubelet_size: int = 2
    """Frames."""
    embed_dim: int = 768
    """The encoder's width, D."""
    depth: int = 12
    """Its blocks."""
    num_heads: int = 12
    """Attention heads of each; divides the width."""
    mlp_ratio: float = 4.0
    """Width of a block's MLP, in widths of the encoder."""
    drop_path: float = 0.0
    """Stochastic depth of the last block; rises linearly from 0 at the first."""
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    """Per channel, of pixels in [0, 1], subtracted before embedding; None for no normalisation."""
    std: tuple[float, ...] | None = IMAGENET_STD
    """Per channel, by which what is left is divided."""
    norm_eps: float = 1e-6
    """Of the layer norms in blocks and of the encoder's last; Hugging Face checkpoints carry 1e-12."""
    head_norm_eps: float = 1e-6
    """Of the norm before the head (decoder.norm, fc_norm); Hugging Face hard-wires 1e-5."""
    checkpoint_activations: bool = False
    """Recompute block activations in the backward pass: less memory, about a third more time."""
    background: str = "keep"
    """"subtract": the model sees each pixel less its mean over the clip, on grey: what moves, and not the
    scene, by which a few hundred clips are told apart too easily. A departure from the published models."""
    pos_grid: tuple[int, int, int] | None = None
    """The (t, h, w) grid in whose frame the fixed positions are computed; None: this model's own. Set when
    a checkpoint of another resolution or frame count is loaded, see `vmae.core.weights.checkpoint`."""

    def __post_init__(self) -> None:
        # Sequences come back from JSON as lists.
        for name in ("mean", "std", "pos_grid"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        _ = self.grid
        for name in ("embed_dim", "depth", "num_heads"):
            require_positive(name, getattr(self, name))
        require_divisible("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        for name in ("mlp_ratio", "norm_eps", "head_norm_eps"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} above 0, got {getattr(self, name)!r}")
        if not 0 <= self.drop_path < 1:
            raise InputError(f"expected drop_path in [0, 1), got {self.drop_path!r}")
        if self.background not in BACKGROUNDS:
            raise InputError(f"expected background among {', '.join(BACKGROUNDS)}; got {self.background!r}")
        if (self.mean is None) != (self.std is None):
            raise InputError(f"expected mean and std both given or both None, got {self.mean} and {self.std}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                continue
            if len(values) != self.channels:
                raise InputError(f"expected {name} of {self.channels} channels, got {len(values)} values")
            if name == "std" and not all(v > 0 for v in values):
                raise InputError(f"expected std above 0, got {values}")
        if self.pos_grid is not None and (len(self.pos_grid) != 3 or min(self.pos_grid) < 1):
            raise InputError(f"expected pos_grid (t, h, w), got {self.pos_grid}")

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the encoder's MLPs."""
        return round(self.embed_dim * self.mlp_ratio)

    @property
    def grid(self) -> TokenGrid:
        """The token grid of this configuration."""
        return TokenGrid(
            frames=self.frames,
            height=self.height,
            width=self.width,
            channels=self.channels,
            patch_size=self.patch_size,
            tubelet_size=self.tubelet_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON keeps them."""
        return {
            k: list(v) if isinstance(v, tuple) else v
            for k, v in ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`. An unknown key is an InputError that names the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise InputError(f"{cls.__name__} has no field {key!r}{nearest(key, known)}")
        return cls(**values)

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> Self:
        """A named size (tiny, small, base, large, huge, giant) with any field replaced.

        With other than 3 `channels`, mean and std default to 0.5 in each channel.
        """
        if size not in _SIZES:
            raise InputError(f"expected a size among {', '.join(SIZES)}; got {size!r}{nearest(size, SIZES)}")
        known = {f.name for f in dataclasses.fields(cls)}
        values = {k: v for k, v in _SIZES[size].items() if k in known} | overrides
        channels = values.get("channels", 3)
        if channels != 3:
            values.setdefault("mean", (0.5,) * channels)
            values.setdefault("std", (0.5,) * channels)
        return cls.from_dict(values)


class PatchEmbed(nn.Module):
    """Linear embedding of chosen patches; the published Conv3d with kernel = stride, its weight reordered.

    The weight is [D, P] with P in patch order (p0 p1 p2 c); checkpoints keep (D, C, p0, p1, p2).
    """

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        # The linear layer's own initialisation is the official Conv3d's: uniform within 1/sqrt(P).
        self.proj = Linear(config.grid.patch_dim, config.embed_dim)

    def forward(self, video: Tensor, indices: Tensor) -> Tensor:
        """video [B, C, T, H, W], indices [B, K] to [B, K, D]."""
        c = self.config
        dtype = self.proj.weight.dtype
        if torch.is_autocast_enabled(video.device.type) and dtype == torch.float32:
            dtype = torch.get_autocast_dtype(video.device.type)
        patches = gather_patches(
            model_input(video, c),
            indices,
            patch_size=c.patch_size,
            tubelet_size=c.tubelet_size,
            mean=c.mean,
            std=c.std,
            dtype=dtype,
        )  # [B, K, P]
        return self.proj(patches)


class Encoder(nn.Module):
    """Embeds the tokens it is given, adds their positions, runs the blocks."""

    pos_embed: Tensor

    def __init__(self, config: EncoderConfig, *, final_norm: bool = True) -> None:
        super().__init__()
        c = self.config = config
        self.patch_embed = PatchEmbed(c)
        self.blocks = nn.ModuleList(
            Block(c.embed_dim, c.num_heads, c.mlp_dim, norm_eps=c.norm_eps, drop_path=rate)
            for rate in drop_path_rates(c.drop_path, c.depth)
        )
        self.norm = nn.LayerNorm(c.embed_dim, eps=c.norm_eps) if final_norm else nn.Identity()
        self.register_buffer("pos_embed", config_pos_embed(c, c.embed_dim), persistent=False)
        self.blocks.apply(init_weights)

    def embed(self, video: Tensor, indices: Tensor) -> Tensor:
        """Embedded tokens with positions, [B, K, D]."""
        return self.patch_embed(video, indices) + gather_pos(self.pos_embed, indices)

    def forward(self, video: Tensor, indices: Tensor) -> Tensor:
        """video [B, C, T, H, W] and token indices [B, K] to [B, K, D]."""
        x = self.embed(video, indices)
        x = run_blocks(self.blocks, x, recompute=self.config.checkpoint_activations)
        return self.norm(x)


class VideoModel(nn.Module):
    """A model on the encoder: what checkpoints, training and measuring ask of every one.

    Another one (a detector, a student of a distillation) is a subclass and an entry of
    `vmae.core.weights.models.MODELS`.
    """

    title: ClassVar[str]
    """What it is called in an error's sentence, with its article."""
    config_class: ClassVar[type[EncoderConfig] | None] = None
    """What `config` is an instance of; None: a file's claims are not held against its size beforehand."""
    config: EncoderConfig
    encoder: Encoder
    describes_clips: ClassVar[bool] = True
    """Whether it has a feature of a whole clip."""

    @property
    def grid(self) -> TokenGrid:
        """The token grid."""
        return self.config.grid

    def features(self, video: Tensor) -> Tensor:
        """What a head reads of a clip: [B, C, T, H, W] (uint8, or floating point in [0, 1]) to [B, D].

        A pre-trained model's is the mean of its normed tokens; a classifier's `fc_norm` of the mean token
        (V2's and InternVideo's extractors). Raises InputError on a video of another shape.
        """
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """The JSON values that `from_description` makes it again from, with fresh weights."""
        return {"config": self.config.to_dict()}

    @classmethod
    def from_description(cls, values: dict[str, Any]) -> Self:
        """The inverse of `describe`; other keys of `values` are left alone. InputError for bad values."""
        return cls(cls.config_from(values))

    @classmethod
    def config_from(cls, values: dict[str, Any]) -> Any:
        """The `config` that `describe` told of."""
        if cls.config_class is None:
            raise NotImplementedError
        return cls.config_class.from_dict(values["config"])


class PretrainedModel(VideoModel):
    """An encoder that was trained without labels: what probes, monitors and features take."""

    title = "a pre-trained model"

    def encode(self, video: Tensor) -> Tensor:
        """All tokens, unmasked: [B, N, D], final norm applied. InputError for another clip shape or dtype."""
        self.grid.check_video(video)
        return self.encoder(video, all_indices(video, self.grid))

    def features(self, video: Tensor) -> Tensor:
        """[B, C, T, H, W] to [B, D]: the mean of `encode`."""
        return self.encode(video).mean(1)


def model_input(video: Tensor, config: EncoderConfig) -> Tensor:
    """What a model makes its patches of, [B, C, T, H, W]: the video itself or, with `background` subtract,
    floating point in [0, 1]: each pixel less its mean over the clip's frames, plus a half.
    """
    if config.background == "keep":
        return video
    pixels = video.float() / 255 if video.dtype == torch.uint8 else video
    return (pixels - pixels.mean(2, keepdim=True) + 0.5).clamp(0, 1)


def all_indices(video: Tensor, grid: TokenGrid) -> Tensor:
    """Every token's index for each clip, int64 [B, N]."""
    return torch.arange(grid.num_tokens, device=video.device).expand(video.shape[0], -1)


def config_pos_embed(config: EncoderConfig, dim: int) -> Tensor:
    """The fixed positions of a configuration, float32 [N, dim].

    Without `pos_grid` the published flat table. With it, the grid's points are placed in the (t, h, w)
    frame of the grid that was trained (cell centres aligned) and the trained table is interpolated there
    linearly along each axis: tokens keep the position that the trained model knows for their place.
    """
    own = (config.grid.t, config.grid.h, config.grid.w)
    trained = config.pos_grid or own
    table = sincos_pos_embed(trained[0] * trained[1] * trained[2], dim)
    if trained == own:
        return table
    volume = table.T.reshape(1, dim, *trained)
    resized = torch.nn.functional.interpolate(volume, size=own, mode="trilinear", align_corners=False)
    return resized.reshape(dim, -1).T.contiguous()


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Drop-path probability per block, linear from 0 to `last`."""
    return [last * i / (depth - 1) if depth > 1 else 0.0 for i in range(depth)]


def check_finite(video: Tensor) -> None:
    """Raise InputError where `video` contains NaN or infinite pixels, with the count and the clips."""
    if video.dtype == torch.uint8:
        return
    bad = ~torch.isfinite(video)
    if bad.any():
        clips = bad.flatten(1).any(1).nonzero().flatten().tolist()
        raise InputError(f"expected finite pixels, got {int(bad.sum())} NaN or infinite in clips {clips}")


@torch.no_grad()
def attention_maps(model: VideoModel, video: Tensor, layer: int) -> Tensor:
    """The attention weights of one encoder layer on the whole clip, [B, heads, N, N], rows are queries.

    `layer` counts from 0, negative from the end.
    Computed on demand, outside the training path. Raises InputError for a layer that is not there.
    """
    encoder, grid = model.encoder, model.grid
    grid.check_video(video)
    depth = len(encoder.blocks)
    if not -depth <= layer < depth:
        raise InputError(f"expected a layer from 0 to {depth - 1} (or negative from the end), got {layer}")
    x = encoder.embed(video, all_indices(video, grid))
    blocks: list[Any] = list(encoder.blocks)
    chosen = layer % depth
    for block in blocks[:chosen]:
        x = block(x)
    weights: Tensor = blocks[chosen].attn.attention_map(blocks[chosen].norm1(x))
    return weights


def require_positive(name: str, value: Any) -> None:
    """Raise InputError unless `value` is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"expected {name} to be an integer of at least 1, got {value!r}")


def require_divisible(name: str, value: int, by_name: str, by: int) -> None:
    """Raise InputError unless `value` is a multiple of `by`."""
    if value % by:
        raise InputError(f"expected {name} to be a multiple of {by_name} {by}, got {value}")
