"""Following one move to its end: its phases, how far its copy is, and its figures.

For people a line a phase and a line of progress a second; for programs a JSON object a line.
Speaks to the manager's API alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import click

from vmmobility.api.client import ManagerClient
from vmmobility.cli import output
from vmmobility.errors import ApiError, NotFound, Unavailable

Row = dict[str, Any]

WAITING_S = 15.0  # a state that ends only by an answer is told of anew after so long
ASKED_ON = ("ending-guest", "turning-back")  # the manager asks on without limit, and may not guess
LOOK_S = 0.5  # phases are asked for so often; the end of the move is told at once
QUIET_S = 30.0  # events send a sign of life more often than that
PROGRESS_S = 1.0  # how far it is is told at most so often
MIB = 1 << 20


class Teller:
    """Tells of a move while it goes on.  quiet: tells nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._phases = 0
        self._state = ""
        self._start = self._told = self._progress_at = time.monotonic()
        self._progress: object = None

    def tell(self, move: Row) -> None:
        """What is new of it since the last time."""
        for phase in move["phases"][self._phases :]:
            self._say(move, "phase", phase, f"{phase['at_ms']:10.1f} ms  {phase['name']}")
        self._phases = len(move["phases"])
        now = time.monotonic()
        if move["state"] != self._state:
            self._state, self._told = move["state"], now
        elif self._state in ASKED_ON and now - self._told >= WAITING_S:
            self._told = now
            what = {"name": f"waiting-{self._state}", "at_ms": round((now - self._start) * 1000, 1)}
            self._say(move, "waiting", what, f"{what['at_ms']:10.1f} ms  {what['name']}")
        progress = move.get("progress")
        if progress and progress != self._progress and now - self._progress_at >= PROGRESS_S:
            self._progress, self._progress_at = progress, now
            self._say(move, "progress", progress, f"{'':10}     {progress_words(progress)}")

    def _say(self, move: Row, event: str, what: Row, words: str) -> None:
        if not self._quiet:
            self.say({"event": event, "move": move["id"], **what}, words)

    def say(self, what: Row, words: str) -> None:
        """For people."""
        click.echo(words)


class JsonTeller(Teller):
    """The same for programs: {"event": "phase" | "waiting" | "progress" | "end", "move", …}."""

    def say(self, what: Row, words: str) -> None:
        click.echo(json.dumps(what, ensure_ascii=False))


def progress_words(progress: Mapping[str, Any]) -> str:
    """For example "disk 120 of 1024 MiB, memory 3 of 128 MiB"."""
    parts = []
    for kind in ("disk", "memory"):
        done, total = progress.get(f"{kind}_bytes"), progress.get(f"{kind}_total_bytes")
        if total:
            parts.append(f"{kind} {(done or 0) // MIB} of {total // MIB} MiB")
    return ", ".join(parts) or "-"


def follow(client: ManagerClient, begun: Row, timeout_s: float | None, teller: Teller) -> Row:
    """The move once it has ended.  Raises ApiError if that takes longer than timeout_s."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    now = begun
    while True:
        teller.tell(now)
        if now["ok"] is not None:
            return now
        left = LOOK_S if deadline is None else min(LOOK_S, deadline - time.monotonic())
        if left <= 0:
            raise ApiError(
                f"move {now['id']} has not ended within {timeout_s:g} s: it is {now['state']}",
                f"it goes on: `vmmob move watch {now['id']}`",
            )
        now = client.move(now["id"], wait_s=left)


def follow_live(client: ManagerClient, id: str, timeout_s: float | None, teller: Teller) -> Row:
    """The same by the manager's events: each is a reason to look, progress is told as it comes.

    Should the events break off, it is asked for as follow() does; so it is where the next sign of
    life may come after the deadline.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    now = client.move(id)
    if _is_near(deadline):
        return follow(client, now, timeout_s, teller)
    try:
        with client.events(QUIET_S, move=id) as events:
            now = client.move(id)  # what came before the first event
            teller.tell(now)
            for event in events:
                if now["ok"] is not None or _is_near(deadline):
                    break
                if event is None:
                    continue
                if event["event"] == "move.progress":
                    progress = {key: event[key] for key in event if key.endswith("_bytes")}
                    now = {**now, "progress": progress}
                else:
                    now = client.move(id)
                teller.tell(now)
                if now["ok"] is not None:
                    break
    except Unavailable:
        pass  # asked in vain, or too slow: what is left is asked for
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    return follow(client, now, left, teller)


def _is_near(deadline: float | None) -> bool:
    return deadline is not None and deadline - time.monotonic() < QUIET_S


def watched(client: ManagerClient, begun: Row, timeout_s: float | None, *, quiet: bool) -> Row:
    """The same, its figures printed at the end unless quiet."""
    ended = follow(client, begun, timeout_s, Teller(quiet=quiet))
    if not quiet and ended["measured"]:
        output.print_fields(ended["measured"])
    return ended


def which(move: Row) -> str:
    return f"{move['id']}: {output.vm_name(move)}, {end(move, 'from')} -> {end(move, 'to')}"


def end(move: Mapping[str, Any], which: str) -> str:
    """An end of a move: its NVE, and the server where that stands apart."""
    server = move.get(f"{which}_server")
    return f"{move[which]} ({server})" if server else str(move[which])


def under_way(moves: list[Row], name: str) -> Row:
    """The move of that ID, or the one that the VM of that name is in.  Raises NotFound."""
    found = by_id(moves, name) or next((m for m in _of_vm(moves, name) if m["ok"] is None), None)
    if found is None:
        raise NotFound(
            f"no move {name}, nor is a VM of that name being moved",
            "list them with `vmmob move list`",
        )
    return found


def last(moves: list[Row], name: str) -> Row:
    """The move of that ID, or the latest one of the VM of that name.  Raises NotFound."""
    found = by_id(moves, name) or next(reversed(_of_vm(moves, name)), None)
    if found is None:
        raise NotFound(
            f"no move {name}, nor has a VM of that name been moved",
            "list them with `vmmob move list`",
        )
    return found


def by_id(moves: list[Row], id: str) -> Row | None:
    return next((move for move in moves if move["id"] == id), None)


def _of_vm(moves: list[Row], name: str) -> list[Row]:
    """Oldest first."""
    return [m for m in moves if name in (output.vm_name(m), f"{m['vni']}/{m['vm']}")]
