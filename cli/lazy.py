"""A click group that imports a verb's module only when that verb is used."""

from __future__ import annotations

import importlib
from typing import Any

import click

Verbs = dict[str, tuple[str, str, str]]
"""verb -> (module, attribute, help line); the order is the order in `--help`."""


class LazyGroup(click.Group):
    """`LazyGroup(verbs=...)`: listing the verbs imports none of them."""

    def __init__(self, *args: Any, verbs: Verbs | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.verbs = {} if verbs is None else verbs

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.verbs.get(cmd_name)
        if entry is None:
            return None
        module, attribute, _ = entry
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in self.verbs:
            from vmae.core.errors import nearest

            known = tuple(self.verbs)
            raise click.UsageError(
                f"expected one of {', '.join(known)}; got '{args[0]}'{nearest(args[0], known)}"
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not self.verbs:
            return
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in self.verbs.items()])
