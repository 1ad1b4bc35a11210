"""What the GPU suite measures, item after item, in a process that is watched.

A worker reports every start and every result in a journal (`vmae.kernels.supervise`); started again after a
crash, it goes on behind what is done, without what is to blame.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from vmae.experiments import recipes
from vmae.experiments.bench import step as steps
from vmae.experiments.bench import tiles
from vmae.experiments.bench.calibration import work_of
from vmae.kernels import dispatch
from vmae.kernels.descriptor import BenchCase, Sweep
from vmae.kernels.device import Device, Host
from vmae.kernels.registry import bench_cases, use_candidate
from vmae.kernels.sites import Site
from vmae.kernels.supervise import Journal
from vmae.kernels.table import from_json, to_json
from vmae.kernels.timing import measure_ceilings, run_bench
from vmae.kernels.trial import measure_site

WARMERS = 3
# Silence that means a hang: the first inductor compilation of an op, of a whole model.
OP_LIMIT_S, STEP_LIMIT_S = 90.0, 240.0
Announce = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to measure. run(announce, skip) gives a value of the JSON's `key`; by: share of the time."""

    name: str
    key: str
    by: float
    run: Callable[[Announce, dict[str, str]], Any]
    limit_s: float = OP_LIMIT_S


def work_items(device: str, parts: str, *, dry_run: bool) -> Iterator[Item]:
    """Everything to measure, most telling first."""
    ops = bench_cases(device, tiny=dry_run, compiled=not dry_run) if "b" in parts else []
    cases = steps.cases(dry_run=dry_run)
    whole = [_step(cases, i, device, dry_run) for i in range(len(cases))] if "c" in parts else []
    yield Item(
        name="ceilings",
        key="ceilings",
        by=1.0,
        run=lambda announce, skip: measure_ceilings(device, scale=256 if dry_run else 1),
    )
    if "b" in parts:
        for sweep in tiles.sweeps(device, tiny=dry_run):
            yield _tiles(sweep, device, dry_run)
        yield from _sites(device, dry_run)
    yield from (_op(case, device, dry_run, by=0.6) for case in ops if case.barred)
    yield from whole[:1]
    if "d" in parts:
        yield Item(
            name="profile",
            key="profile",
            by=1.0,
            run=lambda announce, skip: steps.profile_step(device, dry_run=dry_run),
        )
    yield from whole[1:3]
    by = 0.85 if device == "cuda" else 1.0
    yield from (_op(case, device, dry_run, by=by) for case in ops if not case.barred)
    yield from whole[3:]


def _tiles(sweep: Sweep, device: str, dry_run: bool) -> Item:
    return Item(
        name=f"tiles {sweep.kernel}",
        key="tiles",
        by=0.5,
        run=lambda announce, skip: tiles.measure(sweep, device, tiny=dry_run, announce=announce, skip=skip),
    )


def _sites(device: str, dry_run: bool) -> Iterator[Item]:
    """What calibration chooses at each site of ViT-B's pre-training step, 64 clips, eager and compiled."""
    recipe, rows = ("demo_pretrain", 2) if dry_run else ("k400_base_pretrain", 64)
    sites: dict[Site, int] = {}
    for compiled in (False,) if dry_run else (False, True):
        precision = "fp32" if dry_run else "bf16"
        sites |= work_of(recipes.get(recipe), rows=rows, precision=precision, compiled=compiled).calls
    layer = Device() if device == "cuda" else Host()

    def measured(site: Site) -> Callable[[Announce, dict[str, str]], dict[str, Any]]:
        def run(announce: Announce, skip: dict[str, str]) -> dict[str, Any]:
            def said(choice: str, compiles: bool) -> None:
                announce(choice)

            return to_json({site.key: measure_site(site, layer, refused=skip, announce=said)})

        return run

    for site in sites:
        yield Item(name=f"site {site.key}", key="calibration", by=0.55, run=measured(site))


def calibrated_line(rows: dict[str, Any]) -> str:
    """What was chosen, and why."""
    return "; ".join(f"{key}: {row['choice'] or 'torch'} ({row['why']})" for key, row in rows.items())


def _op(case: BenchCase, device: str, dry_run: bool, *, by: float) -> Item:
    sets, rounds, min_ms = (1, 1, 0.1) if dry_run else (3, 7, 60.0)

    def run(announce: Announce, skip: dict[str, str]) -> dict[str, Any]:
        how: dict[str, Any] = {"sets": sets, "rounds": rounds, "min_ms": min_ms}
        return run_bench(case.build(), device, skip=skip, announce=announce, **how).to_dict()

    return Item(name=f"op {case.name}", key="ops", by=by, run=run)


def _step(cases: tuple[steps.StepCase, ...], i: int, device: str, dry_run: bool) -> Item:
    def run(announce: Announce, skip: dict[str, str]) -> list[dict[str, Any]]:
        how: dict[str, Any] = {"dry_run": dry_run, "every_variant": i == 0}
        return steps.run_case(cases[i], device, skip=skip, announce=announce, **how)

    return Item(name=f"step {cases[i].label}", key="steps", by=1.0, run=run, limit_s=STEP_LIMIT_S)


def work(
    journal: Journal,
    device: str,
    parts: str,
    *,
    dry_run: bool,
    begin: float,
    budget_s: float,
    known: dict[str, Any] | None = None,
) -> None:
    """Measure item after item, say so in the journal; go on behind what it says is done.

    known: a former result of this machine, whose tiles and ops serve the parts that are measured now.
    """
    known = known or {}
    chosen = from_json(known.get("calibration", {}))
    for row in known.get("tiles", []):
        use_candidate(row["kernel"], str(row["best"]))
    finished = journal.finished()
    took = {"steps": 0.0, "ops": 0.0}
    for event in journal.read():
        if "done" in event:
            if event["key"] == "calibration":
                chosen |= from_json(event["value"])
            if event["key"] == "tiles":
                use_candidate(event["value"]["kernel"], str(event["value"]["best"]))
            took[event["key"]] = max(took.get(event["key"], 0.0), event["took_s"])
    for item in work_items(device, parts, dry_run=dry_run):
        if item.name in finished:
            continue
        # The next of a kind takes about as long as the slowest so far: compilation dominates.
        if time.monotonic() + 0.7 * took.get(item.key, 0.0) > begin + item.by * budget_s:
            journal.write(left_out=item.name)
            continue
        started = time.monotonic()
        journal.start(item.name, limit_s=item.limit_s)

        def announce(part: str, item: Item = item) -> None:
            journal.start(item.name, part, limit_s=item.limit_s)

        dispatch.install(chosen)
        value = item.run(announce, journal.to_blame(item.name))
        if item.key == "calibration":
            chosen |= from_json(value)
        if item.key == "tiles":
            use_candidate(value["kernel"], str(value["best"]))
        seconds = time.monotonic() - started
        took[item.key] = max(took.get(item.key, 0.0), seconds)
        journal.done(item.name, item.key, value, took_s=seconds)
        if device == "cuda":
            torch.cuda.empty_cache()


def warm(share: int, device: str) -> None:
    """Compile what will be timed, in one of WARMERS processes; results go nowhere.

    What inductor chooses by timing is not kept: other processes are on the GPU meanwhile.
    """
    import torch._inductor.config as inductor

    inductor.autotune_local_cache = False
    kinds: list[Callable[[], Any]] = []
    if share == 0:
        for sweep in tiles.sweeps(device, tiny=False):
            kinds.append(lambda sweep=sweep: tiles.measure(sweep, device, tiny=False, rounds=0))  # type: ignore[misc]
        for case in bench_cases(device, tiny=False, compiled=True):
            kinds.append(lambda case=case: run_bench(case.build(), device, sets=1, rounds=0))  # type: ignore[misc]
    else:
        for step in steps.cases(dry_run=False)[share - 1 :: WARMERS - 1]:
            kinds.append(lambda step=step: steps.warm_case(step, device))  # type: ignore[misc]
    for run in kinds:
        with contextlib.suppress(Exception):  # what fails, fails again where it is written down
            run()
        torch.cuda.empty_cache()


def run_ops(
    device: str, *, deadline: float, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[str]]:
    """(b) in this very process, for `vmae bench kernels`: the rows and the ops left out at `deadline`."""
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for item in work_items(device, "b", dry_run=device == "cpu"):
        if item.key != "ops":
            continue
        if time.monotonic() > deadline:
            left_out.append(item.name)
            continue
        rows.append(item.run(lambda part: None, {}))
        for line in describe_op(rows[-1]):
            say(line)
    return rows, left_out


def describe_op(row: dict[str, Any]) -> list[str]:
    """Lines that say what an op's variants took."""
    lines = [f"op: {row['op']} {row['what']} {row['shape']}"]
    for t in row["timings"]:
        took = f"{t['ms']:.4f} ms" if t["ms"] is not None else "-"
        lines.append(f"    {t['name']:34s} {took:>12s}  {t['refused'] or ''}")
    return lines


def describe_step(row: dict[str, Any]) -> str:
    """One line of a step's variant."""
    speed = f"{row['clips_per_s']:.1f} clips/s" if "clips_per_s" in row else row["refused"]
    graph = " (graph)" if row["graph"] else ""
    return f"    {row['size']} {row['ratio']} {row['variant']}{graph}: {speed}"
