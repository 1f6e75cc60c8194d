"""`vmmob events`: what happens in the domain, as it happens.

Speaks to the manager's API alone.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.cli.parameters import VM_NAME, chosen_vm, manager_socket, vni_option
from vmmobility.errors import Unavailable
from vmmobility.wire.values import VmKey

QUIET_S = 30.0  # a sign of life comes more often than that
AGAIN_S = 1.0  # before it is asked again where the events broke off
MOST_IN_VAIN = 30  # times in a row
APART = ("event", "ts_ns", "id", "vm", "vni")  # shown by themselves


@click.command()
@click.option("--follow", "-f", is_flag=True, help="Go on, across restarts of the manager.")
@click.option("--vm", "name", type=VM_NAME, metavar="VM", help="Of this VM alone.")
@click.option("--move", metavar="MOVE", help="Of this move alone.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    metavar="KIND",
    help="These alone: a name (move.done), or what stands before its dot (move, binding, alarm).",
)
@click.option("--after", metavar="ID", help="Those that came after this one.")
@vni_option
@manager_socket
@output.as_json
def events(
    follow: bool,
    name: VmKey | None,
    move: str | None,
    kinds: tuple[str, ...],
    after: str | None,
    vni: int | None,
    socket_path: Path,
    json_output: bool,
) -> None:
    """What has happened of late, and with --follow what happens.

    The manager keeps the latest 4096 events of its present run.  With --json each line is one
    event.
    """
    query = {"kind": ",".join(kinds), "move": move or ""}
    if name is not None:
        vm = chosen_vm(name, vni)
        query |= {"vm": vm.vm_id, "vni": str(vm.vni)}
    query = {key: value for key, value in query.items() if value}
    with ManagerClient(socket_path) as client:
        teller = _Teller(client, query, after or ("" if follow else "0"), json_output)
        if not follow:
            teller.tell(follow="false")
            return
        _follow(teller)


def _follow(teller: _Teller) -> None:
    """Raises Unavailable if there is nobody to begin with, or nobody comes again."""
    in_vain = 0
    while True:
        begun, why = teller.begun, "the events ended"
        try:
            teller.tell()
        except Unavailable as error:
            in_vain = 0 if teller.begun != begun else in_vain + 1
            if not teller.begun or in_vain >= MOST_IN_VAIN:
                raise
            why = error.message
        if teller.begun != begun:
            click.echo(f"note: {why}; asked again for {MOST_IN_VAIN} s", err=True)
        time.sleep(AGAIN_S)


class _Teller:
    """Tells of events, each once.  begun: how often they have begun to come; last: the id of the
    last one that had one."""

    def __init__(
        self, client: ManagerClient, query: dict[str, str], last: str, json_output: bool
    ) -> None:
        self._client, self._query, self._json = client, query, json_output
        self.last = last
        self.begun = 0

    def tell(self, **more: str) -> None:
        """Until they end.  Raises Unavailable where they break off."""
        after = {"after": self.last} if self.last else {}
        with self._client.events(QUIET_S, **self._query, **after, **more) as found:
            self.begun += 1
            if self.begun > 1:
                click.echo("note: they come again", err=True)
            for event in found:
                if event is not None:
                    self.last = event.get("id", self.last)
                    text = json.dumps(event, ensure_ascii=False) if self._json else words(event)
                    click.echo(text)


def words(event: dict[str, Any]) -> str:
    """For people: when, what, of which VM, and the rest."""
    moment = datetime.fromtimestamp(event["ts_ns"] / 1e9).astimezone().strftime("%H:%M:%S.%f")[:-3]
    vm = output.vm_name(event) if event.get("vm") else "-"
    rest = " ".join(
        f"{key}={output.shown(value)}" for key, value in event.items() if key not in APART
    )
    return f"{moment}  {event['event']:<22} {vm:<16} {rest}".rstrip()
