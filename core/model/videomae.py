"""VideoMAE (arXiv 2203.12602) and VideoMAE V2's dual masking (arXiv 2303.16727), in running order."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vmae.core.errors import InputError
from vmae.core.model.encoder import (
    Encoder,
    EncoderConfig,
    PretrainedModel,
    check_finite,
    config_pos_embed,
    drop_path_rates,
    model_input,
    require_divisible,
    require_positive,
)
from vmae.core.model.layers import Block, Linear, init_weights, run_blocks
from vmae.core.model.masking import TokenMask
from vmae.core.model.target import (
    PIXEL_TARGETS,
    SIGREG,
    check_loss,
    check_target,
    own_target,
    own_target_loss,
)
from vmae.core.model.teacher import Latents
from vmae.kernels import assemble_decoder_tokens, masked_patch_loss


@dataclass(frozen=True, kw_only=True)
class VideoMAEConfig(EncoderConfig):
    """Pre-training: the encoder, the decoder and the target."""

    decoder_embed_dim: int = 384
    """The decoder's width."""
    decoder_depth: int = 4
    """Its blocks."""
    decoder_num_heads: int = 6
    """Attention heads of each."""
    target: str = "normalized"
    """"normalized": pixels normalised per patch and channel, as V1; "raw": pixels in [0, 1]; `teacher:PLACE`:
    a frozen model's latents, see `vmae.core.model.teacher`; `sigreg`: no target, see
    `vmae.core.model.joint`; or `module:function` of one's own, see
    `vmae.core.model.target`."""
    target_layer: int = -1
    """Of a teacher: after which encoder block its latents are taken, from 0, negative from the end."""
    target_dim: int | None = None
    """Numbers that a target that is no pixels has for a token; none: as many as a patch has pixels, P, or as
    the teacher is wide."""
    loss: str = "mse"
    """One of mse, l1, smooth_l1; or cosine, of a target that is no pixels."""
    sigreg: float = 0.05
    """Of the target `sigreg`: its weight in the loss, in [0, 1]; the rest is for agreement between views."""
    encoder_norm: bool = True
    """Whether the encoder ends in a norm, as published; Hugging Face's default leaves it out."""

    @property
    def predicted_dim(self) -> int:
        """Numbers that the decoder predicts for a token; of `sigreg` the embedding's width."""
        if self.target == SIGREG:
            return self.target_dim or 64
        return self.target_dim or self.grid.patch_dim

    @property
    def predicts_pixels(self) -> bool:
        """Whether predictions can be shown as pictures and are of the published kinds."""
        return self.target in PIXEL_TARGETS

    @property
    def decoder_mlp_dim(self) -> int:
        """Hidden width of the decoder's MLPs."""
        return round(self.decoder_embed_dim * self.mlp_ratio)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads"):
            require_positive(name, getattr(self, name))
        require_divisible(
            "decoder_embed_dim", self.decoder_embed_dim, "decoder_num_heads", self.decoder_num_heads
        )
        check_target(self.target, self.target_dim)
        check_loss(self.loss, self.target)
        if not 0 <= self.sigreg <= 1:
            raise InputError(f"expected sigreg in [0, 1], got {self.sigreg!r}")


class Decoder(nn.Module):
    """Blocks over visible and mask tokens; predicts the patches of the last ones."""

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        c = self.config = config
        d = c.decoder_embed_dim
        self.blocks = nn.ModuleList(
            Block(d, c.decoder_num_heads, c.decoder_mlp_dim, norm_eps=c.norm_eps, drop_path=rate)
            for rate in drop_path_rates(c.drop_path, c.decoder_depth)
        )
        self.norm = nn.LayerNorm(d, eps=c.head_norm_eps)
        self.head = Linear(d, c.predicted_dim)
        self.apply(init_weights)

    def forward(self, x: Tensor, num_predicted: int) -> Tensor:
        """[B, N, D_dec] to the predictions of the last `num_predicted` tokens, [B, K, P]."""
        x = run_blocks(
            self.blocks,
            x,
            recompute=self.config.checkpoint_activations,
            last_from=x.shape[1] - num_predicted,
        )  # [B, K, D_dec]
        return self.head(self.norm(x))


class VideoMAE(PretrainedModel):
    """The pre-training model, V1 and V2.

    Videos are uint8 (0 to 255) or floating point in [0, 1], [B, C, T, H, W] with any strides (a permuted
    view of a loader's [B, T, H, W, C] is welcome); normalisation happens inside.
    """

    config_class = VideoMAEConfig
    config: VideoMAEConfig
    pos_embed: Tensor

    def __init__(self, config: VideoMAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, final_norm=config.encoder_norm)
        self.encoder_to_decoder = Linear(config.embed_dim, config.decoder_embed_dim, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_embed_dim))
        self.decoder = Decoder(config)
        # The decoder's positions at its own width.
        self.register_buffer(
            "pos_embed", config_pos_embed(config, config.decoder_embed_dim), persistent=False
        )
        self._teacher: Latents | None = None
        # As in the official code, encoder_to_decoder keeps torch's own initialisation.
        nn.init.trunc_normal_(self.mask_token, std=0.02, a=-0.02, b=0.02)

    def learn_from(self, teacher: Latents) -> None:
        """Predict the latents of a teacher, for a `target` that names one; it is no part of the state.

        Raises InputError where its tokens lie elsewhere or its width is not `target_dim`.
        """
        teacher.check(self.grid)
        if teacher.dim != self.config.predicted_dim:
            raise InputError(
                f"model.target_dim: expected the teacher's width {teacher.dim}, "
                f"got {self.config.predicted_dim}"
            )
        self._teacher = teacher

    def forward(self, video: Tensor, mask: TokenMask, decode: Tensor | None = None) -> Tensor:
        """The pre-training loss, a scalar of float32 (float64 for a float64 model).

        `decode` int64 [B, K] are the positions to predict under V2's dual masking; those that the encoder
        sees are predicted too and left out of the mean. None: all masked positions (V1).
        Raises InputError where the video's shape or dtype or the mask's size is not the configuration's, or
        (on the CPU) where the video contains NaN or infinite pixels.
        """
        self._check(video, mask)
        tokens = self.forward_encoder(video, mask.visible)
        if decode is None:
            pred = self.forward_decoder(tokens, mask.visible, mask.masked)
            loss = self.forward_loss(pred, video, mask.masked)
        else:
            if decode.dim() != 2 or decode.shape[0] != video.shape[0] or decode.dtype != torch.int64:
                raise InputError(
                    f"expected decode int64 [{video.shape[0]}, K], got {decode.dtype} {list(decode.shape)}"
                )
            pred = self.forward_decoder(tokens, mask.visible, decode)
            weights = mask.to_bool().gather(1, decode).to(torch.float32)
            loss = self.forward_loss(pred, video, decode, weights)
        if loss.device.type == "cpu" and video.dtype != torch.uint8 and not torch.isfinite(loss):
            check_finite(video)
        return loss

    def forward_encoder(self, video: Tensor, visible: Tensor) -> Tensor:
        """Encode the tokens at `visible` [B, N_vis] only: [B, N_vis, D], final norm applied."""
        return self.encoder(video, visible)

    def forward_decoder(self, tokens: Tensor, visible: Tensor, masked: Tensor) -> Tensor:
        """Predict the patches at `masked` [B, K] from encoded `tokens` [B, N_vis, D]: [B, K, P]."""
        x = self.encoder_to_decoder(tokens)
        x = assemble_decoder_tokens(x, self.mask_token, self.pos_embed, visible, masked)
        return self.decoder(x, masked.shape[1])

    def forward_loss(
        self, pred: Tensor, video: Tensor, masked: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """The mean loss of `pred` [B, K, P] against the target at `masked` [B, K], weighted by [B, K]."""
        c = self.config
        if not c.predicts_pixels:
            # A teacher makes its own input of the clip.
            seen = model_input(video, c) if self._teacher is None else video
            labels = own_target(c.target, c.predicted_dim, seen, masked, self.grid, self._teacher)
            return own_target_loss(pred, labels, weights, c.loss)
        return masked_patch_loss(
            pred,
            model_input(video, c),
            masked,
            patch_size=c.patch_size,
            tubelet_size=c.tubelet_size,
            weights=weights,
            loss=c.loss,
            target=c.target,
        )

    def predict(self, video: Tensor, mask: TokenMask) -> Tensor:
        """The prediction [B, N_mask, P] for the masked tokens, in the target's units."""
        self._check(video, mask)
        return self.forward_decoder(self.forward_encoder(video, mask.visible), mask.visible, mask.masked)

    def _check(self, video: Tensor, mask: TokenMask) -> None:
        self.grid.check_video(video)
        if mask.visible.shape[0] != video.shape[0] or mask.num_tokens != self.grid.num_tokens:
            raise InputError(
                f"expected a mask of {video.shape[0]} clips x {self.grid.num_tokens} tokens,"
                f" got {mask.visible.shape[0]} x {mask.num_tokens}"
            )
