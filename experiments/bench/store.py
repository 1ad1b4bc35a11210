"""A store of many runs, made for measuring, and what reading it costs."""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae.core.config import flatten
from vmae.core.numerics import peak_resident
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.runs import Filter, best_run, children, find, history, list_runs, list_sweeps
from vmae.experiments.tracking import EXPERIMENT, Store, create_store, store_at, tags
from vmae.experiments.tracking.origin import environment_tags

TRIALS_PER_SWEEP = 20
_METRICS = (
    "pretrain/loss", "pretrain/step_loss", "pretrain/lr", "pretrain/grad_norm", "pretrain/step_clips_per_s",
    "pretrain/pred_variance", "eval/loss", "probe/top1", "probe/top5", "probe/mean_class", "probe/chance",
    "perf/tracking_share", "system/cpu_percent", "system/memory_percent",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One thing measured: wall seconds (median and all of them), the median of the processor's seconds
    (which other work on the machine does not lengthen much), and the process's peak memory in MiB."""

    what: str
    median_s: float
    all_s: tuple[float, ...]
    cpu_s: float
    peak_mib: float


def fill_store(store: Store, runs: int, *, points: int = 20) -> None:
    """Add `runs` runs to a store: sweeps of 20 trials with their parents, every parameter and tag of a real
    run, fourteen metrics of `points` values each.

    Rows are written straight into the database that MLflow made (its client takes about 20 ms a call, so a
    large store would take an hour). For measuring only; seeded, so the same call makes the same rows.
    """
    create_store(store)
    path = store.sqlite_path
    assert path is not None
    draw = random.Random(0)
    config = ExperimentConfig(data=DataConfig(frames=8, size=(64, 64)))
    params = {k: v if isinstance(v, str) else json.dumps(v) for k, v in flatten(config).items()}
    made_by = {**environment_tags(), tags.RECIPE: "demo_pretrain", tags.DATA_DIGEST: "0" * 12}
    columns = (
        "run_uuid, name, source_type, source_name, entry_point_name, user_id, status, start_time, end_time, "
        "source_version, lifecycle_stage, artifact_uri, experiment_id"
    )
    now = int(time.time() * 1000) - runs * 60_000
    with sqlite3.connect(path) as db:
        (experiment,) = db.execute(
            "select experiment_id from experiments where name = ?", (EXPERIMENT,)
        ).fetchone()
        parent = ""
        for number in range(runs):
            run_id = f"{draw.getrandbits(128):032x}"
            is_sweep = number % (TRIALS_PER_SWEEP + 1) == 0
            sweep = f"sweep-{number // (TRIALS_PER_SWEEP + 1)}"
            parent = run_id if is_sweep else parent
            name = sweep if is_sweep else f"ratio{number % 7}_s{number % 3}"
            start = now + number * 60_000
            about = (run_id, name, "UNKNOWN", "", "", "bench", "FINISHED")
            values = (*about, start, start + 50_000, "", "active")
            marks = ",".join("?" * 13)
            uri = str(store.layout.artifacts_of(run_id))
            db.execute(f"insert into runs ({columns}) values ({marks})", (*values, uri, experiment))
            own = {
                tags.KIND: "sweep" if is_sweep else "trial",
                tags.KEY: f"bench:{number}",
                tags.SWEEP: sweep,
            }
            own |= {} if is_sweep else {tags.PARENT: parent}
            db.executemany(
                "insert into tags (run_uuid, key, value) values (?, ?, ?)",
                [(run_id, k, v) for k, v in {**made_by, **own}.items()],
            )
            trial = {
                **params,
                "mask.ratio": str(draw.choice((0.5, 0.75, 0.9, 0.95))),
                "train.seed": str(number),
            }
            db.executemany(
                "insert into params (run_uuid, key, value) values (?, ?, ?)",
                [(run_id, k, v) for k, v in trial.items()],
            )
            rows = [
                (key, draw.random(), start + step, run_id, step, False)
                for key in _METRICS
                for step in range(1, points + 1)
            ]
            db.executemany(
                "insert into metrics (key, value, timestamp, run_uuid, step, is_nan) "
                "values (?, ?, ?, ?, ?, ?)",
                rows,
            )
            db.executemany(
                "insert into latest_metrics (key, value, timestamp, run_uuid, step, is_nan) "
                "values (?, ?, ?, ?, ?, ?)",
                [row for row in rows if row[4] == points],
            )


def measure_store(store: Store, *, repeats: int = 5) -> list[Timing]:
    """What the commands (whole processes, start-up included) and the dashboard's functions take."""
    commands: dict[str, list[str]] = {
        "vmae runs list": [],
        "vmae runs list --kind trial": ["--kind", "trial"],
        "vmae runs list --sort probe/top1": ["--sort", "probe/top1"],
        "vmae runs list --where 'probe/top1 > 0.9'": ["--where", "probe/top1 > 0.9"],
        "vmae runs list --limit 0": ["--limit", "0"],
        "vmae runs list --limit 0 --json": ["--limit", "0", "--json"],
    }
    found = [
        _process(what, ["-m", "vmae", "runs", "list", *words, "--runs-dir", str(store.runs_dir)], repeats)
        for what, words in commands.items()
    ]
    newest = list_runs(store, limit=1)[0]
    sweep = list_sweeps(store)[0]
    functions: dict[str, Callable[[], Any]] = {
        "list_runs(limit=200)": lambda: list_runs(store, limit=200),
        "list_runs(columns=3 of them)": lambda: list_runs(
            store, columns=["kind", "mask.ratio", "probe/top1"]
        ),
        "list_runs(), every value": lambda: list_runs(store),
        "list_sweeps()": lambda: list_sweeps(store),
        "children(sweep)": lambda: children(store, sweep),
        "best_run(probe/top1)": lambda: best_run(store, "probe/top1"),
        "list_runs(where probe/top1 > 0.99)": lambda: list_runs(
            store, where=[Filter(column="probe/top1", op=">", value="0.99")]
        ),
        "find(name)": lambda: find(store, newest.name),
        "history(run, pretrain/step_loss)": lambda: history(store, newest.run_id, "pretrain/step_loss"),
    }
    for what, function in functions.items():
        times, processor = [], []
        for _ in range(repeats):
            start, before = time.perf_counter(), time.process_time()
            function()
            times.append(time.perf_counter() - start)
            processor.append(time.process_time() - before)
        peak = peak_resident() / 2**20
        found.append(
            Timing(
                what=what,
                median_s=statistics.median(times),
                all_s=tuple(times),
                cpu_s=statistics.median(processor),
                peak_mib=peak,
            )
        )
    return found


def _process(what: str, arguments: list[str], repeats: int) -> Timing:
    times, processor, peak = [], [], 0.0
    # A process's peak memory is known to a parent that starts nothing else: so each has a small one.
    code = (
        "import resource, subprocess, sys, time; start = time.perf_counter(); "
        "subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL, check=True); "
        "took = time.perf_counter() - start; used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(took, used.ru_utime + used.ru_stime, used.ru_maxrss)"
    )
    for _ in range(repeats):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        seconds, cpu, kib = done.stdout.split()
        times.append(float(seconds))
        processor.append(float(cpu))
        peak = max(peak, float(kib) / 1024)
    return Timing(
        what=what,
        median_s=statistics.median(times),
        all_s=tuple(times),
        cpu_s=statistics.median(processor),
        peak_mib=peak,
    )


def bench(folder: Path, runs: int, repeats: int) -> tuple[Store, list[Timing]]:
    """Make a store of `runs` runs in `folder` (kept and used again where it has as many) and measure it."""
    store = store_at(folder)
    have = len(list_runs(store, columns=[]))
    if have < runs:
        fill_store(store, runs - have)
    return store, measure_store(store, repeats=repeats)
