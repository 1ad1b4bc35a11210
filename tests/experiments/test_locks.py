"""Names are claimed by making their folder; one process works on a run; gc takes what was deleted alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from vmae.core.errors import InputError
from vmae.core.files import write_json
from vmae.experiments import housekeeping
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.jobs import named
from vmae.experiments.locks import at_work, claim_numbered, given_up, held, is_held
from vmae.experiments.runs import list_runs
from vmae.experiments.sweeps.driver import new_name
from vmae.experiments.sweeps.status import is_running
from vmae.experiments.tracking import Store, Tracker, create_store, store_at, tags


def _claim(parent: Path, count: int) -> list[str]:
    return [claim_numbered(parent, "run") for _ in range(count)]


def test_processes_that_claim_names_at_once_share_none(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_claim, [(tmp_path / "runs", 25)] * 4)
    names = [name for some in found for name in some]
    assert sorted(names) == sorted(f"run-{i}" for i in range(1, 101))


def test_a_taken_name_is_refused_and_a_claimed_one_is_taken(tmp_path: Path) -> None:
    store, config = store_at(tmp_path), ExperimentConfig(name="demo")
    assert [named(store, config, None).name for _ in range(2)] == ["demo-1", "demo-2"]
    assert named(store, config, "mine").name == "mine"
    with pytest.raises(InputError, match="got 'mine', which exists; use --resume mine"):
        named(store, config, "mine")
    assert [new_name(store, "ratio"), new_name(store, "ratio"), new_name(store, "ratio", "x")] == [
        "ratio-1",
        "ratio-2",
        "x",
    ]
    with pytest.raises(InputError, match="got 'x', which exists"):
        new_name(store, "ratio", "x")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/tmp/x", "a/b", "mlflow.db", "sweeps", "cache", ".working", "a\nb", "n" * 201],
)
def test_names_that_are_no_folder_of_their_own_are_refused(tmp_path: Path, name: str) -> None:
    store = store_at(tmp_path / "runs")
    with pytest.raises(InputError, match="expected a plain name") as refused:
        named(store, ExperimentConfig(), name)
    assert "\n" not in str(refused.value), "an error is one line"
    if name not in ("mlflow.db", "sweeps", "cache"):
        with pytest.raises(InputError, match="expected a plain name"):
            new_name(store, "ratio", name)
    assert not (tmp_path / "x").exists()


def test_one_process_works_on_a_run_and_a_dead_ones_lock_is_free(tmp_path: Path) -> None:
    path = tmp_path / "k" / ".working"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom vmae.experiments.locks import held\n"
        "with held(Path(sys.argv[1]), 'x'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    other = Popen([sys.executable, "-c", code, str(path)], stdout=PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match="expected run 'k' to be at rest"), held(path, "run 'k'"):
        pass
    assert is_held(path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    assert not is_held(path)
    with held(path, "run 'k'"):
        pass


def test_a_sweep_runs_while_its_driver_does_whatever_the_clock_said(tmp_path: Path) -> None:
    sweep = store_at(tmp_path).layout.sweep("ratio-1")
    write_json(sweep.alive, {"time": time.time() + 86400, "ended": False})
    assert not is_running(sweep), "a time to come is no sign of life"
    write_json(sweep.alive, {"time": time.time() - 10, "ended": False})
    assert is_running(sweep), "on another machine, its files on an object store"
    with held(sweep.working, "sweep 'ratio-1'"):
        write_json(sweep.alive, {"time": time.time() - 86400, "ended": False})
        assert is_running(sweep)
    write_json(sweep.alive, {"time": time.time(), "ended": False})
    assert not is_running(sweep), "killed just now"


def test_a_lock_ends_with_its_process_and_its_block_not_with_what_was_forked(tmp_path: Path) -> None:
    """Loader processes outlive a killed training by seconds, and live on when the tracker has sent."""
    path = tmp_path / ".working"
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom vmae.experiments.locks import held\n"
        "with held(Path(sys.argv[1]), 'x'):\n"
        "    child = os.fork()\n"
        "    if child:\n        print(child, flush=True)\n"
        "    time.sleep(600)\n"
    )
    other = Popen([sys.executable, "-c", code, str(path)], stdout=PIPE, text=True)
    assert other.stdout is not None
    forked = int(other.stdout.readline())
    assert is_held(path)
    other.send_signal(signal.SIGKILL)
    other.wait()
    os.kill(forked, 0)  # lives
    with held(path, "x"):
        pass
    os.kill(forked, signal.SIGKILL)
    other.stdout.close()
    with held(path, "x"):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        child.start()
    try:
        assert not is_held(path)
        with held(path, "x"):
            pass
    finally:
        child.kill()
        child.join()


def test_a_claim_is_given_up_only_where_nothing_was_written(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    store = Store(uri="", runs_dir=runs)

    @at_work
    def fail(config: ExperimentConfig, store: Store, write: bool) -> None:
        if write:
            store.layout.run(config.name).config.touch()
        raise RuntimeError

    for write in (False, True):
        with pytest.raises(RuntimeError):
            fail(ExperimentConfig(name="a"), store, write)
        assert runs.exists() == write
    with pytest.raises(RuntimeError), given_up(runs / "a"):
        raise RuntimeError
    assert (runs / "a" / "config.yaml").exists()


def _run(store: Store, name: str, **how: object) -> None:
    home = store.layout.run(name)
    with Tracker(store, home.path, name=name, key=f"run:{name}", kind="pretrain", **how) as tracker:  # type: ignore[arg-type]
        home.model.mkdir(parents=True, exist_ok=True)
        (home.model / "weights").write_bytes(bytes(10))
        tracker.flush(120)


def test_gc_takes_no_run_that_the_store_does_not_know(tmp_path: Path) -> None:
    """A lost or replaced database knows nothing: that is no permission to delete everything."""
    store = store_at(tmp_path / "runs")
    create_store(store)
    _run(store, "a")
    # As a run that a database was told of which this one has replaced.
    known, lost = store.layout.run("a"), store.layout.run("b")
    lost.path.mkdir()
    lost.spool.write_text(known.spool.read_text().replace('"run:a"', '"run:b"'))
    lost.offset.write_text(str(lost.spool.stat().st_size))
    orphans, kept = housekeeping.find_orphans(store)
    assert orphans == []
    assert [(o.path.name, o.reason) for o in kept] == [("b", "its run is not known to the store")]


def test_gc_keeps_weights_that_another_run_began_from(tmp_path: Path) -> None:
    store = store_at(tmp_path / "runs")
    create_store(store)
    _run(store, "a")
    _run(store, "b", tags={tags.INIT: str(store.layout.run("a").model)})
    runs = {r.name: r for r in list_runs(store)}
    housekeeping.delete_runs(store, [runs["a"]])
    orphans, kept = housekeeping.find_orphans(store)
    assert [o.path.name for o in orphans if o.path.parent == store.runs_dir] == []
    assert [(o.path.name, o.reason) for o in kept] == [("a", "its weights are used by run 'b'")]
    housekeeping.delete_runs(store, [runs["b"]])
    assert {o.path.name for o in housekeeping.find_orphans(store)[0]} >= {"a", "b"}
