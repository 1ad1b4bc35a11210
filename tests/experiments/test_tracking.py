"""Runs reach the store, also when it was away; an attempt that is repeated counts once."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import socket
import string
import time
from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import VmaeError
from vmae.experiments.layout import REFUSED
from vmae.experiments.runs import list_runs, pictures
from vmae.experiments.tracking import (
    Store,
    Tracker,
    create_store,
    key_of,
    spooled_metrics,
    store_at,
    sync,
    tags,
)
from vmae.experiments.tracking import tracker as tracker_module
from vmae.experiments.tracking.client import experiment_id, find_run, mlflow_client
from vmae.experiments.tracking.sender import patience


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = store_at(tmp_path / "runs")
    create_store(store)
    return store


def _open(store: Store, key: str = "k1", parent: str | None = None) -> Tracker:
    run_dir = store.runs_dir / key
    return Tracker(
        store, run_dir, name=key, key=key, kind="pretrain", parent_key=parent, params={"mask.ratio": 0.9}
    )


def _history(store: Store, key: str, metric: str) -> list[tuple[int, float]]:
    client = mlflow_client(store.uri)
    run = find_run(client, experiment_id(store, client), key)
    assert run is not None
    return sorted((m.step, m.value) for m in client.get_metric_history(run, metric))


def test_a_run_is_written_with_params_metrics_tags_pictures_and_parent(store: Store) -> None:
    # The trial reports first: it waits for its sweep.
    with _open(store, parent="sweep") as tracker:
        assert not tracker.flush(1.0)
        with _open(store, "sweep"):
            pass
        for step in range(50):
            tracker.log_metrics({"train/loss": 1.0 / (step + 1)}, step)
        tracker.log_image(np.zeros((8, 8, 3), np.uint8), "reconstruction", 1)
        tracker.set_tags({"vmae.sweep": "s"})
    client = mlflow_client(store.uri)
    experiment = experiment_id(store, client)
    run = client.get_run(find_run(client, experiment, "k1"))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"mask.ratio": "0.9"}
    assert run.data.tags["vmae.sweep"] == "s"
    assert run.data.tags["mlflow.parentRunId"] == find_run(client, experiment, "sweep")
    assert len(client.list_artifacts(run.info.run_id, "images")) == 2  # png and its small webp
    assert [s for s, _ in _history(store, "k1", "train/loss")] == list(range(50))


def test_a_resumed_run_is_one_run_and_counts_each_step_once(store: Store) -> None:
    with _open(store) as tracker:
        for step in range(10):
            tracker.log_metrics({"train/loss": float(step)}, step)
    # The second attempt starts from a checkpoint at step 6 and repeats what came after it.
    with _open(store) as tracker:
        for step in range(6, 15):
            tracker.log_metrics({"train/loss": float(step)}, step)
    assert _history(store, "k1", "train/loss") == [(s, float(s)) for s in range(15)]
    client = mlflow_client(store.uri)
    assert len(client.search_runs([experiment_id(store, client)])) == 1


def test_a_run_directory_may_have_any_printable_character(tmp_path: Path) -> None:
    """In a URI `?` and `#` end the path, and `%20` is a space: the database lies where its folder is."""
    odd = "".join(c for c in string.printable if c.isprintable() and c != "/") + " ünï 模%20型"
    for name in (odd, "what?", "100%"):
        store = store_at(tmp_path / name)
        create_store(store)
        with _open(store, "k") as tracker:
            tracker.log_metrics({"train/loss": 0.5}, 1)
            tracker.log_image(np.zeros((8, 8, 3), np.uint8), "reconstruction", 1)
        (run,) = list_runs(store)
        assert run.metrics["train/loss"] == 0.5 and run.status == "FINISHED"
        ((step, picture),) = pictures(run)
        assert step == 1 and picture.is_relative_to(store.layout.artifacts) and picture.exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([odd, "what?", "100%"])


def test_names_that_are_no_utf8_reach_the_store(store: Store) -> None:
    """A database takes no half of a surrogate pair, which is what Python makes of such a byte."""
    odd = os.fsdecode(b"data/caf\xe9.csv")
    with Tracker(
        store,
        store.runs_dir / "k",
        name="k",
        key="k",
        kind="pretrain",
        params={"data.train_csv": odd},
        tags={"vmae.command": f"vmae pretrain --data {odd}"},
    ) as tracker:
        tracker.set_tags({"vmae.init": odd})
        assert tracker.flush(60)
    (run,) = list_runs(store)
    assert run.params["data.train_csv"] == run.tags["vmae.init"] == r"data/caf\xe9.csv"
    assert run.tags["vmae.command"] == r"vmae pretrain --data data/caf\xe9.csv" and run.status == "FINISHED"


def test_a_removed_folders_name_is_no_identity(store: Store) -> None:
    """The run that takes the name of a removed one is another run; one that was moved stays the same."""
    home = store.layout.run("a")

    def attempt(name: str, ratio: float, steps: int) -> None:
        where = store.layout.run(name)
        key = key_of(where, name)
        with Tracker(
            store, where.path, name=name, key=key, kind="pretrain", params={"mask.ratio": ratio}
        ) as t:
            t.log_metrics({"pretrain/loss": ratio}, steps)

    attempt("a", 0.5, 6)
    shutil.rmtree(home.path)
    attempt("a", 0.9, 5)
    found = [(r.params["mask.ratio"], r.metrics["pretrain/loss"]) for r in list_runs(store)]
    assert found == [("0.9", 0.9), ("0.5", 0.5)]
    home.path.rename(store.layout.run("b").path)
    attempt("b", 0.9, 7)
    assert len(list_runs(store)) == 2 and list_runs(store)[0].params["mask.ratio"] == "0.9"


def test_steps_that_a_killed_attempt_spooled_but_did_not_send_count_once(store: Store) -> None:
    first = Tracker(store, store.runs_dir / "k1", name="k1", key="k1", kind="pretrain")
    first.finish()
    with open(first.spool, "a") as f:  # what a process killed before sending leaves behind
        f.write(json.dumps({"event": "metrics", "values": {"a": 6.0}, "step": 6, "time_ms": 1}) + "\n")
    with _open(store) as tracker:
        tracker.log_metrics({"a": 6.0}, 6)
        tracker.log_metrics({"a": 7.0}, 7)
    assert _history(store, "k1", "a") == [(6, 6.0), (7, 7.0)]


def test_what_a_dead_server_missed_is_sent_later(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    away = Store(uri=f"http://127.0.0.1:{port}", runs_dir=store.runs_dir)
    tracker = _open(away)
    tracker.log_metrics({"train/loss": 0.5}, 3)
    assert tracker.finish(timeout_s=3.0) is False
    assert "vmae runs sync" in caplog.text
    assert [outcome for _, outcome in sync(store.runs_dir)] == ["sent"]
    assert _history(store, "k1", "train/loss") == [(3, 0.5)]
    assert sync(store.runs_dir) == []


def test_what_the_store_refuses_is_set_aside_and_the_rest_goes_on(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    (store.runs_dir / "note.txt").write_text("hello")
    with _open(store) as tracker:
        tracker.log_metrics({"a": 1.0, "a name?": 2.0}, 1)
        tracker.set_tags({"a tag?": "x", "b": "y"})
        tracker.log_metrics({"a": 3.0}, 2)
        tracker.log_artifact(store.runs_dir / "note.txt", "inside")
    assert _history(store, "k1", "a") == [(1, 1.0), (2, 3.0)]
    client = mlflow_client(store.uri)
    run = client.get_run(find_run(client, experiment_id(store, client), "k1"))
    assert run.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "inside")] == ["inside/note.txt"]
    assert run.data.tags["b"] == "y"
    assert run.data.tags[tags.REFUSED].startswith("2 events; the last: tags a tag?: ")
    assert "refused 1 event; the last: metrics a name?: " in caplog.text
    # `runs sync` offers them again, and says what is still refused.
    ((spool, outcome),) = sync(store.runs_dir)
    assert outcome.startswith("refused: 2 events") and REFUSED in outcome
    kept = spool.with_name(REFUSED)
    assert [json.loads(x)["event"]["event"] for x in kept.read_text().splitlines()] == ["metrics", "tags"]
    # A resumed attempt repeats them: each is kept once.
    with _open(store) as tracker:
        tracker.log_metrics({"a": 1.0, "a name?": 2.0}, 1)
    assert len(kept.read_text().splitlines()) == 3  # the metric has another time


def test_parameters_that_a_killed_attempt_did_not_send_are_sent(store: Store) -> None:
    client = mlflow_client(store.uri)
    experiment = experiment_id(store, client)
    client.create_run(experiment, tags={tags.KEY: "k1"})
    with _open(store):
        pass
    run_id = find_run(client, experiment, "k1")
    assert run_id is not None and client.get_run(run_id).data.params == {"mask.ratio": "0.9"}


def test_half_a_line_left_by_a_killed_process_is_passed_over(store: Store) -> None:
    tracker = _open(store)
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.finish()
    with open(tracker.spool, "a") as f:
        f.write(json.dumps({"event": "metrics", "values": {"a": 2.0}})[:20])
    with _open(store) as tracker:
        tracker.log_metrics({"a": 3.0}, 3)
    assert _history(store, "k1", "a") == [(1, 1.0), (3, 3.0)]


def test_the_machine_is_measured_at_low_cost_and_steps_grow_over_attempts(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracker_module, "SYSTEM_EVERY_S", 0.2)
    monkeypatch.setattr(tracker_module, "GATHER_S", 0.2)
    for attempt in range(2):
        with _open(store) as tracker:
            mine, end = time.thread_time(), time.monotonic() + 60
            # Steps are whole seconds: two measurements of an attempt may share one.
            while len(spooled_metrics(tracker.spool).get("system/cpu_percent", ())) < 2 + attempt:
                assert time.monotonic() < end, "the machine is not measured"
                time.sleep(0.25)
            assert time.thread_time() - mine < 0.15, "the caller's thread paid for it"
    memory = _history(store, "k1", "system/process_memory_gib")
    assert 0.01 < memory[0][1] < 10
    steps = [s for s, _ in memory]
    assert len(steps) >= 3
    assert steps == sorted(set(steps))
    assert all(0 <= v <= 100 for _, v in _history(store, "k1", "system/cpu_percent"))


def test_a_logged_step_costs_the_run_a_fraction_of_a_millisecond(store: Store) -> None:
    """1% of a step of 100 ms, each logged; processor time, which a busy machine hardly changes."""
    with _open(store) as tracker:
        before, own = tracker.cost, time.thread_time()
        for step in range(200):
            tracker.log_metrics({"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}, step)
        own = time.thread_time() - own
        spent = tracker.cost
    assert own / 200 < 1e-3
    assert spent.seconds - before.seconds > 0.5 * own, "not all of it is counted"
    assert tracker.cost.cpu_s > own


def test_the_first_status_is_the_runs(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    with _open(store) as tracker:
        assert tracker.finish("KILLED")
    client = mlflow_client(store.uri)
    run_id = find_run(client, experiment_id(store, client), "k1")
    assert run_id is not None and client.get_run(run_id).info.status == "KILLED"
    assert sync(store.runs_dir) == [] and not caplog.text


def test_a_large_artifact_gets_the_time_it_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    large = store.runs_dir / "large.bin"
    with open(large, "wb") as f:
        f.truncate(200 * 10**6)  # a hole: nothing is written
    with patience(large):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "100"
    with patience(store.runs_dir / "mlflow.db"):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "10"


def _write_many(store: Store, index: int) -> None:
    with _open(store, f"w{index}") as tracker:
        for step in range(100):
            tracker.log_metrics({"a": float(step), "b": float(-step)}, step)


@pytest.mark.parametrize("count", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_processes_on_a_fresh_store_at_once_lose_nothing(tmp_path: Path, count: int) -> None:
    store = store_at(tmp_path / "runs")
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_write_many, args=(store, i)) for i in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    # Eight at once on a busy machine may end before they have sent all: it waits, and is sent now.
    assert {outcome for _, outcome in sync(store.runs_dir)} <= {"sent"}
    for i in range(count):
        assert [s for s, _ in _history(store, f"w{i}", "a")] == list(range(100))
        assert len(_history(store, f"w{i}", "b")) == 100


def test_what_a_full_disk_has_no_room_for_waits_in_memory(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on and loses nothing, and no half line is left: the limit cuts one in the middle."""
    monkeypatch.setattr(tracker_module, "SYSTEM_EVERY_S", 0.05)
    monkeypatch.setattr(tracker_module, "GATHER_S", 0.05)
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    with _open(store) as tracker:
        measured: list[int] = []
        measure = tracker._system.measure
        monkeypatch.setattr(tracker._system, "measure", lambda: measured.append(1) or measure())
        tracker.log_metrics({"train/loss": 0.0}, 0)
        assert tracker.flush(60)
        spool = tracker.spool
        resource.setrlimit(resource.RLIMIT_FSIZE, (spool.stat().st_size + 20, usual[1]))
        try:
            for step in range(1, 20):
                tracker.log_metrics({"train/loss": float(step)}, step)
            before, end = len(measured), time.monotonic() + 60
            while len(measured) < before + 3:  # it measures again only after the writing before failed
                assert tracker._thread.is_alive()
                assert time.monotonic() < end
                time.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert caplog.text.count("waits in memory") == 1
    assert _history(store, "k1", "train/loss") == [(s, float(s)) for s in range(20)]
    assert all(json.loads(line) for line in spool.read_text().splitlines())


def test_a_run_whose_first_line_was_cut_goes_on(store: Store) -> None:
    """Killed while the first event was written: the next attempt says again what run it is."""
    home = store.layout.run("k1")
    home.path.mkdir(parents=True)
    home.spool.write_text('{"event": "start", "store": "sqli')
    with _open(store) as tracker:
        tracker.log_metrics({"a": 1.0}, 1)
    assert _history(store, "k1", "a") == [(1, 1.0)]
    assert sync(store.runs_dir) == []


def test_a_spool_that_does_not_say_its_run_is_named_by_sync(store: Store) -> None:
    home = store.layout.run("k1")
    home.path.mkdir(parents=True)
    home.spool.write_text(
        '{"event": "sta\n{"event": "metrics", "values": {"a": 1}, "step": 1, "time_ms": 1}\n'
    )
    ((spool, why),) = sync(store.runs_dir)
    assert spool == home.spool and "what run it is of" in why


@pytest.mark.parametrize("name", ["it's", 'say "x"', 'it\'s "x"', "50% ?a=b#c", "a_b", "back\\slash"])
def test_a_run_is_found_again_whatever_its_name(store: Store, name: str) -> None:
    client = mlflow_client(store.uri)
    experiment = experiment_id(store, client)
    for other in ("its", "aXb", name):
        made = client.create_run(experiment, tags={tags.KEY: other})
    assert find_run(client, experiment, name) == made.info.run_id


def test_a_lost_store_gets_everything_again(store: Store) -> None:
    """The database is gone and the offset says that all was sent: to the one that is gone."""
    home = store.layout.run("k1")
    home.path.mkdir()
    made = {"name": "k1", "key": "k1", "kind": "pretrain", "parent_key": None, "params": {}, "tags": {}}
    events = [{"event": "start", "store": store.uri, **made}]
    events += [{"event": "metrics", "values": {"a": float(step)}, "step": step} for step in range(1, 4)]
    home.spool.write_text("".join(json.dumps({**e, "time_ms": 1}) + "\n" for e in events))
    home.offset.write_text(str(home.spool.stat().st_size))
    with _open(store) as tracker:
        tracker.log_metrics({"a": 4.0}, 4)
    assert _history(store, "k1", "a") == [(s, float(s)) for s in range(1, 5)]


@pytest.mark.parametrize("uri", ["nowhere://x", "postgres-typo:///x"])
def test_a_store_that_mlflow_does_not_know_is_one_line(tmp_path: Path, uri: str) -> None:
    store = Store(uri=uri, runs_dir=tmp_path / "runs")
    with pytest.raises(VmaeError, match=f"expected (a store of runs at|the tracking server) {uri}") as failed:
        create_store(store)
    assert "\n" not in str(failed.value)


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    store = store_at(tmp_path / "runs")
    store.runs_dir.mkdir()
    store.layout.database.write_bytes(b"garbage garbage!" * 64)
    with pytest.raises(VmaeError, match="expected a store of runs at sqlite:") as failed:
        create_store(store)
    assert "\n" not in str(failed.value)
