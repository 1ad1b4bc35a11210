"""A sweep's figures show what its trials measured, each value where it belongs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vmae.core.files import write_json
from vmae.core.video.config import DataConfig
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import SweepDir
from vmae.experiments.sweeps import plots
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.status import TrialState, trial_states

BASE = ExperimentConfig(data=DataConfig(frames=8, size=(64, 64)))


def finished(folder: Path, settings: list[dict[str, Any]], seeds: int = 1) -> tuple[Plan, list[TrialState]]:
    """A sweep whose trials are done, as its files show it: accuracies follow from the setting's number."""
    trials = [Trial(id=f"base_s{s}", overrides={}, seed=s, baseline=True) for s in range(seeds)]
    trials += [
        Trial(id=f"t{i}_s{s}", overrides=o, seed=s) for s in range(seeds) for i, o in enumerate(settings)
    ]
    plan = Plan(
        name="example-1",
        sweep="example",
        title="What an example shows",
        params=tuple(settings[0]),
        metric="probe/top1",
        base=BASE,
        trials=tuple(trials),
    )
    sweep = SweepDir(folder)
    plan.save(sweep)
    for trial in trials:
        number = -1 if trial.baseline else settings.index(trial.overrides)
        top1 = 0.15 if trial.baseline else 0.2 + 0.1 * math.sin(number + 1) + 0.02 * trial.seed
        metrics = {"probe/top1": top1, "probe/chance": 1 / 12}
        home = sweep.trial(trial.id)
        write_json(home.result, {"metrics": metrics, "seconds": 60.0})
        events: list[dict[str, Any]] = [{"event": "start"}]
        for epoch in range(1, 9):
            loss = 0.3 + 0.7 * math.exp(-epoch / (3 + max(number, 0)))
            values = {"pretrain/loss": loss, "finetune/val_top1": top1 * epoch / 8, "pretrain/lr": 0.1}
            events.append({"event": "metrics", "values": values, "step": epoch})
        events.append(events[3])  # a resumed attempt repeats a step
        home.spool.write_text("".join(json.dumps(e) + "\n" for e in events))
    return plan, trial_states(plan, sweep)


def test_numbers_stand_in_the_order_of_their_value(tmp_path: Path) -> None:
    plan, states = finished(tmp_path, [{"mask.ratio": v} for v in (0.9, 0.5, 0.75)], seeds=3)
    figure = plots.ranking_figure(plan, states)
    ax = figure.axes[0]
    x, y = ax.lines[0].get_data()
    assert list(x) == [0.5, 0.75, 0.9]
    assert y[2] == pytest.approx(0.2 + 0.1 * math.sin(1) + 0.02)  # the mean of seeds 0, 1, 2
    names = ax.get_legend_handles_labels()[1]
    assert [n.partition(" (")[0] for n in names] == [
        "same network, random weights",
        "chance",
        "mean ± std of seeds",
    ]
    assert ax.get_xlabel() == "mask.ratio"
    assert any("best: 0.5" in t.get_text() for t in ax.texts)  # sin(2) is the largest
    assert ax.get_ylim()[1] > max(y)


def test_categories_keep_the_plans_order_and_wide_ranges_are_logarithmic(tmp_path: Path) -> None:
    kinds = ("tube", "random", "frame")
    plan, states = finished(tmp_path / "a", [{"mask.type": v} for v in kinds])
    ax = plots.ranking_figure(plan, states).axes[0]
    assert [t.get_text() for t in ax.get_xticklabels()] == list(kinds)
    plan, states = finished(tmp_path / "b", [{"optim.base_lr": v} for v in (1e-4, 3e-4, 1e-3, 3e-3)])
    ax = plots.ranking_figure(plan, states).axes[0]
    assert ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.0001", "0.0003", "0.001", "0.003"]


def test_figures_of_several_fields_and_their_files(tmp_path: Path) -> None:
    settings = [{"mask.ratio": r, "mask.type": t} for r in (0.5, 0.75) for t in ("tube", "random")]
    plan, states = finished(tmp_path, settings)
    paths = plots.save_figures(plan, states, SweepDir(tmp_path))
    assert [p.name for p in paths] == ["example.png", "example-curves.png", "example-parallel.png"]
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
    assert len(plots.ranking_figure(plan, states).axes) == 2
    figure = plots.parallel_figure(plan, states)
    assert figure is not None
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert len(lines) == len(settings)
    thick = [line for line in lines if line.get_linewidth() > 2]
    assert [list(line.get_ydata())[2] for line in thick] == [1.0]  # type: ignore[arg-type]


def test_curves_are_read_from_the_trials_files_and_repeated_steps_count_once(tmp_path: Path) -> None:
    plan, states = finished(tmp_path, [{"mask.ratio": v} for v in (0.9, 0.5)], seeds=2)
    figure = plots.learning_curves_figure(plan, states, SweepDir(tmp_path))
    assert figure is not None
    assert [a.get_title(loc="left") for a in figure.axes] == ["finetune/val_top1", "pretrain/loss"]
    lines = figure.axes[1].lines
    assert len(lines) == 4
    assert [line.get_label() for line in lines] == ["0.5", "0.5", "0.9", "0.9"]
    assert list(lines[0].get_xdata()) == list(range(1, 9))  # type: ignore[arg-type]
    assert lines[0].get_color() == lines[1].get_color() != lines[2].get_color()
    assert "does not rank" in figure.get_suptitle()


@pytest.mark.parametrize(("path", "said"), [("data.sampling_rate", True), ("optim.base_lr", False)])
def test_the_note_names_every_field_that_changes_the_task(tmp_path: Path, path: str, said: bool) -> None:
    plan, states = finished(tmp_path, [{path: v} for v in (1, 2)])
    figure = plots.learning_curves_figure(plan, states, SweepDir(tmp_path))
    assert figure is not None
    assert (path in figure.get_suptitle()) == said


def test_nothing_finished_gives_no_figure(tmp_path: Path) -> None:
    plan, _ = finished(tmp_path, [{"mask.ratio": 0.5}])
    states = trial_states(plan, SweepDir(tmp_path / "elsewhere"))
    assert plots.save_figures(plan, states, SweepDir(tmp_path)) == []
