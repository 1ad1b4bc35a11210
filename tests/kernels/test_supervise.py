"""A watched worker: what it said is kept; a crash or a hang is blamed on what it did, and it goes on."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from vmae.kernels.supervise import Journal, supervise

# A worker without vmae (it starts in milliseconds): three items of two parts; one part crashes, one hangs.
WORKER = """
import json, os, sys, time
path = sys.argv[1]
events = [json.loads(x) for x in open(path)] if os.path.exists(path) else []
bad = {(e["blame"], e["part"]) for e in events if "blame" in e}
over = {e["done"] for e in events if "done" in e} | {item for item, part in bad if part is None}
def say(**e):
    with open(path, "a") as f:
        f.write(json.dumps(e) + "\\n")
for item in ("one", "two", "three"):
    if item in over:
        continue
    say(start=item, part=None, limit_s=60)
    if item == "three":
        os.abort()
    parts = []
    for part in ("a", "b"):
        if (item, part) in bad:
            continue
        say(start=item, part=part, limit_s=0.5 if (item, part) == ("two", "a") else 60)
        if (item, part) == ("one", "b"):
            os.abort()
        if (item, part) == ("two", "a"):
            time.sleep(600)
        parts.append(part)
    say(done=item, key="ops", value=parts, took_s=0)
"""


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    return [sys.executable, "-S", str(script), str(tmp_path / "journal")]


def test_it_goes_on_behind_a_crash_and_a_hang(command: list[str], tmp_path: Path) -> None:
    journal = Journal(path=tmp_path / "journal")
    events: list[dict[str, Any]] = []
    supervise(command, journal, deadline=time.monotonic() + 120, on_event=events.append)
    assert {e["done"]: e["value"] for e in events if "done" in e} == {"one": ["a"], "two": ["b"]}
    blamed = {(e["blame"], e["part"]): e["why"] for e in events if "blame" in e}
    assert set(blamed) == {("one", "b"), ("two", "a"), ("three", None)}
    assert "code -6" in blamed["one", "b"]
    assert "hung" in blamed["two", "a"]
    assert journal.finished() == {"one", "two", "three"}
    assert set(journal.to_blame("one")) == {"b"}


def test_the_deadline_ends_it_and_keeps_what_is_there(command: list[str], tmp_path: Path) -> None:
    journal = Journal(path=tmp_path / "journal")
    journal.write(done="one", key="ops", value=[], took_s=0)
    journal.path.write_text(journal.path.read_text() + '{"done": "cut o')  # killed while it wrote
    journal.path.write_text(journal.path.read_text() + "\n")
    begin = time.monotonic()
    script = Path(command[2])
    script.write_text("import time\ntime.sleep(60)")
    supervise(command, journal, deadline=begin + 0.3, on_event=lambda e: None)
    assert time.monotonic() - begin < 10
    assert journal.finished() == {"one"}


def test_a_worker_that_never_starts_is_not_tried_for_ever(command: list[str], tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    Path(command[2]).write_text("raise SystemExit('no GPU')")
    journal = Journal(path=tmp_path / "journal")
    supervise(command, journal, deadline=time.monotonic() + 120, on_event=events.append)
    assert events == [{"say": "the worker does not start: the worker ended with code 1: no GPU"}]
