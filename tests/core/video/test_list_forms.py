"""Lists as people have them: names for labels, paths alone, no labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations, write_annotations
from vmae.core.video.classes import class_names
from vmae.core.video.config import DataConfig, weighted
from vmae.core.video.index import index_dataset, write_index
from vmae.core.video.samples import Sample, repeat
from vmae.experiments.data import read_list, read_training


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "a.mp4,run\nb c.mp4,swipe left\nd.mp4,run\n",
        "a.mp4 run\nb c.mp4 swipe left\nd.mp4 run\n",
        "a.mp4\trun\nb c.mp4\tswipe left\nd.mp4\trun\n",
        'path,label\n"a.mp4",run\nb c.mp4 , swipe left\nd.mp4,run\n',
    ],
)
def test_names_are_labels_sorted_or_by_classes_txt(text: str, tmp_path: Path) -> None:
    csv = write(tmp_path / "train.csv", text)
    found = read_annotations(csv, rooted=False)
    assert [(s.path, s.label) for s in found] == [("a.mp4", 0), ("b c.mp4", 1), ("d.mp4", 0)]
    assert class_names(csv) == ["run", "swipe left"]
    write(tmp_path / "classes.txt", "jump\nSwipe_Left\nrun\n")
    assert [s.label for s in read_annotations(csv)] == [2, 1, 2]
    write(tmp_path / "classes.txt", "jump\nrun\n")
    with pytest.raises(
        InputError, match=r":\d: expected one of the 2 classes of classes.txt, got 'swipe left'"
    ):
        read_annotations(csv)


def test_folders_of_frames_have_names_after_a_comma(tmp_path: Path) -> None:
    csv = write(tmp_path / "l.csv", "frames/one,run\nframes/two,sit\n")
    assert [(s.path, s.label) for s in read_annotations(csv, rooted=False)] == [
        ("frames/one", 0),
        ("frames/two", 1),
    ]


def test_a_held_out_list_with_fewer_names_means_the_same_classes(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "a.mp4,run\nb.mp4,sit\nc.mp4,walk\n")
    val = write(tmp_path / "val.csv", "d.mp4,walk\ne.mp4,sit\n")
    config = DataConfig(train_csv=str(train), val_csv=str(val))
    assert [s.label for s in read_list(config, str(val))] == [2, 1]


def test_names_stay_names_in_a_list_that_is_written(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", "a.mp4 run\nb.mp4 swipe left\n")
    samples = read_annotations(train, rooted=False)
    write_annotations(tmp_path / "clean.csv", samples[1:])
    assert (tmp_path / "clean.csv").read_text() == "b.mp4,swipe left\n"


def test_paths_alone_have_no_labels(tmp_path: Path) -> None:
    (tmp_path / "frames of 3").mkdir()
    csv = write(tmp_path / "l.csv", "a.mp4\nsub dir/b, c.webm\n")
    assert read_annotations(csv, rooted=False) == [
        Sample(path="a.mp4", label=-1),
        Sample(path="sub dir/b, c.webm", label=-1),
    ]
    with pytest.raises(InputError, match=r"l\.csv:2: expected a path alone as on line 1 .* got 'b\.mp4 3'"):
        read_annotations(write(tmp_path / "l.csv", "a.mp4\nb.mp4 3\n"))
    with pytest.raises(InputError, match=r"l\.csv:2: expected a path and the name .* got 'b\.mp4'"):
        read_annotations(write(tmp_path / "l.csv", "a.mp4,run\nb.mp4\n"))


def test_the_error_says_how_a_video_without_a_label_is_listed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'path -1' \(a stretch of one: .*'path 0 -1'\)"):
        read_annotations(write(tmp_path / "l.csv", "a.mp4 1\nb.mp4\n"))
    with pytest.raises(InputError, match=r"vmae data index .* --layout folders makes lists"):
        read_annotations(tmp_path)


def test_a_flat_folder_gives_lists_without_labels(tmp_path: Path) -> None:
    for k in range(20):
        (tmp_path / f"{k}.mp4").write_bytes(b"x")
    found = index_dataset(tmp_path, "folders")
    assert found.classes == [] and "20 videos without a label" in found.notes[0]
    written = write_index(found, tmp_path / "out")
    assert [p.name for p in written] == ["train.csv", "val.csv"]
    assert {s.label for p in written for s in read_annotations(p)} == {-1}


def test_lists_weigh_as_they_say(tmp_path: Path) -> None:
    a = write(tmp_path / "a.csv", "".join(f"a{k}.mp4 {k % 2}\n" for k in range(8)))
    b = write(tmp_path / "b.csv", "".join(f"b{k}.mp4 7\n" for k in range(4)))
    config = DataConfig(train_csv=str(a), train_weight=0.5, more_lists=(f"{b}:2",))
    names = [Path(s.path).name for s in read_training(config)]
    assert len(names) == 4 + 8 and sorted(names)[-8:] == sorted([f"b{k}.mp4" for k in range(4)] * 2)
    assert {s.label for s in read_training(config) if "/b" in s.path} == {-1}
    assert repeat([Sample(path="x", label=0)] * 4, 2.5, 0) == [Sample(path="x", label=0)] * 10
    assert weighted("a.csv") == ("a.csv", 1.0) and weighted("a.csv:2.5") == ("a.csv", 2.5)
    odd = write(tmp_path / "odd:3", "a.mp4 1\n")
    assert weighted(str(odd)) == (str(odd), 1.0), "a file of that name is meant"
    with pytest.raises(InputError, match="weight of more than 0"):
        DataConfig(train_csv="a", more_lists=("b.csv:0",))
    with pytest.raises(InputError, match=r"data\.more_lists to weigh it against"):
        DataConfig(train_csv="a", train_weight=2)
