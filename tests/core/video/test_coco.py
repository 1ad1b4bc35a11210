"""The detection repository's annotations, and proposals of people in each format."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.video.coco import read_coco, read_images, read_proposals
from vmae.core.video.samples import PersonBox

IMAGES = [
    {"id": "a/0902", "movie": "a", "timestamp": 902, "width": 400, "height": 200},
    {"id": "a/0903", "movie": "a", "timestamp": 903, "width": 400, "height": 200},
    {"id": "b/0902", "movie": "b", "timestamp": 902, "width": 100, "height": 100},
]
PEOPLE = [
    {"image_id": "a/0902", "bbox": [40, 20, 100, 150], "action_ids": [12, 80, 12]},
    {"image_id": "b/0902", "bbox": [-0.4, 0, 100.4, 100.5], "action_ids": [1]},
    {"image_id": "a/0902", "bbox": [0, 0, 400, 200], "action_ids": [3]},
    {"image_id": "a/0903", "bbox": [0, 0, 40, 20], "action_ids": []},
]


def write(tmp_path: Path, content: Any, name: str = "ava.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


def test_annotations_become_key_frames(tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mkv").touch()
    file = write(tmp_path, {"images": IMAGES, "annotations": PEOPLE})
    samples = read_coco(file, tmp_path / "films")
    assert [(s.path, s.time_s, s.label) for s in samples] == [
        (str(tmp_path / "films" / "a.mkv"), 902.0, -1),
        (str(tmp_path / "films" / "b"), 902.0, -1),
    ]
    assert samples[0].boxes == (
        PersonBox(box=(0.1, 0.1, 0.35, 0.85), actions=(12, 80), person=0),
        PersonBox(box=(0.0, 0.0, 1.0, 1.0), actions=(3,), person=1),
    )
    # Half a pixel over the edge is rounding and is cut.
    assert samples[1].boxes[0].box == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "c/0001"}, r"annotations\[0\]: expected the image_id of an image, got 'c/0001'"),
        ({"bbox": [390, 0, 30, 20]}, r"expected a box .* got 0\.975,0,1\.05,0\.1"),
        ({"bbox": [50, 50, -20, 20]}, "expected a box"),
        ({"bbox": [1, 2, 3]}, "expected bbox"),
        ({"bbox": [1, 2, "x", 3]}, "expected numbers"),
        ({"action_ids": [0]}, "expected action_ids from 1"),
        ({"action_ids": "12"}, "expected action_ids from 1"),
    ],
)
def test_annotations_that_do_not_fit_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = write(tmp_path, {"images": IMAGES, "annotations": [PEOPLE[0] | change]})
    with pytest.raises(InputError, match=message):
        read_coco(file, tmp_path)


def test_files_that_are_no_annotations_are_refused(tmp_path: Path) -> None:
    for content, message in (
        ({"images": []}, "expected images"),
        ({"images": [{"id": 1}]}, "expected 'movie'"),
        ({"images": IMAGES, "annotations": []}, "at least one person"),
        ({"images": [IMAGES[0] | {"width": 0}], "annotations": PEOPLE}, "width and height above 0"),
    ):
        with pytest.raises(InputError, match=message):
            read_coco(write(tmp_path, content), tmp_path)
    (tmp_path / "ava.json").write_text("{")
    with pytest.raises(InputError, match="expected JSON"):
        read_coco(tmp_path / "ava.json", tmp_path)
    with pytest.raises(InputError, match="no such file"):
        read_coco(tmp_path / "none.json", tmp_path)


def expected(people: dict[tuple[str, float], np.ndarray]) -> None:
    assert people.keys() == {("a", 902.0), ("b", 902.0)}
    assert people["a", 902.0] == pytest.approx(
        np.array([[0.1, 0.1, 0.35, 0.85, 0.9], [0, 0, 0.5, 0.5, 0.85]])
    )
    assert people["b", 902.0] == pytest.approx(np.array([[0.0, 0.0, 1.0, 1.0, 0.8]]))


def test_each_format_gives_the_same_people(tmp_path: Path) -> None:
    images = read_images(write(tmp_path, {"images": IMAGES}))
    found = [
        {"image_id": "a/0902", "bbox": [0, 0, 200, 100], "score": 0.85},
        {"image_id": "a/0902", "bbox": [40, 20, 100, 150], "score": 0.9},
        {"image_id": "a/0902", "bbox": [0, 0, 10, 10], "score": 0.79},
        {"image_id": "a/0903", "bbox": [500, 0, 10, 10], "score": 0.99},
        {"image_id": "b/0902", "bbox": [-3, 0, 120, 100], "score": 0.8},
    ]
    got = read_proposals(write(tmp_path, found, "people.json"), images=images)
    expected(got.people)
    assert (got.below, got.empty) == (1, 1)
    (tmp_path / "people.csv").write_text(
        "a,0902,0,0,0.5,0.5,,0.85\na,0902,0.1,0.1,0.35,0.85,,0.9\na,902,0,0,0.1,0.1,,0.79\n"
        "a,0903,1.2,0,1.3,0.1,,0.99\nb,0902,-0.03,0,1.17,1,,0.8\n"
    )
    got = read_proposals(tmp_path / "people.csv")
    expected(got.people)
    assert (got.below, got.empty) == (1, 1)
    tables = {
        "a,0902": np.array([[0, 0, 0.5, 0.5, 0.85], [0.1, 0.1, 0.35, 0.85, 0.9], [0, 0, 0.1, 0.1, 0.79]]),
        "b,0902": np.array([[-0.03, 0, 1.17, 1, 0.8]]),
    }
    (tmp_path / "people.pkl").write_bytes(pickle.dumps(tables))
    assert read_proposals(tmp_path / "people.pkl").people["a", 902.0] == pytest.approx(
        tables["a,0902"][[1, 0]]
    )
    expected(read_proposals(tmp_path / "people.pkl").people)


def test_key_frames_without_anybody_are_reported(tmp_path: Path) -> None:
    samples = read_coco(write(tmp_path, {"images": IMAGES, "annotations": PEOPLE}), tmp_path)
    (tmp_path / "people.csv").write_text("a,0902,0,0,0.5,0.5,,0.85\n")
    proposals = read_proposals(tmp_path / "people.csv")
    assert proposals.without(samples) == [samples[1]] and proposals.of(samples[1]) is None


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/vmae-was-here",)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_that_could_run_code_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "people.pkl"
    path.write_bytes(pickle.dumps({"a,0902": Evil()}, protocol))
    with pytest.raises(InputError, match=r"refused: its pickle asks for posix\.system"):
        read_proposals(path)
    assert not Path("/tmp/vmae-was-here").exists()
    path.write_bytes(pickle.dumps({"a,0902": np.array([Evil()], object)}, protocol))
    with pytest.raises(InputError, match="refused"):
        read_proposals(path)
    path.write_bytes(pickle.dumps({"a,0902": np.zeros((1, 5))}, protocol)[:-20])
    with pytest.raises(InputError, match=r"people\.pkl"):
        read_proposals(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.txt", "", "expected proposals in a .json, .csv or .pkl file"),
        ("p.csv", "a,902,0,0,1\n", r"p\.csv:1: expected 'video_id,timestamp,x1"),
        ("p.csv", "a,902,0,0,1,nan,,0.9\n", "expected numbers"),
        ("p.csv", "a,soon,0,0,1,1,,0.9\n", "expected numbers, got soon"),
        ("p.json", "[]", "expected the annotations of the key frames too"),
        ("p.json", '[{"image_id": "x"}]', "expected the annotations"),
    ],
)
def test_proposals_that_do_not_fit_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_proposals(tmp_path / name)
