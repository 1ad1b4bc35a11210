"""Every annotation format is read as it is meant; what does not fit is named with its line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations, write_annotations
from vmae.core.video.samples import Sample, num_classes


def read(tmp_path: Path, text: str, **options: object) -> list[Sample]:
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    return read_annotations(path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/v/a.mp4 3", Sample(path="/v/a.mp4", label=3)),
        ("/v/my video 7.mp4 12", Sample(path="/v/my video 7.mp4", label=12)),
        ("/v/日本 é.avi\t0", Sample(path="/v/日本 é.avi", label=0)),
        ("/v/a.mp4,5", Sample(path="/v/a.mp4", label=5)),
        ('"/v/my video.mp4" 5', Sample(path="/v/my video.mp4", label=5)),
        ('"/v/a ""b"" 1.mp4",5', Sample(path='/v/a "b" 1.mp4', label=5)),
        ('/v/"a" b.mp4 5', Sample(path='/v/"a" b.mp4', label=5)),
        ('"/v/take 3" 5', Sample(path="/v/take 3", label=5)),
        ('"/v/take 3" 0 -1', Sample(path="/v/take 3", label=-1)),
        ("/v/a\u2028b.mp4 5", Sample(path="/v/a\u2028b.mp4", label=5)),
        ("/v/frames_dir 2", Sample(path="/v/frames_dir", label=2)),
        ("/v/a.mp4 0 -1", Sample(path="/v/a.mp4", label=-1)),
        ("/v/frames 0 -1", Sample(path="/v/frames", label=-1)),
        ("/v/a.mp4 10 64", Sample(path="/v/a.mp4", label=-1, start=10, num_frames=64)),
        ("/v/a.mp4 -1", Sample(path="/v/a.mp4", label=-1)),
    ],
)
def test_lines(line: str, expected: Sample, tmp_path: Path) -> None:
    assert read(tmp_path, line + "\n") == [expected]


def test_named_formats(tmp_path: Path) -> None:
    assert read(tmp_path, "/v/d 100 7\n", format="total_label") == [
        Sample(path="/v/d", label=7, num_frames=100)
    ]
    assert read(tmp_path, "/v/d 100 7\n", format="start_total") == [
        Sample(path="/v/d", label=-1, start=100, num_frames=7)
    ]
    # Named, a number at the end of a folder's name stays in the name.
    assert read(tmp_path, "/v/take 3 7\n", format="label") == [Sample(path="/v/take 3", label=7)]
    with pytest.raises(
        InputError, match=r"list.csv:1: '/v/d 100 7' could be .* expected the format to be named"
    ):
        read(tmp_path, "/v/d 100 7\n")
    with pytest.raises(
        InputError, match=r"format: expected one of auto, .*, got 'lable' \(did you mean 'label'"
    ):
        read(tmp_path, "/v/d 1\n", format="lable")


def test_relative_paths_and_roots(tmp_path: Path) -> None:
    assert read(tmp_path, "a/x.mp4 0\n\n b/x.mp4 1 \n") == [
        Sample(path=str(tmp_path / "a/x.mp4"), label=0),
        Sample(path=str(tmp_path / "b/x.mp4"), label=1),
    ]
    assert read(tmp_path, "a/x.mp4 0\n", data_root="/data")[0].path == "/data/a/x.mp4"
    assert read(tmp_path, "/abs/x.mp4 0\n", data_root="/data")[0].path == "/abs/x.mp4"


def test_header_and_byte_order_mark(tmp_path: Path) -> None:
    assert len(read(tmp_path, "\ufeffpath,label\na.mp4,1\n")) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.mp4 1\nb.mp4\n", r"list.csv:2: expected 'path label' with an integer label, got 'b.mp4'"),
        (
            "a.mp4 1\n\nb.mp4 dog\n",
            r"list.csv:3: expected 'path label' with an integer label, got 'b.mp4 dog'",
        ),
        ("a.mp4 -3\n", r"list.csv:1: expected a label of 0 or more \(-1: none\), got -3"),
        ("a.mp4 -5 7\n", r"list.csv:1: expected a start of 0 or more .* got -5 7"),
        ("a.mp4 0 0\n", r"list.csv:1: .* got 0 0"),
        ("a.mp4 1.5\n", r"list.csv:1: expected 'path label'"),
        ("", r"expected at least one line 'path label', the file is empty"),
        ("\n  \n", r"the file is empty"),
    ],
)
def test_errors_name_the_line(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, text)


def test_missing_list_folder_and_binary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a list of videos, found no such file"):
        read_annotations(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="got a folder"):
        read_annotations(tmp_path)
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="expected a readable UTF-8 list"):
        read_annotations(tmp_path / "b.csv")


def test_written_lists_read_back(tmp_path: Path) -> None:
    samples = [
        Sample(path="/v/same name.mp4", label=0),
        Sample(path="/w/same name.mp4", label=3),
        Sample(path="/v/é.mp4", label=-1, start=5, num_frames=10),
    ]
    write_annotations(tmp_path / "new" / "a.csv", samples)
    assert read_annotations(tmp_path / "new" / "a.csv") == samples
    odd = [
        Sample(path=f"/v/{name}", label=k) for k, name in enumerate(["take 3", " a ", '"q"', '"a" b', "x, 7"])
    ]
    odd += [replace(s, path=s.path[3:]) for s in odd]  # relative: the odd letters come first
    write_annotations(tmp_path / "b.csv", odd)
    assert read_annotations(tmp_path / "b.csv", rooted=False) == odd
    with pytest.raises(InputError, match=r"b\.csv:2: a path that is no UTF-8 cannot be listed: .*udcff 1"):
        write_annotations(tmp_path / "b.csv", [odd[0], Sample(path="/v/\udcff", label=1)])
    assert num_classes(samples) == 4
    assert num_classes([Sample(path="x", label=-1)]) == 0
    with pytest.raises(InputError, match="line break"):
        write_annotations(tmp_path / "a.csv", [Sample(path="a\nb", label=0)])
