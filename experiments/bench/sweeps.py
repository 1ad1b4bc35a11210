"""What a sweep costs beyond its trials: no-op trials through the real driver, files and tracking.

python -m vmae.experiments.bench.sweeps --runs-dir DIR --trials 1000     # overhead of each trial
python -m vmae.experiments.bench.sweeps --runs-dir DIR --nodes 4         # the same on simulated nodes
python -m vmae.experiments.bench.sweeps --runs-dir DIR --start LIST.csv  # from the command to the first step
python -m vmae.experiments.bench.sweeps --runs-dir DIR --tracking LIST.csv  # what tracking takes from a trial
python -m vmae.experiments.bench.sweeps --runs-dir DIR --videos 100000   # what a long list costs the driver
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmae.core.config import override
from vmae.core.files import read_json, write_json
from vmae.core.numerics import peak_resident
from vmae.experiments import recipes
from vmae.experiments.layout import SweepDir
from vmae.experiments.provenance import data_digest
from vmae.experiments.stages import pretrain
from vmae.experiments.sweeps import driver
from vmae.experiments.sweeps.progress import ProgressFile
from vmae.experiments.sweeps.ready import prepare
from vmae.experiments.sweeps.resources import Resources
from vmae.experiments.sweeps.space import Param
from vmae.experiments.sweeps.spec import Plan, make_plan
from vmae.experiments.sweeps.status import DONE, trial_states
from vmae.experiments.sweeps.trial import run_trial
from vmae.experiments.sweeps.tune import tune
from vmae.experiments.tracking import Store, Tracker, create_store, store_at, tags


def no_op(sweep: SweepDir, trial_id: str, store: Store, emit: Any) -> None:
    """A trial that trains nothing: the files, the tracking and the reports of one with 5 epochs."""
    plan = Plan.load(sweep)
    trial = next(t for t in plan.trials if t.id == trial_id)
    home = sweep.trial(trial_id)
    start = time.perf_counter()
    progress = ProgressFile(home.progress)
    progress.update(force=True, stage=pretrain.STAGE.name, began=time.time())
    with Tracker(
        store, home.path, name=trial.id, key=plan.trial_key(trial), kind=tags.TRIAL, parent_key=plan.key
    ) as tracker:
        for epoch in range(1, 6):
            tracker.log_metrics({"pretrain/loss": 1 / epoch}, epoch)
            emit({"pretrain/loss": 1 / epoch})
        spent = tracker.cost.seconds
    metrics = {"probe/top1": 0.5, "bench/tracking_s": spent, "bench/total_s": time.perf_counter() - start}
    write_json(
        home.result,
        {"id": trial.id, "overrides": trial.overrides, "seed": trial.seed, "baseline": False}
        | {"metrics": metrics, "seconds": progress.seconds, "attempts": 1, "stopped": None},
    )
    emit(metrics)


def measure(store: Store, trials: int, concurrent: int, address: str | None = None) -> dict[str, float]:
    """Run `trials` no-op trials; seconds, milliseconds and MiB of each part, by name."""
    param = Param(path="optim.base_lr", choices=tuple(1e-4 + 1e-7 * i for i in range(trials)))
    plan = make_plan(
        name=driver.new_name(store, "bench"),
        sweep="bench",
        title="no-op trials",
        params=[param],
        metric="probe/top1",
        base=recipes.get("demo_pretrain"),
        baseline=False,
        resources=Resources(cpus=0.5, max_concurrent=concurrent, address=address),
    )
    # No lists: the checks of a cluster would look for them.
    data = replace(plan.base.data, train_csv="", val_csv="")
    plan = replace(plan, base=replace(plan.base, data=data))
    before = _memory()
    sweep = store.layout.sweep(plan.name)
    plan.save(sweep)
    create_store(store)
    with Tracker(store, sweep.path, name=plan.name, key=plan.key, kind=tags.SWEEPS) as tracker:
        tracker.flush()
        tune(plan, sweep, store, [t.id for t in plan.trials], work=no_op)
    states = trial_states(plan, sweep)
    facts = read_json(sweep.timing)
    began = [read_json(sweep.trial(t.id).progress)["began"] for t in plan.trials]
    start = time.perf_counter()
    trial_states(plan, sweep)
    reading = time.perf_counter() - start
    listing = [sys.executable, "-m", "vmae", "runs", "list", "--runs-dir", str(store.runs_dir)]
    start = time.perf_counter()
    subprocess.run(listing, check=True, capture_output=True)
    listed = time.perf_counter() - start
    tracked = sum(s.metrics["bench/tracking_s"] for s in states) / trials
    return {
        "trials done": float(sum(s.status == DONE for s in states)),
        "Ray's own start, s": facts["ray_start_s"],
        "then until the first trial begins, s": min(began) - facts["ray_there"],
        "wall time per trial, ms": 1000 * facts["tune_s"] / trials,
        "driver CPU per trial, ms": 1000 * facts["tune_cpu_s"] / trials,
        "reading all states once, ms": 1000 * reading,
        "driver's memory before, MiB": before,
        "driver's peak memory after, MiB": _memory(),
        "vmae runs list, whole command, s": listed,
        "tracking in the trial's thread, ms": 1000 * tracked,
        "shortest trial of which that is 1%, s": 100 * tracked,
    }


def _memory() -> float:
    return peak_resident() / 2**20


def measure_list(folder: Path, videos: int) -> dict[str, float]:
    """What the driver does with a list of `videos` lines (of one small file) before any trial, in seconds."""
    from vmae.core.video.annotations import read_annotations
    from vmae.core.video.samples import subset

    folder.mkdir(parents=True, exist_ok=True)
    for i in range(min(videos, 1000)):
        (folder / f"{i}.mp4").touch()
    path = folder / "list.csv"
    path.write_text("".join(f"{folder}/{i % 1000}.mp4 {i % 400}\n" for i in range(videos)))
    base = recipes.get("demo_pretrain")
    data = replace(base.data, train_csv=str(path), val_csv="")
    parts = {}
    for name, work in (
        ("reading the list, s", lambda: read_annotations(path)),
        ("digest of the list and its files, s", lambda: data_digest(data)),
        ("a tenth of it, class by class, s", lambda: subset(read_annotations(path), 0.1, 0)),
    ):
        start = time.perf_counter()
        work()
        parts[name] = time.perf_counter() - start
    return {**parts, "peak memory, MiB": _memory()}


@contextlib.contextmanager
def simulated(nodes: int) -> Iterator[str]:
    """The address of a cluster of so many simulated nodes of one core each, on this machine."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    limits: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=limits)
    try:
        for _ in range(nodes - 1):
            cluster.add_node(**limits)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()


_TINY = (
    "model.height=32", "model.width=32", "model.embed_dim=32", "model.depth=2", "model.num_heads=2",
    "model.decoder_embed_dim=32", "model.decoder_depth=1", "data.size=32,32", "data.short_side=32",
    "data.sampling_rate=2", "train.batch_size=8", "train.picture_every=0", "train.log_every=1",
    "probe.epochs=4", "probe.folds=2",
)  # fmt: skip


def measure_start(store: Store, train_csv: Path) -> dict[str, float]:
    """Seconds of a real `vmae sweep` (a process of its own, tiny trials on `train_csv`) until it trains.

    Ray's start is taken off twice: as long as it took in that command, beside the imports it overlaps with,
    and as long as it takes a process that does nothing else, measured just before.
    """
    bare = _bare_ray_start()
    command = [sys.executable, "-m", "vmae", "sweep", "masking_ratio", "--values", "0.5,0.75"]
    command += ["--data", str(train_csv), "--runs-dir", str(store.runs_dir), "--epochs", "2"]
    name = driver.new_name(store, "masking_ratio")
    subprocess.run([*command, *(f"--set={s}" for s in _TINY)], check=True, capture_output=True)
    sweep = store.layout.sweep(name)
    facts = read_json(sweep.timing)
    progress = [read_json(t.progress) for t in sweep.all_trials() if t.path.name.startswith("ratio")]
    first = min(p["first_step"] for p in progress)
    return {
        "command to first step, s": first - facts["command"],
        "of that Ray's own start, s": facts["ray_start_s"],
        "so beyond Ray's start, s": first - facts["command"] - facts["ray_start_s"],
        "Ray's start in a process of its own, s": bare,
        "beyond that, s": first - facts["command"] - bare,
        "command to Ray and data ready, s": facts["ray_there"] - facts["command"],
        "then to the first trial's loop, s": min(p["began"] for p in progress) - facts["ray_there"],
    }


def _bare_ray_start() -> float:
    """Seconds from a process's start until the same local Ray is there, with nothing else to do."""
    code = (
        "import psutil, time\n"
        "from vmae.experiments.cluster import connected\n"
        "with connected():\n"
        "    print(time.time() - psutil.Process().create_time())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def measure_tracking(store: Store, train_csv: Path, epochs: int) -> dict[str, float]:
    """What tracking takes from one real trial, trained in this process: tiny, so at its worst."""
    shape = dict(text.split("=", 1) for text in _TINY if "log_every" not in text)
    lists = {"data.train_csv": str(train_csv), "data.val_csv": str(train_csv.with_name("val.csv"))}
    base = override(recipes.get("demo_pretrain"), {**shape, **lists, "train.epochs": str(epochs)})
    plan = make_plan(
        name=driver.new_name(store, "tracking"),
        sweep="bench",
        title="one trial",
        params=[Param(path="mask.ratio", choices=(0.75,))],
        metric="probe/top1",
        base=base,
        baseline=False,
    )
    sweep = store.layout.sweep(plan.name)
    plan.save(sweep)
    prepare(plan, store)
    with Tracker(store, sweep.path, name=plan.name, key=plan.key, kind=tags.SWEEPS) as tracker:
        tracker.flush()
        start = time.monotonic()
        result = run_trial(sweep, plan.trials[0].id, store)
        whole = time.monotonic() - start
    metrics, seconds = result["metrics"], result["seconds"]
    spool = sweep.trial(plan.trials[0].id).spool
    return {
        "the trial, s": seconds,
        "milliseconds between two reports": 1000 * seconds / len(spool.read_text().splitlines()),
        "its thread in tracking, %": 100 * metrics["perf/tracking_share"],
        "processor time of tracking, both threads, s": metrics["perf/tracking_cpu_s"],
        "of the trial's time, %": 100 * metrics["perf/tracking_cpu_s"] / seconds,
        "the whole call, s": whole,
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=2)
    parser.add_argument("--runs-dir", type=Path, required=True)
    parser.add_argument("--nodes", type=int, help="simulated nodes of one core each")
    parser.add_argument("--videos", type=int, help="time a list of so many lines instead")
    parser.add_argument("--start", type=Path, metavar="CSV", help="time a real sweep's start on this list")
    parser.add_argument(
        "--tracking", type=Path, metavar="CSV", help="time the tracking of a trial on this list"
    )
    parser.add_argument("--epochs", type=int, default=30, help="of that trial")
    options = parser.parse_args()
    store = store_at(options.runs_dir)
    if options.tracking is not None:
        found = measure_tracking(store, options.tracking, options.epochs)
    elif options.start is not None:
        found = measure_start(store, options.start)
    elif options.videos is not None:
        found = measure_list(options.runs_dir / "videos", options.videos)
    elif options.nodes is not None:
        with simulated(options.nodes) as address:
            found = measure(store, options.trials, 2 * options.nodes, address)
    else:
        found = measure(store, options.trials, options.concurrent)
    for name, value in found.items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
