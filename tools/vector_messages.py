"""The messages of docs/vectors: who speaks, and what they say.

Not here: what must be dropped (vector_drops.py), writing files (make_vectors.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any

from vmmobility.wire import dissect
from vmmobility.wire.authentication import TRAILER, Seal, seal
from vmmobility.wire.message import Message, definition_options, encode_parts
from vmmobility.wire.options import (
    AttachId,
    Capacity,
    Checkpoint,
    Definition,
    Endpoint,
    Epoch,
    FlowOption,
    GroupMember,
    GroupOption,
    Guest,
    GuestStateOption,
    InterfaceGroup,
    KnownBoot,
    Mapping,
    Measurements,
    MobilityKind,
    MoveTerms,
    Nonce,
    Option,
    OriginAuthentication,
    PhaseOption,
    PreviousNve,
    Protection,
    Reason,
    Route,
    ServingNve,
    Sight,
    Supported,
    Ticket,
    Timestamp,
    Translation,
    UnknownOption,
    VmId,
)
from vmmobility.wire.registry import (
    MAX_DATAGRAM,
    CopyStorage,
    GuestLife,
    GuestState,
    Kind,
    Mobility,
    OnTimeout,
    Phase,
    Purpose,
    RouteState,
    Status,
)
from vmmobility.wire.values import Interface, Nve, VmKey

Json = dict[str, Any]

KEYS: dict[tuple[str, str], dict[int, bytes]] = {
    ("manager", "nve-a"): {1: bytes(range(32)), 2: bytes(range(0xC0, 0xE0))},
    ("manager", "nve-b"): {1: bytes(range(0x20, 0x40))},
    ("manager", "tor-a"): {1: bytes(range(0x40, 0x60))},
    ("manager", "tor-b"): {1: bytes(range(0x60, 0x80))},
    ("edge", "manager"): {1: bytes(range(0x80, 0xA0))},
    ("manager", "napt-1"): {1: bytes(range(0x90, 0xB0))},
    ("napt-1", "nve-a"): {1: bytes(range(0x10, 0x30))},
    ("napt-1", "napt-2"): {1: bytes(range(0x30, 0x50))},
}
_NAMES = ("manager", "nve-a", "nve-b", "tor-a", "tor-b", "edge")
BOOTS = {
    name: 0x186CC6ACD4B00000 + number for number, name in enumerate((*_NAMES, "napt-1", "napt-2"))
}

NVE_A = Nve("nve-a", IPv4Address("10.0.1.2"), IPv6Address("fd00:0:1::2"))
NVE_B = Nve("nve-b", IPv4Address("10.0.2.2"), IPv6Address("fd00:0:2::2"))
NVE_C = Nve("nve-c", IPv4Address("10.0.3.2"))
VM = VmId(VmKey(0, "vm-1"))
ETH0 = InterfaceGroup(
    Interface(bytes.fromhex("525400000001"), (ip_network("10.1.0.5/32"), ip_network("fd01::5/128")))
)
TICKET = Ticket(bytes(range(0xA0, 0xB0)))
NONCE = Nonce(bytes(range(0xB0, 0xC0)))
DEFINITION = b'{"memory_mib":128,"interfaces":[{"mac":"52:54:00:00:00:01"}]}'
LIFETIME = 30  # 120 s
PRIVATE, PUBLIC = IPv4Address("10.1.0.5"), IPv4Address("198.51.100.2")
FLOW = FlowOption(
    6,
    True,
    (PRIVATE, 40000),
    (PUBLIC, 40000),
    (IPv4Address("192.0.2.9"), 443),
    431999,
    "ESTABLISHED",
)


class Speaker:
    """Seals what each node says, with a counter a node."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(BOOTS, 0)
        self.boots = dict(BOOTS)

    def rise(self, sender: str, boot: int) -> None:
        """The sender speaks under this boot from now on."""
        self.boots[sender], self.counters[sender] = boot, 0

    def marks(self, sender: str, key_id: int) -> Iterator[Seal]:
        while True:
            self.counters[sender] += 1
            yield Seal(sender, key_id, self.boots[sender], self.counters[sender])

    def vector(
        self, name: str, sender: str, receiver: str, message: Message, key_id: int = 1
    ) -> Json:
        first, second = sorted((sender, receiver))
        secret = KEYS[first, second][key_id]
        parts = encode_parts(message, MAX_DATAGRAM, TRAILER)
        marks = [m for m, _ in zip(self.marks(sender, key_id), parts, strict=False)]
        return {
            "name": name,
            "sender": sender,
            "receiver": receiver,
            "key": secret.hex(),
            "key_id": key_id,
            "boot": f"{self.boots[sender]:016x}",
            "counter": f"{marks[0].counter:016x}",
            "datagrams": [seal(p, m, secret).hex() for p, m in zip(parts, marks, strict=True)],
            "message": dissect.readable(message),
        }


def ask(purpose: Purpose, sequence: int, *body: Option, lifetime: int = 0) -> Message:
    return Message(Kind.REQUEST, purpose, sequence, body, lifetime)


def answer(
    request: Message, *body: Option, status: Status = Status.ACCEPTED, lifetime: int = 0
) -> Message:
    return Message(Kind.REPLY, request.purpose, request.sequence, body, lifetime, status)


def every_option() -> Json:
    """One message an option, with the values that matter at the edges."""
    cases: dict[str, Option] = {
        "vm-id": VM,
        "vm-id of a virtual network": VmId(VmKey(0x00ABCDEF, "blå-vm.7")),
        "vm-id of 64 octets": VmId(VmKey(0xFFFFFFFF, "x" * 64)),
        "interface group, both families": ETH0,
        "interface group without addresses": InterfaceGroup(Interface(b"\x52\x54\0\0\0\2", ())),
        "interface group with prefixes of any length": InterfaceGroup(
            Interface(
                b"\x02\0\0\0\0\xff",
                (ip_network("192.0.2.128/25"), ip_network("2001:db8:7::/64")),
            )
        ),
        "serving nve, both families": ServingNve(NVE_A),
        "serving nve, ipv4": ServingNve(NVE_C),
        "serving nve, ipv6": ServingNve(Nve("edge", None, IPv6Address("2001:db8::1"))),
        "serving nve without locators": ServingNve(Nve("n" * 32)),
        "previous nve": PreviousNve(NVE_B),
        "epoch": Epoch(7),
        "epoch, highest": Epoch(2**64 - 1),
        "ticket": TICKET,
        "attach-id": AttachId(0x0102030405060708),
        "mobility kind, hot": MobilityKind(Mobility.HOT),
        "mobility kind, standby member 2": MobilityKind(Mobility.STANDBY, 2),
        **{f"phase {phase.name}": PhaseOption(phase) for phase in Phase},
        "timestamp": Timestamp(1_760_000_000_123_456_789),
        "definition": Definition(DEFINITION),
        "endpoint, ipv4": Endpoint(ip_address("10.0.2.2"), 49152),
        "endpoint, ipv6": Endpoint(ip_address("fd00:0:2::2"), 65535),
        "measurements": Measurements(b'{"downtime_ms":12.5}'),
        "supported": Supported((1,)),
        "reason": Reason("vm-1 is served by nve-b"),
        "nonce": NONCE,
        "known boot, none": KnownBoot(0),
        "known boot": KnownBoot(7),
        **{f"guest {life.name}": Guest(life) for life in GuestLife},
        **{f"guest state {state.name}": GuestStateOption(state) for state in GuestState},
        "guest state, all": GuestStateOption(GuestState.STOPPED, True, 60, 7),
        **{f"route {state.name}": Route(state) for state in RouteState},
        "sight, neither": Sight(False, False),
        "sight, direct": Sight(True, False),
        "sight, covered": Sight(False, True),
        "sight, both": Sight(True, True),
        "origin authentication": OriginAuthentication(1, BOOTS["nve-a"], bytes(range(32))),
        "translation": Translation("napt-1", PRIVATE, PUBLIC),
        "translation by a box of a long name": Translation("x" * 32, PUBLIC, PRIVATE),
        "mapping": Mapping("napt-1", PRIVATE, PUBLIC),
        "flow, tcp from inside": FLOW,
        "flow, udp from outside": replace(FLOW, protocol=17, outgoing=False, tcp_state=""),
        "move terms, force": MoveTerms(300, OnTimeout.FORCE, 100, 50, CopyStorage.NONE),
        "move terms, all disks": MoveTerms(copy_storage=CopyStorage.ALL),
        "protection, not known where": Protection(False, 3_600_000, 10_000),
        "protection, daily": Protection(False, 86_400_000, 10_000, "", 1439),
        "protection, highest": Protection(True, 2**32 - 1, 2**32 - 1, "f" * 64),
        "checkpoint, none": Checkpoint(0),
        "checkpoint, highest": Checkpoint(2**64 - 1, 2**32 - 1),
        "capacity": Capacity(1000, 16, 12, 8192, 4096, 102400, 51200),
        "capacity, highest": Capacity(*(2**32 - 1,) * 7),
        "group": GroupOption(12, 1, "web"),
        "group, of a long name": GroupOption(2**64 - 1, 0xFFFF, "g" * 64),
        "group member": GroupMember(2, NVE_B),
        "an unknown option that may be ignored": UnknownOption(0x1234, b"\x00\xff\x10"),
    }
    speaker = Speaker()
    return {
        "description": "One message for each option and for its extreme values.",
        "vectors": [
            speaker.vector(name, "nve-a", "manager", ask(Purpose.ATTACH, number, option))
            for number, (name, option) in enumerate(cases.items(), 1)
        ],
    }


def registrations() -> Json:
    """A VM's life without moves, and each rejection."""
    speaker = Speaker()
    vectors: list[Json] = []

    def talk(name: str, nve: str, request: Message, *replies: Message) -> None:
        vectors.append(speaker.vector(f"{name}: request", nve, "manager", request))
        vectors.extend(speaker.vector(f"{name}: reply", "manager", nve, r) for r in replies)

    attach = ask(
        Purpose.ATTACH, 0x1001, VM, ETH0, ServingNve(NVE_A), AttachId(1),
        MobilityKind(Mobility.HOT), Timestamp(1_760_000_000_000_000_000), lifetime=LIFETIME,
    )  # fmt: skip
    talk("first attach", "nve-a", attach, answer(attach, VM, Epoch(1), lifetime=15))
    refresh = ask(Purpose.REFRESH, 0x1002, VM, AttachId(1), Epoch(1), lifetime=LIFETIME)
    talk("refresh", "nve-a", refresh, answer(refresh, VM, Epoch(1), lifetime=15))
    late = replace(refresh, sequence=0x1003)
    talk(
        "refresh of a VM that moved on", "nve-a", late,
        answer(late, VM, ServingNve(NVE_B), Epoch(2), status=Status.SUPERSEDED),
    )  # fmt: skip
    unknown = replace(refresh, sequence=0x1004)
    talk(
        "refresh that the manager does not know", "nve-a", unknown,
        answer(unknown, Reason("no binding of vm-1"), status=Status.UNKNOWN_BINDING),
    )  # fmt: skip
    end = ask(Purpose.DEREGISTER, 0x1005, VM, AttachId(1), Epoch(1))
    talk("deregistration", "nve-a", end, answer(end, VM))
    drained = ask(Purpose.DEREGISTER, 0x1006, VM, Epoch(2), PhaseOption(Phase.REDIRECTING))
    talk("a drained redirect", "nve-a", drained, answer(drained, VM))
    for number, status in enumerate((s for s in Status if not s.accepted), 0x2000):
        request = replace(attach, sequence=number)
        extra: tuple[Option, ...] = ()
        if status is Status.UNSUPPORTED_VERSION:
            extra = (Supported((1,)),)
        elif status is Status.UNSUPPORTED_OPTION:
            extra = (Supported((0x234,)),)
        elif status is Status.BOUND_ELSEWHERE:
            extra = (ServingNve(NVE_B), Epoch(2))
        elif status is Status.SUPERSEDED:
            extra = (VM, ServingNve(NVE_B), Epoch(2))
        vectors.append(
            speaker.vector(
                f"rejection {status.name}", "manager", "nve-a",
                answer(request, *extra, Reason(status.name.lower()), status=status),
            )
        )  # fmt: skip
    vectors.append(
        speaker.vector("a refresh under the second key", "nve-a", "manager", late, key_id=2)
    )
    return {
        "description": "A VM's life without moves, and a reply with each status that rejects.",
        "vectors": vectors,
    }


def hot_move() -> Json:
    """The messages of a hot move of vm-1 from nve-a to nve-b, nve-a having epoch 1."""
    speaker = Speaker()
    vectors: list[Json] = []

    def talk(name: str, sender: str, receiver: str, request: Message, reply: Message) -> None:
        vectors.append(speaker.vector(f"{name}: request", sender, receiver, request))
        vectors.append(speaker.vector(f"{name}: reply", receiver, sender, reply))

    def step(
        name: str, nve: str, purpose: Purpose, sequence: int, epoch: int, phase: Phase,
        *more: Option, seen: int, reply: tuple[Option, ...] = (),
    ) -> None:  # fmt: skip
        """A step that the manager asks for.  seen: the epoch that the NVE answers with."""
        head = VM, Epoch(epoch), TICKET, PhaseOption(phase)
        request = ask(purpose, sequence, *head, *more)
        stand = VM, Epoch(seen), PhaseOption(phase)
        talk(name, "manager", nve, request, answer(request, *stand, *reply))

    def report(name: str, nve: str, sequence: int, phase: Phase, *more: Option) -> None:
        request = ask(Purpose.SWITCH, sequence, VM, Epoch(2), PhaseOption(phase), TICKET, *more)
        said = answer(request, VM, status=Status.ACCEPTED_IN_PROGRESS)
        talk(name, nve, "manager", request, said)

    endpoint = Endpoint(ip_address("10.0.2.2"), 49152)
    prepare, switch, phase = Purpose.PREPARE, Purpose.SWITCH, Phase
    step(
        "1 prepare the destination", "nve-b", prepare, 0x51, 2, phase.PREPARED,
        ETH0, PreviousNve(NVE_A), MobilityKind(Mobility.HOT), *definition_options(DEFINITION),
        seen=0, reply=(endpoint,),
    )  # fmt: skip
    step(
        "2 copy from the source", "nve-a", prepare, 0x52, 2, phase.COPYING,
        ServingNve(NVE_B), endpoint, seen=1,
    )  # fmt: skip
    report("3 the source has converged", "nve-a", 0x61, phase.CONVERGED)
    step("4 the destination delivers", "nve-b", switch, 0x53, 2, phase.DELIVERING, seen=2)
    step("5 the source switches", "nve-a", switch, 0x54, 2, phase.SWITCHED, seen=2)
    attach = ask(
        Purpose.ATTACH, 0x71, VM, ETH0, ServingNve(NVE_B), AttachId(1),
        MobilityKind(Mobility.HOT), TICKET, Timestamp(1_760_000_002_000_000_000),
        Measurements(b'{"downtime_ms":12.5,"queue_peak":9}'), lifetime=LIFETIME,
    )  # fmt: skip
    granted = answer(attach, VM, Epoch(2), PreviousNve(NVE_A), lifetime=15)
    talk("6 the destination registers", "nve-b", "manager", attach, granted)
    redirect = ask(Purpose.REDIRECT, 0x55, VM, ETH0, ServingNve(NVE_B), Epoch(2), lifetime=15)
    redirecting = answer(redirect, VM, Epoch(2), PhaseOption(phase.REDIRECTING))
    talk("7 the source is redirected", "manager", "nve-a", redirect, redirecting)
    drained = ask(Purpose.DEREGISTER, 0x62, VM, Epoch(2), PhaseOption(phase.REDIRECTING))
    talk("8 the source has drained", "nve-a", "manager", drained, answer(drained, VM))
    why = Reason("the destination hypervisor closed the connection")
    report("turning back 1, the source failed", "nve-a", 0x63, phase.FAILED, why)
    step("turning back 2, end the guest", "nve-b", switch, 0x56, 3, phase.FAILED, seen=3)
    step("turning back 3, serve again", "nve-a", switch, 0x57, 3, phase.SERVING, seen=3)
    clear = ask(Purpose.DEREGISTER, 0x58, VM, Epoch(3), TICKET)
    cleared = answer(clear, VM, Epoch(3), PhaseOption(phase.NONE))
    talk("turning back 4, forget", "manager", "nve-b", clear, cleared)
    return {
        "description": "The messages of a hot move of vm-1 from nve-a to nve-b, and, from its "
        "switch on, those of turning back instead.",
        "vectors": vectors,
    }


def parts() -> Json:
    """Messages that one datagram does not hold."""
    speaker = Speaker()
    long = bytes(0x30 + n % 10 for n in range(2500))
    many = tuple(
        PreviousNve(Nve(f"nve-{n:03}", IPv4Address(f"10.0.9.{n}"), IPv6Address(f"fd00:0:9::{n:x}")))
        for n in range(1, 41)
    )
    full = Definition(b"x" * (MAX_DATAGRAM - 16 - 12 - 88 - 4 - 100)), Definition(b"y" * 96)
    return {
        "description": "Messages in parts, cut between options; each part has its own seal. "
        "The counter given is the first part's; the others follow it one by one.",
        "vectors": [
            speaker.vector(
                "a definition in three parts", "nve-a", "manager",
                answer(
                    ask(Purpose.PREPARE, 0x81), VM, PhaseOption(Phase.SERVING),
                    *definition_options(long),
                ),
            ),
            speaker.vector(
                "forty previous NVEs", "manager", "nve-a",
                answer(ask(Purpose.ATTACH, 0x82), Epoch(41), *many, lifetime=LIFETIME),
            ),
            speaker.vector(
                "a datagram of 1,232 octets, not cut", "nve-a", "manager",
                answer(ask(Purpose.PREPARE, 0x83), VM, *full),
            ),
        ],
    }  # fmt: skip
