"""What a sweep has shown: a winner where videos and seeds tell it from every other setting, else none."""

from __future__ import annotations

from dataclasses import dataclass

from vmae.core.measure.statistics import Interval, holm
from vmae.experiments.answers import Answers, compare, read_answers, verdict
from vmae.experiments.layout import SweepDir
from vmae.experiments.stages.stage import Metric
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.sweeps.status import DONE, Group, TrialState, groups, label_of, winner


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`winner` is None where none can be told from the rest; `line` says which, or what it would take."""

    line: str
    winner: str | None = None
    warnings: tuple[str, ...] = ()
    """Settings no better than guessing, or than the network that was not pre-trained."""


def answers_by_label(states: list[TrialState], sweep: SweepDir) -> dict[str, Answers]:
    """The answers of every setting (and the baseline) whose finished trials have kept theirs."""
    found: dict[str, list[Answers]] = {}
    lacking: set[str] = set()
    for state in states:
        if state.status != DONE:
            continue
        label, place = label_of(state.trial), sweep.trial(state.trial.id).answers
        if place.is_file():
            found.setdefault(label, []).append(read_answers(place, seed=state.trial.seed))
        else:
            lacking.add(label)
    return {
        label: Answers(tuple(row for part in parts for row in part.rows))
        for label, parts in found.items()
        if label not in lacking
    }


def judge(plan: Plan, states: list[TrialState], sweep: SweepDir) -> Verdict | None:
    """What can be said of the trials that are done; None before any is.

    The setting with the highest mean wins where it differs from every other one on the same videos, 95 % for
    these comparisons together (`holm`). Without answers (a metric that is no accuracy, trials of an earlier
    version) nothing is claimed. Raises InputError as `read_answers`.
    """
    found, metric = groups(states), plan.ranked_by
    best = winner(found, metric)
    if best is None:
        return None
    answers = answers_by_label(states, sweep)
    warnings = (*_below_chance(found, metric, answers), *_below_baseline(found, metric))
    others = [g for g in found if not g.baseline and g.label != best.label and metric.name in g.mean]
    name = _named(plan, best)
    if not others:
        return Verdict(line=f"one setting, {name}: nothing to compare it with", warnings=warnings)
    if best.label not in answers or any(g.label not in answers for g in others):
        line = f"no winner: {name} has the best mean, and no answers video by video say whether that is luck"
        return Verdict(line=line, warnings=warnings)
    others.sort(key=lambda g: metric.score_of(g.mean[metric.name]), reverse=True)
    pairs = [compare(answers[best.label], answers[other.label]) for other in others]
    several = f"for {len(others)} comparisons together (Holm)"
    for other, (pair, seeds), held in zip(others, pairs, holm([p.p for p, _ in pairs]), strict=True):
        line = verdict(name, _named(plan, other), pair, seeds)
        if pair.told_apart and pair.mean > 0 and not held:
            line = f"no winner: {line}, but not {several}"
        if not (pair.told_apart and pair.mean > 0 and held):
            return Verdict(line=line, warnings=warnings)
    said = verdict(name, _named(plan, others[0]), *pairs[0])
    more = "" if len(others) == 1 else f", and than each of the other {len(others) - 1}, {several}"
    return Verdict(line=f"winner: {said}{more}", winner=best.label, warnings=warnings)


def interval_of(label: str, states: list[TrialState], sweep: SweepDir) -> Interval | None:
    """The accuracy of a setting with its interval, where its answers were kept."""
    answers = answers_by_label(states, sweep).get(label)
    return None if answers is None else answers.interval()


def _named(plan: Plan, group: Group) -> str:
    return f"{plan.params[0]} = {group.label}" if len(plan.params) == 1 else group.label


def _below_chance(found: list[Group], metric: Metric, answers: dict[str, Answers]) -> list[str]:
    """Settings whose number guessing reaches."""
    below, unsure = [], []
    for group in found:
        chance = group.mean.get(metric.chance)
        if group.baseline or chance is None or metric.name not in group.mean:
            continue
        text = f"{group.label} ({metric.text(group.mean[metric.name])})"
        if group.mean[metric.name] <= chance:
            below.append(text)
        elif group.label in answers and answers[group.label].interval().low <= chance:
            unsure.append(text)
    chance = next((g.mean[metric.chance] for g in found if metric.chance in g.mean), None)
    lines = []
    if below:
        lines.append(f"not above chance ({metric.text(chance)}): {', '.join(below)}")
    if unsure:
        lines.append(f"not told apart from chance ({metric.text(chance)}): {', '.join(unsure)}")
    return lines


def _below_baseline(found: list[Group], metric: Metric) -> list[str]:
    baseline = next((g for g in found if g.baseline and metric.name in g.mean), None)
    if baseline is None:
        return []
    height = metric.score_of(baseline.mean[metric.name])
    below = [
        f"{g.label} ({metric.text(g.mean[metric.name])})"
        for g in found
        if not g.baseline and metric.name in g.mean and metric.score_of(g.mean[metric.name]) < height
    ]
    if not below:
        return []
    return [
        f"below the same network with random weights ({metric.text(baseline.mean[metric.name])}): "
        + ", ".join(below)
    ]
