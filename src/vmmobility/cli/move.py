"""`vmmob move VM NVE`, `vmmob move abort MOVE`: start a hot move, watch it, give it up.

Speaks to the manager's API alone.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import ApiError, NotFound
from vmmobility.wire.values import VmKey

WAITING_S = 15.0  # a state that ends only by an answer is told of anew after so long
ASKED_ON = ("ending-guest", "turning-back")  # the manager asks on without limit, and may not guess
LOOK_S = 0.5  # phases are asked for so often; the end of the move is told at once


START = "VM NVE"  # how help lists it; no VM can have this name
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait at most (implies --wait); the move itself goes on.",
)


class _Move(click.Group):
    """`move abort …` beside `move VM NVE`: what is no subcommand's name is a VM's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [START, *args]
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        return "" if name == START else name, command, rest


@click.group(cls=_Move, subcommand_metavar="VM NVE | abort MOVE")
def move() -> None:
    """Move a running VM to another NVE, or give a move up.

    `vmmob move VM NVE --help` shows more.  A VM whose name is abort is written 0/abort.
    """


@move.command(START)
@click.argument("name", metavar="VM", type=VM_NAME)
@click.argument("to", metavar="NVE")
@click.option("--wait", is_flag=True, help="Wait for the end and show the phases.")
@timeout_option
@vni_option
@manager_socket
@output.as_json
def start(
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
            click.echo(f"move {_which(begun)}")
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


@move.command()
@click.argument("which", metavar="MOVE")
@click.option("--wait", is_flag=True, help="Wait for the end and show the phases.")
@timeout_option
@manager_socket
@output.as_json
def abort(
    which: str, wait: bool, timeout_s: float | None, socket_path: Path, json_output: bool
) -> None:
    """Give up a move that has not ended: the VM stays where it was.

    MOVE is a move's ID (`vmmob show moves`), or the VM that is moved.  The source serves again
    first, then the destination forgets.  A guest that may run at the destination already is ended
    there for certain before; if it has registered from there, the move is good, and this fails.
    """
    with ManagerClient(socket_path) as client:
        given_up = client.abort_move(_under_way(client, which)["id"])
        if not json_output:
            click.echo(f"move {_which(given_up)}: {given_up['state']}")
        if wait or timeout_s is not None:
            given_up = _watched(client, given_up, timeout_s, quiet=json_output)
    if json_output:
        output.print_json(given_up)
    if given_up["ok"]:
        raise ApiError(
            f"move {given_up['id']} was too far: {output.vm_name(given_up)} is at {given_up['to']}",
            f"move it back with `vmmob move {output.vm_name(given_up)} {given_up['from']}`",
        )
    if given_up["state"] == "failed":
        raise ApiError(
            f"move {given_up['id']} failed: {given_up['reason']}",
            f"look at {output.vm_name(given_up)} on both hosts now",
        )


def _which(move: dict[str, Any]) -> str:
    return f"{move['id']}: {output.vm_name(move)}, {move['from']} -> {move['to']}"


def _under_way(client: ManagerClient, which: str) -> dict[str, Any]:
    """The move of that ID, or the one that the VM of that name is in.  Raises NotFound."""
    moves = client.moves()
    for found in moves:
        if found["id"] == which:
            return found
    for found in moves:
        if found["ok"] is None and which in (
            output.vm_name(found),
            f"{found['vni']}/{found['vm']}",
        ):
            return found
    raise NotFound(
        f"no move {which}, nor is a VM of that name being moved",
        "list them with `vmmob show moves`",
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
