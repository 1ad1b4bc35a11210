"""Regularised joint embedding: views of a clip must agree, and embeddings must fill the space.

LeJEPA (arXiv 2511.08544) and its form for video (LeVJEPA, arXiv 2608.27395), made from the papers: no
decoder, no teacher, no moving average. A view is a crop of the clip (`data.repeats` of each video) of which
the encoder sees some tokens only, the rest dropped at random by the same masks and the same gather as in
masked pre-training (`mask.type` random, `mask.ratio` the share that is dropped).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.model.encoder import Encoder, PretrainedModel
from vmae.core.model.layers import Linear
from vmae.core.model.masking import TokenMask
from vmae.core.model.target import SIGREG
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig

SLICES = 256
"""Directions that a step looks along."""
_REACH, _POINTS = 5.0, 17
"""Of the integral over the characteristic function: -5 to 5, trapezoids between 17 points."""


class JointEncoder(PretrainedModel):
    """The encoder and a projector: mean over visible tokens, then two linear layers with a norm between.

    The published projector has batch norms; a layer norm keeps a step's numbers independent of how many
    processes share it: a departure. Of the configuration the decoder's fields are not used; `target_dim` is
    the embedding's width (64 where it is not given).
    """

    title = "a joint embedding, which has no decoder"
    config_class = VideoMAEConfig
    config: VideoMAEConfig

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, final_norm=config.encoder_norm)
        d = config.embed_dim
        self.projector = nn.Sequential(
            Linear(d, 4 * d), nn.LayerNorm(4 * d), nn.GELU(), Linear(4 * d, config.predicted_dim, bias=False)
        )

    def forward(self, video: Tensor, mask: TokenMask, directions: Tensor, views: int) -> Tensor:
        """The loss, a scalar: `(1 - w) * invariance + w * SIGReg` with w the configuration's `sigreg`.

        Args:
            video: `[B, C, T, H, W]`, the `views` of a clip side by side.
            mask: which tokens each sees.
            directions: float `[K, M]`, columns of length 1.
            views: of each clip, at least 2, a divisor of B.
        """
        self.grid.check_video(video)
        if views < 2 or video.shape[0] % views:
            raise InputError(f"expected 2 or more views that divide {video.shape[0]} clips, got {views}")
        z = self.projector(self.encoder(video, mask.visible).mean(1))
        z = z.reshape(-1, views, z.shape[1])  # [B / views, views, K]
        with torch.autocast(z.device.type, enabled=False):
            z = z.to(torch.float64 if z.dtype == torch.float64 else torch.float32)
            agree = (z - z.mean(1, keepdim=True)).square().mean()
            spread = torch.stack([sigreg(view, directions) for view in z.unbind(1)]).mean()
        w = self.config.sigreg
        return (1 - w) * agree + w * spread


def sigreg(z: Tensor, directions: Tensor) -> Tensor:
    """How far `z` [N, K] is from a standard normal along `directions` [K, M], a scalar of 0 or more.

    The Epps-Pulley statistic of each projection, averaged over directions (LeJEPA, section 4): N times the
    integral of |phi_N(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2) over t, phi_N the empirical characteristic
    function. With several processes each computes it of its own clips: a departure (the paper averages phi).
    """
    t = torch.linspace(-_REACH, _REACH, _POINTS, device=z.device, dtype=z.dtype)
    normal = (-t.square() / 2).exp()
    angles = (z @ directions.to(z.dtype))[..., None] * t  # [N, M, points]
    error = (angles.cos().mean(0) - normal).square() + angles.sin().mean(0).square()
    return len(z) * torch.trapezoid(error * normal, t, dim=1).mean()


def draw_directions(width: int, generator: torch.Generator, count: int = SLICES) -> Tensor:
    """Directions uniform on the sphere, float32 `[width, count]`, columns of length 1."""
    return nn.functional.normalize(torch.randn(width, count, generator=generator), dim=0)


def pretraining_model(config: VideoMAEConfig) -> VideoMAE | JointEncoder:
    """The model that a configuration's `target` asks for, with fresh weights."""
    return JointEncoder(config) if config.target == SIGREG else VideoMAE(config)
