"""Events as short sentences for the person who watches.

Not here: where they are printed (cli/lab.py).  Rests on logbook.
"""

from __future__ import annotations

from collections.abc import Callable

from vmmobility.lab.logbook import LogEvent

Say = Callable[[str], None]

_SENTENCES = {
    "move.ticketed": "the manager has made the ticket durable",
    "move.prepared": "{to} is prepared",
    "move.copying": "memory is being copied",
    "move.converged": "the rest fits the blackout budget",
    "move.delivering": "{to} delivers locally",
    "move.turned": "{from} has turned its route",
    "move.registered": "{to} is registered",
    "move.redirected": "every previous NVE is redirected",
    "move.done": "moved",
    "move.aborted": "move aborted: {reason}",
    "move.failed": "move failed: {reason}",
    "guest.stopped": "{node}: guest stopped",
    "guest.resumed": "{node}: guest runs",
    "guest.failed": "{node}: guest failed: {reason}",
    "guest.lost": "{node}: guest lost",
    "order.failed": "{node}: {order} failed: {reason}",
    "registration.refused": "{node}: registration refused: {reason}",
    "redirect.refused": "redirect refused: {reason}",
    "queue": "{node}: {queue_peak} packets waited in its tap",
    "guest.gone": "{node}: guest gone",
    "entry.drained": "{node}: redirect drained",
    "entry.removed": "{node}: entry removed",
    "drop": "{node}: dropped a message from {peer}: {reason}",
}


class Narrator:
    """Tells the events of moves; remembers a little to tell intervals."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._redirect_ns: dict[str, int] = {}
        self._stop_ns: dict[str, int] = {}

    def hear(self, event: LogEvent) -> None:
        """Tell one event, if it is worth telling."""
        text = self._intervals(event)
        sentence = _SENTENCES.get(event.name)
        if sentence is None and not text:
            return
        words = _Words({**event.fields, "node": event.node, **self._ends(event)})
        line = sentence.format_map(words) if sentence else ""
        self._say(f"{event.vm + ': ' if event.vm else ''}{line}{text}")

    def _ends(self, event: LogEvent) -> dict[str, str]:
        fields = event.fields
        return {
            "to": str(fields.get("to") or fields.get("target") or "the destination"),
            "from": str(fields.get("from") or fields.get("source") or "the source"),
        }

    def _intervals(self, event: LogEvent) -> str:
        if event.name == "forwarding":
            if event.fields.get("forwarding") == "redirect":
                self._redirect_ns[event.vm] = event.at_ns
                return f"{event.node} redirects to {event.fields.get('target')}"
            return ""
        if event.name == "guest.stopped":
            self._stop_ns[event.vm] = event.at_ns
            redirect = self._redirect_ns.get(event.vm)
            if redirect and 0 <= event.at_ns - redirect < 10_000_000_000:
                return f", {(event.at_ns - redirect) / 1e6:.1f} ms after the redirect"
        if event.name == "guest.resumed" and event.vm in self._stop_ns:
            return f", {(event.at_ns - self._stop_ns.pop(event.vm)) / 1e6:.1f} ms after the stop"
        remaining = event.number("remaining_bytes")
        if event.name == "move.copying" and remaining:
            return f", {remaining / 2**20:.0f} MiB"
        return ""


class _Words(dict[str, object]):
    def __missing__(self, key: str) -> str:
        return "?"
