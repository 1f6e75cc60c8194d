"""A group with a command of no name: `vmmob move VM NVE` beside `vmmob move list`.

Rests on click; not here: the commands.
"""

from __future__ import annotations

import click


class FirstCommand(click.Command):
    """What is called `default` below: its name says its arguments, and its usage not again."""

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [self.options_metavar or ""]


class DefaultCommand(click.Group):
    """What is no subcommand's name is the first argument of the command called `default`.

    default: how help lists it; no VM and no NVE can have this name, or one of the commands'
    """

    default = ""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)
