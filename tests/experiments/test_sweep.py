"""A sweep from the command line to its table, undisturbed, killed and interrupted: the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vmae.experiments.layout import SweepDir
from vmae.experiments.runs import Filter, children, history, list_runs, list_sweeps, pictures
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, groups, trial_states, winner
from vmae.experiments.tracking import store_at

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "model.height=32",
    "model.width=32",
    "model.embed_dim=32",
    "model.depth=2",
    "model.num_heads=2",
    "model.decoder_embed_dim=32",
    "model.decoder_depth=1",
    "data.size=32,32",
    "data.short_side=32",
    "data.sampling_rate=2",
    "train.batch_size=8",
    "train.picture_every=2",
    "probe.epochs=10",
    "probe.folds=2",
]


def _command(data: Path, runs: Path, *, epochs: int, extra: tuple[str, ...] = ()) -> list[str]:
    command = [sys.executable, "-m", "vmae", "sweep", "masking_ratio", "--values", "0.5,0.75"]
    command += ["--data", str(data / "train.csv"), "--runs-dir", str(runs), "--epochs", str(epochs)]
    for assignment in TINY:
        command += ["--set", assignment]
    return [*command, *extra]


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("VMAE_RUNS", "MLFLOW_TRACKING_URI")}
    return {**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _run(command: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=240, check=False
    )


def _numbers(runs: Path) -> dict[str, dict[str, float]]:
    """Each trial's metrics that must not depend on how often it was interrupted."""
    found = {}
    for path in sorted(runs.glob("sweeps/*/trials/*/result.json")):
        metrics = json.loads(path.read_text())["metrics"]
        found[path.parent.name] = {
            k: v for k, v in metrics.items() if not k.startswith("perf/") and "clips_per_s" not in k
        }
    return found


@pytest.fixture(scope="module")
def undisturbed(mini_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A two-trial sweep (and its baseline) that nobody disturbed: its run directory and what it printed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = _run(_command(mini_data, folder / "runs", epochs=6), folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs", done.stdout + done.stderr


def test_a_sweep_ends_with_table_winner_figure_and_next_commands(undisturbed: tuple[Path, str]) -> None:
    runs, output = undisturbed
    for text in ("pre-training loss", "error at 0.75", "probe accuracy", "clips/s", "minutes"):
        assert text in output
    for text in (
        "best: mask.ratio = ",
        "x chance (8.3%)",
        "random weights",
        "vmae runs list",
        "vmae dashboard",
    ):
        assert text in output
    figure = runs / "sweeps" / "masking_ratio-1" / "masking_ratio.png"
    assert figure.read_bytes().startswith(b"\x89PNG")
    plan = Plan.load(SweepDir(figure.parent))
    states = trial_states(plan, SweepDir(figure.parent))
    assert [s.status for s in states] == [DONE] * 3
    best = winner(groups(states), plan.metric)
    assert best is not None
    assert not best.baseline


def test_every_trial_is_one_run_under_the_sweep(undisturbed: tuple[Path, str]) -> None:
    store = store_at(undisturbed[0])
    (sweep,) = list_sweeps(store)
    trials = children(store, sweep)
    assert sorted(t.name for t in trials) == ["random-weights_s0", "ratio0.5_s0", "ratio0.75_s0"]
    assert all(t.status == "FINISHED" for t in [sweep, *trials])
    trial = next(t for t in trials if t.name == "ratio0.75_s0")
    assert trial.params["mask.ratio"] == "0.75"
    steps = [s for s, _ in history(store, trial.run_id, "pretrain/step_loss")]
    assert steps == sorted(set(steps))
    assert steps[-1] == 36  # 6 epochs of 48 clips in batches of 8
    assert [s for s, _ in pictures(trial)] == [2, 4, 6]
    assert trial.checkpoint is not None
    assert trial.checkpoint.exists()
    # Of a trial of a few seconds; test_tracking.py has the bound, in processor time.
    assert 0 < trial.metrics["perf/tracking_share"] < 0.5


def _wait_for(condition: object, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def _start(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _midway(runs: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a pre-training trial has a checkpoint but no trial of that kind has its result."""
    _wait_for(
        lambda: (
            list(runs.glob("sweeps/*/trials/ratio*/pretrain/checkpoints/*")) or process.poll() is not None
        ),
        120,
        "a trial's first checkpoint",
    )
    assert process.poll() is None, process.stdout.read() if process.stdout else ""


def test_killed_and_resumed_gives_the_undisturbed_table(
    undisturbed: tuple[Path, str], mini_data: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    process = _start(_command(mini_data, runs, epochs=6), tmp_path)
    family = []
    try:
        _midway(runs, process)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    finally:
        # Ray's processes notice that their driver is gone; a test does not wait for them.
        for child in family:
            if child.is_running():
                child.kill()
    assert len(_numbers(runs)) < 3
    resumed = _run(
        [sys.executable, "-m", "vmae", "sweep", "masking_ratio", "--resume", "--runs-dir", str(runs)],
        tmp_path,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert _numbers(runs) == _numbers(undisturbed[0])
    store = store_at(runs)
    assert len(list_runs(store)) == 4
    for run in list_runs(store, where=[Filter(column="kind", op="=", value="trial")]):
        steps = [s for s, _ in history(store, run.run_id, "pretrain/step_loss")]
        assert steps == sorted(set(steps)), f"{run.name} counted a step twice"


def test_ctrl_c_ends_it_cleanly_and_says_how_to_resume(mini_data: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    process = _start(_command(mini_data, runs, epochs=500), tmp_path)
    try:
        _midway(runs, process)
        family = psutil.Process(process.pid).children(recursive=True)
        asked = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does: the whole group gets it
        output, _ = process.communicate(timeout=30)
        assert time.monotonic() - asked < 15
    finally:
        if process.poll() is None:
            process.kill()
    assert process.returncode == 130, output
    assert "vmae sweep --resume masking_ratio-1" in output
    assert "Traceback" not in output
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive, f"left behind: {[p.name() for p in alive]}"
    sweep = list_sweeps(store_at(runs))[0]
    assert sweep.status == "KILLED"
