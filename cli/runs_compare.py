"""`vmae runs compare`: two or more runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import runs_dir_option
from vmae.cli.runs_common import open_store

if TYPE_CHECKING:
    from vmae.experiments.tracking import Store


@click.command()
@click.argument("runs", nargs=-1, required=True)
@click.option(
    "--curve",
    "curves",
    multiple=True,
    metavar="METRIC",
    help="Metric to draw (repeatable).  [default: losses and accuracies that have a curve]",
)
@click.option(
    "--png", type=click.Path(dir_okay=False, path_type=Path), help="Draw the curves into this file."
)
@click.option("--no-curves", is_flag=True, help="Tables only.")
@click.option("--system", is_flag=True, help="The machine's metrics too.")
@click.option("--json", "as_json", is_flag=True, help="The tables and curves as JSON.")
@runs_dir_option
@click.pass_context
def compare(
    ctx: click.Context,
    runs: tuple[str, ...],
    curves: tuple[str, ...],
    png: Path | None,
    no_curves: bool,
    system: bool,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Compare RUNS (ids or names): differing parameters, metrics, curves in the terminal or as PNG."""
    from vmae.cli.tables import format_table
    from vmae.core.errors import InputError
    from vmae.experiments import comparison
    from vmae.experiments.runs import find

    store = open_store(ctx, runs_dir)
    if len(runs) < 2:
        raise InputError(f"expected two runs or more, got {len(runs)}")
    if png is not None and png.suffix.lower() != ".png":
        raise InputError(f"--png: expected a file name that ends in .png, got '{png}'")
    found = [find(store, r) for r in runs]
    if len({r.run_id for r in found}) < len(found):
        raise InputError(f"expected different runs, got {', '.join(runs)}")
    heads = comparison.labels(found)
    params = comparison.differing_params(found)
    metrics = comparison.metric_rows(found, system=system)
    names = () if no_curves else curves or comparison.curve_metrics(store, found)
    panels = [(name, comparison.curves(store, found, name)) for name in names]
    panels = [(name, drawn) for name, drawn in panels if drawn]
    if as_json:
        import json

        tree = {
            "runs": [{"run_id": r.run_id, "name": r.name} for r in found],
            "params": dict(params),
            "metrics": dict(metrics),
            "curves": {name: {c.label: c.points for c in drawn} for name, drawn in panels},
        }
        click.echo(json.dumps(tree, indent=1))
    else:
        rows = [[k, *("-" if v is None else v for v in values)] for k, values in params]
        click.echo(
            format_table(["parameter", *heads], rows) if rows else "all parameters of these runs are the same"
        )
        table = [[k, *("-" if v is None else f"{v:.5g}" for v in values)] for k, values in metrics]
        click.echo("\n" + format_table(["metric", *heads], table))
        for line in _paired(store, [r.name for r in found]):
            click.echo(f"\n{line}")
        if png is None:
            from vmae.cli.term_plot import plot

            for name, drawn in panels:
                click.echo(f"\n{name} against {comparison.step_name(name)}")
                click.echo(plot([(c.label, c.points) for c in drawn]))
    if png is not None:
        if not panels:
            raise InputError("--png: expected a metric with a curve in these runs, found none")
        png.parent.mkdir(parents=True, exist_ok=True)
        comparison.curves_figure(panels).savefig(png, dpi=150)
        click.echo(f"figure: {png}", err=True)


def _paired(store: Store, names: list[str]) -> list[str]:
    """Each later run against the first on the videos that both were measured on, a sentence each."""
    from vmae.experiments import answers

    own = {name: answers.answers_of(store.layout.run(name)) for name in names}
    first = own[names[0]]
    lines = []
    for name in names[1:]:
        other = own[name]
        if first is not None and other is not None and set(first.paths) & set(other.paths):
            lines.append(answers.verdict(names[0], name, *answers.compare(first, other)))
    return lines
