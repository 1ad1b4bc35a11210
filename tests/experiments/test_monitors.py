"""Monitors beside a training: they change nothing of it, and say how well they agree with a probe."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from vmae.core.config import override
from vmae.experiments import jobs, recipes
from vmae.experiments.stages import METRICS, metric
from vmae.experiments.sweeps.agreement import agreements, spearman
from vmae.experiments.sweeps.spec import Trial
from vmae.experiments.sweeps.status import DONE, TrialState
from vmae.experiments.tracking import store_at


def test_monitors_are_logged_and_change_nothing_of_the_training(mini_data: Path, tmp_path: Path) -> None:
    base = override(
        recipes.get("demo_pretrain"),
        {
            "data.train_csv": str(mini_data / "train.csv"),
            "data.val_csv": str(mini_data / "val.csv"),
            "data.workers": 0,
            "model.depth": 1,
            "train.epochs": 2,
            "train.batch_size": 16,
            "train.picture_every": 0,
            "monitor.share": 1.0,
            "monitor.lidar": True,
        },
    )
    store = store_at(str(tmp_path / "runs"))
    watched = jobs.pretrain_run(override(base, {"name": "watched"}), store).result
    alone = jobs.pretrain_run(override(base, {"name": "alone", "monitor.share": 0.0}), store).result
    assert [h["loss"] for h in watched.history] == [h["loss"] for h in alone.history]
    assert not any(k.startswith("monitor_") for h in alone.history for k in h)
    last = watched.history[-1]
    for name in ("rankme", "participation", "lidar", "knn", "linear"):
        assert math.isfinite(last[f"monitor_{name}"]) and math.isfinite(last[f"monitor_{name}_random"])
        assert METRICS[f"pretrain/monitor_{name}"].curve
    assert last["monitor_participation"] != last["monitor_participation_random"]
    assert last["monitor_linear_random"] >= 0


def test_a_probe_on_the_way_is_the_probe_and_changes_nothing_of_the_training(
    mini_data: Path, tmp_path: Path
) -> None:
    config = override(
        recipes.get("demo_pretrain"),
        {
            "data.train_csv": str(mini_data / "train.csv"),
            "data.val_csv": str(mini_data / "val.csv"),
            "model.depth": 1,
            "train.epochs": 2,
            "train.batch_size": 16,
            "train.picture_every": 0,
            "probe.epochs": 5,
            "probe.folds": 2,
        },
    )
    store = store_at(str(tmp_path / "runs"))
    alone = jobs.pretrain_run(override(config, {"name": "alone"}), store).result
    found = {}
    for epoch in (1, 2):
        named = override(config, {"name": f"at-{epoch}", "pipeline.probe_at": epoch})
        history = jobs.pretrain_run(named, store).result.history
        assert [h["loss"] for h in history] == [h["loss"] for h in alone.history]
        assert [k + 1 for k, h in enumerate(history) if "probe_top1" in h] == [epoch]
        found[epoch] = history[epoch - 1]["probe_top1"]
    assert found[2] == jobs.probe_run(config, store, store.layout.run("alone").model)[0].top1


def _state(number: int, baseline: bool = False, **metrics: float) -> TrialState:
    named = {k.replace("__", "/"): v for k, v in metrics.items()}
    trial = Trial(id=str(number), overrides={"mask.ratio": number / 10}, seed=0, baseline=baseline)
    return TrialState(trial=trial, status=DONE, metrics=named)


def test_agreement_is_a_rank_correlation_over_pretrained_trials() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # Ties at their mean rank: ranks 0.5 0.5 2 against 0 1 2.
    assert spearman([5, 5, 9], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))
    ranked = metric("probe/top1")
    rising = [0.1, 0.3, 0.2, 0.5, 0.6]
    states = [
        _state(i, probe__top1=rising[i], monitor__participation=float(i), monitor__rankme=-rising[i])
        for i in range(5)
    ]
    states += [_state(6, True, probe__top1=0.9, monitor__participation=-5.0)]
    first, last = agreements(states, ranked)
    assert (first.monitor.name, first.trials) == ("monitor/participation", 5)
    assert first.rho == pytest.approx(0.9) and first.low <= first.rho <= first.high
    assert last.monitor.name == "monitor/rankme" and last.rho == pytest.approx(-1)
    assert "participation ratio 0.90 [" in first.text()
    assert agreements(states[:3], ranked) == []
    # What ranks is not compared with itself.
    by = metric("monitor/participation")
    assert [a.monitor.name for a in agreements(states, by)] == ["monitor/rankme"]
