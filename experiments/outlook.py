"""Before a training starts: a line that says what it amounts to, and what is likely wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vmae.core.errors import InputError
from vmae.core.progress import format_duration
from vmae.core.train.config import few_clips
from vmae.core.video import identity
from vmae.core.video.facts import ListFacts, coverage
from vmae.core.video.samples import Sample
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig

SHORT_S = 10.0
"""Videos up to this long are taken for one action each: a clip should cover most of it."""


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """`line` to be shown before the training, and warnings, each a line."""

    line: str
    warnings: tuple[str, ...] = ()


def outlook(
    config: ExperimentConfig,
    train: ListFacts,
    *,
    seconds: float | None = None,
    budget_s: float | None = None,
    shared: int = 0,
) -> Outlook:
    """What a training amounts to. `seconds` is its predicted time, `shared` how many videos val has of train.

    Raises InputError for a fine-tuning on labels of one class and a list that is shorter than a batch.
    """
    require_classes(config.job, train.class_counts, train.classes)
    covered = coverage(train, config.data)
    batches = train.videos // config.train.batch_size
    if not batches:
        raise InputError(few_clips(config.train.batch_size, train.videos))
    parts = [f"a clip covers {covered:.0%} of the median video ({train.seconds:.1f} s)"]
    if train.key_frames:
        parts = [f"a clip spans {covered * train.seconds:.1f} s around each of {train.videos} key frames"]
    stage = stages.STAGES[config.job]
    if stage.labels:
        chance = f"chance {train.chance:.1%}"
        if train.largest_share > 1.5 * train.chance:
            chance += f", the largest class alone {train.largest_share:.1%}"
        parts.append(chance)
    parts.append(f"{batches} batches an epoch, {config.train.epochs} epochs")
    if seconds is not None:
        parts.append(f"about {format_duration(seconds)}")
    warnings = []
    seen_once = stage.task and not train.key_frames and config.data.segments == 1
    if seen_once and covered < 0.5 and train.seconds <= SHORT_S:
        warnings.append(
            f"a clip covers {covered:.0%} of the median video and one clip of each is evaluated: the rest is "
            "not seen; data.sampling=uniform covers all of it, data.segments=5 looks at five clips"
        )
    if shared:
        warnings.append(
            f"{shared} videos of the held-out list are also in the training list: its numbers measure memory"
        )
    if budget_s is not None and seconds is not None and seconds > budget_s:
        fit = max(1, int(config.train.epochs * budget_s / seconds))
        warnings.append(
            f"{config.train.epochs} epochs take about {format_duration(seconds)}, more than the budget of "
            f"{format_duration(budget_s)}: about {fit} would end in it (--epochs {fit})"
        )
    return Outlook(line="; ".join(parts), warnings=tuple(warnings))


def require_classes(job: str, class_counts: Sequence[int], classes: int) -> None:
    """Raise InputError where `job` learns from labels and there is nothing to tell apart."""
    if not stages.STAGES[job].labels or len(class_counts) > 1:
        return
    got = "no label" if not class_counts else f"label {classes - 1} on all {class_counts[0]} videos"
    raise InputError(
        f"expected labels of two classes or more in the training list, got {got} (pre-training needs none)"
    )


def shared_videos(train: Sequence[Sample], val: Sequence[Sample]) -> int:
    """How many videos of `val` are in `train` too: the same files, or copies of them."""
    return len(identity.shared_videos(train, val))
