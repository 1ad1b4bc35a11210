"""The transformer's parts: fixed positions, attention, MLP, block."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae.kernels import fused_attention, linear


def sincos_angles(positions: np.ndarray, dim: int) -> np.ndarray:
    """Fixed position embedding of (possibly fractional) flat positions [N]: float64 [N, dim].

    Angle `n / 10000^(2*floor(j/2)/dim)`, sin on even j, cos on odd j (MCG-NJU/VideoMAE,
    `get_sinusoid_encoding_table`).
    """
    rate = np.power(10000.0, 2 * (np.arange(dim) // 2) / dim)
    angle = positions[:, None] / rate[None]
    angle[:, 0::2] = np.sin(angle[:, 0::2])
    angle[:, 1::2] = np.cos(angle[:, 1::2])
    return angle


def sincos_pos_embed(num_tokens: int, dim: int) -> Tensor:
    """The published table float32 [N, dim]: flat over n, not factored over t, h, w."""
    return torch.from_numpy(sincos_angles(np.arange(num_tokens, dtype=np.float64), dim)).float()


def gather_pos(pos_embed: Tensor, indices: Tensor) -> Tensor:
    """Rows of `pos_embed` [N, D] at `indices` [B, K]: [B, K, D]."""
    return F.embedding(indices, pos_embed)


class DropPath(nn.Module):
    """Drops a residual branch per clip with probability `p` while training, and rescales the rest."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep = 1.0 - self.p
        shape = (x.shape[0],) + (1,) * (x.dim() - 1)
        return x * torch.empty(shape, device=x.device, dtype=x.dtype).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"p={self.p:.3g}"


class Linear(nn.Linear):
    """torch's linear layer on `vmae.kernels.linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Attention(nn.Module):
    """Multi-head self-attention with learnt q and v biases and none for k, as published."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = Linear(dim, dim)

    def packed_qkv(self, x: Tensor) -> Tensor:
        """[B, N, D] to [B, N, 3, heads, head_dim], one matrix product."""
        b, n, d = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        return linear(x, self.qkv.weight, bias).view(b, n, 3, self.num_heads, d // self.num_heads)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """[B, N, D] to [B, N - first_query, D]: the outputs of the tokens from `first_query` on."""
        return self.proj(fused_attention(self.packed_qkv(x), first_query=first_query))

    def forward_with_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What `forward` gives, [B, N, D], and the weights [B, heads, N, N] (rows: queries), all computed
        plainly: for tokens that are chosen by them."""
        q, k, v = self.packed_qkv(x).unbind(2)  # [B, N, heads, head_dim]
        weights = _attention_weights(q, k)
        return self.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)), weights

    def attention_map(self, x: Tensor) -> Tensor:
        """The softmax weights [B, heads, N, N] (rows: queries), computed plainly, for looking at."""
        q, k, _ = self.packed_qkv(x).unbind(2)
        return _attention_weights(q, k)


def _attention_weights(q: Tensor, k: Tensor) -> Tensor:
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    return scores.softmax(dim=-1)


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self, dim: int, num_heads: int, mlp_hidden: int, *, norm_eps: float, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, mlp_hidden)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, first_query: int = 0) -> Tensor:
        """[B, N, D] to [B, N - first_query, D].

        Every token is attended to; only those from `first_query` on are computed further. The result equals
        the whole block's, sliced: what a last block leaves out is never looked at.
        """
        residual = x[:, first_query:] if first_query else x
        x = residual + self.drop_path(self.attn(self.norm1(x), first_query))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def init_weights(module: nn.Module) -> None:
    """Official initialisation: xavier uniform (over the fused 3D x D qkv), zero biases, unit norms."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)


def run_blocks(
    blocks: nn.ModuleList | list[nn.Module], x: Tensor, *, recompute: bool, last_from: int = 0
) -> Tensor:
    """Run the blocks in order; with `recompute`, activations are recomputed in the backward pass.

    `last_from`: the first token whose output the last block has to give.
    """
    from torch.utils.checkpoint import checkpoint

    for i, block in enumerate(blocks):
        first = last_from if i == len(blocks) - 1 else 0
        if recompute and torch.is_grad_enabled():
            x = checkpoint(block, x, first, use_reentrant=False)
        else:
            x = block(x, first)
    return x
