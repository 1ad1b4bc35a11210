"""Labels mean classes by name, where names are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations
from vmae.core.video.classes import by_name, class_names, names_of
from vmae.core.video.samples import Sample, require_labels


def samples(*labels: int) -> list[Sample]:
    return [Sample(path=f"/{i}.mp4", label=label) for i, label in enumerate(labels)]


def labels(found: list[Sample]) -> list[int]:
    return [s.label for s in found]


def test_labels_are_mapped_by_name() -> None:
    onto = ["blue", "green", "red"]
    assert labels(by_name(samples(0, 1, 1, -1), ["blue", "red"], onto, "v.csv")) == [0, 2, 2, -1]
    assert labels(by_name(samples(0, 1, 2), ["red", "green", "blue"], onto, "v.csv")) == [2, 1, 0]
    assert labels(by_name(samples(0, 2), onto, onto, "v.csv")) == [0, 2]


def test_names_that_differ_in_spelling_alone_are_one() -> None:
    onto = ["applying cream", "Pull-Ups", "déjà vu"]
    names = ["DÉJÀ_VU", "pull ups", "applying_cream"]
    assert labels(by_name(samples(0, 1, 2), names, onto, "v.csv")) == [2, 1, 0]
    with pytest.raises(InputError, match="got 'a b'"):  # which of two is meant is not guessed
        by_name(samples(0), ["a b"], ["a_b", "a-b"], "v.csv")
    assert labels(by_name(samples(0), ["a-b"], ["a_b", "a-b"], "v.csv")) == [1]


def test_a_class_that_is_not_there_is_refused_with_its_videos() -> None:
    with pytest.raises(
        InputError,
        match=r"v\.csv: expected classes .*, got 'grey' \(2 videos\) \(.*'green'.*\); it has blue, green",
    ):
        by_name(samples(0, 1, 1), ["blue", "grey"], ["blue", "green"], "v.csv")
    # One that no video has is no obstacle.
    assert labels(by_name(samples(0), ["blue", "grey"], ["green", "blue"], "v.csv")) == [1]


def test_without_names_labels_are_numbers() -> None:
    for names, onto in (([], ["a", "b"]), (["a", "b"], []), (["b", "a"], ["LABEL_0", "LABEL_1"])):
        assert labels(by_name(samples(0, 1), names, onto, "v.csv")) == [0, 1]


def test_names_beside_a_list(tmp_path: Path) -> None:
    csv = tmp_path / "train.csv"
    assert class_names(csv) == []
    (tmp_path / "classes.txt").write_text("one\n\nthree \n\n", encoding="utf-8-sig")
    assert class_names(csv) == ["one", "", "three"]
    assert names_of(csv, samples(0, 2)) == ["one", "", "three"]
    assert names_of(csv, samples(0, 3)) == []  # not this list's
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"classes\.txt: expected a readable UTF-8 list of names"):
        class_names(csv)


@pytest.mark.parametrize("label", ["2000000000", "99999999999999999999999", "9" * 5000, "1000000"])
def test_labels_that_no_head_can_have(label: str, tmp_path: Path) -> None:
    for text, format in ((f"a.mp4 {label}\n", "auto"), (f"frames 5 {label}\n", "total_label")):
        (tmp_path / "l.csv").write_text(text)
        with pytest.raises(InputError, match=r"l\.csv:1: expected a label of at most 999,999, got "):
            read_annotations(tmp_path / "l.csv", format=format)  # type: ignore[arg-type]
    (tmp_path / "l.csv").write_text("a.mp4 999999\nclip 12345678901234567890.mp4 3\n")
    assert labels(read_annotations(tmp_path / "l.csv")) == [999_999, 3]


def test_lines_without_a_label() -> None:
    require_labels(samples(0, 1), "l.csv")
    with pytest.raises(InputError, match=r"l\.csv: expected a label .* got -1 on 2 of 3, first /0\.mp4"):
        require_labels(samples(-1, 4, -1), "l.csv")
