"""`vmmob nve start|stop|expect|forget|list|check|alarms|status`: this host's VMs.

Speaks to the NVE's API alone.

`run` and `flush`, which do the daemon's own work, are in run.py and join this group here, as do
`cordon` and `uncordon`, which ask the manager (drain.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import NveClient
from vmmobility.cli import output
from vmmobility.cli.alarms import print_alarms
from vmmobility.cli.comparison import patience, print_comparison, timeout_option
from vmmobility.cli.definition_file import read_definition
from vmmobility.cli.drain import cordon, uncordon
from vmmobility.cli.parameters import VM_NAME, chosen_vm, nve_socket, vni_option
from vmmobility.cli.run import nve_flush, nve_run
from vmmobility.wire.values import VmKey

EVERYBODY = "not configured, every sender counts as inside"


def _phase(row: Mapping[str, Any]) -> str:
    """A VM that other hands may bring here at any time is in no phase until they do."""
    if row["phase"] == "stopped":
        return str(row["guest"])  # it does not run here: suspended, or stopped
    return "expected" if row["expected"] and row["phase"] == "none" else str(row["phase"])


@click.group()
def nve() -> None:
    """The NVE of this host: run it, and its VMs."""


nve.add_command(nve_run)
nve.add_command(nve_flush)
nve.add_command(cordon)
nve.add_command(uncordon)


@nve.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--server", default="", help="At this server of the NVE; any unless given.")
@nve_socket
@output.as_json
def start(file: Path, server: str, socket_path: Path, json_output: bool) -> None:
    """Start the VM that FILE (TOML, or JSON) defines, and register it."""
    definition = read_definition(file)
    with NveClient(socket_path) as client:
        started = client.start_vm(definition, server)
    if json_output:
        output.print_json(started)
    else:
        click.echo(f"{output.vm_name(started)}: {started['phase']}, epoch {started['epoch']}")


@nve.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@vni_option
@nve_socket
@output.as_json
def stop(name: VmKey, vni: int | None, socket_path: Path, json_output: bool) -> None:
    """End the VM's guest and deregister it."""
    vm = chosen_vm(name, vni)
    with NveClient(socket_path) as client:
        stopped = client.stop_vm(vm)
    if json_output:
        output.print_json(stopped)
    else:
        click.echo(f"{vm}: stopped")


@nve.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@click.argument("server")
@vni_option
@nve_socket
@output.as_json
def relocate(
    name: VmKey, server: str, vni: int | None, socket_path: Path, json_output: bool
) -> None:
    """Move the VM to another SERVER of this NVE, while it runs.

    No packet changes its way outside this NVE.  To the server that it is at: give up a relocation
    that is under way.
    """
    vm = chosen_vm(name, vni)
    with NveClient(socket_path) as client, patience("moving"):
        row = client.relocate_vm(vm, server)
    if json_output:
        output.print_json(row)
    else:
        click.echo(f"{vm}: at {row['server']}")


@nve.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@nve_socket
@output.as_json
def expect(file: Path, socket_path: Path, json_output: bool) -> None:
    """Expect the guest that FILE (TOML, or JSON; kind "external") defines.

    Other hands run it: virsh, or QEMU by hand.  Its taps are made, for QEMU to open (`script=no`,
    one an interface, in FILE's order); once the guest runs here it is registered by itself.
    """
    definition = read_definition(file)
    with NveClient(socket_path) as client:
        expected = client.expect_vm(definition)
    if json_output:
        output.print_json(expected)
    else:
        output.print_table(
            [expected],
            [
                ("VM", output.vm_name),
                ("PHASE", _phase),
                ("PORTS", lambda row: row["ports"]),
            ],
        )


@nve.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@vni_option
@nve_socket
@output.as_json
def forget(name: VmKey, vni: int | None, socket_path: Path, json_output: bool) -> None:
    """Expect the VM here no longer: its taps go.  Refused while its guest is here."""
    vm = chosen_vm(name, vni)
    with NveClient(socket_path) as client:
        forgotten = client.unexpect_vm(vm)
    if json_output:
        output.print_json(forgotten)
    else:
        click.echo(f"{vm}: expected no longer")


@nve.command("list")
@nve_socket
@output.as_json
def list_vms(socket_path: Path, json_output: bool) -> None:
    """List the VMs here: local, redirected, prepared and expected ones, with their traffic."""
    with NveClient(socket_path) as client:
        rows = client.vms()
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("VM", output.vm_name),
            ("PHASE", _phase),
            ("EPOCH", lambda row: row["epoch"]),
            ("SERVER", lambda row: row.get("server")),
            ("FORWARDING", lambda row: row["forwarding"]),
            ("TARGET", lambda row: row["target"]),
            ("OUTSIDE", lambda row: row["outside"]),
            ("PORTS", lambda row: row["ports"]),
            ("TRAFFIC", lambda row: row["traffic"]),
        ],
    )


@nve.command()
@nve_socket
@output.as_json
def status(socket_path: Path, json_output: bool) -> None:
    """How the NVE is."""
    with NveClient(socket_path) as client:
        found = client.status()
    output.print_json(found) if json_output else output.print_fields(_fields(found))


def _fields(status: Mapping[str, Any]) -> dict[str, Any]:
    """The tunnels' words a line each: they are sentences."""
    fields = {**status, "dc_prefixes": status.get("dc_prefixes") or EVERYBODY}
    tunnels = fields.pop("tunnels", None) or {}
    named = {"tunnels": "back_end", "tunnels, why": "why", "tunnels, cost": "cost"}
    return fields | {name: tunnels[key] for name, key in named.items() if key in tunnels}


@nve.command()
@timeout_option
@nve_socket
@output.as_json
def check(timeout_s: float, socket_path: Path, json_output: bool) -> None:
    """Compare this NVE's list with its kernel and its guests.

    What differs is listed and, where that is safe, repaired.  Exit code 0: nothing differs; 1:
    something does, or the NVE could not be asked; 2: wrong usage.
    """
    with NveClient(socket_path) as client, patience("comparing"):
        found = client.check(timeout_s)
    print_comparison(found, "VMs", as_json=json_output)


@nve.command()
@nve_socket
@output.as_json
def alarms(socket_path: Path, json_output: bool) -> None:
    """What wants a person at this NVE now."""
    with NveClient(socket_path) as client:
        rows = client.alarms()
    print_alarms(rows, as_json=json_output)
