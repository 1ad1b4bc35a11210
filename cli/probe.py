"""`vmae probe`: how good the frozen features of a model are."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option, set_option


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
    "--val", "val_csv", type=click.Path(path_type=Path), help="Held-out list.  [default: the run's]"
)
@click.option("--data-root", type=click.Path(path_type=Path), help="Folder that the lists' paths start from.")
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
    as_json: bool,
    assignments: tuple[str, ...],
    runs_dir: Path | None,
) -> None:
    """Train a probe on frozen features of the training videos and measure it on held-out ones.

    Its settings are chosen by cross-validation inside the training list; the held-out list is used once.
    """
    from vmae.core.config import override, parse_assignments
    from vmae.core.errors import InputError
    from vmae.experiments import jobs
    from vmae.experiments.tracking import store_at

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
    config = override(config, {**changes, **parse_assignments(assignments)})
    result = jobs.probe_run(config, store, source)
    if as_json:
        click.echo(json.dumps({"model": str(source), **jobs.probe_json(result)}, indent=1))
        return
    click.echo(f"{result.kind} probe of {source}")
    click.echo(
        f"top-1 {result.top1:.1%}  top-5 {result.top5:.1%}  mean class {result.mean_class:.1%}  "
        f"(chance {result.chance:.1%}) on held-out videos"
    )
    if result.unreadable:
        click.echo(f"{result.unreadable} videos could not be read and count as wrong")
    chosen = ", ".join(f"{k} {v:g}" for k, v in result.chosen.items())
    click.echo(f"chosen by cross-validation on the training list: {chosen} ({result.selection_top1:.1%})")
