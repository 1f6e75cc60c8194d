"""Two channels on a line that keeps all that was ever sent; each has a disk, and can restart from
it or lose it.  Not here: engines (network.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address

from vmmobility.engine.challenge import next_boot
from vmmobility.engine.channel import Channel, Peer, Received, Retransmission
from vmmobility.engine.outputs import Endpoint, Event, Outbox, Output, Persist, Send
from vmmobility.wire.authentication import TRAILER, Seal, read_seal, seal
from vmmobility.wire.message import Message, decode_part, encode_parts
from vmmobility.wire.options import Option, VmId
from vmmobility.wire.registry import MAX_DATAGRAM, Kind, Purpose, Role, Status
from vmmobility.wire.values import VmKey

SECRET, SECOND_SECRET = bytes(range(32)), bytes(range(32, 64))
VM = VmId(VmKey(0, "vm1"))
RIGHTS = {Purpose.REFRESH: frozenset(Role)}
ENDPOINTS = {
    "manager": (Endpoint(ip_address("10.0.9.2"), 8747), Endpoint(ip_address("fd00::9"), 8747)),
    "nve": (Endpoint(ip_address("10.0.1.2"), 8747),),
}
OTHER = {"manager": "nve", "nve": "manager"}
FIRST_S = Retransmission().first_s


def carried_out(outbox: Outbox, disk: dict[str, object]) -> list[Output]:
    """All that leaves but records: every record before it is on disk by then."""
    found: list[Output] = []
    while outputs := outbox.flush():
        for output in outputs:
            if isinstance(output, Persist):
                disk.update(output.changes)
                outbox.persisted(output.number)
            else:
                found.append(output)
    return found


@dataclass
class End:
    """One node: its channel, what it has on disk, what it was told and asked."""

    name: str
    seed: int
    disk: dict[str, object] = field(default_factory=dict)
    requests: list[Message] = field(default_factory=list)
    replies: list[Message] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    def start(self, now: float) -> None:
        chance = random.Random(self.seed)
        self.seed += 1
        boot = next_boot(self.disk.get("boot", 0), chance)  # type: ignore[arg-type]
        self.disk["boot"] = boot
        other = OTHER[self.name]
        role = Role.NVE if other == "nve" else Role.MANAGER
        self.peer = Peer(other, role, ENDPOINTS[other], {1: SECRET}, 1)
        self.outbox = Outbox()
        self.channel = Channel(
            self.name, boot, [self.peer], RIGHTS, self.outbox, chance, Retransmission()
        )
        self.channel.state_was_lost = lambda at: self.told.append("own")
        self.channel.peer_lost_state = lambda peer, at: self.told.append(peer.node_id)
        self.channel.restore(self.disk)
        self.channel.start(now)

    def ask(self, now: float, *options: Option) -> None:
        self.channel.request(
            self.peer, Purpose.REFRESH, [VM, *options], now,
            lambda reply, at: self.replies.append(reply),
        )  # fmt: skip


class Line:
    """Both ends.  sent: every datagram that ever left, with its sender; `lose` drops some."""

    def __init__(self, *, start: bool = True) -> None:
        self.now = 0.0
        self.ends = {name: End(name, 100 * n) for n, name in enumerate(OTHER, 1)}
        self.sent: list[tuple[str, Send]] = []
        self.lose: Callable[[str, Message], bool] = lambda sender, message: False
        for end in self.ends.values():
            end.start(self.now)
        if start:
            self.settle()

    @property
    def manager(self) -> End:
        return self.ends["manager"]

    @property
    def nve(self) -> End:
        return self.ends["nve"]

    def settle(self, seconds: float = 0.0) -> None:
        """Carry what is sent, and run the timers for so long."""
        end = self.now + seconds
        while True:
            while any(list(map(self._carry, self.ends.values()))):
                pass
            due = [one.channel.next_timer() for one in self.ends.values()]
            nearest = min((d for d in due if d is not None), default=None)
            if nearest is None or nearest > end:
                break
            self.now = max(self.now, nearest)
            for one in self.ends.values():
                one.channel.timer(self.now)
        self.now = end

    def _carry(self, one: End) -> bool:
        sent = self.flush(one)
        for send in sent:
            message = decode_part(send.data, TRAILER).message
            if not self.lose(one.name, message):
                self.deliver(one.name, send.data)
        return bool(sent)

    def flush(self, one: End) -> list[Send]:
        """The datagrams that leave; its events are noted."""
        outputs = carried_out(one.outbox, one.disk)
        found = [output for output in outputs if isinstance(output, Send)]
        one.events += [output for output in outputs if isinstance(output, Event)]
        self.sent += [(one.name, send) for send in found]
        return found

    def deliver(self, sender: str, data: bytes) -> None:
        receiver = self.ends[OTHER[sender]]
        source = ENDPOINTS[sender][0]
        received = receiver.channel.datagram(data, source, None, self.now)
        if received is not None:
            self._act(receiver, received)

    def _act(self, one: End, received: Received) -> None:
        one.requests.append(received.message)
        one.channel.reply(received, Status.ACCEPTED)

    def restart(self, name: str, *, lost: bool = False) -> None:
        one = self.ends[name]
        if lost:
            one.disk.clear()
        one.start(self.now)

    def datagrams(self, sender: str) -> list[bytes]:
        return [send.data for name, send in self.sent if name == sender]

    def marks(self, sender: str) -> list[tuple[int, int]]:
        seals = [read_seal(data) for data in self.datagrams(sender)]
        return [(mark.boot, mark.counter) for mark in seals]

    def assert_they_speak(self) -> None:
        for one in self.ends.values():
            heard, told = len(self.ends[OTHER[one.name]].requests), len(one.replies)
            one.ask(self.now)
            self.settle(2.0)
            assert len(self.ends[OTHER[one.name]].requests) == heard + 1, one.name
            assert len(one.replies) == told + 1, one.name
            assert one.channel.next_timer() is None
        for name in OTHER:
            marks = self.marks(name)
            assert len(set(marks)) == len(marks), "a boot and counter were used twice"


def messages(line: Line, sender: str, kind: Kind) -> list[Message]:
    found = [decode_part(data, TRAILER).message for data in line.datagrams(sender)]
    return [m for m in found if m.purpose is Purpose.CHALLENGE and m.kind is kind]


def forged(sender: str, message: Message, boot: int, counter: int, secret: bytes = SECRET) -> bytes:
    [body] = encode_parts(message, MAX_DATAGRAM, TRAILER)
    return seal(body, Seal(sender, 1, boot, counter), secret)


def request(*options: Option, purpose: Purpose = Purpose.REFRESH) -> Message:
    return Message(Kind.REQUEST, purpose, 7, (VM, *options))
