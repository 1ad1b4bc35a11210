"""Runs reach the store, also when it was away; an attempt that is repeated counts once."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from vmae.experiments import tracking
from vmae.experiments.layout import REFUSED
from vmae.experiments.tracking import Store, Tracker, create_store, store_at, sync


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
    client = tracking._client(store.uri)
    run = tracking.find_run(client, tracking._experiment_id(store, client), key)
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
    client = tracking._client(store.uri)
    experiment = tracking._experiment_id(store, client)
    run = client.get_run(tracking.find_run(client, experiment, "k1"))
    assert run.info.status == "FINISHED"
    assert run.data.params == {"mask.ratio": "0.9"}
    assert run.data.tags["vmae.sweep"] == "s"
    assert run.data.tags["mlflow.parentRunId"] == tracking.find_run(client, experiment, "sweep")
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
    client = tracking._client(store.uri)
    assert len(client.search_runs([tracking._experiment_id(store, client)])) == 1


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
    client = tracking._client(store.uri)
    run = client.get_run(tracking.find_run(client, tracking._experiment_id(store, client), "k1"))
    assert run.info.status == "FINISHED"
    assert [f.path for f in client.list_artifacts(run.info.run_id, "inside")] == ["inside/note.txt"]
    assert run.data.tags["b"] == "y"
    assert run.data.tags[tracking.REFUSED_TAG].startswith("2 events; the last: tags a tag?: ")
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
    client = tracking._client(store.uri)
    experiment = tracking._experiment_id(store, client)
    client.create_run(experiment, tags={tracking.KEY_TAG: "k1"})
    with _open(store):
        pass
    run_id = tracking.find_run(client, experiment, "k1")
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
    monkeypatch.setattr(tracking, "SYSTEM_EVERY_S", 0.2)
    monkeypatch.setattr(tracking, "GATHER_S", 0.2)
    for attempt in range(2):
        with _open(store) as tracker:
            mine, end = time.thread_time(), time.monotonic() + 60
            # Steps are whole seconds: two measurements of an attempt may share one.
            while len(tracking.spooled_metrics(tracker.spool).get("system/cpu_percent", ())) < 2 + attempt:
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
    client = tracking._client(store.uri)
    run_id = tracking.find_run(client, tracking._experiment_id(store, client), "k1")
    assert run_id is not None and client.get_run(run_id).info.status == "KILLED"
    assert sync(store.runs_dir) == [] and not caplog.text


def test_a_large_artifact_gets_the_time_it_needs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    large = store.runs_dir / "large.bin"
    with open(large, "wb") as f:
        f.truncate(200 * 10**6)  # a hole: nothing is written
    with tracking._patience(large):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "100"
    with tracking._patience(store.runs_dir / "mlflow.db"):
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
    for i in range(count):
        assert [s for s, _ in _history(store, f"w{i}", "a")] == list(range(100))
        assert len(_history(store, f"w{i}", "b")) == 100


def test_a_full_disk_does_not_end_the_thread_that_sends(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_EVERY_S", 0.05)
    monkeypatch.setattr(tracking, "GATHER_S", 0.05)
    with _open(store) as tracker:
        measured: list[int] = []
        measure = tracker._system.measure
        monkeypatch.setattr(tracker._system, "measure", lambda: measured.append(1) or measure())
        spool, tracker.spool = tracker.spool, store.runs_dir / "absent" / "spool"  # cannot be written
        before, end = len(measured), time.monotonic() + 60
        while len(measured) < before + 3:  # it measures again only after the writing before failed
            assert tracker._thread.is_alive()
            assert time.monotonic() < end
            time.sleep(0.01)
        tracker.spool = spool
        tracker.log_metrics({"train/loss": 1.0}, 1)
    assert _history(store, "k1", "train/loss") == [(1, 1.0)]
