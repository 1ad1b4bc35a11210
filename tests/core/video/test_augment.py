"""Augmentation: regions against the official rules, pixels against PIL, one draw for all frames of a clip."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vmae.core.errors import InputError
from vmae.core.video import rand_augment
from vmae.core.video.augment import (
    MULTI_SCALES,
    Box,
    center_box,
    crop_resize,
    multi_scale_box,
    random_resized_box,
    view_boxes,
)
from vmae.core.video.rand_augment import (
    OPERATIONS,
    RandAugment,
    apply_operation,
    color_jitter,
    random_erase,
)


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    """Three different smooth frames, uint8 [3, 40, 56, 3]."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3, 5, 7, 3), np.uint8)
    return np.stack(
        [np.asarray(Image.fromarray(s).resize((56, 40), Image.Resampling.BICUBIC)) for s in small]
    )


def test_multi_scale_boxes_are_the_official_ones() -> None:
    rng = np.random.default_rng(0)
    boxes = [multi_scale_box(256, 340, (224, 224), rng) for _ in range(4000)]
    # 256 * {1, .875, .75, .66}; 224 is the output's own side, so it stays 224.
    sides = [256, 224, 192, 168]
    steps = {(sides.index(b.height), sides.index(b.width)) for b in boxes}
    assert steps == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    for b in boxes:
        assert 0 <= b.top <= 256 - b.height
        assert 0 <= b.left <= 340 - b.width
        quarters = ((256 - b.height) // 4, (340 - b.width) // 4)
        assert b.top in {k * quarters[0] for k in range(5)}
        assert b.left in {k * quarters[1] for k in range(5)}
    spots = {(b.top // 8, b.left // 29) for b in boxes if (b.height, b.width) == (224, 224)}
    assert len(spots) == 13
    assert max(MULTI_SCALES) == 1


def test_boxes_stay_inside_whatever_the_size() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        height, width = (int(x) for x in rng.integers(1, 90, 2))
        for b in (
            multi_scale_box(height, width, (32, 48), rng),
            random_resized_box(height, width, rng),
            center_box(height, width, 1.7),
            *view_boxes(height, width, 3, 0.6),
        ):
            assert b.height >= 1
            assert b.width >= 1
            assert 0 <= b.top <= height - b.height
            assert 0 <= b.left <= width - b.width


def test_random_resized_boxes_have_the_asked_areas_and_ratios() -> None:
    rng = np.random.default_rng(0)
    boxes = [random_resized_box(200, 300, rng, scale=(0.2, 0.5)) for _ in range(500)]
    areas = np.array([b.height * b.width / 60_000 for b in boxes])
    ratios = np.array([b.width / b.height for b in boxes])
    assert areas.min() > 0.19
    assert areas.max() < 0.51
    assert areas.std() > 0.06
    assert ratios.min() > 0.73
    assert ratios.max() < 1.37


def test_view_boxes_reach_from_end_to_end() -> None:
    assert [b.left for b in view_boxes(224, 300, 3)] == [0, 38, 76]
    assert [b.top for b in view_boxes(300, 224, 3)] == [0, 38, 76]
    assert view_boxes(224, 300, 1) == [center_box(224, 300)] == [Box(0, 38, 224, 224)]


def test_crop_resize(clip: np.ndarray) -> None:
    out = np.empty((3, 20, 20, 3), np.uint8)
    crop_resize(clip, Box(4, 6, 20, 20), out)
    assert np.array_equal(out, clip[:, 4:24, 6:26])
    crop_resize(clip, Box(4, 6, 20, 20), out, flip=True)
    assert np.array_equal(out, clip[:, 4:24, 6:26][:, :, ::-1])
    enlarged, mirrored = np.empty((3, 60, 60, 3), np.uint8), np.empty((3, 60, 60, 3), np.uint8)
    crop_resize(clip, Box(0, 0, 40, 40), enlarged)
    crop_resize(clip, Box(0, 0, 40, 40), mirrored, flip=True)
    assert np.array_equal(mirrored, enlarged[:, :, ::-1])
    for frame, mine in zip(clip, enlarged, strict=True):
        expected = Image.fromarray(frame[:, :40]).resize((60, 60), Image.Resampling.BILINEAR)
        assert np.abs(mine.astype(int) - np.asarray(expected)).max() <= 2


def pil(name: str, frame: np.ndarray, level: float, sign: float) -> np.ndarray:
    """The operation by PIL, as timm calls it (increasing, magnitude 10 * level)."""
    image: Any = Image.fromarray(frame)
    width, height = image.size
    factor = 1 + 0.9 * level * sign
    affine = {
        "shear_x": (1, 0.3 * level * sign, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, 0.3 * level * sign, 1, 0),
        "translate_x": (1, 0, 0.45 * level * sign * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, 0.45 * level * sign * height),
    }
    kwargs = {"resample": Image.Resampling.BILINEAR, "fillcolor": (128, 128, 128)}
    if name in affine:
        return np.asarray(image.transform(image.size, Image.Transform.AFFINE, affine[name], **kwargs))
    if name == "solarize_add":
        table = [min(255, i + int(level * 110)) if i < 128 else i for i in range(256)]
        return np.asarray(image.point(table * 3))
    calls = {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(30 * level * sign, **kwargs),
        "posterize": lambda: ImageOps.posterize(image, max(1, 4 - int(level * 4))),
        "solarize": lambda: ImageOps.solarize(image, 256 - int(level * 256)),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
    }
    return np.asarray(calls[name]())


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("level", [0.2, 0.7])
@pytest.mark.parametrize("negate", [False, True])
def test_operations_agree_with_pil(name: str, level: float, negate: bool, clip: np.ndarray) -> None:
    before = clip.copy()
    mine = apply_operation(name, clip, level, negate=negate)
    assert np.array_equal(clip, before)
    assert mine.dtype == np.uint8
    assert mine.shape == clip.shape
    geometric = name in ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    for frame, got in zip(clip, mine, strict=True):
        difference = np.abs(got.astype(int) - pil(name, frame, level, -1 if negate else 1))
        if geometric:  # cv2 interpolates at 1/32 pixel, and pixels on the very edge may take the fill
            assert np.median(difference) <= 1
            assert (difference > 8).mean() < 0.06
        else:
            assert difference.max() <= (1 if name in ("color", "sharpness", "contrast", "brightness") else 0)
    if not (name == "posterize" and level < 0.25):
        assert not np.array_equal(mine, clip)


def test_every_frame_gets_the_same_draw() -> None:
    still = np.broadcast_to(
        np.random.default_rng(1).integers(0, 256, (1, 24, 24, 3), np.uint8), (4, 24, 24, 3)
    )
    augment = RandAugment.parse("rand-m7-n4-mstd0.5-inc1")
    assert augment is not None
    results = set()
    for seed in range(30):
        out = augment(still, np.random.default_rng(seed))
        out = color_jitter(out, 0.4, np.random.default_rng(seed))
        assert all(np.array_equal(frame, out[0]) for frame in out)
        results.add(out.tobytes())
        again = color_jitter(augment(still, np.random.default_rng(seed)), 0.4, np.random.default_rng(seed))
        assert np.array_equal(again, out)
    assert len(results) > 25


def test_the_grammar() -> None:
    assert RandAugment.parse("rand-m7-n4-mstd0.5-inc1") == RandAugment()
    assert RandAugment.parse("rand-n3-m9") == RandAugment(magnitude=9, num_ops=3, std=0, increasing=False)
    assert RandAugment.parse("rand-m5-p1") == RandAugment(
        magnitude=5, num_ops=2, std=0, increasing=False, prob=1
    )
    assert RandAugment.parse("") is None
    for bad in ("augmix-m3", "rand-m7-x4", "rand-m", "rand-m11", "rand-n0", "rand-m7-inc2", "rand-mx"):
        with pytest.raises(InputError, match="rand_augment: expected"):
            RandAugment.parse(bad)
    with pytest.raises(InputError, match="expected one of auto_contrast"):
        apply_operation("blur", np.zeros((1, 2, 2, 3), np.uint8), 0.5)


def test_magnitude_matters(clip: np.ndarray) -> None:
    def change(magnitude: int) -> float:
        augment = RandAugment(magnitude=magnitude, num_ops=2, std=0.0)
        out = [augment(clip, np.random.default_rng(s)).astype(int) for s in range(60)]
        return float(np.mean([np.abs(o - clip).mean() for o in out]))

    assert change(9) > 1.2 * change(2)


Drawn = tuple[str, float, bool]


def drawn(text: str, seed: int, clips: int, monkeypatch: pytest.MonkeyPatch) -> list[list[Drawn]]:
    """What RandAugment applies to each of `clips` clips: (operation, level, negated)."""
    seen: list[list[Drawn]] = []

    def note(name: str, clip: np.ndarray, level: float, *, negate: bool, increasing: bool) -> np.ndarray:
        seen[-1].append((name, level, negate))
        return clip

    monkeypatch.setattr(rand_augment, "apply_operation", note)
    augment, rng = RandAugment.parse(text), np.random.default_rng(seed)
    assert augment is not None
    still = np.zeros((1, 2, 2, 3), np.uint8)
    for _ in range(clips):
        seen.append([])
        augment(still, rng)
    return seen


def test_operations_levels_and_directions_are_drawn_as_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 of 15 operations, each applied half the time: 0 to 4 a clip by B(4, 1/2); levels N(7, 0.5) / 10."""
    per_clip = drawn("rand-m7-n4-mstd0.5-inc1", 0, 6000, monkeypatch)
    counts = np.bincount([len(c) for c in per_clip], minlength=5) / 6000
    np.testing.assert_allclose(counts, np.array([1, 4, 6, 4, 1]) / 16, atol=0.02)
    every = [d for c in per_clip for d in c]
    names = {name: sum(d[0] == name for d in every) for name in OPERATIONS}
    # About 800 of each: 4 standard deviations of a count are 110.
    assert all(abs(n - len(every) / 15) < 110 for n in names.values()), names
    levels = np.array([d[1] for d in every])
    assert levels.mean() == pytest.approx(0.7, abs=0.003) and levels.std() == pytest.approx(0.05, abs=0.002)
    assert np.mean([d[2] for d in every]) == pytest.approx(0.5, abs=0.02)
    assert {d[1] for c in drawn("rand-m10-n2-mstd3", 0, 500, monkeypatch) for d in c} >= {1.0}
    assert {d[1] for c in drawn("rand-m9-n2", 0, 50, monkeypatch) for d in c} == {0.9}


def test_a_fixed_seed_gives_fixed_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    (first, second) = drawn("rand-m7-n4-mstd0.5-inc1", 11, 2, monkeypatch)
    assert [(n, round(v, 6), g) for n, v, g in first + second] == GOLDEN_DRAWS


GOLDEN_DRAWS: list[Drawn] = [
    ("equalize", 0.685102, True),
    ("shear_x", 0.697197, True),
    ("solarize", 0.681045, True),
]


def test_erased_areas_shapes_and_noise_follow_their_distributions() -> None:
    """Area uniform in 2 to 33 %, log(aspect) uniform between log 0.3 and -log 0.3, noise N(mean, std)."""
    areas, aspects, values = [], [], []
    rng = np.random.default_rng(0)
    for _ in range(500):
        clip = np.zeros((1, 120, 120, 3), np.uint8)
        random_erase(clip, 1.0, rng)
        changed = (clip[0] > 0).any(2)
        h, w = int(changed.any(1).sum()), int(changed.any(0).sum())
        areas.append(h * w / 120**2)
        aspects.append(np.log(h / w))
        values.append(clip[0][changed].mean(0))
    assert np.mean(areas) == pytest.approx((0.02 + 1 / 3) / 2, abs=0.015)
    assert np.var(areas) == pytest.approx((1 / 3 - 0.02) ** 2 / 12, rel=0.2)
    assert np.mean(aspects) == pytest.approx(0.0, abs=0.12)
    assert np.max(np.abs(aspects)) < -np.log(0.3) + 0.1
    # Cut off at 0 and 255: within a few grey levels of ImageNet's means.
    np.testing.assert_allclose(np.mean(values, 0), np.array([0.485, 0.456, 0.406]) * 255, atol=5)


def test_a_fixed_seed_erases_a_fixed_box() -> None:
    clip = np.zeros((2, 32, 40, 3), np.uint8)
    random_erase(clip, 1.0, np.random.default_rng(4))
    rows, columns = (np.nonzero((clip > 0).any((0, 3)).any(axis))[0] for axis in (1, 0))
    assert (rows[0], rows[-1], columns[0], columns[-1], int(clip.sum())) == GOLDEN_ERASED


GOLDEN_ERASED = (5, 31, 2, 10, 169163)


def test_erasing() -> None:
    whole = np.full((3, 40, 50, 3), 7, np.uint8)
    areas = []
    for seed in range(200):
        out = whole.copy()
        random_erase(out, 0.5, np.random.default_rng(seed))
        changed = (out != 7).any(axis=(0, 3))
        if changed.any():
            rows, columns = np.nonzero(changed.any(1))[0], np.nonzero(changed.any(0))[0]
            box = out[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            areas.append(box[0, ..., 0].size / 2000)
            assert not np.array_equal(box[0], box[1])  # noise for every frame
            assert (out == 7).sum() >= (whole.size - box.size)
    assert 70 < len(areas) < 130
    assert min(areas) > 0.01
    assert max(areas) < 0.36
    untouched = whole.copy()
    random_erase(untouched, 0.0, np.random.default_rng(0))
    assert np.array_equal(untouched, whole)


def test_the_regions_of_a_wide_output_are_wide() -> None:
    rng = np.random.default_rng(0)
    boxes = [multi_scale_box(128, 274, (48, 96), rng) for _ in range(500)]
    # 128 x 256 times {1, .875, .75, .66}, the two sides' scales at most a step apart.
    heights, widths = [128, 112, 96, 84], [256, 224, 192, 168]
    steps = {(heights.index(b.height), widths.index(b.width)) for b in boxes}
    assert steps == {(i, j) for i in range(4) for j in range(4) if abs(i - j) <= 1}
