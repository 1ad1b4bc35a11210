"""The questions of `docs/results`: what is asked, by which sweep, what the paper reports, what did not show.

A sweep answers a question on a set of videos where its name says so: `ratio-demo` is `ratio` on `demo`.
Light to import: no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vmae.experiments.sweeps import definitions

BUILT_IN = "demo"
"""The set that `vmae data demo` makes, and the only one whose pictures may be shown."""


@dataclass(frozen=True, kw_only=True)
class VideoSet:
    """A set of videos that questions are asked of."""

    name: str
    title: str
    options: tuple[str, ...] = ()
    """What a sweep on it is given. Epochs are fixed: what `recommend` says follows the machine's speed."""


SETS: dict[str, VideoSet] = {
    s.name: s
    for s in (
        # At the recipe's own ratio the plateau is left by then.
        VideoSet(name=BUILT_IN, title="The built-in set", options=("--epochs 26",)),
        VideoSet(
            name="egogestar10",
            title="egogestar10: finger gestures in first person, folds by scene",
            options=("--data egogestar10/all.csv", "--folds egogestar10/folds.csv", "--epochs 100"),
        ),
        VideoSet(
            name="tennis7",
            title="tennis7: strokes of tennis, folds by session",
            options=("--data tennis7/all.csv", "--folds tennis7/folds.csv", "--epochs 100"),
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question, and everything about its answer that is not a measurement."""

    name: str
    title: str
    asks: str
    sweep: str = ""
    """The named sweep that answers it; empty: the trials of all other questions do."""
    options: tuple[str, ...] = ()
    """What else that sweep is given."""
    more: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By set, what it is given there besides."""
    before: str = ""
    """A command that comes first."""
    reference: str = ""
    """The setting that the others are held against: the paper's own. Empty: the best."""
    versus: str = ""
    """A field of two values, which are held against each other wherever the other fields agree."""
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By field and the text of a value, what it is called."""
    columns: tuple[str, ...] = ("epochs",)
    """Of `COLUMNS`, what stands in the table besides accuracies."""
    paper: str = ""
    """What the paper reports, and where."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """By set, what did not show there and why that may be."""

    @property
    def published(self) -> Mapping[str, Mapping[str, float]]:
        """The paper's numbers by setting and data set."""
        return definitions.get(self.sweep).published if self.sweep else {}

    def command(self, on: VideoSet) -> str:
        """What asks it of a set of videos."""
        more = self.more.get(on.name, ())
        given = {option.split()[0] for option in more if not option.startswith("--set")}
        usual = [option for option in on.options if option.split()[0] not in given]
        words = ["vmae sweep", self.sweep, *usual, "--seeds 3", *self.options, *more]
        return " ".join([*words, f"--run-name {self.name}-{on.name}"])

    def called(self, overrides: Mapping[str, Any]) -> str:
        """A setting for people: `0.9`, `10% of the labels, pre-trained`."""
        return ", ".join(self.words.get(path, {}).get(str(v), str(v)) for path, v in overrides.items())


_P1 = "VideoMAE (arXiv 2203.12602), ViT-B, 800 epochs, fine-tuned; top-1 in per cent on SSv2 / Kinetics-400"
_COST = ("epochs", "tflop")

_RATIO = Question(
    name="ratio",
    title="How much to hide",
    asks="Tube masking at four ratios, everything else the same, at equal operations: where more is hidden a "
    "clip costs less, and more are seen. Beside it stands the probe after equal epochs, on the way.",
    sweep="masking_ratio",
    options=("--equal flops",),
    more={BUILT_IN: ("--epochs 55",)},
    reference="0.9",
    columns=("pretrain/probe_top1", "pretrain/loss", *_COST),
    paper=f"{_P1}: 0.9 is best, 0.75 loses 1.6 / 0.2 points (table 1b).",
)
_TYPE = Question(
    name="type",
    title="Which tokens to hide",
    asks="Tubes, single tokens and whole time slots, at the recipe's ratio (of slots, the nearest share "
    "below it that whole ones allow).",
    sweep="masking_strategy",
    options=("--values tube,random,frame",),
    more={on: ("--set model.tubelet_size=2",) for on in SETS if on != BUILT_IN},  # several slots
    notes={
        BUILT_IN: "A clip has two time slots here, so `frame` hides one of them: 50 %, not 75. Its encoder "
        "sees twice as many tokens in as many epochs; that it is ahead need not be the type's doing."
    },
    reference="tube",
    paper=f"{_P1}: tubes at 90 % are best, random loses 1.3 / 0.5, frames (87.5 %) lose 8.1 / 3.5 "
    "(table 1b).",
)
_DEPTH = Question(
    name="depth",
    title="How deep the decoder is",
    asks="One, two and four decoder blocks.",
    sweep="decoder_depth",
    options=("--values 1,2,4",),
    reference="4",
    columns=_COST,
    paper=f"{_P1}: four blocks are best, one loses 1.1 / 1.0 (table 1a).",
)
_TARGET = Question(
    name="target",
    title="Normalised or raw pixels",
    asks="What the decoder predicts: pixels normalised by patch and channel, or as they are.",
    sweep="target",
    reference="normalized",
    paper="VideoMAE predicts normalised pixels and gives no number for raw ones.",
)
_LOSS = Question(
    name="loss",
    title="How predictions are compared with pixels",
    asks="Mean squared error, mean absolute error and the smooth one between them.",
    sweep="loss",
    reference="mse",
    paper=f"{_P1}: squared is best, absolute loses 0.5 / 0.3, smooth 0.7 / 0.4 (table 1e).",
)
_DUAL = Question(
    name="dual",
    title="Decoding a part of what is hidden",
    asks="Dual masking: the decoder leaves out none, half or three quarters of the positions (running cell). "
    "What it costs in accuracy and spares in time and memory.",
    sweep="dual_masking",
    reference="0.0",
    columns=("tflop", "step_ms", "memory_mib"),
    paper="VideoMAE V2 (arXiv 2303.16727) leaves out half: its decoder sees half the tokens. At ViT-B a "
    "clip's step has 144.7 GFLOP instead of 202.3.",
)
_REPEATS = Question(
    name="repeats",
    title="Several crops of one decoded clip",
    asks="One, two and four crops and masks of each decoded clip, at equal operations: so many times fewer "
    "clips are decoded.",
    sweep="repeated_sampling",
    options=("--equal flops",),
    reference="1",
    columns=("epochs", "minutes"),
    paper="MAE-ST (arXiv 2205.09113), ViT-L on Kinetics-400: 83.7, 84.3 and 84.4, at 1.0, 1.8 and 3.0 times "
    "the speed, because decoding bounds it.",
)
_OBJECTIVE = Question(
    name="objective",
    title="What is learnt from, at equal operations",
    asks="Pixels (normalised, raw) and views that agree (SIGReg, in steps of 64 clips), every one with the "
    "matrix-product FLOPs of the recipe's own pre-training. On the built-in set every model sees a clip less "
    "its mean frame: clips are told apart by their colours otherwise, and nothing is learnt of what moves.",
    sweep="objective",
    options=("--equal flops",),
    more={BUILT_IN: ("--set model.background=subtract",)},
    reference="normalized",
    columns=_COST,
    paper="LeVJEPA (arXiv 2608.27395), ViT-B at equal FLOPs, frozen, ImageNet / SSv2 / Kinetics-400: LeVJEPA "
    "61.0 / 40.4 / 44.6, VideoMAE V2 53.4 / 43.6 / 37.4: pixels win on motion.",
)
_LABELS = Question(
    name="labels",
    title="Pre-trained or from scratch, at few labels",
    asks="Fine-tuning with 10, 30 and 100 % of the labels, from the pre-training and from random weights, in "
    "as many steps each: fewer labels are gone through more often. The last epoch counts, none is chosen.",
    sweep="label_share",
    options=("--param pipeline.scratch=false,true",),
    # A tenth of a fold's labels is less than a batch of 16.
    more={on: ("--set pipeline.finetune_train.batch_size=8",) for on in SETS if on != BUILT_IN},
    versus="pipeline.scratch",
    words={
        "pipeline.finetune_share": {"0.1": "10 % of labels", "0.3": "30 % of labels", "1.0": "all labels"},
        "pipeline.scratch": {"False": "pre-trained", "True": "from scratch"},
    },
    columns=(),
    paper=f"{_P1}: with all labels from scratch 32.6 / 68.8, pre-trained 69.6 / 80.0.",
)
_BUDGET = Question(
    name="budget",
    title="How long to pre-train before it pays",
    asks="Pre-trainings of several lengths, each fine-tuned with all labels in the same steps; random "
    "weights are fine-tuned so too. The last epoch counts, none is chosen.",
    sweep="pretraining_epochs",
    options=("--then finetune", "--set pipeline.finetune_train.best_by=none finetune.eval_every=0"),
    more={
        BUILT_IN: ("--values 7,13,26,52",),
        "egogestar10": ("--values 30,100,300",),
        "tennis7": ("--values 30,100,300",),
    },
    columns=("tflop",),
    paper=f"{_P1}: 69.6 / 80.0 against 32.6 / 68.8 from scratch. Its longest on SSv2 (2400 epochs) reaches "
    "70.8.",
)
_MONITORS = Question(
    name="monitors",
    title="Do monitors rank pre-trainings as a probe does",
    asks="Over the pre-trained trials of all other questions: the rank correlation of each monitor, and of "
    "the two losses, with the probe's accuracy on held-out videos. Monitors read training videos alone; the "
    "reconstruction error is that of held-out ones.",
    paper="RankMe (arXiv 2210.02885) and LiDAR (arXiv 2312.04000) report high rank correlations for joint "
    "embeddings of images; of masked autoencoders on video they say nothing.",
)

ALL: dict[str, Question] = {
    q.name: q
    for q in (_RATIO, _TYPE, _DEPTH, _TARGET, _LOSS, _DUAL, _REPEATS, _LABELS, _BUDGET, _OBJECTIVE, _MONITORS)
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """A cost in a table: its heading, digits after the point."""

    heading: str
    digits: int
    percent: bool = False


COLUMNS: dict[str, Column] = {
    "epochs": Column(heading="epochs", digits=0),
    "pretrain/probe_top1": Column(heading="after equal epochs", digits=1, percent=True),
    "pretrain/loss": Column(heading="training loss", digits=3),
    "tflop": Column(heading="pre-training, TFLOP", digits=1),
    "minutes": Column(heading="minutes a trial", digits=1),
    "step_ms": Column(heading="ms a step", digits=1),
    "memory_mib": Column(heading="memory of a step, MiB (counted)", digits=0),
}


def of_sweep(name: str) -> tuple[Question, VideoSet] | None:
    """Which question on which set a sweep of this name answers; None where its name says no question."""
    asked, sign, on = name.partition("-")
    if not sign or not on or asked not in ALL or not ALL[asked].sweep:
        return None
    return ALL[asked], SETS.get(on, VideoSet(name=on, title=on))
