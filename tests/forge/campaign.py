"""`make forge`: forged, replayed, damaged and overstepping messages against living engines.

A domain lives through tour.py's story.  At its events volleys are fired at each living node, and
everything that a message leads to is seen: what the engine emits or records for it, and, by
portraits before and after each volley, everything that the engine knows.  Nothing may change but
drop counters - and, for an authentic message of a peer without the right, that peer's own window
and the refusal that it gets.  Every choice comes from the seed.

Not here: the messages (shots.py, insiders.py), the situations (tour.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from bisect import bisect_right
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

from tests.engine.network import Node
from tests.forge import tour
from tests.forge.domain import ATTACKER, Domain
from tests.forge.insiders import Demand, Insiders, told_to_others
from tests.forge.portrait import BOOKKEEPING, OF_A_PEER, OF_A_ROUTER, difference, portrait
from tests.forge.shots import Arsenal, Shot
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.outputs import Event, Output, Send
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import TRAILER, read_seal
from vmmobility.wire.dissect import readable
from vmmobility.wire.message import decode_part
from vmmobility.wire.registry import Kind, Purpose
from vmmobility.wire.values import Address

VOLLEY = 60  # messages at an event, at least: fewer are saved up for a later one
TARGETS = 2  # nodes attacked at an event
INSIDERS = 0.15  # share of messages under a true key
SETTINGS: dict[str, Any] = {
    "manager_settings": {"lifetime_s": 40.0, "step_s": 6.0},
    "nve_settings": {"lifetime_s": 40.0, "drain_s": 5.0},
}


@dataclass
class Tally:
    """What was fired and what came of it.  changes: one text a violation; standings: messages
    that a node was sent while it had an entry, binding or move that stood so."""

    fired: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    changes: list[str] = field(default_factory=list)
    situations: int = 0
    standings: Counter[str] = field(default_factory=Counter)

    @property
    def messages(self) -> int:
        return self.fired.total()

    def add(self, other: Tally) -> None:
        self.fired.update(other.fired)
        self.outcomes.update(other.outcomes)
        self.changes += other.changes
        self.situations += other.situations
        self.standings.update(other.standings)


class Seen:
    """Stands before a node's outbox while one message is taken in."""

    def __init__(self, node: Node) -> None:
        assert node.engine is not None
        self.emitted: list[Output] = []
        self.recorded: list[str] = []
        outbox: Any = node.engine.outbox
        self._outbox, self._emit, self._record = outbox, outbox.emit, outbox.record

    def __enter__(self) -> Seen:
        self._outbox.emit, self._outbox.record = self._emitting, self._recording
        return self

    def __exit__(self, *_: object) -> None:
        del self._outbox.emit, self._outbox.record

    def clear(self) -> None:
        self.emitted.clear()
        self.recorded.clear()

    def _emitting(self, output: Output) -> None:
        self.emitted.append(output)
        if not (isinstance(output, Event) and output.name == "drop"):
            self._emit(output)

    def _recording(self, key: str, value: Any) -> None:
        self.recorded.append(key)
        self._record(key, value)


class Campaign:
    """One domain, one seed.  `careful`: the volley in which each message is looked at alone."""

    def __init__(self, seed: int, messages: int, times: list[float], careful: int = -1) -> None:
        self.tally = Tally()
        self._seed, self._messages, self._times, self._careful = seed, messages, times, careful
        self._chance = random.Random(seed)
        self._domain = Domain(seed=seed, **SETTINGS)
        self._arsenal = Arsenal(self._domain, self._chance)
        self._insiders = Insiders(self._domain, self._chance)
        self.volleys = 0
        self.suspect = -1  # a volley that changed something unseen

    def run(self) -> Tally:
        self._domain.attack = lambda domain: self._pause()
        with contextlib.suppress(_Stop):
            tour.travel(self._domain)
        return self.tally

    def _pause(self) -> None:
        """An event has happened: fire what is due by now."""
        past = bisect_right(self._times, self._domain.now)
        due = self._messages * past // len(self._times) - self.tally.messages
        living = [n for n in self._domain.nodes.values() if n.engine is not None]
        if due < (VOLLEY if past < len(self._times) else 1) or not living:
            return
        self.tally.situations += 1
        self._arsenal.look()
        living = self._chance.sample(living, min(TARGETS, len(living)))
        for index, node in enumerate(living):
            share = due // len(living) + (index < due % len(living))
            for standing in _standings(node):
                self.tally.standings[standing] += share
            inside = sum(self._chance.random() < INSIDERS for _ in range(share))
            self._volley(node, share - inside, insiders=False)
            self._volley(node, inside, insiders=True)
            if node.manager is not None:
                self._unasked(node, node.manager)

    def _volley(self, node: Node, count: int, insiders: bool) -> None:
        if not count:
            return
        self.volleys += 1
        ignored = BOOKKEEPING | OF_A_PEER if insiders else BOOKKEEPING
        engine = node.engine
        before = portrait(engine, ignored)
        with Seen(node) as seen:
            for _ in range(count):
                text = self._demand(node, seen) if insiders else self._shoot(node, seen)
                if self.volleys == self._careful and not text:
                    text = "; ".join(difference(before, portrait(engine, ignored)))
                if text:
                    self._changed(node, text)
        if difference(before, portrait(engine, ignored)):
            self.suspect = self.volleys
            text = "; ".join(difference(before, portrait(engine, ignored)))
            self._changed(node, f"after a volley of {count}: {text}")
        self._domain.feed(node, lambda: None)

    def _unasked(self, node: Node, manager: ManagerEngine) -> None:
        """A router tells of a VM of which it was told nothing: it alone is told something then.

        Not after a loss of records: then the NVE that it names redirects, as a previous one."""
        demand = self._insiders.unasked()
        if demand is None or manager._doubt_left(self._domain.now) > 0:
            return
        ignored = BOOKKEEPING | OF_A_PEER | OF_A_ROUTER
        before, others = portrait(manager, ignored), told_to_others(manager, demand.sender)
        vm = demand.message.vm
        with Seen(node) as seen:
            text = self._fire(node, demand, seen, {"epoch", f"fabric/{vm.vni}/{vm.vm_id}"})
        text = text or "; ".join(difference(before, portrait(manager, ignored)))
        if text or told_to_others(manager, demand.sender) != others:
            self._changed(node, text or "another router is told something else")
        self._domain.feed(node, lambda: None)

    def _changed(self, node: Node, text: str) -> None:
        self.tally.changes.append(
            f"seed {self._seed}, volley {self.volleys}, {self._domain.now:.3f} s, at "
            f"{node.node_id}: {text}\n{self._last}"
        )
        raise _Stop

    # ---- one message ---------------------------------------------------------------------------

    def _shoot(self, node: Node, seen: Seen) -> str:
        """Fire one; what it changed, in words, or the empty string."""
        shot = None
        while shot is None:
            shot = self._arsenal.shot(node.node_id) or _nothing_yet(self._domain, self._chance)
        self._last = Told(shot.kind, shot.data)
        self.tally.fired[shot.kind] += 1
        seen.clear()
        wrong = self._deliver(node, shot)
        asks = shot.kind == "replayed" and _asks_for_proof(shot.data)
        # What a peer truthfully remembered once: a boot above it and, where that shows a loss of
        # state, the mark of it.
        remembered = {f"boot/{read_seal(shot.data).sender}", "relearning"} if asks else set()
        if wrong or set(seen.recorded) - remembered:
            return wrong or f"it recorded {seen.recorded}"
        drops = [o for o in seen.emitted if isinstance(o, Event) and o.name == "drop"]
        for output in seen.emitted:
            repeats = asks and _is_outstanding(node, output)
            if output not in drops and not _of_a_challenge(output) and not repeats:
                return f"it led to {output}"
        if len(drops) != 1 and not asks:
            return f"it was not dropped but {len(drops)} times"
        outcome = str(drops[0].detail["reason"]) if drops else "answered CHALLENGE"
        outcome += " under a higher boot" if seen.recorded else ""
        self.tally.outcomes[shot.kind, outcome] += 1
        return ""

    def _demand(self, node: Node, seen: Seen) -> str:
        demand = None
        while demand is None:
            demand = self._insiders.demand(node.node_id)
        return self._fire(node, demand, seen, set())

    def _fire(self, node: Node, demand: Demand, seen: Seen, records: set[str]) -> str:
        """records: what may be written down for it, and told to its sender."""
        wrong = ""
        for data in self._domain.sealed(demand.sender, node.node_id, demand.message):
            self._last = Told(f"{demand.kind} by {demand.sender}", data)
            self.tally.fired[demand.kind] += 1
            seen.clear()
            wrong = wrong or self._deliver(node, Shot(demand.kind, data, demand.source))
            wrong = wrong or self._refused(node, demand, seen, records)
        return wrong

    def _refused(self, node: Node, demand: Demand, seen: Seen, records: set[str]) -> str:
        """An authentic message may leave its sender's mark, and be answered as the demand says."""
        if set(seen.recorded) - records - {f"mark/{demand.sender}"}:
            return f"it recorded {seen.recorded}"
        outcome = "dropped"
        for output in seen.emitted:
            if isinstance(output, Send) and not _of_a_challenge(output):
                reply = decode_part(output.data, TRAILER).message
                if records and (reply.kind, reply.purpose) == (Kind.REQUEST, Purpose.ROUTE):
                    if output.destination.address not in _addresses(node, demand.sender):
                        return f"it led to {readable(reply)} to {output.destination}"
                    continue
                if output.destination != demand.source or reply.status not in demand.answers:
                    return f"it was answered {reply.status.name} to {output.destination}"
                outcome = f"answered {reply.status.name}"
            elif isinstance(output, Event) and output.name == "drop":
                outcome = outcome if "answered" in outcome else str(output.detail["reason"])
            elif not isinstance(output, Event) and not _of_a_challenge(output):
                return f"it led to {output}"
        self.tally.outcomes[demand.kind, outcome] += 1
        return ""

    def _deliver(self, node: Node, shot: Shot) -> str:
        engine = node.engine
        assert engine is not None
        try:
            engine.datagram_received(shot.data, shot.source, shot.local, self._domain.now)
        except Exception as error:  # peer input never raises
            return f"it raised {type(error).__name__}: {error}"
        return ""


class _Stop(Exception):
    """The first change ends a campaign: after it nothing is as the oracle believes."""


@dataclass(frozen=True)
class Told:
    """A message as people read it."""

    kind: str
    data: bytes

    def __str__(self) -> str:
        lines = [f"  {self.kind}: {len(self.data)} octets {self.data.hex()}"]
        try:
            lines.append(f"  {read_seal(self.data)}")
            message = decode_part(self.data, TRAILER).message
            lines.append("  " + json.dumps(readable(message), ensure_ascii=False))
        except DecodeError as error:
            lines.append(f"  ({error})")
        return "\n".join(lines)


def _nothing_yet(domain: Domain, chance: random.Random) -> Shot | None:
    """Noise, while nothing has been heard of which anything could be made."""
    return (
        None if domain.heard else Shot("noise", chance.randbytes(chance.randint(0, 400)), ATTACKER)
    )


def _standings(node: Node) -> set[str]:
    """Where the node stands with its VMs."""
    if node.manager is not None:
        found = {f"binding {b.state}" for b in node.manager.cache.bindings.values()}
        return found | {f"move {m.state.value}" for m in node.manager.moves.values()}
    if node.router is not None:
        held = node.router.entries.values()
        return {f"route {e.state.name}" for e in held}
    entries = node.edge.entries.values() if node.edge is not None else ()
    return {e.phase.name for e in entries}


def _addresses(node: Node, peer: str) -> set[Address]:
    assert node.engine is not None
    return {endpoint.address for endpoint in node.engine.channel.peers[peer].endpoints}


def _asks_for_proof(data: bytes) -> bool:
    """A CHALLENGE may be answered although it is an old one: that says nothing but "I live"."""
    return data[1:3] == bytes((Kind.REQUEST, Purpose.CHALLENGE))


def _is_outstanding(node: Node, output: Output) -> bool:
    """Whether it repeats a request that waits for its reply anyway."""
    assert node.engine is not None
    if not isinstance(output, Send):
        return False
    part = decode_part(output.data, TRAILER)
    waiting = node.engine.channel._outstanding.get(part.message.sequence)
    return waiting is not None and (part.count > 1 or waiting.message == part.message)


def _of_a_challenge(output: Output) -> bool:
    """Asking who somebody is, or saying it, changes nothing."""
    if isinstance(output, Event):
        return output.name in ("peer.challenged", "boot.raised", "state.lost")
    if not isinstance(output, Send):
        return False
    return decode_part(output.data, TRAILER).message.purpose is Purpose.CHALLENGE


def story_times(seed: int) -> list[float]:
    """When the events of this seed's story are, while nobody attacks (an attack makes its own)."""
    domain, times = Domain(seed=seed, **SETTINGS), list[float]()
    domain.attack = lambda domain: times.append(domain.now)
    tour.travel(domain)
    return times


def attack(seed: int, messages: int) -> Tally:
    """One domain; a change that no single message showed is looked for message by message."""
    times = story_times(seed)
    campaign = Campaign(seed, messages, times)
    tally = campaign.run()
    if campaign.suspect >= 0:
        again = Campaign(seed, messages, times, careful=campaign.suspect).run()
        tally.changes = again.changes or tally.changes
    return tally


def report(tally: Tally, seconds: float) -> str:
    """By kind: how many, and what came of them; the last line is the sum."""
    lines = []
    for kind, count in sorted(tally.fired.items()):
        outcomes = sorted(
            ((o, n) for (k, o), n in tally.outcomes.items() if k == kind), key=lambda x: -x[1]
        )
        lines.append(f"{kind:<26}{count:>9}  " + ", ".join(f"{o} {n}" for o, n in outcomes))
    standings = sorted(tally.standings.items())
    lines.append("while there stood: " + ", ".join(f"{s} {n}" for s, n in standings))
    lines += [f"STATE CHANGE: {change}" for change in tally.changes]
    lines.append(
        f"forge: {tally.messages} messages, {len(tally.changes)} state changes, {seconds:.0f} s"
    )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="make forge", description=__doc__)
    parser.add_argument("messages", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--domain", type=int, default=125_000, help="messages a domain")
    given = parser.parse_args(arguments)
    domains = max(1, -(-given.messages // given.domain))
    shares = [given.messages // domains + (i < given.messages % domains) for i in range(domains)]
    tally, start = Tally(), time.monotonic()
    with ProcessPoolExecutor(given.processes, mp_context=get_context("fork")) as pool:
        for part in pool.map(attack, range(given.seed, given.seed + domains), shares):
            tally.add(part)
    # A story may end before its share is fired: further domains have the rest.
    while not tally.changes and tally.messages < given.messages and domains < 2 * len(shares):
        tally.add(attack(given.seed + domains, given.messages - tally.messages))
        domains += 1
    print(f"{domains} domains, {tally.situations} situations")
    print(report(tally, time.monotonic() - start))
    return 1 if tally.changes or tally.messages < given.messages else 0


if __name__ == "__main__":
    sys.exit(main())
