"""`vmmob vm list|show|release`: the VMs that the manager knows.  Speaks to its API alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import VmMobilityError
from vmmobility.wire.values import VmKey


def _last_move(row: Mapping[str, Any]) -> str:
    move = row["move"]
    if move is None:
        return "-"
    outcome = {True: "done", False: "failed", None: move["state"]}[move["ok"]]
    return f"{move['from']} -> {move['to']} ({outcome})"


@click.group()
def vm() -> None:
    """The VMs that the manager knows."""


@vm.command("list")
@manager_socket
@output.as_json
def list_vms(socket_path: Path, json_output: bool) -> None:
    """List the VMs: where each is, and its last move."""
    with ManagerClient(socket_path) as client:
        rows = client.vms()
    if json_output:
        output.print_json(rows)
        return
    output.print_table(
        rows,
        [
            ("VM", output.vm_name),
            ("NVE", lambda row: row["nve"]),
            ("STATE", lambda row: row["state"]),
            ("ADDRESSES", output.addresses),
            ("LAST MOVE", _last_move),
        ],
    )


@vm.command("show")
@click.argument("name", metavar="VM", type=VM_NAME)
@vni_option
@manager_socket
@output.as_json
def show_vm(name: VmKey, vni: int | None, socket_path: Path, json_output: bool) -> None:
    """Show one VM: its binding and its last move."""
    with ManagerClient(socket_path) as client:
        found = client.vm(chosen_vm(name, vni))
    if json_output:
        output.print_json(found)
        return
    interfaces = {
        f"interface {index}": f"{interface['mac']} {', '.join(interface['addresses'])}"
        for index, interface in enumerate(found["interfaces"])
    }
    previous = [
        f"{entry['nve']} ({'redirects' if entry['acknowledged'] else 'not yet told'})"
        for entry in found["previous"]
    ]
    output.print_fields(
        {
            "VM": output.vm_name(found),
            "NVE": found["nve"],
            "state": found["state"],
            "epoch": found["epoch"],
            "lifetime": f"{found['lifetime_s']} s, ends in {output.shown(found['expires_in_s'])} s",
            **interfaces,
            "previous NVEs": previous,
            "last move": _last_move(found),
        }
    )


@vm.command("release")
@click.argument("name", metavar="VM", type=VM_NAME)
@click.option(
    "--fenced", is_flag=True, help="Your word that the host that had the VM runs it no more."
)
@vni_option
@manager_socket
@output.as_json
def release_vm(
    name: VmKey, fenced: bool, vni: int | None, socket_path: Path, json_output: bool
) -> None:
    """Let another NVE start a VM whose host is dead.

    Its binding must have expired, and its host must be fenced (powered off, or cut off from every
    network and disk): a host that does not answer may still run the VM.
    """
    chosen = chosen_vm(name, vni)
    if not fenced:
        raise VmMobilityError(
            f"VM {name} is not released: a host that does not answer may still run it, "
            "and a second copy would then run beside it",
            "power its host off, or else make sure that it runs no more; then add --fenced",
        )
    with ManagerClient(socket_path) as client:
        released = client.release(chosen)
    if json_output:
        output.print_json(released)
        return
    click.echo(f"{output.vm_name(released)} is released from {released['nve']}: start it elsewhere")
