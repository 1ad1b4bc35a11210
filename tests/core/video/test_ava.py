"""AVA's lists: every row is kept in its key frame, and what does not fit is named with its line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError, VideoError
from vmae.core.video.annotations import read_annotations, write_annotations
from vmae.core.video.ava import read_ava, read_excluded, read_label_map
from vmae.core.video.check import check_samples
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.index import index_dataset, write_index
from vmae.core.video.samples import PersonBox, Sample

ROWS = """\
-5KQ66 é,0902,0.077,0.151,0.283,0.811,80,1
-5KQ66 é,0902,0.077,0.151,0.283,0.811,9,1
-5KQ66 é,0902,0.332,0.194,0.481,0.891,12,0
-5KQ66 é,0903,0.332,0.194,0.481,0.891,12,0
other,0902,0,0,1,1,1,7
"""


@pytest.fixture
def folder(tmp_path: Path, video_kind: Callable[[str], Path]) -> Path:
    """Two films of 2 s at 30 frames a second, one in a folder of its own, and their list."""
    (tmp_path / "films").mkdir()
    shutil.copy(video_kind("h264_bframes"), tmp_path / "films" / "-5KQ66 é.mp4")
    shutil.copy(video_kind("h264_mkv"), tmp_path / "other.mkv")
    (tmp_path / "list.csv").write_text(ROWS, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("box", ["-0.2,0.1,0.5,1.3", "10.5,10,200,200", "0.1,nan,0.5,0.3"])
def test_a_first_line_whose_box_leaves_the_frame_is_still_known(folder: Path, box: str) -> None:
    (folder / "bad.csv").write_text(f"a,0902,{box},80,1\n")
    with pytest.raises(InputError, match=r"bad.csv:1: expected a box 0 <= x1 <= x2 <= 1"):
        read_annotations(folder / "bad.csv")


def test_rows_are_grouped_by_key_frame_person_and_box(folder: Path) -> None:
    samples = read_annotations(folder / "list.csv")  # found out by its first line
    film = str(folder / "films" / "-5KQ66 é.mp4")
    first = PersonBox(box=(0.077, 0.151, 0.283, 0.811), actions=(80, 9), person=1)
    second = PersonBox(box=(0.332, 0.194, 0.481, 0.891), actions=(12,), person=0)
    assert samples == [
        Sample(path=film, label=-1, time_s=902.0, boxes=(first, second)),
        Sample(path=film, label=-1, time_s=903.0, boxes=(second,)),
        Sample(
            path=str(folder / "other.mkv"),
            label=-1,
            time_s=902.0,
            boxes=(PersonBox(box=(0, 0, 1, 1), actions=(1,), person=7),),
        ),
    ]
    assert read_annotations(folder / "list.csv", format="ava") == samples
    write_annotations(folder / "again.csv", samples)
    assert read_annotations(folder / "again.csv") == samples
    assert (folder / "again.csv").read_text().splitlines()[:4] == ROWS.splitlines()[:4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,0902,0.1,0.1,0.2,0.2,80", r"list.csv:2: expected 'video_id,timestamp,x1,.*', got 'a,0902"),
        (
            "a,0902,0.1,0.1,0.2,0.2,80,1,0.9",
            r"list.csv:2: expected numbers in x1|list.csv:2: expected 'video_id",
        ),
        ("a,soon,0.1,0.1,0.2,0.2,80,1", r"list.csv:2: expected 'video_id,timestamp"),
        ("a,0902,0.1,x,0.2,0.2,80,1", r"list.csv:2: expected numbers in x1,y1,x2,y2"),
        (
            "a,0902,0.3,0.1,0.2,0.2,80,1",
            r"list.csv:2: expected a box 0 <= x1 <= x2 <= 1 .*, got 0.3,0.1,0.2,0.2",
        ),
        ("a,0902,10,10,200,200,80,1", r"list.csv:2: expected a box .* in shares of the frame"),
        ("a,0902,nan,0.1,0.2,0.2,80,1", r"list.csv:2: expected a box"),
        ("a,0902,0.1,0.1,0.2,0.2,0,1", r"list.csv:2: expected an action_id of 1 or more, got 0"),
        ("a,0902,0.1,0.1,0.2,0.2,walk,1", r"list.csv:2: expected 'video_id"),
        (",0902,0.1,0.1,0.2,0.2,1,1", r"list.csv:2: expected 'video_id"),
    ],
)
def test_a_line_that_does_not_fit(row: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"a,0902,0.1,0.1,0.2,0.2,80,1\n{row}\n")
    with pytest.raises(InputError, match=message):
        read_annotations(tmp_path / "list.csv")


def test_empty_lists_absent_films_and_two_of_one_id(folder: Path) -> None:
    (folder / "empty.csv").write_text("\n")
    with pytest.raises(InputError, match="expected at least one line 'video_id,timestamp"):
        read_annotations(folder / "empty.csv", format="ava")
    (folder / "absent.csv").write_text("none,0902,0,0,1,1,1,7\n")
    assert read_annotations(folder / "absent.csv")[0].path == str(folder / "none")
    (folder / "films" / "other.mp4").write_bytes(b"x")
    with pytest.raises(
        InputError, match=r"expected one video of the id other, got .*other\.m\w+ and .*other\.m\w+"
    ):
        read_annotations(folder / "list.csv")


def test_clips_are_centred_on_the_key_frame(folder: Path, truth: Callable[[Path], list[np.ndarray]]) -> None:
    config = DataConfig(
        frames=4, sampling_rate=3, size=(96, 96), short_side=0, augment="none", time_origin_s=901.0
    )
    samples = read_annotations(folder / "list.csv")
    frames = truth(folder / "films" / "-5KQ66 é.mp4")
    clip = ClipDataset(samples, config, "val")[0]["clip"].numpy()
    assert np.array_equal(clip, np.stack([frames[i][:, 16:112] for i in (24, 27, 30, 33)]))
    assert ClipDataset(samples, config, "train")[0]["clip"].shape == (4, 96, 96, 3)
    assert ClipDataset(samples, config, "test")[0]["clip"].shape == (15, 4, 96, 96, 3)
    # The list's second 903 is second 2 of a file that ends there.
    with pytest.raises(VideoError, match=r"truncated: the list asks for second 2, the file has 2.00 s"):
        ClipDataset(samples, config, "val")[1]


def test_checking_decodes_a_film_once_and_names_bad_key_frames(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    samples = read_annotations(folder / "list.csv")
    result = check_samples(samples, time_origin_s=901, progress=lambda d, t: seen.append((d, t)))
    assert seen == [(1, 2), (2, 2)]
    assert [r.status for r in result.reports] == ["ok", "bad", "ok"]
    assert result.reports[1].detail == "the list asks for second 2, the file has 2.00 s"
    assert result.summary().startswith("3 lines, 2 files: 2 ok, 1 bad")


def test_images_have_no_clock(tmp_path: Path) -> None:
    sample = Sample(path=str(tmp_path / "clip.npy"), label=-1, time_s=0.0)
    np.save(sample.path, np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(VideoError, match="expected a video with a clock, got npy"):
        ClipDataset([sample], DataConfig(frames=2, size=(8, 8)), "val")[0]


def test_label_maps_and_excluded_key_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.pbtxt"
    path.write_text(
        'item {\n  name: "bend/bow (at the waist)"\n  id: 1\n}\nitem { id: 3 name: "crouch/kneel" }\n'
    )
    assert read_label_map(path) == {1: "bend/bow (at the waist)", 3: "crouch/kneel"}
    path.write_text('label {\n  name: "stand"\n  label_id: 12\n  label_type: PERSON_MOVEMENT\n}\n')
    assert read_label_map(path) == {12: "stand"}
    for text, message in (
        ("", "expected entries"),
        ("item { id: 3 }", "expected a name and an id in every entry, got 'item { id: 3 }'"),
        ('item { id: 3 name: "a" } item { id: 3 name: "b" }', "expected every id once, got 3 twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_label_map(path)
    excluded = tmp_path / "excluded.csv"
    excluded.write_text("a b,0902\nc,1000.5\n")
    assert read_excluded(excluded) == {("a b", 902.0), ("c", 1000.5)}
    excluded.write_text("a\n")
    with pytest.raises(InputError, match=r"excluded.csv:1: expected 'video_id,timestamp', got 'a'"):
        read_excluded(excluded)


def test_the_data_sets_layout(folder: Path) -> None:
    (folder / "annotations").mkdir()
    (folder / "list.csv").rename(folder / "annotations" / "ava_train_v2.2.csv")
    (folder / "annotations/ava_train_v2.1.csv").write_text("not read\n")
    (folder / "annotations/ava_train_excluded_timestamps_v2.2.csv").write_text("-5KQ66 é,0903\n")
    (folder / "annotations/ava_val_v2.2.csv").write_text("other,902,0,0,1,1,3,7\nnone,902,0,0,1,1,3,7\n")
    (folder / "annotations/ava_action_list_v2.2.pbtxt").write_text(
        'item { name: "stand" id: 1 }\nitem { name: "walk" id: 3 }\n'
    )
    index = index_dataset(folder, "ava")
    assert [s.time_s for s in index.splits["train"]] == [902.0, 902.0]
    assert (index.classes, index.missing) == (["stand", "", "walk"], ["none"])
    write_index(index, folder)
    assert (folder / "train.csv").read_text() == "".join(
        line for line in ROWS.splitlines(keepends=True) if ",0903" not in line
    ).replace("0,0,1,1", "0.000,0.000,1.000,1.000")
    assert read_annotations(folder / "train.csv") == index.splits["train"]
    assert read_ava(folder / "val.csv", folder)[0].path == str(folder / "other.mkv")
    with pytest.raises(InputError, match=r"expected ava_train_v2\.2\.csv"):
        index_dataset(folder / "films", "ava")
