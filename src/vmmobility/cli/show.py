"""`vmmob show bindings|nves|servers|routers|routes|moves|onboarded|alarms`: the manager's tables;
and `vmmob show tunnels`, of this host's NVE.

Speaks to the manager's API, and to the NVE's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient, NveClient
from vmmobility.cli import output
from vmmobility.cli.alarms import print_alarms
from vmmobility.cli.move import MOVES
from vmmobility.cli.output import Column
from vmmobility.cli.parameters import asks_manager, nve_socket
from vmmobility.cli.protect import protected


def _room(row: Mapping[str, Any], total: str, free: str) -> str | None:
    """What a host says is free, of what VMs may have there."""
    told = row["capacity"]
    return f"{told[free]}/{told[total]}" if told and told[total] else None


BINDINGS: list[Column] = [
    ("VM", output.vm_name),
    ("NVE", lambda row: row["nve"]),
    ("SERVER", lambda row: row["server"]),
    ("EPOCH", lambda row: row["epoch"]),
    ("ENDS IN S", lambda row: row["expires_in_s"]),
    ("ADDRESSES", output.addresses),
    ("PREVIOUS", lambda row: [entry["nve"] for entry in row["previous"]]),
    ("STATE", lambda row: row["state"]),
]
NVES: list[Column] = [
    ("NVE", lambda row: row["nve"]),
    ("ADDRESSES", lambda row: row["addresses"]),
    ("LAST HEARD S", lambda row: "never" if row["last_heard_s"] is None else row["last_heard_s"]),
    ("PROVEN", lambda row: row["proven"]),
    ("ALIVE", output.liveness),
    ("VMS", lambda row: row["vms"]),
    ("VCPUS FREE", lambda row: _room(row, "vcpus", "vcpus_free")),
    ("MEMORY FREE MIB", lambda row: _room(row, "memory_mib", "memory_free_mib")),
    ("STORAGE FREE MIB", lambda row: _room(row, "storage_mib", "storage_free_mib")),
    ("CORDONED", lambda row: row["cordoned"]),
]
SERVERS: list[Column] = [
    ("NVE", lambda row: row["nve"]),
    ("SERVER", lambda row: row["server"]),
    ("ALIVE", output.liveness),
    ("VMS", lambda row: row["vms"]),
    ("THREADS", lambda row: row["threads"] or None),
    ("VCPUS FREE", lambda row: _room(row, "vcpus", "vcpus_free")),
    ("MEMORY FREE MIB", lambda row: _room(row, "memory_mib", "memory_free_mib")),
    ("STORAGE FREE MIB", lambda row: _room(row, "storage_mib", "storage_free_mib")),
]
ROUTERS: list[Column] = [
    ("ROUTER", lambda row: row["router"]),
    ("ROLE", lambda row: row["role"]),
    ("DC", lambda row: row["dc"] or None),
    ("SERVES", lambda row: row["serves"]),
    ("LAST HEARD S", lambda row: "never" if row["last_heard_s"] is None else row["last_heard_s"]),
    ("VMS", lambda row: row["vms"]),
    ("ANNOUNCED", lambda row: row["announced"]),
    ("UNANSWERED", lambda row: row["unanswered"]),
]
ROUTES: list[Column] = [
    ("VM", output.vm_name),
    ("ROUTER", lambda row: row["router"]),
    ("STATE", lambda row: row["state"]),
    ("SERVING", lambda row: row["serving"]),
    ("EPOCH", lambda row: row["epoch"]),
    ("DONE", lambda row: row["acknowledged"]),
    ("FABRIC", lambda row: {True: "direct", False: "elsewhere"}.get(row["direct"], "not said")),
]
ONBOARDED: list[Column] = [
    ("VM", output.vm_name),
    ("MACS", lambda row: [interface["mac"] for interface in row["interfaces"]]),
    ("ADDRESSES", output.addresses),
    ("NVES", lambda row: row["nves"] or "any"),
]


@click.group()
def show() -> None:
    """The manager's tables, and who carries this host's tunnels."""


@show.command()
@asks_manager
def bindings(socket_path: Path, json_output: bool) -> None:
    """The binding cache: which NVE serves which VM."""
    with ManagerClient(socket_path) as client:
        rows = client.bindings()
    output.print_json(rows) if json_output else output.print_table(rows, BINDINGS)


@show.command()
@asks_manager
def nves(socket_path: Path, json_output: bool) -> None:
    """The NVEs that the manager knows, and when it last heard them since its start.

    One that is not proven is not listened to until it has answered a challenge.  One whose
    heartbeats have ceased is silent, after three of them dead; an older version sends none.
    """
    with ManagerClient(socket_path) as client:
        rows = client.nves()
    output.print_json(rows) if json_output else output.print_table(rows, NVES)


@show.command()
@asks_manager
def servers(socket_path: Path, json_output: bool) -> None:
    """The servers of NVEs that stand apart, by their NVEs' heartbeats.

    One whose agent does not answer its NVE is silent, after three heartbeats dead; its NVE is not.
    """
    with ManagerClient(socket_path) as client:
        rows = [{"nve": nve["nve"], **row} for nve in client.nves() for row in nve["servers"]]
    output.print_json(rows) if json_output else output.print_table(rows, SERVERS)


@show.command()
@asks_manager
def routers(socket_path: Path, json_output: bool) -> None:
    """The routers that the manager knows, and how many VMs each leads."""
    with ManagerClient(socket_path) as client:
        rows = client.routers()
    output.print_json(rows) if json_output else output.print_table(rows, ROUTERS)


@show.command()
@asks_manager
def routes(socket_path: Path, json_output: bool) -> None:
    """What each router was told of each VM away from home, and where the fabric leads it there."""
    with ManagerClient(socket_path) as client:
        rows = client.routes()
    output.print_json(rows) if json_output else output.print_table(rows, ROUTES)


@show.command()
@asks_manager
def moves(socket_path: Path, json_output: bool) -> None:
    """The moves that the manager remembers, oldest first."""
    with ManagerClient(socket_path) as client:
        rows = client.moves()
    output.print_json(rows) if json_output else output.print_table(rows, MOVES)


@show.command()
@asks_manager
def onboarded(socket_path: Path, json_output: bool) -> None:
    """The VMs on record for strict mode: their MACs and addresses, and where they may be."""
    with ManagerClient(socket_path) as client:
        rows = client.onboarded()
    output.print_json(rows) if json_output else output.print_table(rows, ONBOARDED)


@show.command()
@asks_manager
def alarms(socket_path: Path, json_output: bool) -> None:
    """What wants a person now.  An NVE has its own: `vmmob nve alarms`."""
    with ManagerClient(socket_path) as client:
        rows = client.alarms()
    print_alarms(rows, as_json=json_output)


@show.command()
@nve_socket
@output.as_json
def tunnels(socket_path: Path, json_output: bool) -> None:
    """Who carries the tunnelled packets of this host's NVE, why, and at what cost."""
    with NveClient(socket_path) as client:
        found = client.status()["tunnels"]
    output.print_json(found) if json_output else output.print_fields(found or {})


show.add_command(protected)
