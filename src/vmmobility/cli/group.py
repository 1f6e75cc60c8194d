"""`vmmob group create|list|show|delete`: load-shared groups, VMs that share their addresses.

Speaks to the manager's API alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.api.errors import NotFound
from vmmobility.cli import output
from vmmobility.cli.parameters import asks_manager, vni_option


@click.group()
def group() -> None:
    """Load-shared groups: VMs with one address that serve at once."""


@group.command()
@click.argument("name", metavar="GROUP")
@click.argument("members", metavar="VM[:NUMBER]...", nargs=-1, required=True)
@vni_option
@asks_manager
def create(
    name: str, members: Sequence[str], vni: int | None, socket_path: Path, json_output: bool
) -> None:
    """Declare that these VMs are the members of GROUP, or change who is.

    Members may have the same addresses; then each NVE that serves one is announced, and packets go
    to the nearest.  They are numbered from 1 in this order, unless a number is given.  A member
    that shares its address with another must be stopped before it is left out.
    """
    numbered = _numbered(members)
    with ManagerClient(socket_path) as client:
        declared = client.declare_group(name, vni or 0, numbered)
    if json_output:
        output.print_json(declared)
    else:
        listed = ", ".join(f"{row['member']} {row['vm']}" for row in declared["members"])
        click.echo(f"group {declared['group']}: members {listed}")


def _numbered(members: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, word in enumerate(members, 1):
        vm, colon, number = word.rpartition(":")
        if colon and not number.isdecimal():
            raise click.UsageError(f"{word}: the number of a member is a number, from 1")
        found[vm if colon else word] = int(number) if colon else place
    if len(found) < len(members):
        raise click.UsageError("a VM is a member once")
    return found


@group.command("list")
@asks_manager
def list_groups(socket_path: Path, json_output: bool) -> None:
    """List the groups, and their members in service."""
    with ManagerClient(socket_path) as client:
        rows = client.groups()
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("GROUP", lambda row: row["group"]),
            ("EPOCH", lambda row: row["epoch"]),
            ("IN SERVICE", lambda row: _by_state(row, "in service")),
            ("OUT", lambda row: _by_state(row, "out")),
            ("ABSENT", lambda row: _by_state(row, "absent")),
        ],
    )


def _by_state(row: Mapping[str, Any], state: str) -> list[str]:
    return [one["vm"] for one in row["members"] if one["state"] == state]


@group.command()
@click.argument("name", metavar="GROUP")
@asks_manager
def show(name: str, socket_path: Path, json_output: bool) -> None:
    """Show one group: each member, where it is, whether it is in service and, if not, why."""
    with ManagerClient(socket_path) as client:
        found = next((row for row in client.groups() if row["group"] == name), None)
    if found is None:
        raise NotFound(f"no group {name} is declared", "see `vmmob group list`")
    if json_output:
        output.print_json(found)
        return
    output.print_fields({"group": found["group"], "epoch": found["epoch"]})
    output.print_table(
        found["members"],
        [
            ("MEMBER", lambda row: row["member"]),
            ("VM", lambda row: row["vm"]),
            ("NVE", lambda row: row["nve"]),
            ("EPOCH", lambda row: row["epoch"]),
            ("STATE", lambda row: row["state"]),
            ("REASON", lambda row: row["reason"]),
        ],
    )


@group.command()
@click.argument("name", metavar="GROUP")
@asks_manager
def delete(name: str, socket_path: Path, json_output: bool) -> None:
    """Take a group back.  No two of its members may serve one address then."""
    with ManagerClient(socket_path) as client:
        gone = client.delete_group(name)
    if json_output:
        output.print_json(gone)
    else:
        click.echo(f"group {gone['group']}: deleted")
