"""`vmmob napt list|check|status`: the mappings of this host's NAPT box.

Speaks to the box's API alone.  `run` and `flush`, which do the daemon's own work, are in run.py and
join this group here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import NaptClient
from vmmobility.cli import output
from vmmobility.cli.comparison import patience, print_comparison, timeout_option
from vmmobility.cli.parameters import napt_socket
from vmmobility.cli.run import napt_flush, napt_run


@click.group()
def napt() -> None:
    """The NAPT box of this host: run it, and what it has mapped."""


napt.add_command(napt_run)
napt.add_command(napt_flush)


@napt.command("list")
@napt_socket
@output.as_json
def list_mappings(socket_path: Path, json_output: bool) -> None:
    """List the mappings: whose private address is which public one, and who translates it."""
    with NaptClient(socket_path) as client:
        rows = client.mappings()
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("KIND", lambda row: row["kind"]),
            ("NAME", lambda row: row["nve"] if row["kind"] == "nve" else output.vm_name(row)),
            ("PRIVATE", lambda row: row["private"]),
            ("PUBLIC", lambda row: row["public"]),
            ("OWNER", lambda row: row["owner"]),
            ("STATE", _state),
            ("BEHIND", _behind),
        ],
    )


def _state(row: Mapping[str, Any]) -> object:
    """How it stands, and why it is not handed over if it could be."""
    return f"{row['state']}: {row['stays']}" if row.get("stays") else row["state"]


def _behind(row: Mapping[str, Any]) -> object:
    return "here" if row["kind"] == "nve" or row["here"] else row["holder"] or "-"


@napt.command()
@napt_socket
@output.as_json
def status(socket_path: Path, json_output: bool) -> None:
    """How the box is: its pool, what the kernel translates, what was dropped."""
    with NaptClient(socket_path) as client:
        found = client.status()
    output.print_json(found) if json_output else output.print_fields(found)


@napt.command()
@timeout_option
@napt_socket
@output.as_json
def check(timeout_s: float, socket_path: Path, json_output: bool) -> None:
    """Compare the record with the kernel, repair it, and exit with 1 if anything differed."""
    with NaptClient(socket_path) as client, patience("comparing"):
        found = client.check(timeout_s)
    print_comparison(found, "mappings", as_json=json_output)
