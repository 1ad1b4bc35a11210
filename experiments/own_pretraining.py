"""Does pre-training on the own clips first pay? Both ways are tried inside the training list, at equal time.

The list is divided into parts of whole groups, each held out in turn. On the others a classifier is trained
from fresh weights, and another from a model that was pre-trained on the same others: half of the time for
each of these two, all of it for the fresh one. Clips, background, batch and the classifier's optimiser are
the same. Pre-training is offered where the paired interval of the difference lies above zero. It sees no
picture of a part that is held out, and nothing looks at the held-out list.

The runs lie in a store of their own in the cache, so that they stand among no other runs; the answer is
remembered by the list, the files and the settings.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from vmae.core.config import to_dict
from vmae.core.errors import InputError
from vmae.core.files import read_record, write_json
from vmae.core.measure.statistics import Interval, Paired
from vmae.core.progress import format_duration
from vmae.core.video.folds import groups_beside
from vmae.core.video.samples import Sample
from vmae.experiments import folds
from vmae.experiments.advice import Advice, advise
from vmae.experiments.answers import answers_of, compare
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import read_list
from vmae.experiments.layout import RunsDir
from vmae.experiments.recommend import (
    PRETRAINING,
    START_S,
    Choice,
    Flip,
    Recommendation,
    Speed,
    decoding_s,
    epoch_s,
    most_epochs,
    recipe_for,
    test_s,
    with_batch_for,
    with_epochs,
)
from vmae.experiments.stages import finetune, pretrain
from vmae.experiments.timing import ClipTime, own_threads, time_loading, time_steps
from vmae.experiments.tracking import Store, local_store
from vmae.experiments.tryout import PARTS, digest

SHARE = 0.5
"""Of the time with pre-training, what that gets; fine-tuning has the rest."""
ROUNDS = 6
"""How often the steps of both are timed in turn; the fastest counts."""
_VERSION = 1
_FRESH, _OWN, _FIRST = "fresh", "own", "pretrain"
_SUFFIX = f".{_FIRST}.json"

What = Literal["fresh weights", "pre-training", "fine-tuning from it"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether pre-training first is offered, and a sentence with the numbers; `seconds` the trial had."""

    offered: bool
    reason: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Arms:
    """The two ways, and what each training of a part is predicted to take, in seconds."""

    fresh: ExperimentConfig
    own: ExperimentConfig
    first: ExperimentConfig
    """The pre-training that `own` starts from."""
    seconds: dict[str, float]

    def total_s(self) -> float:
        """Of all trainings together."""
        return PARTS * sum(self.seconds.values())


@dataclass(frozen=True, kw_only=True)
class Step:
    """One training of the trial, which is a run of its store; `seconds` as predicted."""

    part: int
    what: What
    config: ExperimentConfig
    seconds: float
    done: bool


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that was begun: its store, its runs and how the list is parted."""

    store: Store
    arms: Arms
    fresh: folds.FoldRuns
    own: folds.FoldRuns
    grouped: bool
    seconds: float
    kept: Path
    """Where its answer goes."""

    def steps(self) -> list[Step]:
        """All trainings in their order, part by part."""
        found = []
        layout = self.store.layout
        for fresh, own in zip(self.fresh.runs, self.own.runs, strict=True):
            # The held-out videos are named so that they are decoded together with the others, once for all
            # runs. Pre-training opens no other list than the first.
            first = replace(self.arms.first, name=f"{_FIRST}-fold{own.fold}", data=own.config.data)
            model = layout.run(first.name).model
            started = replace(own.config, init=str(model))
            fresh_done, own_done = (folds.is_done(layout.run(r.config.name)) for r in (fresh, own))
            ways: tuple[tuple[What, str, ExperimentConfig, bool], ...] = (
                ("fresh weights", _FRESH, fresh.config, fresh_done),
                ("pre-training", _FIRST, first, own_done or model.exists()),
                ("fine-tuning from it", _OWN, started, own_done),
            )
            for what, name, config, done in ways:
                seconds = self.arms.seconds[name]
                found.append(Step(part=fresh.fold, what=what, config=config, seconds=seconds, done=done))
        return found

    def lines(self) -> list[str]:
        """What is compared, and how the list is parted."""
        arms, found = self.arms, self.fresh.found
        return [
            f"pre-training first is tried at equal time: {_lengths(arms)}, on each {PARTS - 1} of {PARTS} "
            f"parts of the training list; about {format_duration(arms.total_s())} in all",
            found.said,
            *found.lines(),
        ]


def pretraining_of(config: ExperimentConfig, *, gpu: bool) -> ExperimentConfig:
    """The pre-training on the same clips, of the same model, that a fine-tuning can start from."""
    found = recipe_for(pretrain.STAGE.name, gpu=gpu)
    train = replace(found.train, threads=config.train.threads)
    return replace(found, model=config.model, data=config.data, train=train)


def plan(
    config: ExperimentConfig, first: ExperimentConfig, videos: int, seconds: float, speeds: Sequence[Speed]
) -> Arms:
    """Both ways with as many epochs as end in `seconds`, all parts of a list of `videos` together.

    `speeds` are those of a step of fine-tuning (`config`) and of pre-training (`first`). Fresh weights get no
    more epochs than `most_epochs` has a use for; the other way is then as short. Raises InputError where the
    time is too short for an epoch of each.
    """
    rest = videos * (PARTS - 1) // PARTS
    linked = replace(config.tracking, checkpoints="none")  # weights go when the answer is known
    tuned, pretrained = (replace(with_batch_for(c, rest), tracking=linked) for c in (config, first))
    tune_s, pretrain_s = (epoch_s(c, rest, 0, s) for c, s in zip((tuned, pretrained), speeds, strict=True))
    fixed, end = START_S + decoding_s(config, videos, speeds[0]), test_s(tuned, videos // PARTS, speeds[0])
    each = (seconds - fixed) / (2 * PARTS) - end
    each = min(each, tune_s * most_epochs(finetune.STAGE.name, rest))
    first_epochs, own_epochs = int(each * SHARE / pretrain_s), int(each * (1 - SHARE) / tune_s)
    if min(first_epochs, own_epochs) < 1:
        least = fixed + 2 * PARTS * (end + max(pretrain_s / SHARE, tune_s / (1 - SHARE)))
        raise InputError(
            f"--try-pretraining: expected time for an epoch of each of {3 * PARTS} trainings, about "
            f"{format_duration(least)}, got {format_duration(seconds)}"
        )
    spent = first_epochs * pretrain_s + own_epochs * tune_s
    fresh_epochs = max(1, round(spent / tune_s))
    length = {_FRESH: fresh_epochs * tune_s + end, _FIRST: first_epochs * pretrain_s}
    return Arms(
        fresh=replace(with_epochs(tuned, fresh_epochs), name=_FRESH),
        own=replace(with_epochs(tuned, own_epochs), name=_OWN),
        first=replace(
            with_epochs(pretrained, first_epochs),
            name=_FIRST,
            # Looks at the model while it trains would take time that fresh weights do not get.
            monitor=replace(pretrained.monitor, share=0.0),
        ),
        seconds={**length, _OWN: own_epochs * tune_s + end},
    )


def begin(advice: Advice, runs: RunsDir, seconds: float, device: torch.device) -> Trial:
    """Plan a trial of about `seconds` and write its lists; or go on with the one that is there.

    Times a few steps of both trainings. Raises InputError as `plan`, and for a list of too few groups.
    """
    config = replace(advice.found.config, data=replace(advice.found.config.data, val_csv="", test_csv=""))
    samples, groups, grouped = _listed(config)
    if len(set(groups)) < PARTS:
        raise InputError(
            f"--try-pretraining: expected a training list of {PARTS} groups or more, got {len(set(groups))}"
        )
    key = _digest(config, samples, groups)
    store = local_store(runs.tried / f"{key}-{seconds:.0f}s")
    home = store.layout.path
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        # Clips are decoded once, wherever they are asked for.
        store.layout.cache.symlink_to(runs.cache.resolve(), target_is_directory=True)
    arms = _begun(home)
    if arms is None:
        threads = own_threads(config, device)
        config = replace(config, train=replace(config.train, threads=threads))
        first = pretraining_of(config, gpu=bool(advice.machine.gpu))
        speeds = _speeds((config, first), samples, advice.lists.classes, device)
        arms = plan(config, first, len(samples), seconds, speeds)
        _save(arms, home)
    fresh, own_runs = (folds.begin(c, store, str(PARTS), 1) for c in (arms.fresh, arms.own))
    return Trial(
        store=store,
        arms=arms,
        fresh=fresh,
        own=own_runs,
        grouped=grouped,
        seconds=seconds,
        kept=_kept(runs, key),
    )


def _speeds(
    configs: tuple[ExperimentConfig, ExperimentConfig],
    samples: Sequence[Sample],
    classes: int,
    device: torch.device,
) -> list[Speed]:
    """Of a step of both, which take turns: what else the machine does must not be in what one has more."""
    load = time_loading(samples, configs[0].data)
    threads = configs[0].train.threads
    found: list[list[ClipTime]] = [[], []]
    for _ in range(ROUNDS):
        for steps, config in zip(found, configs, strict=True):
            steps.append(time_steps(config, classes, device=device, threads=(threads,), limit_s=0.5))
    return [
        Speed(
            step_s=min(t.step_s for t in steps),
            decode_s=load.decode_s,
            cut_s=load.cut_s,
            threads=steps[0].threads,
        )
        for steps in found
    ]


def _begun(home: Path) -> Arms | None:
    """The ways of a trial that was begun in this folder."""
    seconds = read_record(home / "seconds.json", _FRESH, _OWN, _FIRST)
    if seconds is None:
        return None
    fresh, own, first = (ExperimentConfig.load(home / f"{n}.yaml") for n in (_FRESH, _OWN, _FIRST))
    return Arms(fresh=fresh, own=own, first=first, seconds=seconds)


def _save(arms: Arms, home: Path) -> None:
    for config in (arms.fresh, arms.own, arms.first):
        config.save(home / f"{config.name}.yaml")
    write_json(home / "seconds.json", arms.seconds)  # the last: a trial that has it is whole


def conclude(trial: Trial) -> Verdict:
    """What the answers of both ways say, remembered. Their weights are removed, the answers and curves stay.

    Raises InputError where a run has not ended.
    """
    store = trial.store
    fresh, own = (
        folds.finish(config, store, runs)
        for config, runs in ((trial.arms.fresh, trial.fresh), (trial.arms.own, trial.own))
    )
    said = [answers_of(store.layout.run(c.name)) for c in (trial.arms.own, trial.arms.fresh)]
    assert said[0] is not None and said[1] is not None
    pair, _ = compare(said[0], said[1])
    verdict = told(
        fresh.interval, own.interval, pair, fresh.chance, trial.arms, trial.seconds, grouped=trial.grouped
    )
    write_json(trial.kept, asdict(verdict))
    for step in trial.steps():
        home = store.layout.run(step.config.name)
        for weights in (home.checkpoints, home.model, home.best):
            shutil.rmtree(weights, ignore_errors=True)
    return verdict


def told(
    fresh: Interval,
    own: Interval,
    pair: Paired,
    chance: float,
    arms: Arms,
    seconds: float,
    *,
    grouped: bool,
) -> Verdict:
    """The verdict that the numbers allow; `pair` is the pre-trained less the fresh."""
    offered, end = False, "not offered: not shown to be better"
    if pair.high < 0:
        end = "not offered: fresh weights are better"
    elif pair.low > 0 and own.low <= chance:
        end = f"not offered: neither is shown to beat chance ({chance:.1%})"
    elif pair.low > 0:
        offered, end = True, "offered"
    parts = "of whole groups" if grouped else "by video (no groups are known)"
    tuned, first, then = arms.fresh.train.epochs, arms.first.train.epochs, arms.own.train.epochs
    reason = (
        f"tried on {pair.videos} videos of the training list, {PARTS} parts {parts} held out in turn, at "
        f"equal time: fresh weights ({tuned} epochs) {fresh.text()}, pre-trained first ({first} epochs, "
        f"then {then}) {own.text()}; difference {pair.text()}, {end}"
    )
    return Verdict(offered=offered, reason=reason, seconds=seconds)


def remembered(config: ExperimentConfig, runs: RunsDir) -> Verdict | None:
    """What was found on the training list of a fine-tuning; None where it was not tried as it is now."""
    if not any(runs.tried.glob(f"*{_SUFFIX}")):
        return None  # no file has to be read to know that
    samples, groups, _ = _listed(config)
    known = read_record(_kept(runs, _digest(config, samples, groups)), "offered", "reason", "seconds")
    return None if known is None else Verdict(**known)


def with_verdict(found: Recommendation, verdict: Verdict | None, *, done: bool = False) -> Recommendation:
    """The recommendation with what was found; `done`: its configurations are written."""
    if verdict is None:
        return found
    reason = verdict.reason
    if verdict.offered and not done:
        reason += ": vmae recommend LIST --try-pretraining writes both configurations"
    value = "offered" if verdict.offered else "no"
    return found.with_choice(Choice(what=PRETRAINING, value=value, reason=reason))


def both(
    advice: Advice, name: str, device: torch.device, flip: Flip
) -> tuple[ExperimentConfig, ExperimentConfig]:
    """The pre-training and the fine-tuning that starts from its run `name`, in the budget of one."""
    config, share = advice.found.config, {pretrain.STAGE.name: SHARE, finetune.STAGE.name: 1 - SHARE}
    starts = pretraining_of(config, gpu=bool(advice.machine.gpu)), replace(config, init=name)
    first, then = (
        advise(
            start.job,
            Path(config.data.train_csv),
            Path(config.data.val_csv) if config.data.val_csv else None,
            device=device,
            data_root=Path(config.data.data_root) if config.data.data_root else None,
            budget_s=advice.budget_s * share[start.job],
            flip=flip,
            start=start,
            keep_cut=True,
            annotation_format=config.data.annotation_format,
        ).found.config
        for start in starts
    )
    return first, then


def _lengths(arms: Arms) -> str:
    tuned, first, then = arms.fresh.train.epochs, arms.first.train.epochs, arms.own.train.epochs
    return f"{tuned} epochs from fresh weights against {first} of pre-training and {then} from it"


def _listed(config: ExperimentConfig) -> tuple[list[Sample], list[str], bool]:
    """The training list, the group of each video (its own where none are known), whether they are known."""
    listed = config.data.train_csv
    samples = read_list(config.data, listed)
    found = groups_beside(listed, samples)
    return samples, [s.path for s in samples] if found is None else found[0], found is not None


def _digest(config: ExperimentConfig, samples: Sequence[Sample], groups: Sequence[str]) -> str:
    # The background follows from the list.
    shape = to_dict(replace(config.model, background="keep"))
    return digest(config, samples, groups, [_VERSION, shape])


def _kept(runs: RunsDir, key: str) -> Path:
    return runs.tried / f"{key}{_SUFFIX}"
