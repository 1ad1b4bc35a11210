"""`vmae probe`: how good the frozen features of a model are."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import in_runs_dir, runs_dir_option, set_option

if TYPE_CHECKING:
    from vmae.core.measure.heads import Kind
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.folds import Folds
    from vmae.experiments.tracking import Store


@click.command()
@click.option(
    "--run", "run_name", help="Run whose model to probe, by name or id.  [default: the newest pre-training]"
)
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder of a model instead of a run.")
@click.option(
    "--kind",
    type=click.Choice(["linear", "attentive", "knn"]),
    help="How features are read out.  [default: the run's]",
)
@click.option(
    "--data", "train_csv", type=click.Path(path_type=Path), help="Training list.  [default: the run's]"
)
@click.option(
    "--val",
    "val_csv",
    type=click.Path(path_type=Path),
    help="Held-out list.  [default: val.csv beside --data, else the run's]",
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the lists' paths start from.")
@click.option(
    "--folds",
    metavar="FILE|K",
    help="Hold out each fold of the training list in turn, of a csv with the columns path and fold, or of K "
    "made of whole groups; prints the mean with its interval.",
)
@click.option(
    "--task",
    type=click.Choice(["regression", "multilabel"]),
    help="Read out numbers or several labels a video instead of one class (lists as for vmae finetune).",
)
@click.option(
    "--shares",
    metavar="LIST",
    help="Low-shot: probe with these shares of the labels, 0.01,0.1,1, on features that are made once.",
)
@click.option("--seeds", type=int, help="With --folds or --shares: seeds.  [default: 1, of shares 3]")
@click.option("--json", "as_json", is_flag=True, help="The result as JSON.")
@set_option
@runs_dir_option
def probe(
    run_name: str | None,
    checkpoint: Path | None,
    kind: str | None,
    train_csv: Path | None,
    val_csv: Path | None,
    data_root: Path | None,
    folds: str | None,
    task: Kind | None,
    shares: str | None,
    seeds: int | None,
    as_json: bool,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Train a probe on frozen features of the training videos and measure it on held-out ones.

    Its settings are chosen by cross-validation inside the training list; the held-out list is used once. With
    --shares it is asked what a share of the labels gives. With --folds the list of --data (or of the run) is
    divided, and every video is held out once.
    """
    from vmae.core.config import override, parse_assignments
    from vmae.core.errors import InputError
    from vmae.experiments import jobs
    from vmae.experiments.data import read_training
    from vmae.experiments.layout import found_config
    from vmae.experiments.outlook import require_classes
    from vmae.experiments.request import held_out_beside
    from vmae.experiments.stages import finetune, heads
    from vmae.experiments.tracking import store_at

    if seeds is not None and folds is None and shares is None:
        raise InputError("--seeds: expected --folds or --shares to go with it, got none")
    if shares is not None and folds is not None:
        raise InputError("expected --folds or --shares, got both")
    if task is not None and (shares is not None or folds is not None):
        raise InputError(f"--task {task}: expected neither --folds nor --shares with it")
    if run_name and checkpoint:
        raise InputError("expected --run or --checkpoint, got both")
    store = store_at(runs_dir)
    source, config = jobs.model_to_probe(store, run_name, checkpoint)
    changes: dict[str, object] = {}
    for key, value in (("train_csv", train_csv), ("val_csv", val_csv), ("data_root", data_root)):
        if value is not None:
            changes[f"data.{key}"] = str(value)
    if kind is not None:
        changes["probe.kind"] = kind
    if task is not None:
        changes["data.annotation_format"] = heads.FORMAT[task]
    if train_csv is not None and val_csv is None:
        beside = held_out_beside(train_csv, None, needed=False)
        if beside is not None:
            changes["data.val_csv"] = str(beside)
    if train_csv is not None and found_config(source) is None:
        config = _cut(config, train_csv, data_root)
    config = override(config, {**changes, **parse_assignments(assignments)})
    if task is not None:
        _targets(config, store, source, task, as_json=as_json)
        return
    counts = Counter(s.label for s in read_training(config.data) if s.label >= 0)
    require_classes(finetune.STAGE.name, list(counts.values()), max(counts, default=-1) + 1)
    if folds is not None:
        _over_folds(config, store, source, folds, seeds or 1, as_json=as_json)
        return
    if shares is not None:
        _low_shot(config, store, source, shares, 3 if seeds is None else seeds, as_json=as_json)
        return
    result, answers = jobs.probe_run(config, store, source)
    number = answers.interval()
    if as_json:
        interval = {"top1_low": number.low, "top1_high": number.high, "videos": number.videos}
        click.echo(json.dumps({"model": str(source), **jobs.probe_json(result), **interval}, indent=1))
        return
    click.echo(f"{result.kind} probe of {source}")
    click.echo(
        f"top-1 {number.text()}  top-5 {result.top5:.1%}  mean class {result.mean_class:.1%}  "
        f"(chance {result.chance:.1%}) on {number.videos} held-out videos"
    )
    if number.low <= result.chance:
        click.echo("its interval reaches down to chance: nothing is shown to have been learnt")
    if result.unreadable:
        click.echo(f"{result.unreadable} videos could not be read and count as wrong")
    chosen = ", ".join(f"{k} {v:g}" for k, v in result.chosen.items())
    click.echo(f"chosen by cross-validation on the training list: {chosen} ({result.selection_top1:.1%})")


def _targets(config: ExperimentConfig, store: Store, source: Path, task: Kind, *, as_json: bool) -> None:
    from vmae.experiments import jobs

    found = jobs.target_probe_run(config, store, source, task)
    if as_json:
        facts = {"model": str(source), "kind": found.kind, "task": task, "chosen": found.chosen}
        click.echo(json.dumps({**facts, **found.numbers}, indent=1))
        return
    text = "  ".join(f"{k} {v:.4g}" for k, v in found.numbers.items() if k != "loss")
    click.echo(f"{found.kind} probe of {source} for {task}: {text} on {len(found.found)} held-out videos")
    chosen = ", ".join(f"{k} {v:g}" for k, v in found.chosen.items())
    click.echo(f"chosen inside the training list: {chosen} ({found.selection:.3f})")


def _low_shot(
    config: ExperimentConfig, store: Store, source: Path, shares: str, seeds: int, *, as_json: bool
) -> None:
    from vmae.core.errors import InputError
    from vmae.experiments import jobs

    try:
        wanted = [float(part) for part in shares.split(",")]
    except ValueError:
        raise InputError(f"--shares: expected numbers such as 0.01,0.1,1, got '{shares}'") from None
    found = jobs.low_shot_run(config, store, source, shares=wanted, seeds=seeds)
    if as_json:
        rows = [
            {"share": row.share, "videos": row.videos, "top1": [r.top1 for r in row.results]} for row in found
        ]
        click.echo(json.dumps({"model": str(source), "kind": config.probe.kind, "shares": rows}, indent=1))
        return
    click.echo(
        f"{config.probe.kind} probe of {source}, {seeds} seeds, chance {found[0].results[0].chance:.1%}"
    )
    for row in found:
        spread = "" if seeds == 1 else f" ±{row.deviation:.1%}"
        click.echo(f"  {row.share:.4g} of the labels ({row.videos} videos): top-1 {row.top1:.1%}{spread}")


def _cut(config: ExperimentConfig, train_csv: Path, data_root: Path | None) -> ExperimentConfig:
    """For a model that nobody says how clips were cut for: as `vmae recommend` says for the list."""
    from vmae.core.video.annotations import read_annotations
    from vmae.core.video.facts import list_facts
    from vmae.experiments.recommend import cut_for

    facts = list_facts(read_annotations(train_csv, str(data_root) if data_root else None))
    config, choices = cut_for(config, facts)
    for choice in choices:
        click.echo(f"{choice.what}: {choice.value} ({choice.reason})", err=True)
    return config


def _over_folds(
    config: ExperimentConfig, store: Store, source: Path, spec: str, seeds: int, *, as_json: bool
) -> None:
    from dataclasses import asdict

    from vmae.experiments.probe_folds import probe_folds

    def say(found: Folds) -> None:
        for line in (found.said, *found.lines()):
            click.echo(line, err=True)

    made, summary = probe_folds(config, store, source, spec=spec, seeds=seeds, say=say)
    if as_json:
        click.echo(json.dumps({"run": made.name, "model": str(source), **asdict(summary)}, indent=1))
        return
    click.echo(f"{config.probe.kind} probe of {source}")
    for line in summary.lines(f"{made.name}: top-1"):
        click.echo(line)
    click.echo(f"answers: {store.shown(store.layout.run(made.name).answers)}")
    click.echo(f"\nnext:\n  vmae runs compare {made.name} OTHER{in_runs_dir(store)}   # on the same videos")
