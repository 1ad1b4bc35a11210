"""When a sweep names a winner: from answers as trials leave them beside their results."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmae.core.errors import InputError
from vmae.experiments import recipes
from vmae.experiments.answers import Answer, write_answers
from vmae.experiments.layout import FoldsDir, SweepDir
from vmae.experiments.sweeps.space import Param
from vmae.experiments.sweeps.spec import Plan, make_plan
from vmae.experiments.sweeps.status import DONE, TrialState, groups
from vmae.experiments.sweeps.stopping import StoppingConfig
from vmae.experiments.sweeps.verdict import judge

CHANCE = 0.25


def planned(seeds: int = 1, folds: tuple[int, ...] = (), **more: object) -> Plan:
    base = recipes.get("demo_pretrain")
    ratios = [Param(path="mask.ratio", choices=(0.5, 0.75, 0.9))]
    given = {"name": "s", "sweep": "custom", "title": "t", "metric": "probe/top1", "base": base}
    return make_plan(**given, params=ratios, seeds=seeds, folds=folds, **more)  # type: ignore[arg-type]


def done(
    plan: Plan, sweep: SweepDir, shares: dict[str, float], *, videos: int, told: bool = True
) -> list[TrialState]:
    """Every trial finished: of `videos` videos the first share of each setting is right, the seeds alike."""
    states = []
    for trial in plan.trials:
        share = shares["baseline" if trial.baseline else str(trial.overrides["mask.ratio"])]
        right = np.arange(videos) < round(share * videos)
        rows = [
            Answer(path=f"{trial.fold}_{i}", label=0, predicted=0, correct=bool(ok), seed=trial.seed)
            for i, ok in enumerate(right)
        ]
        if told:
            write_answers(sweep.trial(trial.id).answers, rows)
        metrics = {"probe/top1": float(right.mean()), "probe/chance": CHANCE}
        states.append(TrialState(trial=trial, status=DONE, metrics=metrics))
    return states


def test_a_winner_is_told_from_every_other_setting(tmp_path: Path) -> None:
    plan, sweep = planned(), SweepDir(tmp_path)
    shares = {"0.5": 0.4, "0.75": 0.5, "0.9": 0.8, "baseline": 0.3}
    found = judge(plan, done(plan, sweep, shares, videos=100), sweep)
    assert found is not None and found.winner == "0.9" and not found.warnings
    assert found.line.startswith("winner: mask.ratio = 0.9 is better than mask.ratio = 0.75: +30.0 points [")
    assert "on the same 100 videos" in found.line


def test_ties_have_no_winner_and_say_with_how_much_they_were_not_told_apart(tmp_path: Path) -> None:
    plan, sweep = planned(seeds=2), SweepDir(tmp_path)
    shares = {"0.5": 0.4, "0.75": 0.51, "0.9": 0.52, "baseline": 0.3}
    found = judge(plan, done(plan, sweep, shares, videos=100), sweep)
    assert found is not None and found.winner is None
    assert found.line.startswith(
        "no winner: mask.ratio = 0.9 and mask.ratio = 0.75 differ by less than can be told with 100 videos "
        "and 2 seeds ("
    )


def test_what_holds_for_one_pair_need_not_hold_for_many(tmp_path: Path) -> None:
    # 6 of 100 answers differ: p = 0.03, which is enough for one comparison and not for the first of two.
    plan, sweep = planned(), SweepDir(tmp_path)
    shares = {"0.5": 0.44, "0.75": 0.44, "0.9": 0.5, "baseline": 0.3}
    found = judge(plan, done(plan, sweep, shares, videos=100), sweep)
    assert found is not None and found.winner is None
    assert found.line.startswith(
        "no winner: mask.ratio = 0.9 is better than mask.ratio = 0.5: +6.0 points [+1.0, "
    )
    assert found.line.endswith("on the same 100 videos, but not for 2 comparisons together (Holm)")


def test_chance_and_random_weights_are_named(tmp_path: Path) -> None:
    plan, sweep = planned(), SweepDir(tmp_path)
    shares = {"0.5": 0.2, "0.75": 0.27, "0.9": 0.8, "baseline": 0.5}
    found = judge(plan, done(plan, sweep, shares, videos=100), sweep)
    assert found is not None
    assert found.warnings == (
        "not above chance (25.0%): 0.5 (20.0%)",
        "not told apart from chance (25.0%): 0.75 (27.0%)",
        "below the same network with random weights (50.0%): 0.5 (20.0%), 0.75 (27.0%)",
    )


def test_without_answers_nothing_is_claimed(tmp_path: Path) -> None:
    plan, sweep = planned(), SweepDir(tmp_path)
    shares = {"0.5": 0.2, "0.75": 0.4, "0.9": 0.8, "baseline": 0.3}
    found = judge(plan, done(plan, sweep, shares, videos=100, told=False), sweep)
    assert found is not None and found.winner is None
    assert "no answers video by video" in found.line
    assert judge(plan, [], sweep) is None


def test_every_setting_has_every_fold_and_seed(tmp_path: Path) -> None:
    plan, sweep = planned(seeds=2, folds=(0, 1, 2)), SweepDir(tmp_path)
    assert len(plan.trials) == plan.expected_trials == 4 * 2 * 3
    assert len({t.id for t in plan.trials}) == len(plan.trials)
    home = FoldsDir(Path("data/demo"))
    config = next(t for t in plan.trials if t.fold == 1).config(plan.base)
    assert (config.data.train_csv, config.data.val_csv) == (str(home.train(1)), str(home.test(1)))
    plan.save(sweep)
    assert Plan.load(sweep) == plan
    shares = {"0.5": 0.4, "0.75": 0.5, "0.9": 0.8, "baseline": 0.3}
    states = done(plan, sweep, shares, videos=20)
    assert [g.seeds for g in groups(states)] == [2] * 4
    found = judge(plan, states, sweep)
    assert found is not None and "on the same 60 videos" in found.line
    with pytest.raises(InputError, match="--scheduler: expected none with --folds"):
        planned(folds=(0, 1), stopping=StoppingConfig(metric="pretrain/knn_top1"))
