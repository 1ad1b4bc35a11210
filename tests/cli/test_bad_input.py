"""What a user can get wrong ends in one line that says expected and got, exit code 2, and nothing written."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from vmae.cli.main import run


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """A folder with lists that name no real video; fine for errors that come before decoding."""
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 1\n")
    (tmp_path / "val.csv").write_text("c.mp4 0\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.csv").write_text("a.mp4 0\nno label here\n")
    return tmp_path


def _refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(argv)
    assert stopped.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


SWEEP = ["sweep", "masking_ratio", "--data", "{0}/train.csv", "--runs-dir", "{0}/runs"]


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sweep", "maskin_ratio"], "got 'maskin_ratio' (did you mean 'masking_ratio'?)"),
        (["sweep"], "expected the name of a sweep"),
        ([*SWEEP, "--size", "smal"], "got 'smal' (did you mean 'small'?)"),
        ([*SWEEP, "--values", "0.5,1.5"], "1.5"),
        ([*SWEEP, "--values", "0.001"], "0 masked"),
        ([*SWEEP, "--values", "half"], "mask.ratio: expected a number, got 'half'"),
        ([*SWEEP, "--values", "0.5,0.5"], "expected different values"),
        ([*SWEEP, "--register", "a/b"], "expected a model name without / : . % ' \\, got 'a/b'"),
        ([*SWEEP, "--seeds", "0"], "--seeds: expected 1 or more, got 0"),
        ([*SWEEP, "--set", "optim.base_lrr=1"], "did you mean 'optim.base_lr'?"),
        ([*SWEEP, "--set", "optim.base_lr=fast"], "optim.base_lr: expected a number, got 'fast'"),
        ([*SWEEP, "--set", "optim.base_lr"], "expected KEY=VALUE"),
        ([*SWEEP, "--set", "mask.type=no_parts:mask"], "mask.type: expected a module that can be imported"),
        ([*SWEEP, "--set", "mask.type=json:dmps"], "got 'dmps' (did you mean 'dumps'?)"),
        ([*SWEEP, "--set", "model.target=json:JSONEncoder"], "to be a function (video, indices, grid)"),
        ([*SWEEP, "--set", "mask.params.speed=1"], "mask.params: tube masks have none, got speed"),
        (
            ["sweep", *SWEEP[2:], "--param", "mask.type=tube,json:dmps"],
            "mask.type: expected an object of module json, got 'dmps'",
        ),
        (
            ["pretrain", *SWEEP[2:], "--set", "model.target=no_parts:x"],
            "model.target: expected a module that can be imported, got 'no_parts'",
        ),
        ([*SWEEP, "--resume", "none-1"], "expected the name of a sweep"),
        (["sweep", "masking_ratio", "--data", "{0}/absent.csv", "--val", "{0}/val.csv"], "absent.csv"),
        (["sweep", "masking_ratio", "--data", "{0}/empty.csv", "--val", "{0}/val.csv"], "empty.csv"),
        (["sweep", "masking_ratio", "--data", "{0}/broken.csv", "--val", "{0}/val.csv"], "broken.csv:2: "),
        (["pretrain", "--data", "{0}/empty.csv", "--val", "{0}/val.csv"], "empty.csv"),
        (["pretrain", "--config", "{0}/absent.yaml"], "--config: expected a readable file"),
        (["pretrain", "--config", "{0}/train.csv", "--recipe", "demo_pretrain"], "got both"),
        (["pretrain", "--recipe", "demo_pretrian"], "did you mean 'demo_pretrain'?"),
        (["pretrain", "--resume", "none"], "expected the name of a run"),
        (["probe", "--run", "none"], "expected the name or id of a run"),
        (["runs", "show", "none"], "expected the name or id of a run"),
        (["runs", "best", "--metric", "probe/top1"], "expected a metric that some run has"),
        (["runs", "list", "--where", "loss"], "expected COLUMN OP VALUE"),
        (["swep"], "did you mean 'sweep'?"),
    ],
)
def test_one_line_and_exit_code_2(
    argv: list[str],
    expected: str,
    lists: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VMAE_RUNS", str(lists / "runs"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    line = _refused([a.format(lists) for a in argv], capsys)
    assert expected in line
    assert not (lists / "runs").exists(), "something was written"


def test_a_held_out_video_that_does_not_decode_is_refused_before_anything_runs(
    mini_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.mp4").write_text("this is text")
    (tmp_path / "val.csv").write_text("bad.mp4 0\n")
    argv = ["sweep", "masking_ratio", "--recipe", "demo_pretrain", "--data", str(mini_data / "train.csv")]
    line = _refused([*argv, "--val", str(tmp_path / "val.csv"), "--runs-dir", str(tmp_path / "runs")], capsys)
    assert "bad.mp4" in line
    assert not (tmp_path / "runs" / "sweeps").exists()
    assert not (tmp_path / "runs" / "mlflow.db").exists()


@pytest.mark.parametrize("uri", ["./mlruns", "file://{0}/mlruns", "nowhere://x"])
def test_a_store_that_cannot_be_used_is_refused_before_anything_is_decoded(
    uri: str,
    tiny_videos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder as MLflow's users have had it for years, a scheme that nobody knows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(tmp_path))
    runs = ["--runs-dir", str(tmp_path / "runs")]
    data = ["--data", str(tiny_videos / "train.csv"), "--set", "train.batch_size=8"]
    for argv in (
        ["pretrain", "--recipe", "demo_pretrain", *data],
        ["finetune", "--recipe", "demo_finetune", *data],
        ["runs", "list"],
        ["runs", "gc"],
    ):
        with pytest.raises(SystemExit) as stopped:
            run([*argv, *runs])
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == 2 and "Traceback" not in "".join(lines)
        assert lines[-1].startswith("vmae: error: expected ") and uri.format(tmp_path) in lines[-1]
    left = [p for p in tmp_path.rglob("*") if not p.name.startswith(".")]
    assert left in ([], [tmp_path / "runs"])


@pytest.mark.parametrize("verb", ["ui", "dashboard"])
def test_a_port_in_use_is_named(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = _refused([verb, "--port", str(port), "--runs-dir", str(tmp_path / "runs")], capsys)
    assert f"127.0.0.1:{port}" in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["pretrain", "--recipe", "demo_pretrain", "--data", "{0}/train.csv"],
        ["data", "index", "{0}", "--layout", "folders", "--out", "{0}/file/lists"],
    ],
)
def test_a_place_that_cannot_be_is_one_line(
    argv: list[str], tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder below a file (or on a disk that is full or only to be read) is no fault of this program."""
    (tmp_path / "file").touch()
    for name in ("train.csv", "val.csv"):
        (tmp_path / name).write_text((tiny_videos / name).read_text())
    for video in tiny_videos.glob("*.mp4"):
        (tmp_path / video.name).symlink_to(video)
    runs = [] if argv[0] == "data" else ["--runs-dir", str(tmp_path / "file" / "runs")]
    with pytest.raises(SystemExit) as stopped:
        run([*(a.format(tmp_path) for a in argv), *runs])
    last = capsys.readouterr().err.splitlines()[-1]
    assert stopped.value.code == 2 and last.startswith(f"vmae: error: {tmp_path / 'file'}"), last
    assert "Not a directory" in last


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(Exception, match="maskin_ratio"):
        run(["--debug", "sweep", "maskin_ratio"])
