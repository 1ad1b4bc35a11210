"""What a stage and a metric are. Light to import: options of the command line are made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmae.experiments.layout import RunDir

if TYPE_CHECKING:
    import numpy as np
    import torch

    from vmae.core.model.encoder import VideoModel
    from vmae.core.progress import Progress
    from vmae.core.train.task import Report, Training, TrainResult
    from vmae.core.video.samples import Sample
    from vmae.experiments.data import Data

SHARE, SPEED = "share", "clips/s"
Config = Any
"""An `ExperimentConfig`, which itself asks the stages what they can work by: so it lies above them."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that a stage measures, and how it is shown wherever it is shown."""

    name: str
    """In MLflow and `result.json`: `stage/word`."""
    title: str
    """In figures and the dashboard's tables."""
    unit: str = ""
    """`share`: in [0, 1], shown in percent. Anything else (a loss has none) is shown as a number."""
    higher_is_better: bool = True
    digits: int | None = None
    """After the point, of numbers in tables; None: four significant ones."""
    column: str = ""
    """Heading of its column in tables of trials and runs, in which fields of the configuration stand in
    braces; empty: it has none."""
    score: bool = False
    """A measure of quality by which runs are ranked against each other."""
    curve: bool = False
    """Measured again and again during training, and worth a curve."""
    comparable: bool = True
    """False: what it measures depends on the task (`space.task_fields`), so that its height does not rank."""
    where: str = ""
    """On what it is measured: `on held-out videos`."""
    chance: str = ""
    """The metric that has the value of guessing."""

    @property
    def percent(self) -> bool:
        """Whether it is shown in percent."""
        return self.unit == SHARE

    @property
    def label(self) -> str:
        """For an axis: the title, and on what it is measured."""
        return f"{self.title} {self.where}".strip()

    def heading(self, config: Config) -> str:
        """Of its column in a table of trials of a configuration."""
        return (self.column or self.title).format_map(vars(config))

    def text(self, value: float | None, spread: float | None = None) -> str:
        """For a table: `31.2%`, `31.2 ±1.5%` with a spread, `0.693 ±0.002` of a number; `-` for nothing."""
        if value is None:
            return "-"
        number = self._number(value)
        if spread is not None and not math.isnan(spread):
            number += f" ±{self._number(spread)}"
        return number + "%" * self.percent

    def difference(self, value: float, error: float = math.nan) -> str:
        """One value less another: `+1.5 ±0.3`, in percentage points for shares."""
        number = self._number(value)
        text = number if number.startswith("-") else f"+{number}"
        return text if math.isnan(error) else f"{text} ±{self._number(error)}"

    def tick(self, value: float) -> str:
        """For an axis: as many digits as there is room for."""
        return f"{100 * value:.3g}%" if self.percent else f"{value:.4g}"

    def _number(self, value: float) -> str:
        if self.percent:
            return f"{100 * value:.1f}"
        return f"{value:.4g}" if self.digits is None else f"{value:.{self.digits}f}"

    def score_of(self, value: float) -> float:
        """The value with "higher is better"; NaN is the worst."""
        if math.isnan(value):
            return -math.inf
        return value if self.higher_is_better else -value


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who listens to a stage, in the process that asked for it."""

    report: Report = lambda event, values: None
    """Hears of a training's events (`vmae.core.train.task`)."""
    picture: Callable[[np.ndarray, int], None] | None = None
    """Gets a reconstruction and the epoch it shows, where the configuration asks for pictures."""
    should_stop: Callable[[], bool] | None = None
    """Asked after every step; on True the training saves its state and ends."""
    decides: bool = False
    """Whether `should_stop` waits for what `report` hears of each epoch."""
    part: Callable[[float], None] = lambda done: None
    """Hears how much of a measurement is done, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a stage is to do, wherever it does it."""

    config: Config
    """What it works by; `init` is the model that it starts from or measures."""
    home: RunDir
    """Where it leaves its model, checkpoints and files."""
    watch: Watch = field(default_factory=Watch)


@dataclass(frozen=True, kw_only=True)
class Context:
    """`Work` in the process that does it."""

    config: Config
    home: RunDir
    watch: Watch
    device: torch.device
    cache: Path
    """Where decoded clips are kept."""
    data: Callable[[], Data]
    """The lists of `config`, opened once."""
    model: Callable[[], VideoModel | None]
    """The model at `config.init`, read once, on the CPU or where a stage before left it; None without one."""

    def initial(self) -> VideoModel | None:
        """What a training starts from, as `model`; None too where it goes on from a checkpoint in `home`."""
        from vmae.core.train.state import has_whole_state

        return None if has_whole_state(self.home.checkpoints) else self.model()

    def training(self) -> Training:
        """What every training function takes besides what it trains for, of `config`."""
        return {
            "optim": self.config.optim,
            "train": self.config.train,
            "run_dir": self.home.path,
            "device": self.device,
            "report": self.watch.report,
            "should_stop": self.watch.should_stop,
        }


Numbers = dict[str, float]


def _unchanged(config: Config) -> Config:
    return config


def _nothing(config: Config) -> None:
    """Any configuration will do."""


def _any_list(config: Config, samples: Sequence[Sample], listed: str) -> None:
    """Any list will do."""


def _one(config: Config) -> int:
    return 1


def _never(config: Config) -> int:
    return 0


def _no_more(result: TrainResult) -> Numbers:
    return {}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a test's numbers are of: the list, and whether an epoch was chosen on it."""

    listed: str
    chose: bool

    @property
    def prefix(self) -> str:
        """How its metrics are called: `test/` is for lists that chose nothing."""
        return "val/final_" if self.chose else "test/"


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What a trained model reaches on the test list."""

    numbers: Numbers
    """Without a prefix."""
    files: list[Path]
    """About it, in the run's folder of the evaluation."""
    lines: list[str]
    """To be shown."""
    on: Measured


Testing = Callable[["Context", Path, "Callable[[int], Progress] | None"], Tested]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A piece of work on a model, done by itself (`vmae pretrain`) or in a row with others (a trial).

    A user's own is an object of a module of theirs, named `module:object` in `pipeline.then`.
    """

    name: str
    metrics: tuple[Metric, ...]
    """What it measures; the first ranks the trials whose last stage it is."""
    share: Callable[[Config], float]
    """Of a trial's time, as a guess, in epochs of pre-training; used for the time left only."""
    train: Callable[[Context], TrainResult] | None = None
    """Trains a model in `home`, or goes on with the training there; several processes may share it, each of
    which calls this."""
    run: Callable[[Context], Numbers] | None = None
    """Measures, in one process; of a stage that trains, what it trained."""
    numbers: Callable[[TrainResult], Numbers] = _no_more
    """Of one that trains: what its training says besides the loss."""
    section: str = ""
    """Of one that trains: which `TrainConfig` of the trial's configuration it trains by."""
    settings: Callable[[Config], Config] = _unchanged
    """What it works by in a trial, from the trial's configuration."""
    check: Callable[[Config], None] = _nothing
    """Of one that trains: raises InputError for a configuration that it cannot train by."""
    ready: Callable[[Config], None] = _nothing
    """Raises InputError for what shows when it begins: functions of a user's own, files that it reads."""
    flops: Callable[[Config], float] | None = None
    """Of one that trains: matrix-product FLOPs of one clip's step, forward and backward."""
    held_out: bool = True
    """Whether it needs a held-out list to measure on."""
    task: str = ""
    """Of one that trains a head: what `vmae finetune --task` calls it."""
    recipe: str = ""
    """Of one that trains: the recipe where none is named."""
    advised: bool = False
    """Of one that trains: whether `vmae recommend` chooses its settings from the list."""
    masked: bool = False
    """Of one that trains: whether its clips are masked."""
    varies: str = ""
    """Of one that trains: `Task.varies` of what it trains by."""
    labels: bool = False
    """Of one that trains: whether it learns from the list's labels."""
    views: Callable[[Config], int] = _one
    """Clips of a held-out video that its test looks at."""
    watches: Callable[[Config], int] = _never
    """Of one that trains a head: epochs between its looks at a clip of each held-out video; 0: none."""
    check_list: Callable[[Config, Sequence[Sample], str], None] = _any_list
    """Raises InputError for samples (of the list with this name) that it cannot learn from or measure."""
    test: Testing | None = None
    """Of one that trains: what the model in a folder reaches on the test list (the held-out one where there
    is none). The function is told of how many videos it is to show the progress."""
    unused: tuple[str, ...] = ()
    """Of one that trains: how the fields begin that make no difference to it."""
    model_tag: str = ""
    """Of one that trains: the tag of a trial that says where the stage's model lies."""
    takes_share: bool = False
    """Of one that trains: whether `pipeline.finetune_share` says how many labels it has."""
    best_counts: bool = False
    """Of one that trains: its best epoch's model stands for it where one is kept, else its last epoch's."""
    kept_as: str = ""
    """What its `record` is called; its own name where empty."""
    baseline: str = "same network, random weights"
    """What a trial without pre-training is to it."""

    @property
    def record(self) -> str:
        """Name of the file with its numbers in a trial's folder, without `.json`."""
        return self.kept_as or self.name

    @property
    def trains(self) -> bool:
        """Whether it trains a model."""
        return self.train is not None

    @property
    def metric(self) -> Metric:
        """What ranks the trials whose last stage it is."""
        return self.metrics[0]


def plain(name: str) -> Metric:
    """A metric that no stage here has said anything about."""
    return Metric(name=name, title=name)


def accuracies(
    stage: str, title: str, *, where: str = "on held-out videos", **more: Any
) -> tuple[Metric, ...]:
    """What every classification measures: top-1 (which ranks), top-5, mean over classes, chance."""
    common: dict[str, Any] = {"unit": SHARE, "where": where}
    chance = f"{stage}/chance"
    return (
        Metric(name=f"{stage}/top1", title=title, column=title, score=True, chance=chance, **common, **more),
        Metric(name=f"{stage}/top5", title=f"{title}, top 5", **common),
        Metric(name=f"{stage}/mean_class", title=f"{title}, mean of the classes", **common),
        Metric(name=chance, title="chance", unit=SHARE),
    )
