"""A group with a command of no name: `vmmob move VM NVE` beside `vmmob move list`.

Rests on click; not here: the commands.
"""

from __future__ import annotations

import click


class DefaultCommand(click.Group):
    """What is no subcommand's name is the first argument of the command called `default`.

    default: how help lists it; no VM and no NVE can have this name, or one of the commands'
    """

    default = ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == self.default else name, command, rest
