"""The attentive probe: a learnt query pools all tokens, after blocks of self-attention where it is deeper.

As V-JEPA's and V-JEPA 2's (arXiv 2404.08471, 2506.09985): depth 1 is the query alone, depth 4 has three
blocks before it. All settings of learning rate and weight decay are trained at once, on the same batches: the
tokens are read and standardised once for all. What the choice among them costs is bounded
(`select_attentive`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmae.core.numerics import make_generator

BETAS, EPS = (0.9, 0.999), 1e-8

Fitted = tuple["AttentiveHeads", Tensor, Tensor]
"""Probes, and the mean and deviation [D] by which tokens are standardised before they see them."""


class AttentiveHeads(nn.Module):
    """G probes of one shape, with weights of their own: tokens [B, N, D] to logits [G, B, C]."""

    def __init__(self, models: int, dim: int, num_classes: int, *, depth: int, seed: int) -> None:
        super().__init__()
        generator = make_generator(seed, "attentive")
        self.num_heads = max(
            h for h in (1, 2, 3, 4, 6, 8, 12, 16) if h == 1 or (dim % h == 0 and dim // h >= 16)
        )

        def drawn(*shape: int, scale: float) -> nn.Parameter:
            return self._stacked(torch.randn(*shape, generator=generator) * scale, models)

        self.query = drawn(dim, scale=0.02)
        self.key = drawn(dim, dim, scale=dim**-0.5)
        self.value = drawn(dim, dim, scale=dim**-0.5)
        self.norm = self._stacked(torch.ones(dim), models)
        self.norm_bias = self._stacked(torch.zeros(dim), models)
        self.head = self._stacked(torch.zeros(dim, num_classes), models)
        self.bias = self._stacked(torch.zeros(num_classes), models)
        self.blocks = nn.ModuleList()
        for _ in range(depth - 1):
            block = nn.ParameterDict(
                {
                    "qkv": drawn(dim, 3 * dim, scale=dim**-0.5),
                    "out": drawn(dim, dim, scale=0.1 * dim**-0.5),
                    "up": drawn(dim, 4 * dim, scale=dim**-0.5),
                    "down": drawn(4 * dim, dim, scale=0.1 * (4 * dim) ** -0.5),
                }
            )
            for name in ("norm1", "norm2"):
                block[name] = self._stacked(torch.ones(dim), models)
            self.blocks.append(block)

    @staticmethod
    def _stacked(first: Tensor, models: int) -> nn.Parameter:
        """The same initial weights for every model, so that only their settings differ."""
        return nn.Parameter(first.expand(models, *first.shape).clone())

    def forward(self, tokens: Tensor) -> Tensor:
        """Class scores of every model before softmax."""
        g, d = self.query.shape
        h = self.num_heads
        # A head's score is q . (W_k x) = (W_k^T q) . x: one vector a head instead of keys of every token; and
        # values are made of what was pooled instead of every token.
        key = torch.einsum("gdhk,ghk->gdh", self.key.reshape(g, d, h, -1), self.query.reshape(g, h, -1))
        key = key * (d // h) ** -0.5
        if not self.blocks:
            b, n, _ = tokens.shape
            scores = (tokens.reshape(b * n, d) @ key.permute(1, 0, 2).reshape(d, g * h)).reshape(b, n, g * h)
            pooled = scores.softmax(1).transpose(1, 2) @ tokens  # [B, G*H, D]
            pooled = pooled.reshape(b, g, h, d).transpose(0, 1)
        else:
            x = tokens.expand(g, *tokens.shape)
            for block in self.blocks:
                x = self._block(x, block)  # type: ignore[arg-type]
            attention = torch.einsum("gbnd,gdh->gbnh", x, key).softmax(2)
            pooled = torch.einsum("gbnh,gbnd->gbhd", attention, x)
        out = torch.einsum("gbhd,gdhk->gbhk", pooled, self.value.reshape(g, d, h, -1)).flatten(2)
        out = F.layer_norm(out, (d,)) * self.norm[:, None] + self.norm_bias[:, None]
        logits: Tensor = torch.einsum("gbd,gdc->gbc", out, self.head) + self.bias[:, None]
        return logits

    def _block(self, x: Tensor, block: nn.ParameterDict) -> Tensor:
        """A pre-norm transformer block of every model, [G, B, N, D]."""
        g, b, n, d = x.shape
        y = (F.layer_norm(x, (d,)) * block["norm1"][:, None, None]).reshape(g, b * n, d)
        qkv = torch.bmm(y, block["qkv"]).reshape(g * b, n, 3, self.num_heads, -1)
        q, k, v = (t.transpose(1, 2) for t in qkv.unbind(2))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(g, b * n, d)
        x = x + torch.bmm(mixed, block["out"]).reshape(x.shape)
        y = (F.layer_norm(x, (d,)) * block["norm2"][:, None, None]).reshape(g, b * n, d)
        return x + torch.bmm(F.gelu(torch.bmm(y, block["up"])), block["down"]).reshape(x.shape)


class Rung(NamedTuple):
    """A round of the choice: how many settings train for which share of the final probe's epochs."""

    settings: int
    share: float


def rungs_of(settings: int, depth: int) -> tuple[Rung, ...]:
    """The rounds by which one of several settings is chosen: what they train costs about one final probe.

    At depth 1 a setting is a vector a head, and a dozen at once cost three to four: all train for a fifth of
    the epochs. Blocks of their own make every setting cost as much as one probe does; then settings are
    halved successively (Jamieson and Talwalkar, arXiv 1502.07943): each round keeps a quarter of them and
    costs the same. A departure from V-JEPA, which trains all of them in full. A round starts anew with a
    cosine of its own, so that what is compared has finished.
    """
    if depth == 1 or settings <= 1:
        return (Rung(settings, 0.2),)
    counts = [settings]
    while counts[-1] > 4:
        counts.append(-(-counts[-1] // 4))
    return tuple(Rung(n, 1 / (len(counts) * n)) for n in counts)


def select_attentive(
    x: Tensor,
    targets: Tensor,
    inside: Tensor,
    settings: list[tuple[float, float]],
    score: Callable[[Tensor, Tensor], float],
    *,
    num_classes: int,
    depth: int,
    epochs: int,
    batch_size: int,
    seed: int,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    device: torch.device | str = "cpu",
) -> tuple[int, float]:
    """Which (learning rate, weight decay) does best on the rows that are not `inside`, and its score there.

    `inside` bool [M]: rows to learn from. `score(outputs [R, C], targets)` is the higher the better; of equal
    ones the first wins. Deeper than 1 rounds are too short for a score to tell settings apart (measured: all
    at chance), and the loss decides. The score returned is that of the last round, which is shorter than the
    final probe. Otherwise as `fit_attentive`. One setting is not measured: NaN.
    """
    if len(settings) == 1:
        return 0, float("nan")
    learnt, asked, truth = x[inside], x[~inside], targets[~inside]
    left, said = list(range(len(settings))), torch.empty(0)
    for rung in rungs_of(len(settings), depth):
        left = sorted(left[: rung.settings])
        fitted = fit_attentive(
            learnt,
            targets[inside],
            [settings[k] for k in left],
            num_classes=num_classes,
            depth=depth,
            epochs=epochs * rung.share,
            batch_size=batch_size,
            seed=seed,
            loss_of=loss_of,
            device=device,
        )
        said = attentive_logits(fitted, asked, batch_size)
        worth = [score(one, truth) if depth == 1 else -float(loss_of(one, truth)) for one in said]
        order = sorted(range(len(left)), key=lambda k: -worth[k] if math.isfinite(worth[k]) else math.inf)
        left, said = [left[k] for k in order], said[order]
    return left[0], score(said[0], truth)


def fit_attentive(
    x: Tensor,
    targets: Tensor,
    settings: Sequence[tuple[float, float]],
    *,
    num_classes: int,
    depth: int,
    epochs: float,
    batch_size: int,
    seed: int,
    loss_of: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    device: torch.device | str = "cpu",
) -> Fitted:
    """Train a probe for every (learning rate, weight decay) at once, by AdamW with a cosine.

    `x` [M, N, D] in any floating dtype, `targets` labels int64 [M] or what else `loss_of` (a mean over rows)
    compares outputs [M, C] with; both may stay on the CPU, `device` gets them by batches. A fraction of an
    epoch is one of its batches, at least one step. The same draws on every device.
    """
    mean, std = x.mean((0, 1), dtype=torch.float32), x.float().std((0, 1)).clamp_min(1e-6)
    mean, std = mean.to(device), std.to(device)
    model = AttentiveHeads(len(settings), x.shape[2], num_classes, depth=depth, seed=seed).to(device)
    parameters = list(model.parameters())
    first, second = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    rates, decays = (torch.tensor([s[k] for s in settings], device=device) for k in (0, 1))
    batch = min(batch_size, len(x))
    steps = max(1, round(epochs * -(-len(x) // batch)))
    generator = make_generator(seed, "attentive order")
    order: list[Tensor] = []
    for step in range(steps):
        order = order or list(torch.randperm(len(x), generator=generator).split(batch))
        rows = order.pop(0)
        logits = model((x[rows].to(device).float() - mean) / std)
        target = torch.cat([targets[rows].to(device)] * len(settings))
        # The models share nothing: the sum's gradient is each one's own.
        loss = loss_of(logits.flatten(0, 1), target) * len(settings)
        gradients = torch.autograd.grad(loss, parameters)
        rate = rates * (0.5 * (1 + math.cos(math.pi * step / steps)))
        first_left, second_left = (1 - beta ** (step + 1) for beta in BETAS)
        with torch.no_grad():
            for p, g, m, v in zip(parameters, gradients, first, second, strict=True):
                shape = (-1,) + (1,) * (p.dim() - 1)
                m.lerp_(g, 1 - BETAS[0])
                v.lerp_(g * g, 1 - BETAS[1])
                p.mul_(1 - (rate * decays).reshape(shape))
                p.sub_((rate / first_left).reshape(shape) * m / ((v / second_left).sqrt() + EPS))
    return model, mean, std


@torch.no_grad()
def attentive_logits(fitted: Fitted, x: Tensor, batch_size: int) -> Tensor:
    """Class scores of every model, [G, M, C], on the CPU."""
    model, mean, std = fitted
    parts = x.split(batch_size)
    return torch.cat([model((part.to(mean.device).float() - mean) / std).cpu() for part in parts], 1)
