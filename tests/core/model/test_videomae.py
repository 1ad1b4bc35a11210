"""The model: properties that hold for every shape, gradients, learning, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.encoder import SIZES, attention_maps, model_input
from vmae.core.model.grid import TokenGrid, patchify, unpatchify
from vmae.core.model.masking import MaskConfig, TokenMask, mask_from_bool, sample_mask, sample_masks
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.kernels.patch_loss.op import LOSSES

SMALL: dict[str, Any] = {
    "frames": 4,
    "height": 16,
    "width": 24,
    "patch_size": 8,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "decoder_embed_dim": 16,
    "decoder_depth": 2,
    "decoder_num_heads": 2,
}


def build(**overrides: Any) -> VideoMAE:
    torch.manual_seed(0)
    model = VideoMAE(VideoMAEConfig.from_size("tiny", **(SMALL | overrides))).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def clip(grid: TokenGrid, batch: int = 2, seed: int = 1) -> Tensor:
    shape = (batch, *grid.clip_shape)
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def draw(grid: TokenGrid, type: str = "random", ratio: float = 0.5, batch: int = 2) -> TokenMask:
    return sample_mask(type, ratio, grid, batch, torch.Generator().manual_seed(2))


SHAPES = st.fixed_dictionaries(
    {
        "t": st.integers(1, 3),
        "h": st.integers(1, 4),
        "w": st.integers(1, 4),
        "patch_size": st.sampled_from([1, 2, 4]),
        "tubelet_size": st.integers(1, 3),
        "channels": st.integers(1, 8),
    }
)


def shaped(values: dict[str, int]) -> dict[str, int]:
    p, s = values["patch_size"], values["tubelet_size"]
    return {
        "frames": values["t"] * s,
        "height": values["h"] * p,
        "width": values["w"] * p,
        "patch_size": p,
        "tubelet_size": s,
        "channels": values["channels"],
    }


@settings(max_examples=60, deadline=None)
@given(values=SHAPES, batch=st.integers(1, 3))
def test_patchify_and_unpatchify_are_inverse(values: dict[str, int], batch: int) -> None:
    grid = TokenGrid(**shaped(values))
    video = torch.randint(0, 256, (batch, *grid.clip_shape), dtype=torch.uint8)
    tokens = patchify(video, grid)
    assert tokens.shape == (batch, grid.num_tokens, grid.patch_dim)
    assert torch.equal(unpatchify(tokens, grid), video)
    # The order, written out for one token.
    t, h, w = grid.t - 1, grid.h - 1, grid.w - 1
    n, p, s = (t * grid.h + h) * grid.w + w, grid.patch_size, grid.tubelet_size
    cut = video[0, :, t * s : (t + 1) * s, h * p : (h + 1) * p, w * p : (w + 1) * p]
    assert torch.equal(tokens[0, n], cut.permute(1, 2, 3, 0).flatten())


@settings(max_examples=25, deadline=None)
@given(values=SHAPES, seed=st.integers(0, 1000))
def test_every_shape_trains(values: dict[str, int], seed: int) -> None:
    shape = shaped(values)
    config = VideoMAEConfig.from_size("tiny", **(SMALL | shape))
    n = config.grid.num_tokens
    if n < 2:
        return
    model = VideoMAE(config)
    mask = sample_mask("random", 0.5, config.grid, 2, torch.Generator().manual_seed(seed))
    loss = model(torch.rand(2, *config.grid.clip_shape), mask)
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32
    # A tube of one pixel has no contrast: its target is 0 and the loss need not be positive.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), batch=st.integers(2, 4))
def test_a_permutation_of_the_batch_permutes_outputs(seed: int, batch: int) -> None:
    model = build()
    generator = torch.Generator().manual_seed(seed)
    video = clip(model.grid, batch, seed)
    mask = sample_mask("random", 0.5, model.grid, batch, generator)
    order = torch.randperm(batch, generator=generator)
    shuffled = TokenMask(mask.visible[order], mask.masked[order])
    torch.testing.assert_close(model.predict(video[order], shuffled), model.predict(video, mask)[order])
    torch.testing.assert_close(model(video[order], shuffled), model(video, mask))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_gather_then_embed_equals_embed_then_gather(seed: int) -> None:
    model = build()
    video = clip(model.grid, 2, seed)
    mask = sample_mask("random", 0.5, model.grid, 2, torch.Generator().manual_seed(seed))
    everything = model.encoder.embed(video, torch.arange(model.grid.num_tokens).expand(2, -1))
    wanted = everything.gather(1, mask.visible[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(model.encoder.embed(video, mask.visible), wanted)


def test_the_embedding_is_the_published_convolution() -> None:
    model = build()
    proj = model.encoder.patch_embed.proj
    kernel = proj.weight.view(16, 2, 8, 8, 3).permute(0, 4, 1, 2, 3)
    video = clip(model.grid)
    mean = torch.tensor(model.config.mean, dtype=torch.float64).view(3, 1, 1, 1)
    std = torch.tensor(model.config.std, dtype=torch.float64).view(3, 1, 1, 1)
    conv = torch.nn.functional.conv3d((video - mean) / std, kernel, proj.bias, stride=(2, 8, 8))
    wanted = conv.flatten(2).transpose(1, 2) + model.encoder.pos_embed
    got = model.encoder.embed(video, torch.arange(model.grid.num_tokens).expand(2, -1))
    torch.testing.assert_close(got, wanted)


def test_dual_masking_without_a_decoder_mask_is_v1() -> None:
    model = build()
    video = clip(model.grid)
    generator = torch.Generator().manual_seed(0)
    v2 = MaskConfig(type="tube", ratio=0.5, decoder_type="running_cell", decoder_ratio=0)
    mask, decode = sample_masks(v2, model.grid, 2, generator)
    torch.testing.assert_close(model(video, mask, decode), model(video, mask), rtol=0, atol=0)
    # Decoding exactly the masked positions under V2's loss is V1 too.
    torch.testing.assert_close(model(video, mask, mask.masked), model(video, mask))


def test_positions_the_encoder_sees_carry_no_loss_in_dual_masking() -> None:
    model = build()
    video = clip(model.grid)
    mask = draw(model.grid)
    decode = torch.cat((mask.masked[:, :2], mask.visible[:, :1]), dim=1).sort(1).values
    pred = model.forward_decoder(model.forward_encoder(video, mask.visible), mask.visible, decode)
    weights = mask.to_bool().gather(1, decode)
    counted = pred[weights].view(2, 2, -1)
    wanted = model.forward_loss(counted, video, mask.masked[:, :2])
    torch.testing.assert_close(model(video, mask, decode), wanted)


def test_what_is_masked_does_not_reach_the_prediction() -> None:
    model = build()
    video = clip(model.grid)
    mask = draw(model.grid)
    patches = patchify(video, model.grid)
    patches.scatter_(1, mask.masked[..., None].expand(-1, -1, patches.shape[2]), 0.123)
    changed = unpatchify(patches, model.grid)
    torch.testing.assert_close(model.predict(changed, mask), model.predict(video, mask), rtol=0, atol=0)
    assert not torch.equal(model(changed, mask), model(video, mask))


@pytest.mark.parametrize("decoder", [False, True])
def test_gradcheck_of_the_whole_model(decoder: bool) -> None:
    model = build(
        frames=2, height=4, width=6, patch_size=2, embed_dim=4, depth=1, decoder_depth=1,
        decoder_embed_dim=4, mlp_ratio=2.0,
    )  # fmt: skip
    video = clip(model.grid)
    mask = draw(model.grid)
    decode = torch.cat((mask.masked, mask.visible[:, :1]), dim=1) if decoder else None
    names = [k for k, _ in model.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        weights = dict(zip(names, values, strict=True))
        return torch.func.functional_call(model, weights, (video, mask, decode))

    values = tuple(p.detach().clone().requires_grad_() for p in model.parameters())
    assert torch.autograd.gradcheck(loss, values, eps=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", ["normalized", "raw"])
def test_overfitting_one_batch(target: str) -> None:
    torch.manual_seed(0)
    size = SMALL | {"height": 16, "width": 16, "embed_dim": 64, "decoder_embed_dim": 64, "target": target}
    model = VideoMAE(VideoMAEConfig.from_size("tiny", **size))
    video = torch.randint(0, 256, (1, *model.grid.clip_shape), dtype=torch.uint8)
    mask = draw(model.grid, ratio=0.75, batch=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    start = model(video, mask).item()
    for _ in range(150):
        loss = model(video, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * start


def test_uint8_float_and_layouts_agree() -> None:
    model = build()
    whole = torch.randint(0, 256, (2, *model.grid.clip_shape), dtype=torch.uint8)
    mask = draw(model.grid)
    wanted = model(whole, mask)
    torch.testing.assert_close(model(whole.double() / 255, mask), wanted)
    channels_last = whole.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert not channels_last.is_contiguous()
    torch.testing.assert_close(model(channels_last, mask), wanted)


def test_losses_and_targets_change_the_loss() -> None:
    values = set()
    for loss in LOSSES:
        for target in ("normalized", "raw"):
            model = build(loss=loss, target=target)
            values.add(round(model(clip(model.grid), draw(model.grid)).item(), 9))
    assert len(values) == 6


def test_activation_checkpointing_changes_no_gradient() -> None:
    video = clip(build().grid)
    grads = []
    for recompute in (False, True):
        model = build(checkpoint_activations=recompute)
        model(video, draw(model.grid)).backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


def test_drop_path_acts_in_training_only() -> None:
    model = build(drop_path=0.5)
    video, mask = clip(model.grid), draw(model.grid)
    torch.manual_seed(0)
    losses = {model(video, mask).item() for _ in range(8)}
    assert len(losses) > 1
    model.eval()
    same = build().eval()
    torch.testing.assert_close(model(video, mask), same(video, mask))
    assert [round(b.drop_path.p, 3) for b in build(drop_path=0.2, depth=3).encoder.blocks] == [0, 0.1, 0.2]


def test_bf16_autocast_gives_a_float32_loss() -> None:
    model = build().float()
    video, mask = clip(model.grid).float(), draw(model.grid)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(video, mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(video, mask), rtol=0.03, atol=0.03)


def test_attention_maps() -> None:
    model = build()
    maps = attention_maps(model, clip(model.grid), -1)
    n = model.grid.num_tokens
    assert maps.shape == (2, 2, n, n)
    torch.testing.assert_close(maps.sum(-1), torch.ones_like(maps[..., 0]))
    assert not torch.equal(maps, attention_maps(model, clip(model.grid), 0))
    # They are the weights that the model uses: applied to the values, they give the block's attention.
    encoder = model.encoder
    x = encoder.embed(clip(model.grid), torch.arange(n).expand(2, -1))
    first = encoder.blocks[0]
    v = first.attn.packed_qkv(first.norm1(x))[:, :, 2]  # [B, N, heads, head_dim]
    weighted = torch.einsum("bhqk,bkhd->bqhd", attention_maps(model, clip(model.grid), 0), v)
    torch.testing.assert_close(first.attn.proj(weighted.flatten(2)), first.attn(first.norm1(x)))
    with pytest.raises(InputError, match="expected a layer from 0 to 1"):
        attention_maps(model, clip(model.grid), 2)


def test_encode_gives_all_tokens_with_the_final_norm() -> None:
    model = build()
    tokens = model.encode(clip(model.grid))
    assert tokens.shape == (2, model.grid.num_tokens, 16)
    everything = torch.arange(model.grid.num_tokens).expand(2, -1)
    torch.testing.assert_close(tokens, model.forward_encoder(clip(model.grid), everything))


@pytest.mark.parametrize("size", SIZES)
def test_named_sizes_build_and_round_trip(size: str) -> None:
    config = VideoMAEConfig.from_size(size, drop_path=0.1)
    assert VideoMAEConfig.from_dict(config.to_dict()) == config
    head = VideoClassifierConfig.from_size(size)
    with torch.device("meta"):
        model = VideoClassifier(head, 400)
    millions = {"small": 22.0, "base": 86.5, "large": 304.3, "huge": 632.1}
    if size in millions:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions[size], abs=0.06)


def test_initialisation_is_the_official_one() -> None:
    torch.manual_seed(0)
    model = VideoMAE(VideoMAEConfig.from_size("small"))
    block = model.encoder.blocks[0]
    # Standard deviation and largest magnitude recorded from the official code.
    for tensor, std, largest in (
        (model.mask_token, 0.0110, 0.020),
        (model.encoder.patch_embed.proj.weight, 0.0147, 0.026),
        (block.attn.qkv.weight, 0.0361, 0.062),
        (block.attn.proj.weight, 0.0510, 0.088),
        (block.mlp.fc1.weight, 0.0323, 0.056),
        (model.encoder_to_decoder.weight, 0.0295, 0.051),
        (model.decoder.head.weight, 0.0340, 0.059),
    ):
        assert tensor.std().item() == pytest.approx(std, rel=0.1)
        assert tensor.abs().max().item() == pytest.approx(largest, abs=0.001)


def on_encoder(pretrained: VideoMAE, **changes: Any) -> VideoClassifier:
    model = VideoClassifier(VideoClassifierConfig.from_encoder(pretrained.config, **changes), 5)
    model.load_encoder(pretrained)
    return model


class TestClassifier:
    def test_takes_a_pretrained_encoder(self) -> None:
        pre = build().float()
        model = on_encoder(pre, drop_path=0.1, dropout=0.2)
        assert model.config.drop_path == 0.1 and model.dropout.p == 0.2
        own = model.encoder.state_dict()
        assert all(
            torch.equal(v, own[k]) for k, v in pre.encoder.state_dict().items() if "norm." not in k[:5]
        )
        assert "norm.weight" not in own
        assert model.head.weight.abs().max() < 1e-4
        assert model(clip(pre.grid).float()).shape == (2, 5)
        with pytest.raises(InputError, match="expected the pre-trained clip shape"):
            on_encoder(pre, height=32)

    def test_pools(self) -> None:
        pre = build().float()
        video = clip(pre.grid).float()
        mean, first = (on_encoder(pre, pool=p).eval() for p in ("mean", "first"))
        torch.testing.assert_close(first.features(video), pre.encode(video)[:, 0])
        tokens = mean.encoder(video, torch.arange(pre.grid.num_tokens).expand(2, -1))
        torch.testing.assert_close(mean.features(video), mean.fc_norm(tokens.mean(1)))
        with pytest.raises(InputError, match="expected pool among mean, first; got 'max'"):
            VideoClassifierConfig.from_size("tiny", pool="max")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"frames": 5}, "expected frames to be a multiple of tubelet_size 2, got 5"),
        ({"width": 20}, "expected width to be a multiple of patch_size 8, got 20"),
        ({"channels": 9}, "expected 1 to 8 channels, got 9"),
        ({"embed_dim": 15}, "expected embed_dim to be a multiple of num_heads 2, got 15"),
        ({"decoder_embed_dim": 15}, "expected decoder_embed_dim to be a multiple of decoder_num_heads 2"),
        ({"depth": 0}, "expected depth to be an integer of at least 1, got 0"),
        ({"depth": 2.0}, "expected depth to be an integer of at least 1, got 2.0"),
        ({"drop_path": 1.0}, "expected drop_path in"),
        ({"loss": "l2"}, "expected loss among mse, l1, smooth_l1, cosine; got 'l2'"),
        ({"target": "pixels"}, "expected target among normalized, raw, sigreg; got 'pixels'"),
        ({"std": (1.0, 0.0, 1.0)}, "expected std above 0"),
        ({"mean": None}, "expected mean and std both given or both None"),
        ({"mean": (0.5,), "std": (0.5,)}, "expected mean of 3 channels, got 1 values"),
        ({"embed_dims": 16}, "has no field 'embed_dims' .did you mean 'embed_dim'"),
        ({"norm_eps": 0}, "expected norm_eps above 0"),
    ],
)
def test_configurations_that_cannot_be(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VideoMAEConfig.from_size("tiny", **(SMALL | overrides))


def test_unknown_sizes_name_the_nearest() -> None:
    with pytest.raises(InputError, match=r"got 'bse' .did you mean 'base'"):
        VideoMAEConfig.from_size("bse")


class TestBadInput:
    def test_shapes_and_dtypes(self) -> None:
        model = build()
        mask = draw(model.grid)
        video = clip(model.grid)
        with pytest.raises(
            InputError, match=r"expected a video \[B, 3, 4, 16, 24\], got \[2, 4, 3, 16, 24\]"
        ):
            model(video.transpose(1, 2), mask)
        with pytest.raises(InputError, match=r"got \[3, 4, 16, 24\]"):
            model.encode(video[0])
        with pytest.raises(
            InputError, match=r"uint8 \(0 to 255\) or floating point \(0 to 1\), got torch.int64"
        ):
            model((video * 255).long(), mask)

    def test_masks_of_another_clip(self) -> None:
        model = build()
        video = clip(model.grid)
        with pytest.raises(InputError, match="expected a mask of 2 clips x 12 tokens, got 3 x 12"):
            model(video, draw(model.grid, batch=3))
        other = mask_from_bool(torch.arange(8).remainder(2).bool().expand(2, -1))
        with pytest.raises(InputError, match="expected a mask of 2 clips x 12 tokens, got 2 x 8"):
            model(video, other)
        with pytest.raises(InputError, match=r"expected decode int64 \[2, K\]"):
            model(video, draw(model.grid), torch.zeros(2, 3))

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan_pixels(self, value: float) -> None:
        model = build()
        video = clip(model.grid)
        video[1, 2, 3, 15, 23] = value
        with pytest.raises(InputError, match=r"expected finite pixels, got 1 NaN or infinite in clips \[1\]"):
            model(video, draw(model.grid))


def test_a_subtracted_background_is_not_seen() -> None:
    model = build(background="subtract")
    grid = model.grid
    mask = draw(grid)
    video = clip(grid) * 0.2 + 0.4  # nothing is clipped
    scene = torch.rand(2, grid.channels, 1, grid.height, grid.width, dtype=torch.float64) * 0.2 - 0.1
    assert torch.allclose(model(video + scene, mask), model(video, mask), atol=1e-9)
    assert torch.allclose(model.encode(video + scene), model.encode(video), atol=1e-9)
    plain = build()
    assert not torch.allclose(plain.encode(video + scene), plain.encode(video), atol=1e-3)
    classifier = VideoClassifier(VideoClassifierConfig.from_encoder(model.config), 3).double()
    assert classifier.config.background == "subtract"
    assert torch.allclose(classifier(video + scene), classifier(video), atol=1e-9)


def test_what_is_seen_is_the_deviation_from_the_mean_frame() -> None:
    config = VideoMAEConfig.from_size("tiny", **SMALL, background="subtract")
    video = torch.randint(0, 256, (2, *config.grid.clip_shape), dtype=torch.uint8)
    found = model_input(video, config)
    pixels = video.double() / 255
    expected = (pixels - pixels.mean(2, keepdim=True) + 0.5).clamp(0, 1)
    assert torch.allclose(found.double(), expected, atol=1e-6)
    still = video[:, :, :1].expand_as(video)
    assert torch.allclose(model_input(still, config), torch.full_like(found, 0.5), atol=1e-6)
    assert model_input(video, VideoMAEConfig.from_size("tiny", **SMALL)) is video
    with pytest.raises(InputError, match="expected background among keep, subtract; got 'remove'"):
        VideoMAEConfig.from_size("tiny", **SMALL, background="remove")
