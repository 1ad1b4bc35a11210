"""Sheets, error maps, exports, clips, features: arrays in, arrays out."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmae.core.errors import InputError
from vmae.core.measure import films
from vmae.core.video.fit import fit, to_channels
from vmae.dashboard import features, render
from vmae.dashboard.clips import data_grid, frame_indices, last_start
from vmae.dashboard.components import picked, player_data
from vmae.dashboard.viewer import draw_mask, stroke_mask


def frames(t: int = 5, h: int = 16, w: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, 3)).astype(np.uint8)


def open_sheet(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def test_a_small_sheet_is_lossless_frames_left_to_right() -> None:
    video = frames()
    sheet = open_sheet(render.sprite_sheet(video))
    assert (sheet == np.concatenate(list(video), axis=1)).all()


def test_a_wide_sheet_goes_on_in_the_next_row() -> None:
    video = frames(t=30, h=4, w=1600)
    columns = render.sheet_columns(30, 1600)
    assert columns == 10
    sheet = open_sheet(render.sprite_sheet(video))
    assert sheet.shape == (3 * 4, 10 * 1600, 3)
    assert (sheet[4:8, 1600:3200] == video[11]).all()


def test_the_error_map_has_a_fixed_scale() -> None:
    zero = np.zeros((1, 1, 3, 3), np.uint8)
    other = np.zeros_like(zero)
    other[0, 0, 1], other[0, 0, 2] = round(films.ERROR_MAX * 255), 255
    colours = films.error_map(zero, other)[0, 0].astype(int)
    assert (colours[1] == colours[2]).all()
    assert colours[0].sum() < 30 < colours[1].sum()
    # The same error has the same colour whatever else is in the picture.
    assert (films.error_map(zero[:, :, :1], other[:, :, 1:2])[0, 0, 0] == colours[1]).all()


def test_exports_hold_every_frame() -> None:
    import av

    rows = [("original", frames()), ("made", frames(seed=1))]
    side = films.side_by_side(rows, scale=2)
    assert side.shape[0] == 5
    assert side.shape[1] % 2 == side.shape[2] % 2 == 0
    gif = Image.open(io.BytesIO(films.gif_bytes(side, 10.0)))
    assert gif.n_frames == 5
    with av.open(io.BytesIO(films.mp4_bytes(side, 12.5))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 5
        assert float(container.streams.video[0].average_rate) == 12.5
    assert Image.open(io.BytesIO(films.png_bytes(rows))).size == (5 * 26 - 2, 2 * (16 + 18) - 2)


@pytest.mark.parametrize(("start", "expected"), [(0, [0, 3, 6, 9]), (-1, [0, 3, 6, 9]), (5, [5, 8, 9, 9])])
def test_frame_indices_stay_inside(start: int, expected: list[int]) -> None:
    assert frame_indices(10, 4, 3, start).tolist() == expected
    assert last_start(10, 4, 3) == 0
    assert frame_indices(1, 4, 3, -1).tolist() == [0, 0, 0, 0]


def test_fit_covers_and_cuts_the_centre() -> None:
    video = np.zeros((2, 10, 40, 3), np.uint8)
    video[:, :, 15:25] = 200
    out = fit(video, 20, 20)
    assert out.shape == (2, 20, 20, 3)
    assert out[:, :, 1:-1].min() == 200


def test_other_channels_are_refused_with_a_sentence() -> None:
    assert to_channels(frames(), 1).shape == (5, 16, 24, 1)
    with pytest.raises(InputError, match="got one of 2"):
        to_channels(frames(), 2)


def test_clicks_and_strokes_from_the_browser_are_checked() -> None:
    good = {"panel": 1, "x": 0.5, "y": 0.25, "frame": 3}
    assert picked(good, 2) == (1, 0.5, 0.25, 3)
    for bad in (
        None,
        "x",
        {**good, "panel": 2},
        {**good, "x": 1.0},
        {**good, "frame": -1},
        {**good, "y": "0"},
    ):
        assert picked(bad, 2) is None
    mask = draw_mask("tube", 0.5, 0, data_grid(2, 8, 8))
    assert stroke_mask({"side": 0, "mask": mask}, 16) == (0, mask)
    for bad_stroke in (
        None,
        {"side": 2, "mask": mask},
        {"side": 0, "mask": 3},
        {"side": 0, "mask": "16.AAA"},
    ):
        assert stroke_mask(bad_stroke, 16) is None
    assert stroke_mask({"side": 0, "mask": mask}, 32) is None


def test_player_data_are_equal_for_equal_pictures_only() -> None:
    def data(note: str) -> dict[str, Any]:
        return player_data([("a", note, "data:", False)], shape=(2, 4, 4), fps=8, per_row=1)

    assert data("x") == data("x")
    assert data("x")["version"] != data("y")["version"]


def test_neighbours_and_the_vote_find_the_clusters() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 12)
    x = (np.eye(3)[labels] * 8 + rng.normal(size=(36, 3))).astype(np.float32)
    assert {labels[i] for i, _ in features.neighbours(x, 0, 5)} == {0}
    alone = [str(i) for i in range(36)]
    assert features.leave_one_out(x, labels, alone) > 0.95
    shuffled = rng.permutation(labels)
    assert features.leave_one_out(x, shuffled, alone) < 0.7
    # Where a group is a class, only other classes are left to vote.
    assert features.leave_one_out(x, labels, [str(label) for label in labels]) == 0
    assert features.leave_one_out(x, labels, ["one"] * 36) == 0, "nobody is left to vote"
    halves = [f"{label} {i % 2}" for i, label in enumerate(labels)]
    assert features.leave_one_out(x, labels, halves) > 0.95


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_keeps_clusters_apart(method: str) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(3), 15)
    x = (np.eye(10)[labels] * 6 + rng.normal(size=(45, 10))).astype(np.float32)
    place = features.pca(x) if method == "pca" else features.tsne(x, perplexity=8)
    assert np.isfinite(place).all()
    centres = np.stack([place[labels == k].mean(0) for k in range(3)])
    inside = max(np.linalg.norm(place[labels == k] - centres[k], axis=1).mean() for k in range(3))
    apart = min(np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert apart > 2 * inside


def test_attention_rows_are_shares_and_the_chosen_patch_is_framed(mini: Any) -> None:
    from vmae.dashboard.sources import weights_file

    path = weights_file(mini.runs_dir / "sweeps" / "mini" / "trials" / "ratio0.5_s0" / "pretrain" / "model")
    clip = frames(8, 32, 32)
    weights = features.attention_row(str(path), 0, "k", clip, 1, 21)
    assert weights.shape == (2, 4, 4, 4)
    assert weights.sum((1, 2, 3)) == pytest.approx([1, 1], abs=1e-5)
    picture = features.overlay(clip, weights.mean(0), 0.1, 2, (1, 1, 1))
    assert (picture[2, 8, 8:16] == 255).all()
    assert not (picture[4, 8, 8:16] == 255).all()
