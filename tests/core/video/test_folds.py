"""Groups stay whole, classes are spread, and what cannot be is refused."""

import csv
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.core.video.folds import (
    describe_folds,
    find_groups,
    groups_by_pattern,
    index_table,
    make_folds,
    read_column,
    read_folds,
    write_folds,
)
from vmae.core.video.samples import Sample


def samples(*paths):
    return [Sample(path=p, label=i % 2) for i, p in enumerate(paths)]


def test_groups_are_whole_and_classes_even():
    rng = np.random.default_rng(0)
    # 30 sessions of 4 to 20 clips, of which each shows two or three of seven classes.
    labels, groups = [], []
    for g in range(30):
        shown = rng.choice(7, size=rng.integers(2, 4), replace=False)
        for _ in range(rng.integers(4, 21)):
            labels.append(int(rng.choice(shown)))
            groups.append(f"session{g}")
    folds = make_folds(labels, groups, 3)
    assert {len({f for f, g in zip(folds, groups, strict=True) if g == name}) for name in set(groups)} == {1}
    for label in range(7):
        counts = Counter(f for f, c in zip(folds, labels, strict=True) if c == label)
        assert max(counts.values()) - min(counts.values()) <= 0.25 * labels.count(label)
    assert max(Counter(folds).values()) - min(Counter(folds).values()) <= 0.1 * len(labels)
    assert folds == make_folds(labels, groups, 3)


def test_without_groups_folds_are_stratified_to_the_video():
    labels = [0] * 9 + [1] * 6
    folds = make_folds(labels, [str(i) for i in range(15)], 3)
    assert Counter(zip(labels, folds, strict=True)) == {
        **{(0, f): 3 for f in range(3)},
        **{(1, f): 2 for f in range(3)},
    }


def test_no_fold_stays_empty_where_one_group_holds_nearly_all():
    groups = ["large"] * 50 + ["a", "b"]
    assert len(set(make_folds([0] * 52, groups, 3))) == 3


@pytest.mark.parametrize(
    ("folds", "groups", "message"),
    [
        (1, ["a", "b"], "--folds: expected 2 or more, got 1"),
        (3, ["a", "b"], r"at most as many folds as groups \(2\), got 3"),
    ],
)
def test_impossible_folds(folds, groups, message):
    with pytest.raises(InputError, match=message):
        make_folds([0, 1], groups, folds)


def test_groups_by_pattern():
    found = groups_by_pattern(r"(s\d+)_(\w)", samples("/v/s1_a_1.mp4", "/v/s2_b_9.mp4"))
    assert found == ["s1|a", "s2|b"]
    assert groups_by_pattern(r"s\d+", samples("/v/s1_a.mp4")) == ["s1"]
    with pytest.raises(InputError, match=r"expected 's\\d\+' to match every path, got /v/x.mp4"):
        groups_by_pattern(r"s\d+", samples("/v/s1.mp4", "/v/x.mp4"))
    with pytest.raises(InputError, match="expected a column, a file or a pattern"):
        groups_by_pattern("(", samples("/v/x.mp4"))


def test_a_table_is_read_by_path_wherever_the_list_starts(tmp_path):
    (tmp_path / "groups.csv").write_text("path,group,fold\nv/a.mp4,one,0\nv/b.mp4,two,\nv/c.mp4,two,-1\n")
    found = samples(str(tmp_path / "v/b.mp4"), f"{tmp_path}/x/../v/a.mp4")
    assert find_groups(str(tmp_path / "groups.csv"), found) == ["two", "one"]
    assert find_groups("fold", found, tmp_path / "groups.csv") == ["", "0"]
    assert find_groups(r"([ab])\.mp4", found, tmp_path / "groups.csv") == ["b", "a"]
    assert read_folds(tmp_path / "groups.csv", found) == [-1, 0]
    with pytest.raises(InputError, match=r"expected a line for .*d.mp4, found none"):
        find_groups(str(tmp_path / "groups.csv"), samples(str(tmp_path / "v/d.mp4")))
    with pytest.raises(InputError, match=r"a column 'grp' \(did you mean 'group'\?\), got path,group,fold"):
        read_column(tmp_path / "groups.csv", found, "grp")


def test_written_folds_are_read_back(tmp_path):
    listed = samples(str(tmp_path / "a, b.mp4"), str(tmp_path / 'c"d.mp4'))
    write_folds(
        tmp_path / "folds.csv", listed, ["x", "y"], [1, 0], shown=lambda p: os.path.relpath(p, tmp_path)
    )
    assert read_folds(tmp_path / "folds.csv", listed) == [1, 0]
    with open(tmp_path / "folds.csv", newline="") as f:
        assert list(csv.reader(f))[1] == ["a, b.mp4", "0", "x", "1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,fold\na,1\n", "expected a column 'path', got file,fold"),
        ("path,fold\na.mp4,first\n", "expected a whole number in the column fold, got 'first'"),
        (None, "expected a csv with a header"),
    ],
)
def test_tables_that_say_nothing(tmp_path, text, message):
    if text is not None:
        (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_folds(tmp_path / "folds.csv", samples(str(tmp_path / "a.mp4")))


def test_a_line_a_fold():
    assert describe_folds([0, 1, 0, 0], ["a", "a", "b", "c"], [0, 0, 1, -1]) == [
        "fold 0: 2 videos, 1 groups, 1 to 1 of a class",
        "fold 1: 1 videos, 1 groups, 0 to 1 of a class",
    ]


def test_a_table_with_a_header_is_an_index(tmp_path):
    table = tmp_path / "all.csv"
    table.write_text("path,class,session\nv/b.mp4,jump,1\nv/a.mp4,fall,2\nv/c.mp4,,3\n")
    found = index_table(table)
    assert found.classes == ["fall", "jump"]
    assert [(Path(s.path).name, s.label) for s in found.splits["train"]] == [("b.mp4", 1), ("a.mp4", 0)]
    table.write_text("path,label,class\na.mp4,2,tick\nb.mp4,0,del\nc.mp4,-1,none\n")
    found = index_table(table)
    assert found.classes == ["del", "1", "tick"]
    assert [s.label for s in found.splits["train"]] == [2, 0]
    for text, message in (
        ("path,kind\na.mp4,x\n", "expected a column 'label' or 'class', got path,kind"),
        ("path,label\na.mp4,x\n", "expected a whole number in the column label, got 'x'"),
        ("path,label,class\na.mp4,0,x\nb.mp4,0,y\n", "one class for label 0, got 'x' and 'y'"),
    ):
        table.write_text(text)
        with pytest.raises(InputError, match=message):
            index_table(table)
