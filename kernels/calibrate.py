"""Measure this machine once: the sites of a run, in a watched process, into the machine's table.

Whoever is about to train says which sites its step has. What the table knows is taken from it; the rest is
measured by a child process before training allocates anything, the sites with most to save first. A candidate
that hangs or crashes takes the child with it, is remembered as refused, and the child goes on behind it. What
did not fit into the budget takes torch's way, and is said.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vmae.kernels.device import device_named
from vmae.kernels.sites import Site
from vmae.kernels.supervise import STILL_COMPILING, Journal, supervise
from vmae.kernels.table import Row, Rows, Store, fingerprint

CUDA = "vmae.kernels.device:Device"
LIMIT_S = 10.0
"""How long a candidate may be silent."""
COMPILE_LIMIT_S = 60.0
"""How long a compiler may be: on a busy machine it is slow, and that says nothing about its kernel."""
CHOICES = ("", "off", "force")
_log = logging.getLogger("vmae.kernels")
Say = Callable[[str], None]


@dataclass(kw_only=True)
class Outcome:
    """What a run goes by: a row for each of its sites that has one; what to tell."""

    rows: Rows = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    fingerprint: str = ""
    seconds: float = 0.0
    measured: int = 0
    """Sites that were measured now."""


def wish() -> str:
    """`VMAE_CALIBRATE`: "off", "force" (measure again, however short the run), or "" for what is sensible."""
    value = os.environ.get("VMAE_CALIBRATE", "")
    if value not in CHOICES:
        _log.warning("expected VMAE_CALIBRATE to be off or force; got %r, which counts as unset", value)
        return ""
    return value


def calibrate(
    calls: Mapping[Site, int],
    *,
    budget_s: float,
    say: Say = lambda line: None,
    force: bool = False,
    only_known: bool = False,
    layer: str = CUDA,
    folder: Path | None = None,
    limit_s: float | None = None,
    compile_limit_s: float = COMPILE_LIMIT_S,
) -> Outcome:
    """Return what this machine chooses at each of these sites, measuring those not known yet.

    calls: how often a step calls each. budget_s: for everything, the child's start included; another process
    that measures for the same fingerprint is waited for as long. only_known: nothing is measured.
    folder: of the tables (None: `cache_folder`). limit_s: how long a candidate may be silent before it counts
    as hung (None: LIMIT_S). compile_limit_s: how long a compiler, before it is left out.
    """
    begin = time.monotonic()
    device = device_named(layer)
    store = Store(device.facts(), folder)
    wanted = sorted(calls, key=lambda site: -calls[site] * _size(site))
    known = {} if force else store.load()
    measured = 0
    if _missing(wanted, known) and not only_known:
        with store.turn(budget_s) as ours:
            known = {} if force else store.load()  # another process may have measured meanwhile
            missing = _missing(wanted, known)
            if missing and not ours:
                say("another process is measuring kernels on this machine, too long to wait for: torch's way")
            elif missing:
                limits = limit_s or LIMIT_S, max(compile_limit_s, limit_s or LIMIT_S)
                refused = {key: row.refused for key, row in store.load().items()}
                found = _measure(missing, refused, layer, begin + budget_s, limits, say)
                store.merge(found)
                known |= found
                measured = sum(bool(row.choice) for row in found.values())
    rows = {s.key: known[s.key] for s in wanted if s.key in known and known[s.key].choice}
    outcome = Outcome(rows=rows, fingerprint=fingerprint(store.facts), seconds=time.monotonic() - begin)
    outcome.lines = [f"{site.key}: {_told(known.get(site.key))}" for site in wanted]
    outcome.measured = measured
    for line in outcome.lines:
        say(line)
    return outcome


def _missing(wanted: list[Site], known: Rows) -> list[Site]:
    return [s for s in wanted if s.key not in known or not known[s.key].choice]


def _told(row: Row | None) -> str:
    if row is None or not row.choice:
        return f"torch ({row.why if row is not None and row.why else 'not measured: no time was left'})"
    refused = f"; refused: {'; '.join(f'{k}: {v}' for k, v in row.refused.items())}" if row.refused else ""
    return f"{row.choice} ({row.why}{refused})"


def _size(site: Site) -> float:
    """A measure of what a call costs, to order by: values touched, and scores for attention."""
    sizes = dict(site.dims)
    if site.op == "fused_attention":
        n = sizes["N"]
        return site.batch * sizes["H"] * n * (4.0 * sizes["D"] + 0.5 * n) * (3 if site.grad else 1)
    if site.op == "assemble_decoder_tokens":
        return 2.0 * site.batch * (sizes["V"] + sizes["M"]) * sizes["D"]
    values = sizes["tubelet"] * sizes["patch"] ** 2 * sizes["C"]
    return 3.0 * site.batch * sizes["K"] * values


def _measure(
    sites: list[Site],
    refused: Mapping[str, Mapping[str, str]],
    layer: str,
    deadline: float,
    limits: tuple[float, float],
    say: Say,
) -> Rows:
    """In a child process; the rows that may be kept."""
    say(f"measuring {len(sites)} kernel sites on this GPU, once, at most {deadline - time.monotonic():.0f} s")
    with tempfile.TemporaryDirectory() as place:
        plan = Path(place, "plan.json")
        plan.write_text(
            json.dumps(
                {
                    "sites": [site.key for site in sites],
                    "refused": {k: dict(v) for k, v in refused.items()},
                    "layer": layer,
                    "deadline": deadline,
                    "limits": limits,
                }
            )
        )
        journal = Journal(path=Path(place, "journal.jsonl"))
        command = [sys.executable, "-m", "vmae.kernels.calibrate_worker", str(plan), str(journal.path)]

        def on_event(event: dict[str, Any]) -> None:
            if "say" in event:
                say(str(event["say"]))

        supervise(command, journal, deadline=deadline + 2.0, on_event=on_event)
        return rows_of(journal, say)


def rows_of(journal: Journal, say: Say = lambda line: None) -> Rows:
    """What a child's journal says: decided sites, and what was to blame for a hang or a crash.

    What was only too slow to compile is left out now, and not refused for ever.
    """
    rows: Rows = {}
    for event in journal.read():
        if "done" in event:
            row = Row(**event["value"])
            before = rows.get(event["done"], Row()).refused
            rows[event["done"]] = Row(**{**asdict(row), "refused": {**before, **row.refused}})
        elif "blame" in event and event["part"] not in (None, "inputs"):
            slow = event["why"].startswith(STILL_COMPILING)
            again = "left out this time" if slow else "it is not tried again"
            say(f"{event['blame']}, {event['part']}: {event['why']}; {again}")
            rows.setdefault(event["blame"], Row()).refused[event["part"]] = event["why"]
    for row in rows.values():
        row.refused = {k: why for k, why in row.refused.items() if not why.startswith(STILL_COMPILING)}
    return {key: row for key, row in rows.items() if row.choice or row.refused}
