"""The reader: the same answers from a large store as from a small one, and only what was asked for."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmae.core.errors import InputError
from vmae.experiments import comparison
from vmae.experiments.bench import store as bench_store
from vmae.experiments.runs import (
    Filter,
    best_run,
    check_columns,
    children,
    find,
    known_columns,
    list_runs,
    list_sweeps,
)
from vmae.experiments.tracking import Store, Tracker, sqlite, store_at

COUNT = 2200  # more than the reader asks for by id at once


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store = store_at(tmp_path_factory.mktemp("many"))
    bench_store.fill_store(store, COUNT, points=2)
    return store


def test_all_runs_with_all_their_values(store: Store) -> None:
    runs = list_runs(store)
    assert len(runs) == COUNT
    assert [r.start_ms for r in runs] == sorted((r.start_ms for r in runs), reverse=True)
    some = runs[7]
    assert some.kind == "trial"
    assert len(some.params) > 50
    assert len(some.metrics) == 14
    assert find(store, some.run_id) == some
    assert find(store, some.run_id[:12]) == some
    assert find(store, some.key) == some


def test_filters_and_order_equal_those_done_in_python(store: Store) -> None:
    runs = list_runs(store)
    where = [Filter.parse("probe/top1 > 0.5"), Filter.parse("mask.ratio = 0.9"), Filter.parse("kind = trial")]
    expected = [
        r
        for r in runs
        if r.metrics["probe/top1"] > 0.5 and r.params["mask.ratio"] == "0.9" and r.kind == "trial"
    ]
    expected.sort(key=lambda r: r.metrics["eval/loss"])
    assert len(expected) > 50
    found = list_runs(store, where=where, sort="eval/loss", descending=False)
    assert [r.run_id for r in found] == [r.run_id for r in expected]
    assert found[0] == expected[0]
    few = list_runs(store, where=where, sort="eval/loss", descending=False, limit=3)
    assert few == expected[:3]
    assert best_run(store, "probe/top1") == max(runs, key=lambda r: r.metrics["probe/top1"])


def test_only_the_columns_asked_for_are_read(store: Store) -> None:
    run = list_runs(store, columns=["kind", "mask.ratio", "eval/loss"], limit=1)[0]
    assert (list(run.params), list(run.metrics)) == (["mask.ratio"], ["eval/loss"])
    assert run.kind == "trial"


def test_children_and_sweeps(store: Store) -> None:
    sweeps = list_sweeps(store)
    assert len(sweeps) == -(-COUNT // (bench_store.TRIALS_PER_SWEEP + 1))
    trials = children(store, sweeps[1])
    assert len(trials) == bench_store.TRIALS_PER_SWEEP
    assert {t.sweep for t in trials} == {sweeps[1].name}


def test_known_columns_and_their_check(store: Store) -> None:
    known = known_columns(store)
    assert {"probe/top1", "mask.ratio", "vmae.recipe"} <= set(known)
    check_columns(store, ["probe/top1", "minutes", "kind", "name"])
    with pytest.raises(InputError, match=r"did you mean 'probe/top1'\?"):
        check_columns(store, ["prob/top1"])


def test_a_plain_list_reads_few_rows(store: Store) -> None:
    def fastest(**arguments: object) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()
            list_runs(store, **arguments)  # type: ignore[arg-type]
            times.append(time.process_time() - start)
        return min(times)

    assert fastest(limit=30) < fastest() / 4


def test_nan_is_no_best_and_sorts_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = store_at(tmp_path / "runs")
    for name, value in (("a", 0.5), ("b", float("nan")), ("c", 0.7)):
        with Tracker(store, tmp_path / name, name=name, key=name, kind="trial") as tracker:
            tracker.log_metrics({"probe/top1": value, "eval/loss": value}, 1)
            tracker.log_metrics({"eval/loss": value}, 2)
    assert best_run(store, "probe/top1").name == "c"
    assert best_run(store, "probe/top1", highest=False).name == "a"
    for descending in (True, False):
        runs = list_runs(store, sort="probe/top1", descending=descending)
        assert runs[-1].name == "b"
    curves = comparison.curves(store, runs, "eval/loss")
    assert sorted(c.label for c in curves) == ["a", "c"]
    assert comparison.curve_metrics(store, runs) == ["eval/loss"]


KILLED = """
import os, signal, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma cache_size = 1")
db.execute("begin")
db.execute("update tags set value = value || hex(zeroblob(2000))")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_whose_writer_was_killed_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    with sqlite3.connect(path) as db:
        db.execute("create table tags (key text, value text, run_uuid text)")
        db.executemany("insert into tags values ('k', 'before', ?)", [(str(i),) for i in range(500)])
    db.close()
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.read_bytes() != before and path.with_name("mlflow.db-journal").stat().st_size
    with sqlite.opened(path) as db:
        assert set(sqlite.column(db, "tags", "k").values()) == {"before"}
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            db.execute("delete from tags")
    assert path.read_bytes() == before
