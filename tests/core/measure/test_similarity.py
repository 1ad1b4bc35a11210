"""Token colours and CKA against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.measure.similarity import linear_cka, token_colours
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig

CONFIG = VideoMAEConfig(
    frames=4, height=24, width=32, patch_size=8, embed_dim=32, depth=1, num_heads=2,
    decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2,
)  # fmt: skip


def test_cka_knows_no_rotation_scale_or_shift_and_is_near_the_plain_form() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 8, generator=g)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g)).Q
    assert linear_cka(x, 3 * x @ turn + 1) == pytest.approx(1)
    y = torch.cat([x[:, :4], torch.randn(400, 6, generator=g)], 1)
    a, b = (v - v.mean(0) for v in (x, y))
    plain = float((b.T @ a).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))
    assert linear_cka(x, y) == pytest.approx(plain, abs=0.03)
    assert 0.2 < linear_cka(x, y) < 0.8


def test_unrelated_features_are_not_alike_however_wide_they_are() -> None:
    g = torch.Generator().manual_seed(0)
    found = [
        linear_cka(torch.randn(60, 300, generator=g), torch.randn(60, 200, generator=g)) for _ in range(20)
    ]
    assert abs(np.mean(found)) < 0.02 and max(found) < 0.2


def test_the_unbiased_sum_equals_its_definition() -> None:
    """Over all ordered quadruples of different clips (Song et al.): what the closed form is a shortcut of."""
    import itertools

    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(6, 3, generator=g).double(), torch.randn(6, 2, generator=g).double()
    k, m = x @ x.T, y @ y.T

    def hsic(p: torch.Tensor, q: torch.Tensor) -> float:
        terms = [
            float(p[i, j] * (q[i, j] + q[a, b] - 2 * q[i, a]))
            for i, j, a, b in itertools.permutations(range(6), 4)
        ]
        return float(np.mean(terms))

    by_hand = hsic(k, m) / (hsic(k, k) * hsic(m, m)) ** 0.5
    assert linear_cka(x, y) == pytest.approx(by_hand)


def test_cka_of_what_cannot_be_compared() -> None:
    with pytest.raises(InputError, match="got 3 and 4"):
        linear_cka(torch.rand(3, 2), torch.rand(4, 2))
    with pytest.raises(InputError, match="vary"):
        linear_cka(torch.ones(5, 2), torch.rand(5, 2))


def test_colours_are_flat_in_a_token_and_tell_two_halves_apart() -> None:
    torch.manual_seed(0)
    model = VideoMAE(CONFIG)
    video = torch.zeros(2, 3, 4, 24, 32, dtype=torch.uint8)
    video[:, :, :, :, 16:] = 255
    found = token_colours(model, video)
    assert found.shape == (2, 4, 24, 32, 3) and found.dtype == np.uint8
    assert np.array_equal(found[0], found[1])
    tokens = found.reshape(2, 2, 2, 3, 8, 4, 8, 3)
    assert (tokens == tokens[:, :, :1, :, :1, :, :1]).all()
    # What differs most between tokens is the half of the picture that they lie in.
    red = found[0, ..., 0].astype(int)
    assert abs(red[:, :, :16].mean() - red[:, :, 16:].mean()) > 60
    assert model.training


def test_equal_tokens_are_grey() -> None:
    model = VideoMAE(CONFIG)
    model.encoder.pos_embed.zero_()
    found = token_colours(model, torch.full((1, 3, 4, 24, 32), 7, dtype=torch.uint8))
    assert set(np.unique(found).tolist()) <= {127, 128}
