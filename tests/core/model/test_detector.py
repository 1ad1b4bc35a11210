"""The detection head: each number of its definition by hand, variable sizes, and that it learns where."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifierConfig
from vmae.core.model.detector import (
    VideoDetector,
    VideoDetectorConfig,
    detection_loss,
    interpolate_positions,
)
from vmae.core.model.encoder import all_indices
from vmae.core.model.roi import roi_align_reference
from vmae.core.model.videomae import VideoMAEConfig

CONFIG = VideoDetectorConfig(
    frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, init_scale=1.0
)


def model(**changes: object) -> VideoDetector:
    torch.manual_seed(0)
    return VideoDetector(dataclasses.replace(CONFIG, **changes), 3).eval()  # type: ignore[arg-type]


def video(height: int = 32, width: int = 32, clips: int = 2) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(256, (clips, 3, 4, height, width), dtype=torch.uint8, generator=g)


BOXES = torch.tensor([[2.0, 3, 20, 30], [0, 0, 32, 32], [9, 9, 14, 25]])
CLIPS = torch.tensor([0, 0, 1])


@torch.no_grad()
def test_scores_are_the_definition_written_out() -> None:
    m, v = model(), video()
    tokens = m.encoder(v, all_indices(v, m.grid))  # final norm applied
    maps = tokens.reshape(2, 2, 4, 4, 32).mean(1).permute(0, 3, 1, 2)
    bins = roi_align_reference(maps, BOXES, CLIPS, spatial_scale=1 / 8)
    expected = m.head(F.max_pool2d(bins, 7).flatten(1))
    torch.testing.assert_close(m(v, BOXES, CLIPS), expected)
    # A box's score does not depend on the others, nor on other clips.
    torch.testing.assert_close(m(v[1:], BOXES[2:], torch.tensor([0])), expected[2:])


@torch.no_grad()
def test_other_sizes_take_interpolated_positions() -> None:
    m, v = model(), video(32, 56)
    assert m.forward_map(v).shape == (2, 32, 4, 7)
    wide = dataclasses.replace(m.grid, width=56)
    positions = interpolate_positions(m.encoder.pos_embed, m.grid, wide)
    assert interpolate_positions(m.encoder.pos_embed, m.grid, m.grid) is m.encoder.pos_embed
    slot = m.encoder.pos_embed.reshape(2, 4, 4, 32)[1].permute(2, 0, 1)[None]
    by_hand = F.interpolate(slot, size=(4, 7), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)
    torch.testing.assert_close(positions.reshape(2, 4, 7, 32)[1], by_hand)
    embedded = m.encoder.patch_embed(v, all_indices(v, wide)) + positions
    x = embedded
    for block in m.encoder.blocks:
        x = block(x)
    expected = m.encoder.norm(x).reshape(2, 2, 4, 7, 32).mean(1).permute(0, 3, 1, 2)
    torch.testing.assert_close(m.forward_map(v), expected)


def test_loss_is_the_published_one() -> None:
    logits, targets = torch.randn(5, 3), torch.randint(2, (5, 3)).float()
    p = logits.sigmoid()
    by_hand = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean() * 5
    torch.testing.assert_close(detection_loss(logits, targets), by_hand)
    empty = detection_loss(torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3))
    assert empty.item() == 0 and empty.requires_grad


def test_no_people_give_no_scores() -> None:
    assert model()(video(), torch.empty(0, 4), torch.empty(0, dtype=torch.int64)).shape == (0, 3)


def test_training_tells_boxes_of_one_clip_apart() -> None:
    """Two squares a clip, one bright and one dark, at random places: which is in the box?"""
    torch.manual_seed(0)
    m = VideoDetector(dataclasses.replace(CONFIG, depth=1, init_scale=0.001), 2)
    optimiser = torch.optim.AdamW(m.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)

    def batch(n: int) -> tuple[torch.Tensor, ...]:
        clips = torch.full((n, 3, 4, 32, 32), 128, dtype=torch.uint8)
        boxes = torch.empty(n, 2, 4)
        for i in range(n):
            top = int(torch.randint(16, (1,), generator=g))
            first = int(torch.randint(2, (1,), generator=g)) * 16
            for k, (value, left) in enumerate(((255, first), (0, 16 - first))):
                clips[i, :, :, top : top + 16, left : left + 16] = value
                boxes[i, k] = torch.tensor([left, top, left + 16, top + 16])
        return clips, boxes.flatten(0, 1), torch.arange(n).repeat_interleave(2), torch.eye(2).repeat(n, 1)

    for _ in range(80):
        clips, boxes, index, targets = batch(8)
        optimiser.zero_grad()
        detection_loss(m(clips, boxes, index), targets).backward()
        optimiser.step()
    clips, boxes, index, targets = batch(32)
    with torch.no_grad():
        right = (m(clips, boxes, index).argmax(1) == targets.argmax(1)).float().mean()
    assert right > 0.95


def test_configurations_come_from_any_encoder() -> None:
    for config in (VideoMAEConfig.from_size("tiny"), VideoClassifierConfig.from_size("tiny")):
        own = VideoDetectorConfig.from_encoder(config, drop_path=0.2)
        assert own.embed_dim == 128 and own.drop_path == 0.2 and own.grid == config.grid
    assert VideoDetectorConfig.from_dict(CONFIG.to_dict()) == CONFIG


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 4, 32), "expected a video"),
        ((2, 3, 4, 30, 32), "multiple of patch_size"),
        ((2, 3, 8, 32, 32), r"expected a video \[B, 3, 4, 32, 32\]"),
        ((2, 1, 4, 32, 32), r"expected a video \[B, 3, 4, 32, 32\]"),
    ],
)
def test_other_clips_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model()(torch.zeros(shape, dtype=torch.uint8), BOXES, CLIPS)


def test_bad_configurations_are_refused() -> None:
    for change in ({"roi_size": 0}, {"roi_points": -1}, {"dropout": 1.0}):
        with pytest.raises(InputError, match=next(iter(change))):
            dataclasses.replace(CONFIG, **change)
