"""Official layouts, made small: every list, label and missing file is as the layout says."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations
from vmae.core.video.index import index_dataset, write_index


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(index: object, split: str, root: Path) -> list[tuple[str, int]]:
    return [(str(Path(s.path).relative_to(root)), s.label) for s in index.splits[split]]  # type: ignore[attr-defined]


def test_folders_with_splits_and_equal_names(tmp_path: Path) -> None:
    touch(tmp_path / "train/run/a.mp4", tmp_path / "train/é walk/a.mp4", tmp_path / "train/run/deep/a.AVI")
    touch(tmp_path / "val/run/a.mp4", tmp_path / "test/jump/b.webm", tmp_path / "train/run/notes.txt")
    index = index_dataset(tmp_path, "folders")
    assert index.classes == ["jump", "run", "é walk"]
    assert listed(index, "train", tmp_path) == [
        ("train/run/a.mp4", 1),
        ("train/run/deep/a.AVI", 1),
        ("train/é walk/a.mp4", 2),
    ]
    assert listed(index, "val", tmp_path) == [("val/run/a.mp4", 1)]
    assert listed(index, "test", tmp_path) == [("test/jump/b.webm", 0)]
    written = write_index(index, tmp_path / "out")
    assert [p.name for p in written] == ["train.csv", "val.csv", "test.csv", "classes.txt"]
    assert [s.label for s in read_annotations(tmp_path / "out/train.csv")] == [1, 1, 2]
    assert read_annotations(tmp_path / "out/train.csv")[2].path == str(tmp_path / "train/é walk/a.mp4")
    write_index(index, tmp_path / "out", relative_to=tmp_path)
    assert read_annotations(tmp_path / "out/val.csv", tmp_path)[0].path == str(tmp_path / "val/run/a.mp4")
    assert (tmp_path / "out/val.csv").read_text() == "val/run/a.mp4 1\n"


def test_folders_without_splits_hold_out_a_stable_share(tmp_path: Path) -> None:
    touch(*(tmp_path / f"c{c}/{i}.mp4" for c in range(2) for i in range(100)))
    first = index_dataset(tmp_path, "folders", val_share=0.25)
    assert 30 <= len(first.splits["val"]) <= 70
    assert len(first.splits["val"]) + len(first.splits["train"]) == 200
    held = {s.path for s in first.splits["val"]}
    touch(*(tmp_path / f"c0/new{i}.mp4" for i in range(50)))
    again = {s.path for s in index_dataset(tmp_path, "folders", val_share=0.25).splits["val"]}
    assert held == {p for p in again if "new" not in p}
    assert not index_dataset(tmp_path, "folders", val_share=0).splits["val"]


def test_kinetics(tmp_path: Path) -> None:
    header = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.csv").write_text(
        header
        + "eating cake,abcdefghijk,4,14,train\narm wrestling,-x_y,0,10,train\narm wrestling,gone,0,10,train\n"
    )
    (tmp_path / "annotations/validate.csv").write_text(header + "eating cake,abcdefghijk,4,14,validate\n")
    touch(tmp_path / "train/abcdefghijk_000004_000014.mp4", tmp_path / "val/abcdefghijk_000004_000014.mp4")
    touch(tmp_path / "train/arm wrestling/-x_y.mkv")
    index = index_dataset(tmp_path, "kinetics")
    assert index.classes == ["arm wrestling", "eating cake"]
    assert listed(index, "train", tmp_path) == [
        ("train/abcdefghijk_000004_000014.mp4", 1),
        ("train/arm wrestling/-x_y.mkv", 0),
    ]
    assert listed(index, "val", tmp_path) == [("val/abcdefghijk_000004_000014.mp4", 1)]
    assert index.missing == ["gone_000000_000010"]
    (tmp_path / "annotations/train.csv").write_text("name,id\na,b\n")
    with pytest.raises(InputError, match=r"train.csv:1: expected the columns label,youtube_id"):
        index_dataset(tmp_path, "kinetics")
    (tmp_path / "annotations/train.csv").write_text(header + "a,b,x,10,train\n")
    with pytest.raises(
        InputError, match=r"train.csv:2: expected numbers in time_start and time_end, got x,10"
    ):
        index_dataset(tmp_path, "kinetics")


def test_ucf101(tmp_path: Path) -> None:
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyEyeMakeup\n2 Archery\n")
    (lists / "trainlist02.txt").write_text("ApplyEyeMakeup/v_A_g08_c01.avi 1\nArchery/v_B_g08_c01.avi 2\n")
    (lists / "testlist02.txt").write_text("Archery/v_B_g01_c01.avi\r\nArchery/v_gone.avi\r\n")
    touch(tmp_path / "UCF-101/ApplyEyeMakeup/v_A_g08_c01.avi")
    touch(tmp_path / "UCF-101/Archery/v_B_g08_c01.avi", tmp_path / "UCF-101/Archery/v_B_g01_c01.avi")
    index = index_dataset(tmp_path, "ucf101", split=2)
    assert listed(index, "train", tmp_path / "UCF-101") == [
        ("ApplyEyeMakeup/v_A_g08_c01.avi", 0),
        ("Archery/v_B_g08_c01.avi", 1),
    ]
    assert listed(index, "val", tmp_path / "UCF-101") == [("Archery/v_B_g01_c01.avi", 1)]
    assert index.splits["val"] == index.splits["test"]
    assert index.missing == ["Archery/v_gone.avi"] * 1
    with pytest.raises(InputError, match=r"expected trainlist01.txt, found none"):
        index_dataset(tmp_path, "ucf101")


def test_hmdb51(tmp_path: Path) -> None:
    lists = tmp_path / "testTrainMulti_7030_splits"
    lists.mkdir()
    (lists / "brush_hair_test_split1.txt").write_text("a b.avi 1 \nc.avi 2 \nd.avi 0 \n")
    (lists / "wave_test_split1.txt").write_text("c.avi 1 \n")
    touch(*(tmp_path / "hmdb51_org/brush_hair" / n for n in ("a b.avi", "c.avi", "d.avi")))
    touch(tmp_path / "hmdb51_org/wave/c.avi")  # the same name as in brush_hair
    index = index_dataset(tmp_path, "hmdb51")
    root = tmp_path / "hmdb51_org"
    assert index.classes == ["brush_hair", "wave"]
    assert listed(index, "train", root) == [("brush_hair/a b.avi", 0), ("wave/c.avi", 1)]
    assert listed(index, "test", root) == [("brush_hair/c.avi", 0)]
    (lists / "wave_test_split1.txt").write_text("c.avi 7\n")
    with pytest.raises(InputError, match=r"wave_test_split1.txt:1: expected 'FILE 0\|1\|2', got 'c.avi 7'"):
        index_dataset(tmp_path, "hmdb51")


def test_ssv2(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps({"Holding something": "1", "Closing something": "0"}))
    (tmp_path / "train.json").write_text(
        json.dumps(
            [
                {"id": "7", "label": "holding a pen", "template": "Holding [something]"},
                {"id": "9", "template": "Closing [something]"},
            ]
        )
    )
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "8", "template": "Closing [something]"}]))
    (tmp_path / "test.json").write_text(json.dumps([{"id": "6"}]))
    touch(*(tmp_path / f"20bn-something-something-v2/{i}.webm" for i in (6, 7, 8)))
    index = index_dataset(tmp_path, "ssv2")
    root = tmp_path / "20bn-something-something-v2"
    assert index.classes == ["Closing something", "Holding something"]
    assert listed(index, "train", root) == [("7.webm", 1)]
    assert listed(index, "val", root) == [("8.webm", 0)]
    assert listed(index, "test", root) == [("6.webm", -1)]
    assert index.missing == ["9"]
    (tmp_path / "validation.json").write_text(json.dumps([{"id": "8", "template": "Eating [something]"}]))
    with pytest.raises(
        InputError, match=r"entry 1: expected a template of labels\.json, got 'Eating something'"
    ):
        index_dataset(tmp_path, "ssv2")
    (tmp_path / "train.json").write_text("{")
    with pytest.raises(InputError, match=r"train.json: expected JSON"):
        index_dataset(tmp_path, "ssv2")


def test_rawframes(tmp_path: Path) -> None:
    touch(*(tmp_path / f"train/run/video one/img_{i:05}.jpg" for i in range(7)))
    touch(*(tmp_path / f"val/sit/v/img_{i:05}.png" for i in range(3)))
    index = index_dataset(tmp_path, "rawframes")
    write_index(index, tmp_path)
    assert (tmp_path / "train.csv").read_text() == f"{tmp_path}/train/run/video one 7 0\n"
    (sample,) = read_annotations(tmp_path / "val.csv", format="total_label")
    assert (sample.num_frames, sample.label) == (3, 1)


def test_refused(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"expected one of folders, .* got 'kinetic' \(did you mean 'kinetics'"
    ):
        index_dataset(tmp_path, "kinetic")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected the folder of the data set, found none"):
        index_dataset(tmp_path / "absent", "folders")
    with pytest.raises(InputError, match="expected videos in the layout 'folders', found none"):
        index_dataset(tmp_path, "folders")
    with pytest.raises(InputError, match=r"val_share: expected a share in \[0, 1\), got 1"):
        index_dataset(tmp_path, "folders", val_share=1)


SPELT = {
    "mit": {"training": "train", "validation": "val"},
    "robo": {"train": "train", "valid": "val", "test": "test"},
    "caps": {"Train": "train", "Test": "test"},
    "sets": {"train_set": "train", "dev-set": "val", "TestSet": "test"},
    "dev": {"TRAIN": "train", "dev": "val"},
    "kinds": {"train_videos": "train", "val_videos": "val", "testing": "test"},
    "years": {"train2024": "train", "eval 2024": "val"},
    "no_train": {"validation": "val", "test": "test"},
    "only_train": {"training": "train"},
}


@pytest.mark.parametrize("name", SPELT)
@pytest.mark.parametrize("raw_frames", [False, True])
def test_splits_in_every_usual_spelling(name: str, raw_frames: bool, tmp_path: Path) -> None:
    for place in SPELT[name]:
        for c in ("clapping", "waving"):
            for k in (1, 2):
                touch(tmp_path / place / c / (f"{k}/img_1.jpg" if raw_frames else f"{k}.mp4"))
    touch(tmp_path / "annotations/notes.txt")
    index = index_dataset(tmp_path, "rawframes" if raw_frames else "folders")
    assert index.classes == ["clapping", "waving"]
    assert {s: len(v) for s, v in index.splits.items() if v} == dict.fromkeys(SPELT[name].values(), 4)
    for place, split in SPELT[name].items():
        assert f"{split} from {place}" in index.notes
    assert "left out, in no split: the folder annotations" in index.notes
    assert not index.held_out


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{c}/{i}.mp4" for c in ("bus", "train", "test") for i in range(5)))
    index = index_dataset(tmp_path, "folders")
    assert index.classes == ["bus", "test", "train"]
    assert index.held_out
    assert sum(map(len, index.splits.values())) == 15
    assert any(line.startswith("train taken as a class") for line in index.notes)
    touch(tmp_path / "train/one/5.mp4", tmp_path / "bus/one/5.mp4")  # with a folder inside it is one still
    assert index_dataset(tmp_path, "folders").classes == ["bus", "test", "train"]


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    touch(tmp_path / "train/a/1.mp4", tmp_path / "Training/a/2.mp4", tmp_path / "val/a/3.mp4")
    with pytest.raises(InputError, match="expected one folder for train, got Training and train"):
        index_dataset(tmp_path, "folders")


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    suffixes = ("mp4", "MTS", "m2ts", "vob", "asf", "3g2", "m2v", "dv", "mxf", "divx")
    touch(*(tmp_path / f"cam/00.{suffix}" for suffix in suffixes))
    touch(*(tmp_path / "cam" / n for n in ("a.txt", "b.TXT", "c.wav", "noname")))
    for c in ("cam", "walking"):
        touch(*(tmp_path / c / n for n in ("1.mp4", "._1.mp4", ".DS_Store", ".hidden/2.mp4", "@eaDir/1.mp4")))
        touch(tmp_path / f"__MACOSX/{c}/._1.mp4")
    touch(tmp_path / "empty/readme.md", tmp_path / "loose.mp4")
    index = index_dataset(tmp_path, "folders", val_share=0)
    assert index.classes == ["cam", "walking"]
    assert len(index.splits["train"]) == len(suffixes) + 2
    assert not any(Path(s.path).name.startswith(".") for s in index.splits["train"])
    text = "\n".join(index.notes)
    assert "no suffix of what this layout lists: 2 .txt, 1 .wav, 1 without a suffix, 1 .md" in text
    assert "hidden or left behind by a computer: " in text
    assert f"left out, without videos: the folder {tmp_path}/empty" in text
    assert f"left out, in no class: 1 videos directly in {tmp_path}" in text


def test_classes_of_nearly_one_name(tmp_path: Path) -> None:

    touch(
        tmp_path / "train" / unicodedata.normalize("NFD", "déjà vu") / "1.mp4", tmp_path / "val/déjà vu/2.mp4"
    )
    touch(tmp_path / "train/Walk/1.mp4", tmp_path / "val/walk/1.mp4")
    index = index_dataset(tmp_path, "folders")
    assert index.classes == ["Walk", "déjà vu", "walk"]  # to the eye the first is one name
    assert [s.label for s in index.splits["train"] + index.splits["val"]].count(1) == 2
    assert "classes of nearly one name, taken as different ones: Walk, walk" in index.notes
    assert "classes without a training video: walk" in index.notes


def test_images_that_are_no_frames_of_the_video(tmp_path: Path) -> None:
    """mmaction2's folders hold optical flow beside the images."""
    v = tmp_path / "train/a/v1"
    touch(*(v / f"img_{i:05}.jpg" for i in range(1, 9)))
    touch(*(v / f"{x}_{i:05}.jpg" for i in range(1, 8) for x in ("flow_x", "flow_y")))
    touch(*(tmp_path / f"train/a/v2/{i:04}.png" for i in range(5)), tmp_path / "train/a/v2/._0001.png")
    touch(*(tmp_path / f"train/a/v2/flow_x/{i:04}.png" for i in range(4)))
    touch(*(tmp_path / f"train/a/v3/{x}_{i}.png" for i in range(5) for x in ("left", "right")))
    index = index_dataset(tmp_path, "rawframes")
    assert [(s.path, s.num_frames) for s in index.splits["train"]] == [(str(v), 8), (str(v.parent / "v2"), 5)]
    text = "\n".join(index.notes)
    assert f"left out: 14 images in {v} unlike img_00001.jpg (8)" in text
    assert f"made from a video's frames by its name: {tmp_path}/train/a/v2/flow_x" in text
    assert "expected the images of one video, got several kinds: left_#.png (5), right_#.png (5)" in text
