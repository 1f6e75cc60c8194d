"""`vmmob vm list|show|release|onboard|offboard`: the VMs that the manager knows.

Speaks to the manager's API alone.  Not here: starting and stopping them (guest.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.create import COMMANDS as CREATE_COMMANDS
from vmmobility.cli.create import resources_words
from vmmobility.cli.definition_file import read_definition
from vmmobility.cli.guest import COMMANDS, guest_words
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.cli.protect import protect, unprotect
from vmmobility.wire.values import VmKey


def _last_move(row: Mapping[str, Any]) -> str:
    move = row["move"]
    if move is None:
        return "-"
    outcome = {True: "done", False: "failed", None: move["state"]}[move["ok"]]
    return f"{move['from']} -> {move['to']} ({outcome})"


def _state(row: Mapping[str, Any]) -> str:
    """Where its life stands, if it was asked for; else its binding's state."""
    life = row["lifecycle"]
    return str(row["state"]) if life is None else str(life["state"])


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a VM that was asked for."""
    life = row["lifecycle"]
    if life is None:
        return {}
    found: dict[str, Any] = {"resources": resources_words(life)}
    if life["reason"]:
        found["reason"] = life["reason"]
    if life["offer"]:
        found["offer ends in"] = f"{life['offer']['expires_in_s']:.0f} s"
    return {**found, "binding": row["state"]}


def _standby(row: Mapping[str, Any] | None) -> str | None:
    if row is None:
        return None
    age = "none complete" if row["staleness_s"] is None else f"{row['staleness_s']:.1f} s old"
    return f"{row['standby']} ({row['state']}, checkpoint {row['checkpoint']}, {age})"


@click.group()
def vm() -> None:
    """The VMs that the manager knows."""


for command in (*CREATE_COMMANDS, *COMMANDS):
    vm.add_command(command)


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
            ("SERVER", lambda row: row["server"]),
            ("STATE", _state),
            ("GUEST", guest_words),
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
            **({"server": found["server"]} if found["server"] else {}),
            "state": _state(found),
            **_asked(found),
            "NVE's heartbeats": found["nve_liveness"],
            "guest": guest_words(found),
            **({"last order": found["guest_error"]} if found["guest_error"] else {}),
            "epoch": found["epoch"],
            "lifetime": f"{found['lifetime_s']} s, ends in {output.shown(found['expires_in_s'])} s",
            **interfaces,
            "previous NVEs": previous,
            "last move": _last_move(found),
            "standby": _standby(found["protection"]),
        }
    )


@vm.command("release")
@click.argument("name", metavar="VM", type=VM_NAME)
@click.option(
    "--fenced",
    metavar="NVE",
    help="Your word that the host of this NVE, which has the VM, runs it no more.",
)
@vni_option
@manager_socket
@output.as_json
def release_vm(
    name: VmKey, fenced: str | None, vni: int | None, socket_path: Path, json_output: bool
) -> None:
    """Thaw a frozen VM; or, with --fenced, let another NVE start one whose host is dead.

    A VM is frozen when NVEs take it from each other again and again (`vmmob show alarms`): end the
    copy that should not be, then release it.

    --fenced NVE: the host must be fenced, that is powered off, or cut off from every network and
    disk.  A host that does not answer may still run the VM, and a second copy would then run
    beside it.  Naming the NVE is your word for it; nothing checks it.  The NVE that has the VM is
    released once the binding has expired; one that a move, or a redirect, waits for is waited for
    no more.
    """
    chosen = chosen_vm(name, vni)
    with ManagerClient(socket_path) as client:
        released = client.release(chosen, fenced or "")
    if json_output:
        output.print_json(released)
    elif not fenced:
        click.echo(
            f"{output.vm_name(released)} is thawed: it is {released['state']} at "
            f"{released['nve']}, and NVEs may register it again"
        )
    elif released["state"] == "released":
        click.echo(f"{output.vm_name(released)} is released from {fenced}: start it elsewhere")
    else:
        click.echo(
            f"{output.vm_name(released)}: {fenced} is taken for fenced, and waited for no more"
        )


@vm.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--nve", "nves", multiple=True, metavar="NVE", help="Where it may be; any NVE unless given."
)
@manager_socket
@output.as_json
def onboard(file: Path, nves: tuple[str, ...], socket_path: Path, json_output: bool) -> None:
    """Put the VM that FILE (as for `vmmob nve start`) defines on record, or replace its record.

    A manager in strict mode lets no other VM register, nor one with other MACs or addresses.
    """
    definition = read_definition(file)
    record: dict[str, Any] = {
        key: definition[key] for key in ("vm_id", "interfaces") if key in definition
    }
    with ManagerClient(socket_path) as client:
        recorded = client.onboard({**record, "vni": definition.get("vni", 0), "nves": list(nves)})
    if json_output:
        output.print_json(recorded)
    else:
        where = ", ".join(recorded["nves"]) or "any NVE"
        click.echo(f"{output.vm_name(recorded)}: onboarded at {where}")


@vm.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@vni_option
@manager_socket
@output.as_json
def offboard(name: VmKey, vni: int | None, socket_path: Path, json_output: bool) -> None:
    """Take a VM off the record.  One that runs runs on; in strict mode it cannot register anew."""
    vm = chosen_vm(name, vni)
    with ManagerClient(socket_path) as client:
        gone = client.offboard(vm)
    if json_output:
        output.print_json(gone)
    else:
        click.echo(f"{vm}: offboarded")


for command in (protect, unprotect):
    vm.add_command(command)
