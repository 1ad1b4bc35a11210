"""A choice that no look at the list can make: both settings are trained for a little while, inside the list.

The training list is divided into parts of whole groups; each part is held out in turn while small models are
trained on the others, one a setting, from the same weights and on the same clips. The held-out list is not
looked at. What was found is remembered by the list, the files and the settings.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from vmae.core.config import flatten
from vmae.core.files import read_json, write_json
from vmae.core.measure.evaluate import evaluate
from vmae.core.measure.statistics import interval, paired
from vmae.core.train.finetune import finetune
from vmae.core.video.cache import DecodedCache, build_cache
from vmae.core.video.clips import ClipDataset
from vmae.core.video.folds import groups_beside, make_folds
from vmae.core.video.identity import fingerprints
from vmae.core.video.samples import Sample, num_classes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.data import all_samples, read_list
from vmae.experiments.stages.finetune import build_classifier

PARTS = 3
EPOCHS = 12
MOST = 200
"""Videos that take part: whole groups, drawn."""
BACKGROUNDS = ("keep", "subtract")
"""The first stays where they are not told apart."""
_VERSION = 1

Progress = Callable[[int, int], None]
"""Told (done, total): videos decoded, or clips that were trained on."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What was chosen, and a sentence with the numbers."""

    value: str
    reason: str


def try_backgrounds(
    config: ExperimentConfig,
    cache: Path,
    *,
    device: torch.device,
    decoding: Progress | None = None,
    progress: Progress | None = None,
) -> Tried | None:
    """Which `model.background` learns more on the training list of `config`; None where that cannot be tried.

    It takes groups that part it three ways (`groups_of`): clips of one session on both sides would
    be told by the scene, which is what is asked about. Decoded clips and the answer are kept in `cache`.
    """
    listed = Path(config.data.train_csv)
    samples = read_list(config.data, str(listed))
    groups = groups_of(listed, samples)
    if groups is None:
        return None
    samples, parts = _part(samples, groups)
    trained = [sum(p != held for p in parts) for held in range(PARTS)]
    if min(trained) < config.train.batch_size or len(set(parts)) < PARTS:
        return None
    small = _small(config)
    kept = cache / "tried" / f"{_digest(small, samples, parts)}.json"
    known = read_json(kept)
    if known is not None:
        return Tried(**known)
    decoded = _decoded(config, samples, cache, decoding)
    total, done = len(BACKGROUNDS) * EPOCHS * sum(trained), 0
    right = np.zeros((len(BACKGROUNDS), len(samples)))
    for held in range(PARTS):
        for number, value in enumerate(BACKGROUNDS):
            with_value = replace(small, model=replace(small.model, background=value))
            inside = [i for i, p in enumerate(parts) if p == held]
            outside = [s for s, p in zip(samples, parts, strict=True) if p != held]
            answers = _answers(with_value, outside, [samples[i] for i in inside], decoded, device)
            right[number, inside] = answers
            done += EPOCHS * len(outside)
            if progress is not None:
                progress(done, total)
    found = told(right, small)
    write_json(kept, asdict(found))
    return found


def groups_of(listed: Path, samples: Sequence[Sample]) -> list[str] | None:
    """The group of each video by a table beside the list; None where no two belong together."""
    found = groups_beside(listed, samples)
    return found[0] if found is not None and len(set(found[0])) < len(samples) else None


def clips(videos: int) -> int:
    """Clips that are trained on for a list of so many videos."""
    return len(BACKGROUNDS) * EPOCHS * (PARTS - 1) * min(MOST, videos)


def told(right: np.ndarray, config: ExperimentConfig) -> Tried:
    """The choice that answers float64 `[2, videos]` of both backgrounds allow: the first where in doubt."""
    pair = paired(right[1], right[0])
    chosen = BACKGROUNDS[1 if pair.low > 0 else 0]
    numbers = ", ".join(
        f"{value} {interval(answers).text()}" for value, answers in zip(BACKGROUNDS, right, strict=True)
    )
    end = "told apart" if pair.told_apart else f"not told apart: {BACKGROUNDS[0]} stays"
    side = f"{config.model.height}x{config.model.width}"
    reason = (
        f"tried on {right.shape[1]} videos of the training list, {PARTS} parts of whole groups held out in "
        f"turn, {EPOCHS} epochs at {side}: {numbers}; difference {pair.text()}, {end}"
    )
    return Tried(value=chosen, reason=reason)


def _part(samples: Sequence[Sample], groups: Sequence[str]) -> tuple[list[Sample], list[int]]:
    """Up to `MOST` videos of whole groups, and the part of each."""
    chosen: set[str] = set()
    videos = 0
    for group in np.random.default_rng(0).permutation(sorted(set(groups))).tolist():
        size = groups.count(group)
        if not chosen or videos + size <= MOST:
            chosen.add(group)
            videos += size
    kept = [i for i, g in enumerate(groups) if g in chosen and samples[i].label >= 0]
    if len({groups[i] for i in kept}) < PARTS:
        return [], []
    parts = make_folds([samples[i].label for i in kept], [groups[i] for i in kept], PARTS)
    return [samples[i] for i in kept], parts


def _small(config: ExperimentConfig) -> ExperimentConfig:
    """Two thirds of each side, and few epochs."""
    patch = config.model.patch_size
    height, width = (max(1, round(s * 2 / 3 / patch)) * patch for s in config.data.size)
    return replace(
        config,
        model=replace(config.model, height=height, width=width),
        data=replace(config.data, size=(height, width), workers=0),
        train=replace(config.train, epochs=EPOCHS, checkpoint_every=EPOCHS, best_by=None, seed=0),
        optim=replace(config.optim, warmup_epochs=max(1.0, EPOCHS / 10)),
        finetune=replace(config.finetune, eval_every=0),
    )


def _answers(
    config: ExperimentConfig,
    train: Sequence[Sample],
    held_out: Sequence[Sample],
    cache: DecodedCache,
    device: torch.device,
) -> list[bool]:
    """Which of `held_out` a model that was trained on `train` is right about."""
    data = replace(config.data, train_csv="", val_csv="", test_csv="")
    model = build_classifier(config, num_classes([*train, *held_out]))
    with tempfile.TemporaryDirectory() as folder:
        finetune(
            model=model,
            config=config.finetune,
            dataset=ClipDataset(train, data, "train", 0, cache=cache),
            val=None,
            optim=config.optim,
            train=config.train,
            run_dir=Path(folder),
            device=device,
            resume=False,
        )
    found = evaluate(
        model,
        ClipDataset(held_out, replace(data, bad_eval="count"), "val", 0, cache=cache),
        num_classes=model.num_classes,
        batch_size=config.train.batch_size,
        device=device,
        precision=config.train.precision,
    )
    return [p.predicted == p.label for p in found.predictions]


def _decoded(
    config: ExperimentConfig, samples: Sequence[Sample], cache: Path, progress: Progress | None
) -> DecodedCache:
    """What the training decodes anyway, where it decodes all; else these videos."""
    if config.data.cache:
        found = build_cache(all_samples(config.data), config.data, cache, progress=progress)
        assert found is not None
        return found
    return DecodedCache.build(samples, cache, config.data.decoded_short_side, progress=progress)


def _digest(config: ExperimentConfig, samples: Sequence[Sample], parts: Sequence[int]) -> str:
    own = {
        k: v for k, v in flatten(config).items() if not k.startswith(("name", "data.train_csv", "data.val"))
    }
    own = {k: v for k, v in own.items() if k not in ("data.test_csv", "data.data_root", "train.threads")}
    files = fingerprints(sorted({s.path for s in samples}))
    lines = [f"{s.path} {files[s.path]} {s.label} {p}" for s, p in zip(samples, parts, strict=True)]
    text = json.dumps([_VERSION, own, sorted(lines)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:20]
