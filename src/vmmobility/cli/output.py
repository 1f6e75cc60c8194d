"""How commands print: tables for people, JSON for programs.

Not here: what is printed.  Rests on rich and click.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

Column = tuple[str, Callable[[Mapping[str, Any]], object]]
"""A heading, and what a row shows under it."""

FOR_PROGRAMS: ContextVar[bool] = ContextVar("FOR_PROGRAMS", default=False)
"""Whether the command that runs was given --json: its error is JSON then, too."""


def _is_for_programs(_: click.Context, __: click.Parameter, value: bool) -> bool:
    FOR_PROGRAMS.set(value)
    return value


as_json = click.option(
    "--json", "json_output", is_flag=True, callback=_is_for_programs, help="Print JSON."
)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[Mapping[str, Any]], columns: Sequence[Column]) -> None:
    """One line a row; nothing is cut when the output is no terminal."""
    # Built here: the console takes standard output as it is at this moment.
    console = Console(highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, _ in columns:
        table.add_column(heading, overflow="fold")
    for row in rows:
        # Text: a name with [brackets] is no markup.
        table.add_row(*(Text(shown(cell(row))) for _, cell in columns))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def print_fields(values: Mapping[str, Any]) -> None:
    """One line a key."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        click.echo(f"{name:<{width}}  {shown(value)}".rstrip())


def shown(value: object) -> str:
    """A JSON value as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}" if abs(value) >= 1 else f"{value:.2g}"
    if isinstance(value, Mapping):
        return " ".join(f"{key}={shown(item)}" for key, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(shown, value)) or "-"
    return str(value)


def liveness(row: Mapping[str, Any]) -> str:
    """Whether an NVE lives, by its heartbeats."""
    alive = str(row["liveness"])
    if alive == "none":
        return "no heartbeats"
    return alive if alive == "alive" else f"{alive} ({row['silent_s']:.0f} s)"


def vm_name(row: Mapping[str, Any]) -> str:
    """A VM as it is typed: VM-ID, or VNI/VM-ID."""
    return str(row["vm"]) if not row.get("vni") else f"{row['vni']}/{row['vm']}"


def addresses(row: Mapping[str, Any]) -> str:
    """A binding's addresses; a whole address loses its /32 or /128."""
    found = (text for interface in row["interfaces"] for text in interface["addresses"])
    return ", ".join(text.removesuffix("/128" if ":" in text else "/32") for text in found) or "-"
