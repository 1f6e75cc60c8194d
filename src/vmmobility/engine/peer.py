"""What a node keeps of each of its peers: keys, replay window, replies sent, parts under way.

Not here: what is done with it (channel.py).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from vmmobility.engine.outputs import Endpoint
from vmmobility.engine.replay_window import ReplayWindow
from vmmobility.errors import DecodeError
from vmmobility.wire.authentication import Seal
from vmmobility.wire.message import Message, Part, join_parts
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Address

REPLY_CACHE = 512  # replies a peer
ASSEMBLIES = 32  # messages in parts under way a peer
ASSEMBLY_S = 10.0  # how long parts wait for the others


@dataclass(slots=True)
class Assembly:
    """The parts so far of one message."""

    since: float
    parts: dict[int, Part] = field(default_factory=dict)


@dataclass(slots=True)
class OriginKeys:
    """The end-to-end keys of a pair that a NAPT box is between.

    boot: the highest under which the peer has sealed a message itself; 0: none on record
    """

    secrets: dict[int, bytes]
    signing: int
    boot: int = 0


@dataclass(slots=True)
class Peer:
    """A node that may speak to this one.

    signing: the key-ID that outgoing messages use
    via:     the NAPT box that is between: `endpoints`, `secrets` and `window` are those of the hop
             to it, and every datagram says for whom it is
    origin:  what is shared with a peer behind a box itself; None where this node is the box
    window:  without a boot as long as nothing is known of the peer
    replies: (boot, sequence) of its requests -> the reply; None while it is being worked on
    """

    node_id: str
    role: Role
    endpoints: tuple[Endpoint, ...]
    secrets: dict[int, bytes]
    signing: int
    window: ReplayWindow = field(default_factory=ReplayWindow)
    replies: OrderedDict[tuple[int, int], Message | None] = field(default_factory=OrderedDict)
    assemblies: OrderedDict[tuple[int, int, int], Assembly] = field(default_factory=OrderedDict)
    last_heard: float | None = None
    via: str = ""
    origin: OriginKeys | None = None

    def restore(self, mark: object) -> None:
        """Take the durable mark of an earlier start: boot and highest counter."""
        if isinstance(mark, list):
            self.window = ReplayWindow(*mark)

    def prove(self, mark: Seal) -> None:
        """Take this boot from now on; what came under it so far counts as seen."""
        if mark.boot != self.window.boot:
            self.replies.clear()
            self.assemblies.clear()
        self.window = ReplayWindow(mark.boot, mark.counter)

    def assemble(self, part: Part, mark: Seal, now: float) -> Message | None:
        """The whole message once its last part is there.  Raises DecodeError if they differ."""
        if part.count == 1:
            return part.message
        key = (mark.boot, part.message.sequence, part.message.kind)
        assembly = self.assemblies.get(key)
        if assembly is None or now - assembly.since > ASSEMBLY_S:
            assembly = self.assemblies[key] = Assembly(now)
            while len(self.assemblies) > ASSEMBLIES:
                self.assemblies.popitem(last=False)
        assembly.parts[part.number] = part
        if len(assembly.parts) < part.count:
            return None
        del self.assemblies[key]
        if any(p.count != part.count for p in assembly.parts.values()):
            raise DecodeError("parts", "the parts of a message differ in their count")
        return join_parts([assembly.parts[n] for n in range(1, part.count + 1)])

    def remember(self, key: tuple[int, int], reply: Message | None) -> None:
        self.replies[key] = reply
        while len(self.replies) > REPLY_CACHE:
            self.replies.popitem(last=False)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An authentic datagram: whose, and at which endpoints."""

    peer: Peer
    mark: Seal
    source: Endpoint
    local: Address | None


@dataclass(frozen=True, slots=True)
class Received:
    """A whole, authentic message: from whom, at which endpoint, and where it was asked."""

    peer: Peer
    message: Message
    boot: int
    source: Endpoint
    local: Address | None
