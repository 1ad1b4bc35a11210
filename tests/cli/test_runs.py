"""`vmae runs` and `vmae sweeps` on a real store: what each verb prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from vmae.cli.main import run
from vmae.experiments import housekeeping
from vmae.experiments.layout import SPOOL
from vmae.experiments.runs import list_runs
from vmae.experiments.tracking import Store, Tracker, store_at


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a sweep of three trials, a pre-training run and a failed probe."""
    runs_dir = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = store_at(runs_dir)
        sweep = Tracker(
            store,
            runs_dir / "sweeps" / "ratio-1",
            name="ratio-1",
            key="sweep:ratio-1",
            kind="sweep",
            tags={"vmae.sweep": "ratio-1", "vmae.metric": "probe/top1"},
        )
        sweep.flush(30)
        for i, ratio in enumerate((0.5, 0.75, 0.9)):
            home = runs_dir / "sweeps" / "ratio-1" / "trials" / f"ratio{ratio}"
            with Tracker(
                store,
                home,
                name=f"ratio{ratio}",
                key=f"sweep:ratio-1/ratio{ratio}",
                kind="trial",
                parent_key="sweep:ratio-1",
                params={"mask.ratio": ratio, "train.seed": 0, "optim.base_lr": 1e-3},
                tags={"vmae.sweep": "ratio-1", "vmae.checkpoint": str(home / "model")},
            ) as tracker:
                for epoch in range(1, 6):
                    tracker.log_metrics({"pretrain/loss": 1 / epoch + i}, epoch)
                tracker.log_metrics({"probe/top1": 0.25 + 0.1 * i}, 5)
            (home / "model").mkdir()
            (home / "model" / "model.safetensors").write_bytes(bytes(10_000))
        sweep.finish()
        with Tracker(
            store,
            runs_dir / "demo-1",
            name="demo-1",
            key="run:demo-1",
            kind="pretrain",
            params={"mask.ratio": 0.9},
            tags={"vmae.recipe": "demo_pretrain"},
        ) as tracker:
            tracker.log_metrics({"pretrain/loss": 0.4, "diverged": float("nan")}, 1)
        probe = Tracker(store, runs_dir / "demo-1-probe", name="demo-1-probe", key="run:p", kind="probe")
        assert probe.finish("FAILED")
    return runs_dir


@pytest.fixture
def runs_dir(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("VMAE_RUNS", str(made))
    return made


@pytest.fixture
def own_copy(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A copy that a test may change."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(made, tmp_path / "runs")
    monkeypatch.setenv("VMAE_RUNS", str(tmp_path / "runs"))
    store = store_at(tmp_path / "runs")
    for spool in store.runs_dir.rglob(SPOOL):  # they say which store they were sent to
        spool.write_text(spool.read_text().replace(str(made), str(store.runs_dir)))
        spool.with_suffix(".offset").write_text(str(spool.stat().st_size))
    return store


def _vmae(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(list(argv))
    captured = capsys.readouterr()
    assert (stopped.value.code or 0) == code, captured
    if code == 2:
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        return captured.err
    return captured.out


def _names(output: str) -> list[str]:
    return [line.split()[1] for line in output.splitlines()[2:]]


def test_list_filters_sorts_and_chooses_columns(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _names(_vmae(capsys, "runs"))[0] == "demo-1-probe"  # the newest first
    assert _names(_vmae(capsys, "runs", "list", "--limit", "1")) == ["demo-1-probe"]
    assert _names(_vmae(capsys, "runs", "list", "--kind", "pretrain")) == ["demo-1"]
    best_first = ["ratio0.9", "ratio0.75", "ratio0.5"]
    assert _names(_vmae(capsys, "runs", "list", "--sweep", "ratio-1")) == best_first
    by_loss = _vmae(capsys, "runs", "list", "--sort", "pretrain/loss", "--ascending", "--limit", "2")
    assert _names(by_loss) == ["ratio0.5", "demo-1"]
    where = ("--where", "probe/top1 > 0.3", "--where", "mask.ratio != 0.9")
    assert _names(_vmae(capsys, "runs", "list", *where)) == ["ratio0.75"]
    assert _names(_vmae(capsys, "runs", "list", "--where", "status = failed")) == ["demo-1-probe"]
    chosen = _vmae(capsys, "runs", "list", "--sweep", "ratio-1", "--columns", "name,mask.ratio,probe/top1")
    assert chosen.splitlines()[2].split() == ["ratio0.9", "0.9", "0.45"]
    both = json.loads(
        _vmae(capsys, "runs", "list", "--kind", "trial", "--where", "name = ratio0.5", "--json")
    )
    assert both[0]["metrics"]["pretrain/loss"] == pytest.approx(0.2)
    assert both[0]["params"]["optim.base_lr"] == "0.001"
    for kind in ("evaluate", "folds"):
        assert "no run in" in _vmae(capsys, "runs", "list", "--kind", kind)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["list", "--sort", "prob/top1"], "got 'prob/top1' (did you mean 'probe/top1'?)"),
        (["list", "--columns", "name,mask.ration"], "did you mean 'mask.ratio'?"),
        (["list", "--where", "mask.ration = 1"], "did you mean 'mask.ratio'?"),
        (["list", "--kind", "trail"], "did you mean 'trial'?"),
        (["list", "--sweep", "ratio-2"], "did you mean 'ratio-1'?"),
        (["list", "--limit", "-1"], "-1"),
        (["compare", "ratio0.5"], "expected two runs or more, got 1"),
        (["compare", "ratio0.5", "ratio0.5"], "expected different runs"),
        (["compare", "ratio0.5", "ratio0.755"], "did you mean 'ratio0.75'?"),
        (["compare", "ratio0.5", "ratio0.9", "--curve", "pretrain/los"], "did you mean 'pretrain/loss'?"),
        (["compare", "ratio0.5", "ratio0.9", "--png", "a.jpg"], "expected a file name that ends in .png"),
        (["export", "runs.xlsx"], "expected a file name that ends in .csv or .parquet"),
        (["delete"], "expected runs to delete, or filters"),
        (["delete", "demo-1", "--kind", "trial"], "not both"),
        (["delete", "demo-1"], "expected --yes"),
        (["best", "--metric", "diverged"], "expected a metric that some run has"),
        (["lst"], "did you mean 'list'?"),
    ],
)
def test_what_is_refused(
    argv: list[str], expected: str, runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(["runs", *argv])
    assert stopped.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1, errors
    assert expected in errors[0]
    assert len(list_runs(store_at(runs_dir))) == 6


def test_a_file_that_is_no_database_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_text("this is text, and long enough to be taken for a page of a database")
    assert "expected an MLflow database" in _vmae(capsys, "runs", "--runs-dir", str(tmp_path), code=2)


def test_show_and_best(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = _vmae(capsys, "runs", "show", "demo-1")
    for text in ("pretrain, finished", "recipe: demo_pretrain", "pretrain/loss", "mask.ratio"):
        assert text in shown
    assert "ratio0.9  probe/top1 = 0.45" in _vmae(capsys, "runs", "best")
    assert "ratio0.5  " in _vmae(capsys, "runs", "best", "--lowest", "--where", "mask.ratio < 0.8")


def test_compare_in_the_terminal_and_as_png(
    runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = _vmae(capsys, "runs", "compare", "ratio0.5", "ratio0.9")
    rows = [line.split() for line in out.splitlines()]
    assert ["mask.ratio", "0.5", "0.9"] in rows
    assert not any(row[:1] == ["train.seed"] for row in rows), "it is the same in both"
    assert ["pretrain/loss", "0.2", "2.2"] in rows
    assert "pretrain/loss against epoch" in out
    assert any(0x2800 < ord(c) < 0x2900 for c in out), "no curve was drawn"
    png = tmp_path / "figures" / "both.png"
    _vmae(capsys, "runs", "compare", "ratio0.5", "ratio0.9", "demo-1", "--png", str(png))
    assert png.read_bytes().startswith(b"\x89PNG")
    tree = json.loads(_vmae(capsys, "runs", "compare", "ratio0.5", "ratio0.9", "--json"))
    assert tree["params"] == {"mask.ratio": ["0.5", "0.9"]}
    assert tree["curves"]["pretrain/loss"]["ratio0.5"] == [[e, 1 / e] for e in range(1, 6)]


def test_export_to_csv_and_parquet(
    runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pyarrow.parquet as pq

    for name in ("runs.csv", "runs.parquet"):
        assert "4 runs" in _vmae(
            capsys,
            "runs",
            "export",
            str(tmp_path / name),
            "--where",
            "kind != probe",
            "--where",
            "mask.ratio > 0",
        )
    with open(tmp_path / "runs.csv", newline="") as f:
        rows = {row["name"]: row for row in csv.DictReader(f)}
    assert float(rows["ratio0.75"]["metrics.probe/top1"]) == pytest.approx(0.35)
    assert rows["demo-1"]["metrics.probe/top1"] == ""
    assert rows["demo-1"]["tags.vmae.recipe"] == "demo_pretrain"
    table = {row["name"]: row for row in pq.read_table(tmp_path / "runs.parquet").to_pylist()}
    assert table["ratio0.75"]["metrics.probe/top1"] == pytest.approx(0.35)
    assert table["demo-1"]["metrics.probe/top1"] is None
    assert table["ratio0.5"]["params.mask.ratio"] == "0.5"


def test_delete_then_gc_frees_what_the_deleted_runs_left(
    own_copy: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    home = own_copy.runs_dir / "sweeps" / "ratio-1" / "trials" / "ratio0.5"
    assert "nothing to remove" in _vmae(capsys, "runs", "gc")
    out = _vmae(capsys, "runs", "delete", "ratio0.5", "--yes")
    assert "deleted 1 run" in out
    assert "ratio0.5" not in _vmae(capsys, "runs", "list")
    listed = _vmae(capsys, "runs", "gc")
    assert "run 'ratio0.5' was deleted" in listed
    assert home.exists(), "a dry run removed it"
    assert "expected --yes" in _refused_gc(capsys)
    freed = _vmae(capsys, "runs", "gc", "--delete", "--yes")
    assert "freed" in freed
    assert not home.exists()
    assert (home.parent / "ratio0.9" / "model" / "model.safetensors").exists()
    # The sweep goes with its trials, and then with its folder.
    assert "deleted 3 runs" in _vmae(capsys, "runs", "delete", "ratio-1", "--yes")
    _vmae(capsys, "runs", "gc", "--delete", "--yes")
    assert not (own_copy.runs_dir / "sweeps" / "ratio-1").exists()
    assert {r.name for r in list_runs(own_copy)} == {"demo-1", "demo-1-probe"}


def _refused_gc(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run(["runs", "gc", "--delete"])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_gc_keeps_what_is_in_doubt(own_copy: Store) -> None:
    trials = own_copy.runs_dir / "sweeps" / "ratio-1" / "trials"
    runs = {r.name: r for r in list_runs(own_copy)}
    housekeeping.delete_runs(own_copy, [r for r in runs.values() if r.kind == "trial"])
    first, second, third = (trials / f"ratio{r}" / SPOOL for r in (0.5, 0.75, 0.9))
    first.write_text(first.read_text().replace("sqlite:///", "sqlite:////other"))
    first.with_suffix(".offset").write_text(str(first.stat().st_size))
    with open(second, "a") as f:
        f.write('{"event": "metrics", "values": {"a": 1.0}, "step": 9, "time_ms": 1}\n')
    lines = third.read_text().splitlines(keepends=True)[:-1]  # not finished, written just now
    third.write_text("".join(lines))
    third.with_suffix(".offset").write_text(str(third.stat().st_size))
    orphans, kept = housekeeping.find_orphans(own_copy)
    assert [o.reason for o in orphans] == []
    reasons = " | ".join(o.reason for o in kept)
    for text in ("recorded in another store", "not sent yet", "may still be running"):
        assert text in reasons
    old = time.time() - 3600
    os.utime(third, (old, old))
    orphans, _ = housekeeping.find_orphans(own_copy)
    assert [o.path.name for o in orphans] == ["ratio0.9"]
    # A run that is listed refers to its checkpoint: it stays.
    with Tracker(
        own_copy,
        own_copy.runs_dir / "probe",
        name="probe",
        key="run:probe",
        kind="probe",
        tags={"vmae.checkpoint": str(trials / "ratio0.9" / "model")},
    ):
        pass
    orphans, kept = housekeeping.find_orphans(own_copy)
    assert orphans == []
    assert "used by run 'probe'" in " ".join(o.reason for o in kept)


def test_gc_finds_temporary_files_of_killed_processes(own_copy: Store) -> None:
    temporary = own_copy.runs_dir / "demo-1" / ".save-abc.tmp"
    temporary.write_bytes(bytes(100))
    assert housekeeping.find_orphans(own_copy)[0] == []
    old = time.time() - 2 * 3600
    os.utime(temporary, (old, old))
    (orphan,) = housekeeping.find_orphans(own_copy)[0]
    assert orphan.path == temporary
    assert housekeeping.remove(own_copy, [orphan]) == 100
    assert not temporary.exists()


def test_commands_to_be_typed_say_which_run_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace
    from typing import Any

    from vmae.cli.options import in_runs_dir
    from vmae.cli.training import show_training

    monkeypatch.delenv("VMAE_RUNS", raising=False)
    where = in_runs_dir(store_at(tmp_path / "own runs"))
    stopped: Any = SimpleNamespace(stopped=True, epochs=1)
    named: Any = SimpleNamespace(name="a-1")
    with pytest.raises(SystemExit):
        show_training("pretrain", named, stopped, where)
    assert f"--resume a-1 --runs-dir '{tmp_path}/own runs'" in capsys.readouterr().out
