"""A probe over folds and seeds: the model's features are made once, each fold is held out in turn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from vmae.core.errors import InputError
from vmae.core.measure.probe import Features, probe
from vmae.core.video.samples import num_classes, require_labels
from vmae.experiments.answers import Answer, Answers
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.executors import Here
from vmae.experiments.folds import Folds, FoldSummary, conclude, find_folds
from vmae.experiments.locks import claim_numbered
from vmae.experiments.stages.probe import answered, features_of
from vmae.experiments.stages.stage import Work
from vmae.experiments.tracking import Store, create_store, tags


def probe_folds(
    config: ExperimentConfig,
    store: Store,
    checkpoint: Path,
    *,
    spec: str,
    seeds: int = 1,
    say: Callable[[Folds], None] | None = None,
) -> tuple[ExperimentConfig, FoldSummary]:
    """Hold out each fold of the training list (`folds.find_folds`) in turn and probe the model on it.

    A seed draws the probe's order of clips and the folds of the cross-validation inside the others, by which
    its settings are chosen; the first is `probe.seed`. The model saw whatever it was pre-trained on: where
    that is this list, its pixels were seen, its labels were not. Returns the configuration under the name of
    the run that keeps the answers, and their number.

    Raises InputError as `find_folds`, for videos without a label and for fewer than one seed.
    """
    if seeds < 1:
        raise InputError(f"--seeds: expected 1 or more, got {seeds}")
    config = replace(config, data=replace(config.data, val_csv="", test_csv=""))
    found = find_folds(spec, config)
    require_labels([s for n in found.numbers for s in found.inside(n)], config.data.train_csv)
    if say is not None:
        say(found)
    work = Work(config=replace(config, init=str(checkpoint)), home=store.layout.run(config.name))
    context = Here(store.storage()).process.context(work)
    features, failed = features_of(context, context.data().train_plain)
    fold_of = dict(zip((s.path for s in found.samples), found.folds, strict=True))
    fold = torch.tensor([fold_of[path] for path in features.paths])
    classes = num_classes(list(found.samples))
    rows: list[Answer] = []
    for number in found.numbers:
        unread = [f for f in failed if fold_of[f["path"]] == number]
        labels = torch.tensor([f["label"] for f in unread], dtype=torch.int64)
        train = _part(features, (fold >= 0) & (fold != number))
        test = replace(_part(features, fold == number), unread=labels)
        for seed in range(config.probe.seed, config.probe.seed + seeds):
            result = probe(train, test, replace(config.probe, seed=seed), classes, context.device)
            rows += answered(result, test, unread, seed=seed, fold=number)
    create_store(store)
    name = claim_numbered(store.layout.path, f"{config.name}-{config.probe.kind}-probe-folds")
    config = replace(config, name=name)
    model = {tags.CHECKPOINT: str(checkpoint.resolve())}
    return config, conclude(config, store, Answers(tuple(rows)), classes, model)


def _part(features: Features, chosen: torch.Tensor) -> Features:
    index = chosen.nonzero()[:, 0]
    return Features(features.x[index], features.labels[index], [features.paths[i] for i in index.tolist()])
