"""Reconstruction: both forms, what they may use, and the metrics over masked pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vmae.core.errors import InputError
from vmae.core.measure.reconstruct import (
    estimate_statistics,
    patch_statistics,
    reconstruct,
    reconstruction_metrics,
    to_rgb,
)
from vmae.core.model.grid import TokenGrid
from vmae.core.model.masking import TokenMask, sample_mask
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.kernels import patch_targets

SHAPE = {"frames": 4, "height": 24, "width": 32, "patch_size": 8}


class Oracle(VideoMAE):
    """Predicts exactly the target."""

    def predict(self, video: Tensor, mask: TokenMask) -> Tensor:
        return patch_targets(
            video, mask.masked, patch_size=8, tubelet_size=2, target=self.config.target, dtype=torch.float64
        )


def build(kind: type[VideoMAE] = VideoMAE, **overrides: object) -> VideoMAE:
    torch.manual_seed(0)
    return kind(VideoMAEConfig.from_size("tiny", **(SHAPE | {"embed_dim": 32, "depth": 1} | overrides)))


def clip(grid: TokenGrid, batch: int = 2) -> Tensor:
    return torch.randint(
        0, 256, (batch, *grid.clip_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


def draw(grid: TokenGrid, kind: str = "tube", ratio: float = 0.75) -> TokenMask:
    return sample_mask(kind, ratio, grid, 2, torch.Generator().manual_seed(2))


def test_a_perfect_prediction_gives_the_clip_back_as_trained_only() -> None:
    model = build(Oracle)
    video = clip(model.grid)
    rec = reconstruct(model, video, draw(model.grid))
    np.testing.assert_array_equal(rec.as_trained, rec.original)
    np.testing.assert_array_equal(rec.original, video.permute(0, 2, 3, 4, 1).numpy())
    # Model only has to guess brightness and contrast, even of a perfect prediction.
    assert not np.array_equal(rec.model_only, rec.original)
    assert np.nanmax(rec.token_error) < 1e-6
    metrics = reconstruction_metrics(rec, "as_trained")
    assert metrics.means()["mse"] == 0 and np.isinf(metrics.psnr).all()
    np.testing.assert_allclose(metrics.ssim, 1)
    assert reconstruction_metrics(rec, "model_only").means()["mse"] > 0


def test_model_only_uses_nothing_of_the_hidden_pixels() -> None:
    model = build()
    mask = draw(model.grid)
    video = clip(model.grid)
    first = reconstruct(model, video, mask)
    hidden = torch.from_numpy(first.pixel_mask)[:, None].expand_as(video)
    changed = torch.where(hidden, 255 - video, video)
    second = reconstruct(model, changed, mask)
    np.testing.assert_array_equal(first.model_only, second.model_only)
    np.testing.assert_array_equal(first.masked_input, second.masked_input)
    assert not np.array_equal(first.as_trained, second.as_trained)
    assert first.labels["as_trained"] != first.labels["model_only"]


def test_raw_models_show_their_pixels_in_both_forms() -> None:
    model = build(Oracle, target="raw")
    video = clip(model.grid)
    rec = reconstruct(model, video, draw(model.grid))
    np.testing.assert_array_equal(rec.model_only, rec.original)
    np.testing.assert_array_equal(rec.as_trained, rec.original)
    assert rec.labels["as_trained"] == rec.labels["model_only"]


def test_visible_pixels_are_the_clips_own_and_masked_input_is_grey() -> None:
    model = build()
    rec = reconstruct(model, clip(model.grid).float() / 255, draw(model.grid, "random"))
    seen = ~rec.pixel_mask
    for picture in (rec.masked_input, rec.as_trained, rec.model_only):
        np.testing.assert_array_equal(picture[seen], rec.original[seen])
    assert set(np.unique(rec.masked_input[rec.pixel_mask])) == {128}
    assert rec.pixel_mask.mean() == pytest.approx(rec.token_mask.mean())
    np.testing.assert_array_equal(np.isnan(rec.token_error), ~rec.token_mask)
    assert model.training


def test_statistics_are_estimated_from_near_neighbours() -> None:
    grid = TokenGrid(frames=2, height=8, width=64, patch_size=8)
    # One row of 8 tokens, 0 and 7 visible: each masked one leans to the nearer side.
    mask = TokenMask(torch.tensor([[0, 7]]), torch.arange(1, 7)[None])
    mean = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
    got, _ = estimate_statistics(mean, mean, mask, grid)
    row = got[0, :, 0, 0]
    assert (row.diff() > 0).all() and row[0] < 0.01 and row[-1] > 0.99
    flat, _ = estimate_statistics(torch.full_like(mean, 0.3), mean, mask, grid)
    torch.testing.assert_close(flat, torch.full_like(flat, 0.3))


def test_statistics_of_a_patch() -> None:
    values = torch.rand(2, 3, 128 * 3, dtype=torch.float64)
    mean, std = patch_statistics(values, 3)
    one = values[1, 2].view(128, 3)
    torch.testing.assert_close(mean[1, 2, 0], one.mean(0))
    torch.testing.assert_close(std[1, 2, 0], one.std(0))


def test_metrics_look_at_masked_pixels_only_and_match_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio

    model = build()
    rec = reconstruct(model, clip(model.grid), draw(model.grid, "frame", 0.5))
    metrics = reconstruction_metrics(rec)
    for i in range(2):
        hidden = rec.pixel_mask[i]
        want = peak_signal_noise_ratio(rec.original[i][hidden], rec.as_trained[i][hidden], data_range=255)
        assert metrics.psnr[i] == pytest.approx(want)
        for j in range(4):
            assert np.isnan(metrics.frame_psnr[i, j]) == (not hidden[j].any())
    assert metrics.mse == pytest.approx(np.nanmean(metrics.frame_mse, axis=1))
    assert (metrics.ssim < 1).all()
    with pytest.raises(InputError, match="as_trained, model_only"):
        reconstruction_metrics(rec, "usual")


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts(channels: int) -> None:
    model = build(channels=channels)
    rec = reconstruct(model, clip(model.grid), draw(model.grid))
    assert rec.model_only.shape == (2, 4, 24, 32, channels)
    assert to_rgb(rec.model_only).shape == (2, 4, 24, 32, 3)
    assert reconstruction_metrics(rec).psnr.shape == (2,)


def test_nan_pixels_are_refused() -> None:
    model = build()
    video = clip(model.grid).float() / 255
    video[1, 0, 0, 0, 0] = float("nan")
    with pytest.raises(InputError, match=r"expected finite pixels, got 1 .* in clips \[1\]"):
        reconstruct(model, video, draw(model.grid))
