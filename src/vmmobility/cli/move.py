"""`vmmob move VM NVE`: start a hot move, and watch it.  Speaks to the manager's API alone."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import ApiError
from vmmobility.wire.values import VmKey

WAITING_S = 15.0  # a state that ends only by an answer is told of anew after so long
ASKED_ON = ("ending-guest", "turning-back")  # the manager asks on without limit, and may not guess
LOOK_S = 0.5  # phases are asked for so often; the end of the move is told at once


@click.command()
@click.argument("name", metavar="VM", type=VM_NAME)
@click.argument("to", metavar="NVE")
@click.option("--wait", is_flag=True, help="Wait for the end and show the phases.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait at most (implies --wait); the move itself goes on.",
)
@vni_option
@manager_socket
@output.as_json
def move(
    name: VmKey,
    to: str,
    wait: bool,
    timeout_s: float | None,
    vni: int | None,
    socket_path: Path,
    json_output: bool,
) -> None:
    """Move a running VM to another NVE."""
    with ManagerClient(socket_path) as client:
        begun = client.start_move(chosen_vm(name, vni), to)
        if not json_output:
            click.echo(
                f"move {begun['id']}: {output.vm_name(begun)}, {begun['from']} -> {begun['to']}"
            )
        if wait or timeout_s is not None:
            begun = _watched(client, begun, timeout_s, quiet=json_output)
    if json_output:
        output.print_json(begun)
    elif begun["ok"] and begun["reason"]:
        click.echo(f"note: {begun['reason']}")
    if begun["ok"] is False:
        raise ApiError(
            f"the move of {output.vm_name(begun)} to {to} failed: {begun['reason'] or 'no reason'}",
            f"see `vmmob vm show {output.vm_name(begun)}` for where it runs; then move it again",
        )


def _watched(
    client: ManagerClient, begun: dict[str, Any], timeout_s: float | None, *, quiet: bool
) -> dict[str, Any]:
    """The move once it has ended.  Raises ApiError if that takes longer than timeout_s."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    now, printed = begun, 0
    start = told = time.monotonic()
    state = ""
    while True:
        for phase in now["phases"][printed:]:
            if not quiet:
                click.echo(f"{phase['at_ms']:10.1f} ms  {phase['name']}")
        printed = len(now["phases"])
        if now["state"] != state:
            state, told = now["state"], time.monotonic()
        elif state in ASKED_ON and time.monotonic() - told >= WAITING_S:
            told = time.monotonic()
            if not quiet:
                click.echo(f"{(told - start) * 1000:10.1f} ms  waiting-{state}")
        if now["ok"] is not None:
            break
        left = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
        if left <= 0:
            raise ApiError(
                f"move {now['id']} has not ended within {timeout_s:g} s: it is {now['state']}",
                "it goes on: watch it with `vmmob show moves`",
            )
        now = client.move(now["id"], wait_s=left)
    if not quiet and now["measured"]:
        output.print_fields(now["measured"])
    return now
