"""`vmae data index`, `check` and `optimize` on real files, end to end, in this process."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner, Result

from vmae.cli.main import main
from vmae.core.errors import InputError
from vmae.core.video.annotations import read_annotations


def run(*args: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two videos each, one of them cut; names with a space and an accent."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for name in ("train/a b/1.mp4", "train/a b/2.mp4", "train/é/1.mp4", "val/é/1.mp4"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"g": "50"})
            stream.width, stream.height = 96, 64
            still = rng.integers(0, 255, (8, 12, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            for i in range(30):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(still, i, 1)), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    cut = root / "train/a b/2.mp4"
    cut.write_bytes(cut.read_bytes()[:500])
    return root


def test_index_check_optimize(folder: Path) -> None:
    result = run("data", "index", folder, "--layout", "folders", "--relative")
    assert result.exit_code == 0, result.output
    assert "2 classes; 3 train, 1 val" in result.output
    assert (folder / "train.csv").read_text() == "train/a b/1.mp4 0\ntrain/a b/2.mp4 0\ntrain/é/1.mp4 1\n"
    assert (folder / "classes.txt").read_text() == "a b\né\n"

    result = run("data", "check", folder / "train.csv", "--workers", 1)
    assert result.exit_code == 1
    assert "3 files: 2 ok, 1 bad (33.33%)" in result.output
    assert "2.mp4: truncated" in result.output
    assert (folder / "train.report.csv").read_text().count("\n") == 4
    assert "3 files: 2 ok, 1 bad" in (folder / "train.report.txt").read_text()
    assert (folder / "train.csv.probes").is_file()
    clean = (folder / "train.clean.csv").read_text()
    assert "2.mp4" not in clean
    assert clean.count("\n") == 2
    assert run("data", "check", folder / "val.csv", "--workers", 1, "--quick").exit_code == 0

    result = run(
        "data", "optimize", folder / "train.clean.csv", folder / "fast", "--short-side", 32, "--workers", 1
    )
    assert result.exit_code == 0, result.output
    assert "2 encoded, 0 already good and copied, 0 failed" in result.output
    assert "speed-up: " in result.output
    lines = (folder / "fast/train.clean.csv").read_text().splitlines()
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["0", "1"]
    assert all(Path(line.rsplit(" ", 1)[0]).is_file() for line in lines)
    assert (folder / "fast/classes.txt").read_text() == "a b\né\n"
    assert [p for p in (folder / "fast").rglob("*") if "part" in p.name] == []


def test_lists_given_relative_to_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written says where its videos are, wherever it is read from."""
    monkeypatch.chdir(folder.parent)
    (folder / "two.csv").write_text("train/a b/1.mp4 0\nval/é/1.mp4 1\n", encoding="utf-8")
    listed = Path(folder.name) / "two.csv"
    assert run("data", "check", listed, "--workers", 1, "--quick").exit_code == 0
    assert (
        folder / "two.clean.csv"
    ).read_text() == "train/a b/1.mp4 0\nval/é/1.mp4 1\n"  # as the list has them
    result = run("data", "check", listed, "--workers", 1, "--quick", "--clean", "elsewhere/c.csv")
    assert result.exit_code == 0, result.output
    found = [s.path for s in read_annotations("elsewhere/c.csv")]
    assert found == [str(folder / "train/a b/1.mp4"), str(folder / "val/é/1.mp4")]
    result = run("data", "optimize", listed, "small", "--short-side", 32, "--workers", 1)
    assert result.exit_code == 0, result.output
    assert all(Path(s.path).is_file() for s in read_annotations("small/two.csv"))
    result = run("data", "optimize", listed, "small", "--short-side", 32, "--workers", 1)
    assert "2 encoded, 0 already good and copied, 0 failed (2 done by an earlier run)" in result.output


def test_errors_are_one_line(tmp_path: Path) -> None:
    result = run("data", "check", tmp_path / "absent.csv")
    assert "expected a list of videos, found no such file" in str(result.exception)
    result = run("data", "index", tmp_path, "--layout", "ucf")
    assert "did you mean 'ucf101'?" in str(result.exception)
    file = tmp_path / "a.csv"
    file.write_text("a.mp4 0\n")
    for arguments, message in (
        (
            ("check", file, "--report", file / "x.csv"),
            "expected a place that can be written, got File exists",
        ),
        (("check", file, "--clean", tmp_path), "got a folder of that name"),
        (("check", file, "--format", "lable"), "did you mean 'label'?"),
        (("optimize", file, file), "expected a place that can be written"),
        (("optimize", file, tmp_path / "out", "--gop", 0), "gop: expected at least 1, got 0"),
        (
            ("index", tmp_path, "--layout", "folders", "--out", file),
            "expected videos in the layout 'folders'",
        ),
    ):
        result = run("data", *arguments)
        assert isinstance(result.exception, InputError), arguments
        assert message in str(result.exception)
    assert run("data", "check", file, "--workers", 0).exit_code == 2
    result = run("data", "optimise", "x", "y")
    assert result.exit_code == 2
    assert "did you mean 'optimize'?" in result.output


def test_index_with_groups_parts_no_session(tmp_path: Path) -> None:
    names = [f"{kind}/s{session}_{take}.mp4" for kind in "ab" for session in range(6) for take in range(3)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    result = run("data", "index", tmp_path, "--layout", "folders", "--groups", r"s\d", "--folds", 3)
    assert result.exit_code == 0, result.output
    assert "2 classes; 24 train, 12 val" in result.output
    assert "fold 0: 12 videos, 2 groups, 6 to 6 of a class" in result.output
    sessions = {
        name: {Path(s.path).name[:2] for s in read_annotations(tmp_path / name)}
        for name in ("train.csv", "val.csv")
    }
    assert len(sessions["train.csv"]) == 4
    assert not sessions["train.csv"] & sessions["val.csv"]
    # The folds' own file is a table too: its column group is what --groups may name.
    result = run("data", "index", tmp_path / "folds.csv", "--out", tmp_path / "again", "--groups", "group")
    assert result.exit_code == 0, result.output
    assert "2 classes; 30 train, 6 val" in result.output
    assert not (tmp_path / "again/folds.csv").exists()
    result = run("data", "index", tmp_path / "folds.csv", "--out", tmp_path / "loose", "--folds", 3)
    assert "no --groups: clips of one session or scene may stand on both sides" in result.output
    (tmp_path / "empty").mkdir()
    result = run("data", "index", tmp_path / "empty", "--groups", "s")  # as --layout folders
    assert result.exit_code and "empty" in str(result.exception), result.output
    result = run("data", "index", tmp_path / "folds.csv", "--layout", "folders")
    assert "--layout: expected a folder, got the file" in str(result.exception)


def test_check_names_what_two_lists_share(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("imagehash", reason="needs the package ImageHash")
    a, b, c = folder / "train/a b/1.mp4", folder / "train/é/1.mp4", folder / "val/é/1.mp4"
    (tmp_path / "train.csv").write_text(f"{a} 0\n{b} 1\n", encoding="utf-8")
    (tmp_path / "val.csv").write_text(f"{c} 1\n{a} 0\n", encoding="utf-8")
    (tmp_path / "groups.csv").write_text(f"path,group\n{a},one\n{b},two\n{c},two\n", encoding="utf-8")
    arguments = ("data", "check", tmp_path / "train.csv", "--workers", 1, "--quick")
    result = run(*arguments, "--groups", tmp_path / "groups.csv")
    assert result.exit_code == 0, result.output
    assert "1 of 2 videos of val.csv show nearly the same picture as one of train.csv" in result.output
    assert f"  {a} like {a} (the same file)" in result.output
    assert "2 groups are in train.csv and in val.csv: one, two" in result.output
    assert (tmp_path / "train.leaks.csv").read_text(encoding="utf-8").splitlines() == [
        "list,what,first,second,bits",
        f"val.csv,frames,{a},{a},0",
        "val.csv,group,one,one,",
        "val.csv,group,two,two,",
    ]
    (tmp_path / "apart.csv").write_text(f"{c} 1\n", encoding="utf-8")
    result = run(*arguments, "--against", tmp_path / "apart.csv")
    assert "apart.csv: no video looks like one of train.csv" in result.output
    assert "val.csv" not in run(*arguments, "--no-leaks").output
