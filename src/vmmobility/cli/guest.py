"""`vmmob vm start|stop|suspend|resume|delete`: what becomes of a VM's guest, where the VM is.

Speaks to the manager's API alone.  Not here: what the manager knows of VMs (vm.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import ApiError, NotFound
from vmmobility.wire.values import VmKey

LOOK_S = 0.2  # whether it is done is looked at so often
PATIENCE_S = 10.0  # after so long people are told what is waited for
Done = dict[str, Any]

force_option = click.option(
    "--force", is_flag=True, help="At once: what the guest has in memory is lost."
)
wait_option = click.option("--wait", is_flag=True, help="Until the NVE says that it is done.")


def guest_words(row: Mapping[str, Any]) -> str:
    """What the guest is, and what it is to be, for people."""
    ordered = row.get("guest_ordered")
    return f"{row['guest']}, to be {ordered}" if ordered else str(row["guest"])


def _command(verb: str, summary: str, *, force: bool = False, grace: bool = False) -> click.Command:
    def run(
        name: VmKey,
        wait: bool,
        vni: int | None,
        socket_path: Path,
        json_output: bool,
        force: bool = False,
        grace_s: int | None = None,
    ) -> None:
        vm = chosen_vm(name, vni)
        with ManagerClient(socket_path) as client:
            row = client.order_guest(vm, verb, force=force, grace_s=grace_s)
            if wait:
                row = _awaited(client, vm, row, verb, quiet=json_output)
        if json_output:
            output.print_json(row)
        else:
            click.echo(f"{output.vm_name(row)}: {guest_words(row)} at {row['nve']}")
        if row["guest_error"] and not row["guest_ordered"]:
            raise ApiError(
                f"{output.vm_name(row)} is {row['guest']}: {row['nve']}: {row['guest_error']}",
                f"see `vmmob vm show {output.vm_name(row)}`, mend what it names, then say it again",
            )

    decorators: list[Callable[[Any], Any]] = [
        click.argument("name", metavar="VM", type=VM_NAME),
        *([force_option] if force else []),
        *([_grace_option] if grace else []),
        wait_option,
        vni_option,
        manager_socket,
        output.as_json,
    ]
    command: Any = run
    for decorate in reversed(decorators):
        command = decorate(command)
    made: click.Command = click.command(verb, help=summary)(command)
    return made


_grace_option = click.option(
    "--grace",
    "grace_s",
    type=click.IntRange(0, 3600),
    metavar="S",
    help="So many seconds may it take to shut itself down (60); then it is ended.",
)


def _awaited(client: ManagerClient, vm: VmKey, row: Done, verb: str, *, quiet: bool) -> Done:
    """Until nothing is ordered any more; a VM that was deleted is no more then."""
    told = time.monotonic()
    while row["guest_ordered"] or verb == "delete":
        time.sleep(LOOK_S)
        try:
            row = client.vm(vm)
        except NotFound:
            if verb != "delete":
                raise
            return {**row, "guest": "deleted", "guest_ordered": None, "guest_error": ""}
        if verb == "delete" and row["guest_error"] and not row["guest_ordered"]:
            return row
        if not quiet and time.monotonic() - told > PATIENCE_S:
            told = time.monotonic()
            click.echo(f"{output.vm_name(row)}: {guest_words(row)}: waiting for {row['nve']}")
    return row


COMMANDS = (
    _command("start", "Start a VM that is stopped, where it is."),
    _command(
        "stop",
        "Stop a VM: its guest shuts itself down, or is ended when its time is over.\n\n"
        "The VM stays at its NVE, with definition, disks and addresses; `vmmob vm start` starts it "
        "again.  One that is suspended cannot shut itself down, and needs --force.",
        force=True,
        grace=True,
    ),
    _command("suspend", "Stop a VM's CPUs; its memory stays in that of its host."),
    _command("resume", "Let a VM go on that is suspended."),
    _command(
        "delete",
        "End a VM for good: its guest, its binding, its routes.  Images of disks stay.\n\n"
        "One that runs, or is suspended, needs --force: its guest is ended at once.",
        force=True,
    ),
)
