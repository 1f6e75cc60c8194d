"""`vmmob key new|rotate|activate|retire|list`: pairwise keys' files (daemon/keys.py)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from vmmobility.cli import output
from vmmobility.daemon import keys

folder = click.option(
    "--dir",
    "directory",
    default=Path("/etc/vmmobility/keys"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of keys.",
)
file_argument = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.group()
def key() -> None:
    """Pairwise keys: one file a pair of nodes, the same on both."""


@key.command()
@click.argument("first", metavar="A:ROLE")
@click.argument("second", metavar="B:ROLE")
@folder
@output.as_json
def new(first: str, second: str, directory: Path, json_output: bool) -> None:
    """Make the pair's key, unless it is there.  Copy the file to both nodes' folders."""
    nodes = keys.parse_node(first), keys.parse_node(second)
    path, made = keys.create(directory, *nodes, datetime.now(UTC))
    if json_output:
        output.print_json({"file": str(path), "made": made})
    else:
        click.echo(f"{path}: {'made; copy it to both nodes' if made else 'is there, kept'}")


@key.command()
@file_argument
def rotate(file: Path) -> None:
    """Add the next key.  Both are accepted, the old one still signs."""
    pair = keys.rotate(file, datetime.now(UTC))
    click.echo(f"{file}: key {pair.keys[-1].id} added, key {pair.signs} signs")
    click.echo("next: copy it to the other node, reload both (SIGHUP), then `vmmob key activate`")


@key.command()
@file_argument
def activate(file: Path) -> None:
    """Sign with the newest key."""
    pair = keys.activate(file)
    click.echo(f"{file}: key {pair.signs} signs")
    click.echo("next: copy it to the other node, reload both (SIGHUP), then `vmmob key retire`")


@key.command()
@file_argument
def retire(file: Path) -> None:
    """End the old key."""
    pair = keys.retire(file)
    click.echo(f"{file}: key {pair.signs} alone is accepted")
    click.echo("next: copy it to the other node, reload both (SIGHUP)")


def _row(path: Path, pair: keys.KeyFile) -> dict[str, Any]:
    return {
        "file": path.name,
        "nodes": [
            {"name": node.name, "role": keys.role_text(node.role)} for node in pair.nodes
        ],
        "keys": [{"id": key.id, "created": key.created.isoformat()} for key in pair.keys],
        "signs": pair.signs,
    }  # fmt: skip


@key.command("list")
@folder
@output.as_json
def list_keys(directory: Path, json_output: bool) -> None:
    """List the pairs; secrets are never shown."""
    rows = [_row(path, pair) for path, pair in keys.list_pairs(directory)]
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("FILE", lambda row: row["file"]),
            ("NODES", lambda row: [f"{node['name']}:{node['role']}" for node in row["nodes"]]),
            ("KEYS", lambda row: [entry["id"] for entry in row["keys"]]),
            ("SIGNS", lambda row: row["signs"]),
            ("NEWEST", lambda row: row["keys"][-1]["created"]),
        ],
    )
