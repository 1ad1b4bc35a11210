"""Optuna's suggestions for a plan: each setting is asked for when a slot is free, from what is in the files.

The study is rebuilt from the trials' results at every question and its sampler seeded by the setting's
number, so a sweep that was killed and resumed asks what it would have asked.
"""

from __future__ import annotations

import logging
import statistics
from typing import TYPE_CHECKING, Any, Literal

from vmae.core.errors import InputError
from vmae.core.files import read_record
from vmae.core.numerics import derive_seed
from vmae.experiments.layout import SweepDir
from vmae.experiments.sweeps.space import Param, rounded
from vmae.experiments.sweeps.spec import Plan, check_trial

if TYPE_CHECKING:
    import optuna

_TRIES = 20


def check_optuna() -> None:
    """Raise InputError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as e:
        raise InputError(
            "--search optuna: expected Optuna to be installed, found none; pip install 'vmae[optuna]'"
        ) from e


def next_setting(plan: Plan, sweep: SweepDir) -> dict[str, Any] | None:
    """Overrides of the setting to try next, or None where `plan.samples` have been asked for.

    The study looks for the best mean over seeds of the plan's metric. Settings stopped early or failed tell
    the sampler that they were worse than all that finished; settings under way are counted as no better than
    the worst so far (Optuna's constant liar), so that slots filled at once do not ask for the same.
    Raises InputError when `_TRIES` suggestions in a row are configurations that the model refuses.
    """
    settings = plan.settings()
    if len(settings) >= plan.samples:
        return None
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)
    seen = {str(trials[0].overrides) for trials in settings}
    refused = ""
    for attempt in range(_TRIES):
        seed = derive_seed(plan.base.train.seed, len(settings), attempt, "optuna") % 2**31
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        highest = plan.ranked_by.higher_is_better
        direction: Literal["maximize", "minimize"] = "maximize" if highest else "minimize"
        study = optuna.create_study(direction=direction, sampler=sampler)
        for trials in settings:
            study.add_trial(_told(plan, sweep, [t.id for t in trials], trials[0].overrides))
        asked = study.ask({p.path: _distribution(p) for p in plan.space})
        overrides = {p.path: _value(p, asked.params[p.path]) for p in plan.space}
        if str(overrides) in seen and attempt < _TRIES - 1:
            continue
        try:
            grown = plan.with_setting(overrides)
            check_trial(grown.trials[-1], plan.base)
        except InputError as e:
            refused = str(e)
            continue
        return overrides if str(overrides) not in seen else None
    raise InputError(f"--search optuna: {_TRIES} suggestions in a row were refused, the last: {refused}")


def _told(
    plan: Plan, sweep: SweepDir, trial_ids: list[str], overrides: dict[str, Any]
) -> optuna.trial.FrozenTrial:
    """What the files say of one setting, as Optuna's record."""
    import optuna

    results = [read_record(sweep.trial(i).result, "metrics") for i in trial_ids]
    scores = [r["metrics"].get(plan.metric) for r in results if r is not None]
    failed = any(
        (read_record(sweep.trial(i).progress) or {}).get("error")
        for i, r in zip(trial_ids, results, strict=True)
        if r is None
    )
    params = {p.path: _index(p, overrides[p.path]) for p in plan.space}
    distributions = {p.path: _distribution(p) for p in plan.space}
    state, value = optuna.trial.TrialState.RUNNING, None
    known = [s for s in scores if s is not None]
    if failed:
        state = optuna.trial.TrialState.FAIL
    elif len(scores) == len(trial_ids):
        stopped = len(known) < len(scores)
        state = optuna.trial.TrialState.PRUNED if stopped else optuna.trial.TrialState.COMPLETE
        value = None if stopped else statistics.fmean(known)
    return optuna.trial.create_trial(state=state, value=value, params=params, distributions=distributions)


def _distribution(param: Param) -> Any:
    import optuna

    if param.kind in ("values", "choice"):
        # By number: Optuna's categories may not be lists.
        return optuna.distributions.CategoricalDistribution(list(range(len(param.choices))))
    if param.kind == "randint":
        return optuna.distributions.IntDistribution(int(param.low), int(param.high))
    return optuna.distributions.FloatDistribution(param.low, param.high, log=param.kind == "loguniform")


def _value(param: Param, suggested: Any) -> Any:
    if param.kind in ("values", "choice"):
        return param.choices[suggested]
    if param.kind == "randint":
        return int(suggested)
    return min(max(rounded(float(suggested)), param.low), param.high)


def _index(param: Param, value: Any) -> Any:
    """The inverse of `_value`."""
    if param.kind in ("values", "choice"):
        plain = [list(c) if isinstance(c, tuple) else c for c in param.choices]
        return plain.index(list(value) if isinstance(value, tuple) else value)
    return value
