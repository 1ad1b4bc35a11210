"""`vmae recipes`: the named configurations."""

from __future__ import annotations

import click

from vmae.cli.options import set_option


@click.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """Named recipes: the papers' rows, the built-in data set's, and ones for small data sets."""
    if context.invoked_subcommand is None:
        context.invoke(list_)


@recipes.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(as_json: bool = False) -> None:
    """List the recipes with what each one is."""
    import json

    from vmae.cli.tables import format_table
    from vmae.experiments import recipes as named

    lines = {name: named.doc(name).splitlines()[0] for name in named.ALL}
    if as_json:
        rows = [{"name": n, "what": text, "job": named.get(n).job} for n, text in lines.items()]
        click.echo(json.dumps(rows, indent=1))
        return
    click.echo(format_table(["recipe", "what"], [[n, t] for n, t in lines.items()], left=2))
    click.echo("\nvmae recipes show NAME prints one in full; vmae pretrain --recipe NAME runs it.")


@recipes.command("show")
@click.argument("name")
@set_option
def show(name: str, assignments: tuple[str, ...]) -> None:
    """Print the whole resolved configuration of NAME as YAML, with overrides applied.

    The output is what --config takes: vmae recipes show NAME > run.yaml; vmae pretrain --config run.yaml.
    """
    import yaml

    from vmae.core.config import override, parse_assignments, to_dict
    from vmae.experiments import recipes as named

    config = override(named.get(name), dict(parse_assignments(assignments)))
    for line in named.doc(name).splitlines():
        click.echo(f"# {line}".rstrip())
    click.echo(yaml.safe_dump(to_dict(config), sort_keys=False), nl=False)
