"""`vmae doctor`: what is installed, which device, which kernels are active and why, and a short self-test."""

from __future__ import annotations

import json
from pathlib import Path

import click

from vmae.cli.options import runs_dir_option


@click.command()
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
@runs_dir_option
def doctor(as_json: bool, runs_dir: Path | None) -> None:
    """Check this machine: packages, device, kernels, and a self-test of a few seconds.

    Exit code 1 when the self-test fails.
    """
    from vmae.experiments.doctor import examine

    report = examine(runs_dir)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report)
    if not report["self_test"]["ok"]:
        raise SystemExit(1)


def _print(report: dict) -> None:
    from vmae.cli.tables import format_table

    click.echo(f"vmae {report['vmae']}, Python {report['python']}, {report['system']}")
    click.echo(f"device: {report['device']}")
    click.echo(f"store:  {report['store']}\n")
    rows = [[name, version or "not installed", use] for name, version, use in report["packages"]]
    click.echo(format_table(["package", "version", "for"], rows, left=3))
    click.echo()
    click.echo(format_table(["kernel", "path", "why"], report["kernels"], left=3))
    test = report["self_test"]
    click.echo(f"\nself-test: {'passed' if test['ok'] else 'FAILED'} in {test['seconds']:.1f} s")
    for name, outcome in test["steps"]:
        click.echo(f"  {name}: {outcome}")
