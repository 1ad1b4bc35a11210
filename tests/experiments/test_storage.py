"""Run directories on an object store: copies that agree, and a sweep that goes on from another machine."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import pytest

from vmae.core.errors import InputError
from vmae.experiments import housekeeping
from vmae.experiments.layout import is_small
from vmae.experiments.locks import claim_numbered
from vmae.experiments.runs import find, history
from vmae.experiments.storage import Mirror, StorageAway, fetched
from vmae.experiments.tracking import Store, Tracker, create_store, store_at


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_changed_is_copied_and_what_went_is_deleted(tmp_path: Path) -> None:
    uri = (tmp_path / "store").as_uri()
    one, two = (Mirror(uri, tmp_path / name) for name in ("one", "two"))
    trial = tmp_path / "one" / "sweeps" / "s-1" / "trials" / "a"
    _write(trial / "progress.json", "1")
    _write(trial / "pretrain" / "checkpoints" / "step-1" / "state.pt", "weights")
    _write(trial / "pretrain" / ".tmp-step-2" / "state.pt", "half")
    one.push(trial)
    twin = tmp_path / "two" / "sweeps" / "s-1" / "trials" / "a"
    two.pull(twin.parents[2], only=is_small)
    assert sorted(p.name for p in (tmp_path / "two").rglob("*") if p.is_file()) == ["progress.json"]
    two.pull(twin, fresh=True)
    assert (twin / "pretrain" / "checkpoints" / "step-1" / "state.pt").read_text() == "weights"
    assert not (twin / "pretrain" / ".tmp-step-2").exists()
    shutil.rmtree(trial / "pretrain" / "checkpoints" / "step-1")
    _write(trial / "pretrain" / "checkpoints" / "step-3" / "state.pt", "newer")
    _write(trial / "progress.json", "22")
    one.push(trial, deep=False)
    two.pull_file(twin / "progress.json")
    assert (twin / "progress.json").read_text() == "22"
    one.push(trial)
    two.pull(twin, fresh=True)
    assert [p.parent.name for p in twin.rglob("state.pt")] == ["step-3"]
    got = fetched(one.url(trial / "pretrain"), tmp_path / "got")
    assert (got / "checkpoints" / "step-3" / "state.pt").read_text() == "newer"


def _ask_for_names(uri: str, machine: Path, count: int) -> list[str]:
    mirror = Mirror(uri, machine)
    return [claim_numbered(machine / "sweeps", "ratio", mirror.claim) for _ in range(count)]


def _all_different(uri: str, tmp_path: Path) -> None:
    """Four machines ask for five names each at the same time."""
    machines = [(uri, tmp_path / f"machine{k}", 5) for k in range(4)]
    # Not forked: pyarrow's threads would be missing there.
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        found = pool.starmap(_ask_for_names, machines)
    names = [name for some in found for name in some]
    assert len(names) == 20 and len(set(names)) == 20, sorted(names)
    # What each has on its machine is what it was given.
    for some, (_, machine, _) in zip(found, machines, strict=True):
        assert sorted(p.name for p in (machine / "sweeps").iterdir()) == sorted(some)


def test_machines_that_claim_names_at_once_share_none(tmp_path: Path) -> None:
    _all_different((tmp_path / "store").as_uri(), tmp_path)


@pytest.mark.slow
def test_machines_that_claim_names_on_s3_at_once_share_none(
    bucket: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    _all_different("s3://bucket/runs", tmp_path)


def test_a_claim_on_a_store_is_seen_elsewhere_and_given_up_with_its_work(tmp_path: Path) -> None:
    uri = (tmp_path / "store").as_uri()
    one, two = (Mirror(uri, tmp_path / name) for name in ("one", "two"))
    here, there = (m.local / "sweeps" / "mine" for m in (one, two))
    assert one.claim(here) and not two.claim(there) and not there.exists()
    with pytest.raises(RuntimeError), one.given_up(here, above=2):
        raise RuntimeError("refused before anything was written")
    assert not here.exists() and two.claim(there)
    # Written by both before either looked: neither may keep it.
    assert one._alone(one.local / "sweeps" / "x", "sweeps/x/claim-1") is True
    other = tmp_path / "store" / "sweeps" / "y" / "claim-2"
    looked = one._list

    def and_then_another(folder: Path) -> dict[str, Any]:
        found = looked(folder)
        if not other.exists():
            _write(other, "claimed")
        return found

    one._list = and_then_another  # type: ignore[method-assign]
    assert one._alone(one.local / "sweeps" / "y", "sweeps/y/claim-1") is None
    assert [p.name for p in other.parent.iterdir()] == ["claim-2"]


def test_storage_that_is_away_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmae.experiments.storage.time.sleep", lambda s: None)
    (tmp_path / "store").write_text("a file where a folder should be")
    mirror = Mirror((tmp_path / "store").as_uri(), tmp_path / "here")
    with pytest.raises(InputError, match="expected storage that can be written"):
        mirror.check()
    _write(tmp_path / "here" / "sweeps" / "x.json", "1")
    with pytest.raises(StorageAway, match="to answer, got"):
        mirror.push(tmp_path / "here" / "sweeps")


def test_a_uri_needs_a_tracking_server_and_a_verb_that_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(InputError, match="sweep, sweeps and runs take a URI"):
        store_at("s3://bucket/runs")
    with pytest.raises(InputError, match="expected a tracking server in MLFLOW_TRACKING_URI"):
        store_at("s3://bucket/runs", remote=True)
    monkeypatch.setenv("VMAE_RUNS", "s3://bucket/runs")
    with pytest.raises(InputError, match="got s3://bucket/runs: sweep"):
        store_at()
    with pytest.raises(InputError, match="expected a folder or a URI"):
        Mirror("nowhere://bucket", Path("x"))


def _track(store: Store, name: str, **files: str) -> Path:
    """A finished run with some files, on the store."""
    home = store.runs_dir / name
    with Tracker(store, home, name=name, key=f"run:{name}", kind="pretrain") as tracker:
        tracker.log_metrics({"pretrain/loss": 1.0}, 1)
        for file, text in files.items():
            _write(home / file, text)
            tracker.log_artifact(home / file)
    Mirror(store.remote, store.runs_dir).push(home)
    return home


def test_orphans_on_a_store_are_found_and_deleted_from_another_machine(tmp_path: Path) -> None:
    uri, database = (tmp_path / "store").as_uri(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    one, two = (Store(uri=database, runs_dir=tmp_path / m, remote=uri) for m in ("one", "two"))
    for name in ("kept", "gone"):
        _track(one, name, weights="w" * 1000)
    _write(tmp_path / "store" / "kept" / "cut.part", "half")
    os.utime(tmp_path / "store" / "kept" / "cut.part", (0, 0))
    housekeeping.delete_runs(two, [find(two, "gone")])
    orphans, kept = housekeeping.find_orphans(two)
    assert [(o.path.name, o.reason) for o in orphans] == [
        ("gone", "run 'gone' was deleted"),
        ("cut.part", "left by a killed process"),
    ]
    assert orphans[0].size > 1000 and not kept
    housekeeping.remove(two, orphans)
    assert sorted(p.name for p in (tmp_path / "store").iterdir()) == ["kept"]
    left = {p.name for p in (tmp_path / "store" / "kept").iterdir()}
    assert "weights" in left and "cut.part" not in left
    assert housekeeping.find_orphans(two) == ([], [])


def test_a_checkpoint_is_found_by_its_uri(tmp_path: Path) -> None:
    from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
    from vmae.core.weights.checkpoint import save_model
    from vmae.experiments.weights import load_model_at

    model = VideoMAE(VideoMAEConfig.from_size("tiny"))
    save_model(tmp_path / "bucket" / "model", model, {"epochs": 3})
    store = Store(uri="http://tracker", runs_dir=tmp_path / "here")
    found, meta, _ = load_model_at(store, (tmp_path / "bucket" / "model").as_uri())
    assert meta["epochs"] == 3
    assert all(a.equal(b) for a, b in zip(model.parameters(), found.parameters(), strict=True))
    with pytest.raises(InputError, match="expected a folder at file://"):
        load_model_at(store, (tmp_path / "nothing").as_uri())


@pytest.mark.slow
def test_runs_on_s3_are_synced_deleted_and_their_files_collected(
    server: Any,
    bucket: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vmae.cli.main import run

    uri = "s3://bucket/runs"

    def machine(name: str) -> None:
        monkeypatch.setenv("VMAE_SCRATCH", str(tmp_path / name))

    def vmae(*command: str, code: int = 0) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(["runs", *command, "--runs-dir", uri])
        output = capsys.readouterr()
        assert stopped.value.code == code, output
        return output.out + output.err

    for key, value in {**bucket, "MLFLOW_TRACKING_URI": server.uri}.items():
        monkeypatch.setenv(key, value)
    machine("one")
    store = store_at(uri, remote=True)
    create_store(store)
    _track(store, "gone", weights="w" * 2000)
    server.kill()
    home = store.runs_dir / "late"
    tracker = Tracker(store, home, name="late", key="run:late", kind="pretrain")
    tracker.log_metrics({"pretrain/loss": 0.5}, 1)
    _write(home / "note.txt", "hello")
    tracker.log_artifact(home / "note.txt")
    assert not tracker.finish(timeout_s=1)
    Mirror(uri, store.runs_dir).push(home)
    server.start()
    shutil.rmtree(tmp_path / "one")

    machine("two")
    assert vmae("sync") == "late: sent\n"
    machine("three")
    assert vmae("sync") == "nothing waits to be sent\n"
    late = find(store, "late")
    assert late.status == "FINISHED"
    assert history(store, late.run_id, "pretrain/loss") == [(1, 0.5)]
    from vmae.experiments.tracking.client import mlflow_client

    assert [f.path for f in mlflow_client(store.uri).list_artifacts(late.run_id)] == ["note.txt"]

    assert "nothing to remove in s3://bucket/runs" in vmae("gc")
    assert "nothing was removed" in vmae("delete", "gone", code=2)
    assert "deleted 1 run" in vmae("delete", "gone", "--yes")
    assert "run 'gone' was deleted" in vmae("gc")
    assert "nothing was removed" in vmae("gc", "--delete", code=2)
    view = Mirror(uri, tmp_path / "view")
    assert len({p.parent.name for p in view.listing(view.local)}) == 2
    assert "freed " in vmae("gc", "--delete", "--yes")
    assert {p.parent.name for p in view.listing(view.local)} == {"late"}
    assert "late" in vmae("list") and "gone" not in vmae("list")


def _goes_on_elsewhere(
    uri: str, sweeps: Any, expected: dict[str, Any], server: Any, tmp_path: Path, environment: dict[str, str]
) -> None:
    """The driver and all its processes are killed, its machine's files are gone; another one resumes."""
    view = Mirror(uri, tmp_path / "view")

    def seen() -> Path:
        view.pull(view.local, fresh=True)
        return view.local

    there = {**environment, "MLFLOW_TRACKING_URI": server.uri}
    first = {**there, "VMAE_SCRATCH": str(tmp_path / "machine1")}
    process = sweeps.start(sweeps.command(Path("RUNS"), "--runs-dir", uri), tmp_path, **first)
    sweeps.wait(
        lambda: sweeps.running(seen()) and sweeps.numbers(view.local), process, "a result and a checkpoint"
    )
    done = sweeps.numbers(seen())
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (psutil.Process(process.pid), *family):
        member.kill()
    process.communicate()
    shutil.rmtree(tmp_path / "machine1")
    second = {**there, "VMAE_SCRATCH": str(tmp_path / "machine2")}
    resume = ["-m", "vmae", "sweep", "--resume", "masking_ratio-1", "--runs-dir", uri, "--register", "best"]
    process = sweeps.start([sweeps.command(view.local)[0], *resume], tmp_path, **second)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert sweeps.numbers(seen()) == expected
    for trial in done:  # not run again
        state = view.local / "sweeps" / "masking_ratio-1" / "trials" / trial / "result.json"
        assert '"attempts": 1' in state.read_text()
    assert "version 1" in output
    drawn = {p.name for p in (view.local / "sweeps" / "masking_ratio-1").glob("*.png")}
    assert drawn == {"masking_ratio.png", "masking_ratio-curves.png"}
    status = ["-m", "vmae", "sweeps", "status", "masking_ratio-1", "--runs-dir", uri]
    third = {**there, "VMAE_SCRATCH": str(tmp_path / "machine3")}
    process = sweeps.start([sweeps.command(view.local)[0], *status], tmp_path, **third)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "ratio0.75" in output or "0.75" in output
    assert not list((tmp_path / "machine2").glob("*/*/sweeps/*/trials/*/pretrain")), "copies left behind"


@pytest.mark.slow
def test_a_sweep_on_a_file_uri_goes_on_elsewhere(
    sweeps: Any, undisturbed_numbers: dict[str, Any], server: Any, tmp_path: Path
) -> None:
    uri = (tmp_path / "store").as_uri()
    _goes_on_elsewhere(uri, sweeps, undisturbed_numbers, server, tmp_path, {})


@pytest.mark.slow
def test_a_sweep_on_s3_goes_on_elsewhere(
    sweeps: Any,
    undisturbed_numbers: dict[str, Any],
    server: Any,
    bucket: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    _goes_on_elsewhere("s3://bucket/runs", sweeps, undisturbed_numbers, server, tmp_path, dict(os.environ))
