"""`vmmob vm create|confirm`: a VM's on-boarding in its three steps (draft Section 8.1).

Speaks to the manager's API alone.  Not here: what becomes of a VM that is there (guest.py, vm.py).
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.definition_file import read_definition
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import ApiError
from vmmobility.wire.values import VmKey

LOOK_S = 0.2  # how it stands is looked at so often
PATIENCE_S = 10.0  # after so long people are told what is waited for
UNDER_WAY = ("confirmed", "provisioning")
Life = dict[str, Any]

wait_option = click.option("--wait", is_flag=True, help="Until it runs, or has failed.")


def resources_words(found: Life) -> str:
    told = found["resources"]
    return (
        f"{told['vcpus']} vCPUs, {told['memory_mib']} MiB of memory, "
        f"{told['storage_mib']} MiB of storage"
    )


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--key",
    metavar="KEY",
    help="Names this request: said again with the same FILE, it gets the same answer.",
)
@click.option("--confirm", "confirmed", is_flag=True, help="Take whatever is offered, at once.")
@wait_option
@manager_socket
@output.as_json
def create(
    file: Path, key: str | None, confirmed: bool, wait: bool, socket_path: Path, json_output: bool
) -> None:
    """Ask the manager for a VM: it offers room at an NVE, and holds that for a while.

    FILE is a definition as for `vmmob nve start`, with [resources] (vcpus, memory_mib,
    storage_mib, threads) and [placement] (nves, dc, anti_affinity), both optional.  `vmmob vm
    confirm` takes the offer, or --confirm at once; an offer that nobody takes ends by itself.
    """
    if wait and not confirmed:
        raise click.UsageError("--wait needs --confirm: an offer alone starts nothing")
    body = read_definition(file)
    body["client_key"] = key or uuid.uuid4().hex
    with ManagerClient(socket_path) as client:
        found = client.create_vm(body)
        vm = VmKey(found["vni"], found["vm"])
        if confirmed:
            found = client.confirm_vm(vm, {})
        if wait:
            found = _awaited(client, vm, found, quiet=json_output)
    _tell(found, json_output)


@click.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@click.option(
    "--vcpus", type=click.IntRange(0), metavar="N", help="So many, not more than offered."
)
@click.option("--memory-mib", type=click.IntRange(0), metavar="N", help="So much, likewise.")
@click.option("--storage-mib", type=click.IntRange(0), metavar="N", help="So much, likewise.")
@wait_option
@vni_option
@manager_socket
@output.as_json
def confirm(
    name: VmKey,
    vcpus: int | None,
    memory_mib: int | None,
    storage_mib: int | None,
    wait: bool,
    vni: int | None,
    socket_path: Path,
    json_output: bool,
) -> None:
    """Take the offer of a VM, or try again to bring up one that failed: its NVE is told to.

    What it has may be adjusted downwards in doing so.
    """
    vm = chosen_vm(name, vni)
    less = {"vcpus": vcpus, "memory_mib": memory_mib, "storage_mib": storage_mib}
    told = {key: value for key, value in less.items() if value is not None}
    with ManagerClient(socket_path) as client:
        found = client.confirm_vm(vm, {"resources": told} if told else {})
        if wait:
            found = _awaited(client, vm, found, quiet=json_output)
    _tell(found, json_output)


def _awaited(client: ManagerClient, vm: VmKey, found: Life, *, quiet: bool) -> Life:
    """Until it is no more on its way; each state is told as it comes."""
    told = time.monotonic()
    state = ""
    while True:
        if found["state"] != state and not quiet:
            state = found["state"]
            click.echo(f"{output.vm_name(found)}: {state} at {found['nve']}")
        if found["state"] not in UNDER_WAY:
            return found
        time.sleep(LOOK_S)
        if not quiet and time.monotonic() - told > PATIENCE_S:
            told = time.monotonic()
            click.echo(f"{output.vm_name(found)}: still {state}: waiting for {found['nve']}")
        found = client.life(vm)


def _tell(found: Life, json_output: bool) -> None:
    name = output.vm_name(found)
    if json_output:
        output.print_json(found)
    elif found["offer"] is not None:
        left = found["offer"]["expires_in_s"]
        click.echo(f"{name}: offered at {found['nve']}: {resources_words(found)}")
        click.echo(f"confirm it within {left:.0f} s: vmmob vm confirm {name}")
    elif found["state"] != "failed":
        click.echo(f"{name}: {found['state']} at {found['nve']}: {resources_words(found)}")
    if found["state"] == "failed":
        raise ApiError(
            f"{name} failed: {found['reason'] or 'no reason is known'}",
            f"mend that, then `vmmob vm confirm {name}`; or `vmmob vm delete {name}`",
        )


COMMANDS = (create, confirm)
