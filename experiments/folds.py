"""One setting over folds and seeds: the lists of each run, and what all of them say together.

In every run a fold is held out that chose nothing: the others are trained on, the last epoch's weights are
measured (`train.best_by` none), and no list is looked at meanwhile. Together the runs of a seed answer for
each video once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vmae.core.config import flatten
from vmae.core.errors import InputError
from vmae.core.files import read_record, write_json, write_text
from vmae.core.measure.statistics import Interval
from vmae.core.video.annotations import read_annotations, write_annotations
from vmae.core.video.classes import class_names
from vmae.core.video.folds import (
    describe_folds,
    groups_beside,
    make_folds,
    read_column,
    read_folds,
    table_of,
    write_folds,
)
from vmae.core.video.samples import Sample, num_classes
from vmae.experiments.answers import Answer, Answers, answers_of, write_answers
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import read_list
from vmae.experiments.layout import FoldsDir, RunDir
from vmae.experiments.provenance import config_tags
from vmae.experiments.request import held_out_beside
from vmae.experiments.tracking import Store, Tracker, key_of, tags


@dataclass(frozen=True, kw_only=True)
class Folds:
    """A list's videos with their groups and folds; -1: takes no part. `said`: where the folds are from."""

    samples: tuple[Sample, ...]
    groups: tuple[str, ...]
    folds: tuple[int, ...]
    said: str

    @property
    def numbers(self) -> list[int]:
        """The folds, sorted."""
        return sorted({f for f in self.folds if f >= 0})

    def inside(self, fold: int) -> list[Sample]:
        """The videos of one fold."""
        return [s for s, f in zip(self.samples, self.folds, strict=True) if f == fold]

    def outside(self, fold: int) -> list[Sample]:
        """The videos of all other folds."""
        return [s for s, f in zip(self.samples, self.folds, strict=True) if f >= 0 and f != fold]

    def lines(self) -> list[str]:
        """A line a fold for people."""
        return describe_folds([s.label for s in self.samples], self.groups, self.folds)


@dataclass(frozen=True, kw_only=True)
class FoldRun:
    """One run: its fold, its seed and its configuration."""

    fold: int
    seed: int
    config: ExperimentConfig


@dataclass(frozen=True, kw_only=True)
class FoldSummary:
    """The accuracy of all runs together, in [0, 1]."""

    interval: Interval
    fold_means: dict[int, float]
    chance: float

    def lines(self, what: str) -> list[str]:
        """The number with its interval and what it is of, and one line of folds."""
        found = self.interval
        seeds = f" and {found.seeds} seeds" if found.seeds > 1 else ""
        each = ", ".join(f"{m:.1%}" for m in self.fold_means.values())
        lines = [
            f"{what}: {found.text()} on {found.videos} held-out videos, {len(self.fold_means)} folds{seeds} "
            f"(chance {self.chance:.1%})",
            f"each fold: {each}",
        ]
        if found.low <= self.chance:
            lines.append("its interval reaches down to chance: nothing is shown to have been learnt")
        return lines


def check_folds(spec: str | None) -> None:
    """Raise InputError for a file of folds that cannot be read: before time is spent on the list."""
    if spec is not None and not spec.isdigit():
        table_of(spec)


def find_folds(spec: str, config: ExperimentConfig) -> Folds:
    """The folds of the training list: `spec` is a csv with the columns path and fold, or a number of folds.

    With a csv, videos of the held-out list that it names take part too: `vmae data index --folds` parts one
    set of videos into both lists; groups are its own, else those of a table beside the list. A number asks
    for folds of whole groups where `folds.csv` or `groups.csv`
    beside the list names groups.
    Raises InputError as the readers of both do, and for folds that leave one without videos.
    """
    listed, root = Path(config.data.train_csv), config.data.data_root or None
    samples = read_annotations(listed, root, format=config.data.annotation_format)
    if not spec.isdigit():
        rows, names = table_of(spec)
        more, where = _held_out_in(rows, config, samples)
        samples += more
        folds = read_folds(spec, samples)
        groups, of = _groups_of(spec, names, listed, samples)
        said = f"folds of {spec}{where}{of}{_parted(groups, folds)}"
    else:
        groups, said = _groups_beside(listed, samples)
        folds = make_folds([s.label for s in samples], groups, int(spec))
    found = Folds(samples=tuple(samples), groups=tuple(groups), folds=tuple(folds), said=said)
    if len(found.numbers) < 2:
        raise InputError(f"{spec}: expected videos of two folds or more in {listed}, got {found.numbers}")
    return found


def _held_out_in(
    rows: Mapping[str, object], config: ExperimentConfig, samples: Sequence[Sample]
) -> tuple[list[Sample], str]:
    """The videos of the held-out list (as named, or beside the training list) that `rows` has and `samples`
    have not, and words for them."""
    listed = Path(config.data.train_csv)
    val = Path(config.data.val_csv) if config.data.val_csv else held_out_beside(listed, None, needed=False)
    if val is None or not val.is_file():
        return [], ""
    known = {os.path.realpath(s.path) for s in samples}
    found = [
        s
        for s in read_list(config.data, str(val))
        if (path := os.path.realpath(s.path)) in rows and path not in known
    ]
    return found, f", with the {len(found)} videos of {val.name} that it names" if found else ""


def _groups_of(
    spec: str, names: Sequence[str], listed: Path, samples: Sequence[Sample]
) -> tuple[list[str], str]:
    """The group of each video by the csv of folds, a table beside the list, or itself; and words."""
    if "group" in names:
        return read_column(spec, samples, "group"), ""
    found = groups_beside(listed, samples)
    return ([s.path for s in samples], "") if found is None else (found[0], f", groups of {found[1]}")


def _parted(groups: Sequence[str], folds: Sequence[int]) -> str:
    """Words for groups that are not whole in one fold."""
    held: dict[str, set[int]] = {}
    for group, fold in zip(groups, folds, strict=True):
        held.setdefault(group, set()).add(fold)
    parted = sorted(group for group, inside in held.items() if len(inside - {-1}) > 1)
    if not parted:
        return ""
    return (
        f"; {len(parted)} of {len(held)} groups are in several folds ('{parted[0]}'), so clips of one "
        "session stand on both sides"
    )


def _groups_beside(listed: Path, samples: Sequence[Sample]) -> tuple[list[str], str]:
    found = groups_beside(listed, samples)
    if found is not None:
        return found[0], f"folds of whole groups of {found[1]}"
    return [s.path for s in samples], (
        "folds by video: no groups are known (folds.csv or groups.csv beside the list names them), so clips "
        "of one session may stand on both sides"
    )


@dataclass(frozen=True, kw_only=True)
class FoldRuns:
    """What was begun: the folds, and every run in the order of folds and seeds."""

    found: Folds
    runs: tuple[FoldRun, ...]
    undecided: bool = False
    """Whether the background is tried inside each fold's training list (`tryout`)."""


def begin(
    config: ExperimentConfig, store: Store, spec: str, seeds: int, *, undecided: bool = False
) -> FoldRuns:
    """Divide the training list and write the lists of every fold to the run's folder; or read what is there.

    The first seed is the configuration's. Class names and the folds themselves lie beside the lists, so that
    the runs go on with the same folds whatever becomes of the list. Raises InputError as `find_folds`.
    """
    home = store.layout.run(config.name)
    plan = home.folds.plan
    begun = read_record(plan, "said", "seeds")
    if begun is None and plan.exists():
        raise InputError(f"{plan}: expected the folds of run '{config.name}', got a damaged file")
    if begun is not None:
        config = ExperimentConfig.load(home.config)
        listed = replace(config.data, train_csv=str(home.folds.listed), data_root="")
        found = find_folds(str(home.folds.table), replace(config, data=listed))
        found = replace(found, said=begun["said"])
        runs = _runs(config, found, begun["seeds"], home)
        return FoldRuns(found=found, runs=runs, undecided=begun.get("undecided", False))
    if seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, got {seeds}")
    found = find_folds(spec, config)
    keep_lists(found, home.folds, Path(config.data.train_csv))
    config.save(home.config)
    write_json(home.folds.plan, {"said": found.said, "seeds": seeds, "undecided": undecided})
    return FoldRuns(found=found, runs=_runs(config, found, seeds, home), undecided=undecided)


def keep_lists(found: Folds, home: FoldsDir, listed: Path) -> Path:
    """Write the lists of every fold, the whole one (returned), the folds and the names of the classes.

    `listed` is where the videos were listed. Paths are whole, so that the lists mean the same anywhere.
    """
    names = class_names(str(listed))
    if names:
        write_text(home.classes, "".join(f"{name}\n" for name in names))
    home.path.mkdir(parents=True, exist_ok=True)
    _write(home.listed, found.samples)
    for fold in found.numbers:
        _write(home.train(fold), found.outside(fold))
        _write(home.test(fold), found.inside(fold))
    write_folds(home.table, found.samples, found.groups, found.folds)
    return home.listed


def _write(path: Path, samples: Sequence[Sample]) -> None:
    write_annotations(path, [replace(s, path=os.path.abspath(s.path)) for s in samples])


def _runs(config: ExperimentConfig, found: Folds, seeds: int, home: RunDir) -> tuple[FoldRun, ...]:
    first = config.train.seed
    return tuple(
        FoldRun(
            fold=fold,
            seed=seed,
            config=replace(
                config,
                name=f"{config.name}-fold{fold}-seed{seed}",
                data=replace(
                    config.data,
                    train_csv=str(home.folds.train(fold)),
                    val_csv="",
                    test_csv=str(home.folds.test(fold)),
                    data_root="",
                ),
                train=replace(config.train, seed=seed, best_by=None),
            ),
        )
        for fold in found.numbers
        for seed in range(first, first + seeds)
    )


def has_folds(run: RunDir) -> bool:
    """Whether a run's folder is that of a setting over folds."""
    return run.folds.plan.is_file()


def is_done(run: RunDir) -> bool:
    """Whether a fold's run has been measured."""
    return run.evaluation.metrics.is_file()


def finish(config: ExperimentConfig, store: Store, runs: FoldRuns) -> FoldSummary:
    """The answers of all runs as one table beside the setting, tracked as a run of its own, and its number.

    Raises InputError where a run has no answers.
    """
    home = store.layout.run(config.name)
    listed = replace(config.data, train_csv=str(home.folds.listed), val_csv="", data_root="")
    config = replace(config, data=listed)  # the copy, which stays as it was
    rows: list[Answer] = []
    for run in runs.runs:
        found = answers_of(store.layout.run(run.config.name), seed=run.seed)
        if found is None:
            raise InputError(f"expected the answers of run {run.config.name}, found none: it has not ended")
        rows += [replace(a, fold=run.fold) for a in found.rows]
    return conclude(config, store, Answers(tuple(rows)), num_classes(list(runs.found.samples)))


def conclude(
    config: ExperimentConfig,
    store: Store,
    answers: Answers,
    classes: int,
    more_tags: Mapping[str, str] | None = None,
) -> FoldSummary:
    """What a setting's answers over folds and seeds say, kept beside it and tracked as a run of its own."""
    home = store.layout.run(config.name)
    write_answers(home.answers, answers.rows)
    summary = FoldSummary(
        interval=answers.interval(), fold_means=answers.fold_means(), chance=1 / max(1, classes)
    )
    number = summary.interval
    metrics = {"test/top1": number.mean, "test/top1_low": number.low, "test/top1_high": number.high}
    metrics |= {f"test/fold{fold}_top1": mean for fold, mean in summary.fold_means.items()}
    with Tracker(
        store,
        home.path,
        name=config.name,
        key=key_of(home, config.name),
        kind=tags.FOLDS,
        params=flatten(config),
        tags={**config_tags(config), **(more_tags or {})},
    ) as tracker:
        tracker.log_metrics(metrics, 0)
        tracker.log_artifact(home.answers, "evaluation")
    return summary
