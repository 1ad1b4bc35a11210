"""The table of measurements on disk: whole, merged by many processes, harmless where it cannot be written."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from vmae.kernels import table
from vmae.kernels.table import Row, Store

FACTS = {"gpu": "NVIDIA Test 4000", "capability": "8.9", "driver": "1", "torch": "2"}
fork = multiprocessing.get_context("fork")


def _merge_many(folder: Path, mine: int) -> None:
    store = Store(FACTS, folder)
    for i in range(20):
        store.merge({f"site {mine} {i}": Row(choice="torch", why=f"{mine}")})


def _hold(folder: Path, holding: Event, let_go: Event) -> None:
    with Store(FACTS, folder).turn(10.0) as ours:
        assert ours
        holding.set()
        let_go.wait(60)


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    store = Store(FACTS, tmp_path)
    assert store.load() == {}
    row = Row(
        choice="triton default",
        why="1.3 times",
        ms={"torch": [1.0, 1.1, 1.2]},
        refused={"sdpa flash": "hung"},
    )
    store.merge({"a": row, "b": Row(refused={"triton default": "crashed"})})
    assert Store(FACTS, tmp_path).load() == {"a": row, "b": Row(refused={"triton default": "crashed"})}
    store.merge({"a": Row(refused={"triton 2 warps": "hung"})})  # refused later; what was chosen stays
    again = Store(FACTS, tmp_path).load()["a"]
    assert (again.choice, set(again.refused)) == ("triton default", {"sdpa flash", "triton 2 warps"})
    assert json.loads(store.path.read_text())["machine"] == FACTS


def test_another_driver_gpu_or_kernel_is_another_table(tmp_path: Path) -> None:
    names = {table.fingerprint(FACTS | {k: "other"}) for k in FACTS} | {table.fingerprint(FACTS)}
    assert len(names) == 1 + len(FACTS)
    assert table.fingerprint(FACTS).startswith("nvidia-test-4000-")
    Store(FACTS, tmp_path).merge({"a": Row(choice="torch")})
    assert Store(FACTS | {"driver": "2"}, tmp_path).load() == {}


def test_the_folder_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMAE_CACHE_DIR", str(tmp_path / "cache"))
    Store(FACTS).merge({"a": Row(choice="torch")})
    assert [p.suffix for p in (tmp_path / "cache" / "kernels").glob("*.json")] == [".json"]
    monkeypatch.delenv("VMAE_CACHE_DIR")
    assert table.cache_folder() == Path.home() / ".cache" / "vmae" / "kernels"


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [fork.Process(target=_merge_many, args=(tmp_path, i)) for i in range(4)]
    for w in writers:
        w.start()
    path = Store(FACTS, tmp_path).path
    while any(w.is_alive() for w in writers):
        if path.exists():
            json.loads(path.read_text())  # whole at every moment
        time.sleep(0.002)
    assert [w.exitcode for w in writers] == [0] * 4
    assert len(Store(FACTS, tmp_path).load()) == 80
    assert not list(tmp_path.glob("*.new"))


def test_one_measures_and_the_others_wait_with_a_limit(tmp_path: Path) -> None:
    holding, let_go = fork.Event(), fork.Event()
    holder = fork.Process(target=_hold, args=(tmp_path, holding, let_go))
    holder.start()
    assert holding.wait(30)
    begin = time.monotonic()
    with Store(FACTS, tmp_path).turn(0.3) as ours:
        assert not ours
    assert 0.3 <= time.monotonic() - begin < 5
    with Store(FACTS | {"gpu": "other"}, tmp_path).turn(0.0) as ours:
        assert ours  # another GPU's turn is its own
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)  # a killed process holds nothing
    with Store(FACTS, tmp_path).turn(20.0) as ours:
        assert ours
    holder.join()


def test_where_nothing_can_be_written_it_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    store = Store(FACTS, tmp_path / "file" / "kernels")
    with caplog.at_level(logging.WARNING, "vmae.kernels"):
        with store.turn(0.1) as ours:
            assert ours
        store.merge({"a": Row(choice="triton default")})
        store.merge({"b": Row(choice="torch")})
    assert set(store.load()) == {"a", "b"}
    assert len([r for r in caplog.records if "cannot be written" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    "text", ["", "{", '{"schema": 1}', '{"schema": 1, "sites": {"a": {"tile": 3}}}', "[]"]
)
def test_a_spoilt_file_is_measured_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    store = Store(FACTS, tmp_path)
    tmp_path.mkdir(exist_ok=True)
    store.path.write_text(text)
    with caplog.at_level(logging.WARNING, "vmae.kernels"):
        assert store.load() == {}
    assert "expected a table of kernels" in caplog.text
    store.merge({"a": Row(choice="torch")})
    assert set(store.load()) == {"a"}
