"""The miniature AVA: boxes hold their objects, a key frame tells nothing, files as AVA's, resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations
from vmae.core.video.ava import read_label_map
from vmae.core.video.coco import read_proposals
from vmae.core.video.demo_boxes import ACTIONS, DemoBoxesConfig, make_demo_boxes, scene_frames
from vmae.core.video.probe import probe_video
from vmae.core.video.reader import read_clip

SMALL = DemoBoxesConfig(train_films=2, val_films=1, scenes=2, size=48, fps=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_demo_boxes(tmp_path_factory.mktemp("boxes"), SMALL)


def test_boxes_are_around_what_is_painted() -> None:
    for scene in range(8):
        frames, objects = scene_frames(0, "train", 0, scene, size=96, frames=8)
        assert 2 <= len(objects) <= 3
        key = frames[4].astype(int)
        # Objects are far from the mid-grey background; the box's edges are where they end.
        odd = np.abs(key - 128).max(2) > 70
        outside = odd.copy()
        for found in objects:
            x1, y1, x2, y2 = (round(96 * v) for v in found.box)
            assert odd[y1:y2, x1:x2].mean() > 0.2
            outside[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
        assert not outside.any()


def test_motion_is_what_the_action_says() -> None:
    """The dark or light object's centre moves by the shares that the table has, about its key frame."""
    seen = set()
    for film in range(60):
        frames, objects = scene_frames(0, "val", film, 0, size=64, frames=16)
        for found in objects:
            seen |= set(found.actions)
            if len(found.actions) == 1 and found.actions[0] in (1, 2):
                x1, y1, x2, y2 = (64 * v for v in found.box)
                step = -1 if found.actions[0] == 1 else 1
                before, key, after = (
                    np.abs(frames[t].astype(int) - 128).max(2).astype(float) for t in (6, 8, 10)
                )
                rows = slice(int(y1), int(y2))
                centre = [
                    (profile * np.arange(64)).sum() / profile.sum()
                    for profile in (
                        np.where((np.arange(64) > x1 - 8) & (np.arange(64) < x2 + 8), p[rows].mean(0), 0)
                        for p in (before, key, after)
                    )
                ]
                moved = step * (centre[2] - centre[0])
                assert moved > 1.0, (film, found)
    assert seen == set(range(1, len(ACTIONS) + 1))


def test_places_and_sizes_do_not_depend_on_the_action() -> None:
    rows = [
        (action, *found.box)
        for film in range(300)
        for found in scene_frames(1, "train", film, 0, size=32, frames=2)[1]
        for action in found.actions
    ]
    table = np.array(rows)
    share = np.bincount(table[:, 0].astype(int), minlength=9)[1:] / len({r[1:] for r in rows})
    assert share.mean() == pytest.approx(1.3 / 8, rel=0.1) and share.max() < 0.2  # the chance level
    for action in range(1, 9):
        own, all_ = table[table[:, 0] == action, 1:], table[:, 1:]
        assert np.abs(own.mean(0) - all_.mean(0)).max() < 4 * (all_.std(0) / len(own) ** 0.5).max()


def test_the_folder_is_read_as_ava(folder: Path) -> None:
    samples = read_annotations(folder / "val.csv", folder / "films")
    assert [s.time_s for s in samples] == [1.0, 3.0]
    assert samples[0].path == str(folder / "films" / "val_0000.mp4")
    objects = scene_frames(0, "val", 0, 1, size=48, frames=16)[1]
    assert [b.actions for b in samples[1].boxes] == [o.actions for o in objects]
    assert [b.box for b in samples[1].boxes] == [o.box for o in objects]
    assert list(read_label_map(folder / "labels.pbtxt").values()) == list(ACTIONS)
    info = probe_video(samples[0].path)
    assert info.num_frames == 32
    key = read_clip(samples[0].path, [info.frame_at(3.0)])[0]
    made = scene_frames(0, "val", 0, 1, size=48, frames=16)[0][8]
    assert np.abs(key.astype(int) - made).mean() < 6
    people = read_proposals(folder / "people_val.csv", min_score=0)
    assert people.without(samples) == []
    found = people.of(samples[1])
    assert found is not None and len(found) == len(objects) + 1 and (found[:, 4] > 0.8).sum() >= len(objects)


def test_films_are_kept_and_another_set_is_refused(folder: Path) -> None:
    stamps = {f: f.stat().st_mtime_ns for f in (folder / "films").iterdir()}
    (folder / "films" / "train_0001.mp4").unlink()
    make_demo_boxes(folder, SMALL)
    again = {f: f.stat().st_mtime_ns for f in (folder / "films").iterdir()}
    assert again.keys() == stamps.keys()
    assert [f.name for f in stamps if stamps[f] != again[f]] == ["train_0001.mp4"]
    with pytest.raises(InputError, match="a set of this configuration"):
        make_demo_boxes(folder, DemoBoxesConfig(train_films=3))
    with pytest.raises(InputError, match="even number of pixels"):
        DemoBoxesConfig(size=33)
