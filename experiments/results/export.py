"""From a run directory to tables: the finished sweeps whose names say which question they answer."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmae.core.errors import InputError
from vmae.core.plan import training_bytes
from vmae.experiments.answers import read_answers
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import SweepDir
from vmae.experiments.results import questions
from vmae.experiments.results.strip import strip
from vmae.experiments.results.table import Facts, Row, Setting, SweepTable, places_of, right_of, write_table
from vmae.experiments.stages import pretrain
from vmae.experiments.sweeps import driver
from vmae.experiments.sweeps.spec import Plan, Trial
from vmae.experiments.sweeps.status import DONE, TrialState, trial_states
from vmae.experiments.tracking import Store, tags
from vmae.experiments.tracking.spool import Spool

_OWN = {"--runs-dir": 1, "--max-concurrent": 1, "--threads": 1, "--address": 1}
"""Options of a command that say where it ran, and how many words each takes."""
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A sweep whose files were written (or why not)."""

    name: str
    trials: int = 0
    strip: bool = False
    unfinished: tuple[int, ...] = ()
    """Seeds that were left out, for some of their trials are not done."""
    lacks: str = ""


def export_results(store: Store, out: Path, only: Sequence[str] = ()) -> list[Exported]:
    """Write the tables of every sweep that answers a question, and of the built-in set's a strip of pictures.

    Seeds with unfinished trials are left out and said to be: what is kept are whole comparisons. The lists
    are read where the sweep read them. Raises InputError for one that is gone, and where a sweep of `only`
    answers no question.
    """
    plans = {p.name: (s, p) for s, p in driver.all_plans(store) if isinstance(p, Plan)}
    known = sorted(name for name in plans if questions.of_sweep(name) is not None)
    for name in only:
        if name not in known:
            raise InputError(
                f"expected a sweep named QUESTION-SET (`vmae results list`) in {store.layout.sweeps}, got "
                f"'{name}'; there are: {', '.join(known) or 'none'}"
            )
    return [_export(*plans[name], out) for name in (only or known)]


def _export(sweep: SweepDir, plan: Plan, out: Path) -> Exported:
    found = trial_states(plan, sweep)
    unfinished = {s.trial.seed for s in found if s.status != DONE}
    states = [s for s in found if s.trial.seed not in unfinished]
    if not states:
        return Exported(name=plan.name, lacks="no seed's trials are all finished")
    if not all(sweep.trial(s.trial.id).answers.is_file() for s in states):
        return Exported(name=plan.name, lacks="its trials have no answers video by video")
    table = table_of(sweep, plan, states)
    write_table(table, out)
    picture = strip(sweep, plan, out / f"{plan.name}.png")
    return Exported(
        name=plan.name, trials=len(states), strip=picture is not None, unfinished=tuple(sorted(unfinished))
    )


def table_of(sweep: SweepDir, plan: Plan, states: Sequence[TrialState]) -> SweepTable:
    """The trials of `states`, all of which are done, as a table."""
    order = {t.id: i for i, setting in enumerate(plan.settings()) for t in setting}
    settings = [Setting(overrides=_portable(found[0].overrides)) for found in plan.settings()]
    answers = {s.trial.id: read_answers(sweep.trial(s.trial.id).answers, seed=s.trial.seed) for s in states}
    places = places_of(list(answers.values()))
    base = len(settings)
    rows = tuple(
        Row(
            setting=order.get(s.trial.id, base),
            seed=s.trial.seed,
            fold=-1 if s.trial.fold is None else s.trial.fold,
            numbers=_numbers(plan, s),
            right=right_of(answers[s.trial.id], places),
        )
        for s in states
    )
    if any(r.setting == base for r in rows):
        settings.append(Setting(overrides={}, baseline=True))
    rows = tuple(sorted(rows, key=lambda r: (r.setting, r.seed, r.fold)))
    return SweepTable(
        name=plan.name,
        facts=_facts(plan, Spool(sweep).start() or {}, _trained_on(plan)),
        settings=tuple(settings),
        rows=rows,
    )


def _portable(overrides: dict[str, Any]) -> dict[str, Any]:
    """The values, a teacher named by its run and not by where it lies."""
    return {k: _teacher(v) if isinstance(v, str) else v for k, v in overrides.items()}


def _teacher(value: str) -> str:
    sort, sign, place = value.partition(":/")
    if not sign:
        return value
    path = Path(place)
    return f"{sort}:{path.parent.name if path.name == 'model' else path.name}"


def _numbers(plan: Plan, state: TrialState) -> dict[str, float]:
    """A trial's metrics, and what its pre-training cost."""
    kept = {k: float(v) for k, v in state.metrics.items() if not k.startswith("perf/")}
    config = state.trial.config(plan.base)
    kept["minutes"] = state.seconds / 60
    if state.trial.baseline:
        return kept
    kept |= {"epochs": float(config.train.epochs), "tflop": _tflop(config)}
    batch = max(1, config.train.batch_size // config.train.accumulate) * config.data.repeats
    gpu = plan.resources.gpus > 0
    kept["memory_mib"] = training_bytes(config.model, config.mask, batch, half=gpu) / _MIB
    if rate := kept.get(pretrain.RATE.name):
        kept["step_ms"] = 1000 * config.train.batch_size * config.data.repeats / rate
    return kept


def _tflop(config: ExperimentConfig) -> float:
    """Matrix products of the whole pre-training (a teacher's own not counted)."""
    from vmae.experiments.sweeps.equal import step_cost

    videos = len(_listed(config)) // config.train.batch_size * config.train.batch_size
    return step_cost(config, "flops") * videos * config.train.epochs / 1e12


def _listed(config: ExperimentConfig) -> list[Any]:
    from vmae.core.video.samples import subset
    from vmae.experiments.data import read_list

    return subset(read_list(config.data, config.data.train_csv), config.data.train_share, config.train.seed)


def _trained_on(plan: Plan) -> int:
    firsts: dict[int | None, Trial] = {}
    for trial in plan.trials:
        firsts.setdefault(trial.fold, trial)
    return max(len(_listed(t.config(plan.base))) for t in firsts.values())


def _facts(plan: Plan, start: dict[str, Any], trained_on: int) -> Facts:
    config, said = plan.base, start.get("tags", {})
    m, d, train = config.model, config.data, config.train
    _, on = questions.of_sweep(plan.name) or (None, questions.VideoSet(name="", title=""))
    stride = f"{d.fps:g} a second" if d.fps else f"every {d.sampling_rate}"
    frames = "spread over the video" if d.sampling == "uniform" else f"{stride} frames"
    return Facts(
        command=command_of(str(said.get(tags.COMMAND, "")), on.name),
        commit=str(said.get(tags.COMMIT, ""))[:12],
        recipe=config.recipe,
        clip=f"{m.frames} x {m.height} x {m.width} pixels ({frames}), {m.grid.describe()}",
        model=f"encoder {m.embed_dim} x {m.depth}, decoder {m.decoder_embed_dim} x {m.decoder_depth}",
        schedule=f"{train.epochs} epochs of batches of {train.batch_size}, mask {config.mask.type} "
        f"{config.mask.ratio:g}, unless the question says otherwise",
        ranked_by=plan.metric,
        measured=", then ".join(config.pipeline.then),
        trained_on=trained_on,
    )


def command_of(command: str, on: str) -> str:
    """A recorded command without what belongs to the machine: `/a/b/all.csv` becomes `SET/all.csv`."""
    words, found = shlex.split(command), list[str]()
    while words:
        word = words.pop(0)
        name = word.partition("=")[0]
        if name in _OWN:
            if "=" not in word:
                words = words[_OWN[name] :]
            continue
        found.append(re.sub(r"^(|[^=]*=)/.*/", rf"\g<1>{on}/", word))
    return shlex.join(found)
