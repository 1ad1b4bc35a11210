"""The configuration that a command line or a script asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from vmae.core.video.annotations import AnnotationFormat
    from vmae.experiments.config import ExperimentConfig


def resolve_config(
    *,
    recipe: str | None,
    config_file: Path | None = None,
    train_csv: Path | None,
    val_csv: Path | None,
    data_root: Path | None,
    size: str | None,
    epochs: int | None,
    assignments: tuple[str, ...],
    init: str | None = None,
    resize_patch_embed: bool = False,
    checkpoint_artifacts: str | None = None,
    shape_of: ExperimentConfig | None = None,
    start: ExperimentConfig | None = None,
    taken: Mapping[str, Any] | None = None,
    lists: Mapping[str, Any] | None = None,
    needs_val: bool = True,
) -> ExperimentConfig:
    """The configuration that a command line asks for: recipe or file, then options, then `--set`.

    `shape_of`: an earlier run whose model, lists and way of cutting clips replace the recipe's. `start`
    stands in the recipe's place; `taken`: changes to it, before the options' (`weights.clip_of_init`). With
    folds no held-out list is needed (`needs_val`). `lists`: changes that --data made besides
    (`weighted_lists`).
    """
    from dataclasses import replace

    from vmae.core.config import override, parse_assignments
    from vmae.core.errors import InputError
    from vmae.experiments import recipes
    from vmae.experiments.config import ExperimentConfig

    if config_file is not None:
        if recipe is not None:
            raise InputError("expected --recipe or --config, got both")
        config = ExperimentConfig.load(config_file)
    else:
        config = start or recipes.get(recipe or "demo_pretrain")
    if taken:
        short_side = min(taken["data.size"]) * config.data.short_side // max(1, min(config.data.size))
        config = override(config, {**taken, "data.short_side": short_side})
    if shape_of is not None:
        data = replace(shape_of.data, segments=config.data.segments, crops=config.data.crops)
        config = replace(config, model=shape_of.model, data=replace(data, repeats=config.data.repeats))
    if size is not None:
        config = config.with_size(size)
    changes: dict[str, Any] = {}
    if init is not None:
        changes["init"] = init
    if resize_patch_embed:
        changes["resize_patch_embed"] = True
    if checkpoint_artifacts is not None:
        changes["tracking.checkpoints"] = checkpoint_artifacts
    if train_csv is not None:
        changes["data.train_csv"] = str(train_csv)
        changes["data.val_csv"] = str(held_out_beside(train_csv, val_csv, needs_val) or "")
        changes |= lists or {}
    elif val_csv is not None:
        changes["data.val_csv"] = str(val_csv)
    if data_root is not None:
        changes["data.data_root"] = str(data_root)
    if epochs is not None:
        changes["train.epochs"] = epochs
    return override(config, {**changes, **parse_assignments(assignments)})


def held_out_beside(train_csv: Path, val_csv: Path | None, needed: bool = True) -> Path | None:
    """The held-out list: the one named, or `val.csv` beside the training list (`val.clean.csv` beside
    `train.clean.csv`).

    InputError (or None, where it is not `needed`) without either.
    """
    from vmae.core.errors import InputError

    if val_csv is not None:
        return val_csv
    kind = train_csv.name.partition(".")[2]
    names = [train_csv.name.replace("train", "val"), f"val.{kind}", "val.csv"]
    places = [train_csv.with_name(n) for n in dict.fromkeys(names) if n != train_csv.name]
    found = next((place for place in places if place.exists()), None)
    if found is None and needed:
        if not train_csv.exists():
            raise InputError(f"{train_csv}: expected a list of videos, found no such file")
        beside = " or ".join(str(place) for place in places)
        raise InputError(f"expected a held-out list: --val FILE, or {beside}; found neither")
    return found


def weighted_lists(given: Sequence[str]) -> tuple[Path | None, dict[str, Any]]:
    """What `--data FILE[:WEIGHT]`, given any number of times, means: the first list, and the changes to a
    configuration that the weights and the other lists are."""
    from vmae.core.video.config import weighted

    if not given:
        return None, {}
    first, weight = weighted(given[0])
    if len(given) == 1:
        return Path(first), {}
    return Path(first), {"data.train_weight": weight, "data.more_lists": tuple(given[1:])}


def list_format(assignments: Sequence[str]) -> AnnotationFormat:
    """Of the lists' lines, where `--set data.annotation_format` says so; else `auto`. Not checked yet."""
    from vmae.core.config import parse_assignments

    return cast("AnnotationFormat", parse_assignments(assignments).get("data.annotation_format", "auto"))
