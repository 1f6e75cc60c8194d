"""The protocol's numbers: kinds, purposes, phases, statuses, roles (docs/protocol.md, IANA).

Not here: options and their layouts (options.py).  Rests on nothing.
"""

from __future__ import annotations

from enum import IntEnum

VERSION = 1
UDP_PORT = 8747
MAX_DATAGRAM = 1232  # octets of UDP payload: fits an IPv6 minimum MTU, so never fragmented
MAX_PARTS = 16
MAX_DEFINITION = 12_000  # octets of a VM's definition: fits a message, whatever stands beside it
LIFETIME_UNIT_S = 4  # Section 5: "the number of time units (each 4 seconds)"
MAX_LIFETIME_UNITS = 0xFFFF


class Kind(IntEnum):
    """The only two messages (draft Section 5)."""

    REQUEST = 1  # VM Mobility Registration Request
    REPLY = 2  # VM Mobility Registration Reply


class Purpose(IntEnum):
    """What a message is for."""

    ATTACH = 1  # an NVE serves this VM (registration, also after a move)
    REFRESH = 2  # extend a binding that is expiring
    DEREGISTER = 3  # lifetime 0: the sender's entry for this VM goes
    REDIRECT = 4  # the VM is served by another NVE: send its packets there
    PREPARE = 5  # a move is coming: get ready
    SWITCH = 6  # a step of a move's switch, named by the Phase option
    CHALLENGE = 7  # prove that you speak now: send this nonce back
    CHECK = 8  # where do you stand with this VM, now?
    ROUTE = 9  # router: lead this VM's packets thus (the Route option), and say how the fabric does
    SIGHT = 10  # a router says, unasked, how the fabric leads a VM's packets there now
    HOLD = 11  # NAPT box: a VM whose mapping is yours is behind me now: keep the mapping
    HANDOVER = 12  # NAPT box: this VM's mapping, and its flows, are yours from now on
    GUEST = 13  # the VM's guest is to run, to be suspended, to stop, or to be no more (Section 8.1)
    HEARTBEAT = 14  # an NVE lives, and so much room for VMs is left at it
    PROTECT = 15  # warm standby: be it, be protected, take over - or no more (the Phase option)


class Phase(IntEnum):
    """Where a node stands with a VM; in a request, where it is asked to go."""

    NONE = 0  # holds nothing but, perhaps, the highest epoch seen
    ATTACHING = 1  # the guest runs here, its attach is not yet accepted
    SERVING = 2  # accepted: delivers locally
    PREPARED = 3  # destination: a guest waits here, packets go where they went before
    COPYING = 4  # source: delivers locally, memory is being copied
    CONVERGED = 5  # source: what remains fits the blackout budget
    DELIVERING = 6  # destination: delivers locally, early packets wait in the tap's queue
    SWITCHED = 7  # source: redirects to the destination, the guest stops
    REDIRECTING = 8  # previous NVE: redirects to the serving NVE until traffic has stopped
    FAILED = 9  # this side of the move failed
    RELOCATING = 13  # moves from one of its NVE's servers to another; others are told SERVING
    DEPARTED = 10  # the guest was moved away by other hands; its new place is not yet known
    STOPPED = 11  # accepted, and the guest does not run: it is suspended in memory, or stopped
    STANDBY = 12  # warm: keeps checkpoints of a guest that runs elsewhere


class Status(IntEnum):
    """Below 128 accepts, 128 and up rejects (as in RFC 6275)."""

    ACCEPTED = 0  # done as asked
    ACCEPTED_IN_PROGRESS = 1  # understood; a later message will say how it ended
    UNSPECIFIED = 128  # for a reason that has no number; also any unknown number from 128 up
    ADMINISTRATIVELY_PROHIBITED = 129  # this role or node may not ask for that
    INSUFFICIENT_RESOURCES = 130  # no memory, disk or slot for it; later may do
    UNSUPPORTED_VERSION = 131  # the Supported option names the versions that are
    UNSUPPORTED_OPTION = 132  # the Supported option names the option type
    MALFORMED = 133  # authentic, but cannot be decoded or lacks an option
    UNKNOWN_BINDING = 134  # refresh or deregister for a VM not in the binding cache: attach again
    BOUND_ELSEWHERE = 135  # another NVE holds the VM and no ticket was shown
    SUPERSEDED = 136  # a newer epoch exists; the NVE option names the serving NVE
    STALE_EPOCH = 137  # the request's epoch is not above the highest seen
    INVALID_TICKET = 138  # unknown, used, expired or another VM's ticket
    ADDRESS_IN_USE = 139  # (VNI, address) has another owner
    VNI_NOT_SUPPORTED = 140  # a non-zero VNI, until VNIs are isolated
    WRONG_PHASE = 141  # the step does not fit where the node stands (Phase option)
    NOT_OWNER = 142  # not the serving NVE of this VM
    HYPERVISOR_FAILURE = 143  # the hypervisor refused or lost the guest
    DATA_PLANE_FAILURE = 144  # the kernel refused a route, tap, tunnel or filter
    OUT_OF_SEQUENCE = 145  # an older message of one sender's order
    FROZEN = 146  # attached by alternating NVEs too often: an operator must release it
    TRY_AGAIN = 147  # cannot be decided yet: ask again later

    @property
    def accepted(self) -> bool:
        return self < 128


class GuestLife(IntEnum):
    """What a node's hypervisor has of a VM's guest."""

    NONE = 0  # nothing: it cannot run here
    HELD = 1  # it is here and does not run (waiting, paused); it may run again
    RUNNING = 2  # it runs here
    DEPARTED = 3  # its memory was sent to another host and it was stopped for that
    ARRIVED = 4  # it runs here, and its memory came from another host


class GuestState(IntEnum):
    """What the manager wants of a VM's guest, and what its NVE has made of that."""

    NONE = 0  # nothing of the VM is to stay: its guest ends, and its binding
    RUNNING = 1  # it runs
    SUSPENDED = 2  # it is in memory, its CPUs are stopped
    STOPPED = 3  # no guest: the definition and the disks stay at the NVE, and the binding


class RouteState(IntEnum):
    """What a router does for a VM; the pair is the request's (Previous NVE, Serving NVE)."""

    NONE = 0  # nothing, and it says nothing of it any more
    WATCH = 1  # no route of its own; it says how the fabric leads the VM's packets
    KEEP = 2  # it leads them to the previous NVE as before, and announces that no more
    LEAD = 3  # it leads them to the serving NVE, and announces nothing: the VM is at home there
    ANNOUNCE = 4  # it leads them to the serving NVE, and announces host routes


class Mobility(IntEnum):
    """Kinds of mobility (draft Sections 2 and 7)."""

    HOT = 1  # moved while it runs
    WARM = 2  # its state is mirrored at intervals
    COLD = 3  # moved while it is stopped
    STANDBY = 4  # one member of a load-shared group


class OnTimeout(IntEnum):
    """What follows when a move's copy has not converged in time."""

    ABORT = 0  # the move is given up: the guest runs on at its source
    FORCE = 1  # it goes on at the destination, and the rest of its memory follows (post-copy)


class CopyStorage(IntEnum):
    """Which disks a move copies."""

    AUTO = 0  # those that the destination does not share
    ALL = 1  # all: a disk that both share is refused
    NONE = 2  # none: a disk that they do not share is refused


class Role(IntEnum):
    """A role is bound to a key: what its holder may ask for."""

    MANAGER = 1  # management node: binding cache and moves
    NVE = 2  # network virtualization edge
    DEFAULT_ROUTER = 3  # the draft's default router, usually the top-of-rack switch
    BORDER_ROUTER = 4  # the draft's BR
    NAPT = 5  # network address and port translator at a data centre's edge
    SERVER = 6  # a hypervisor host that its NVE stands apart from; never speaks this protocol


# Why a datagram or message is dropped, by the name under which it is counted.
DROP_REASONS: dict[str, str] = {
    "too-long": "the datagram has more than 1,232 octets",
    "truncated": "octets end before a field, an option or a seal does",
    "unauthenticated": "the last option is not Authentication",
    "unknown-key": "no key of that number is shared with that sender",
    "bad-digest": "the digest is wrong under that key",
    "old-boot": "the sender's boot is below the one on record",
    "unproven": "the sender, or this boot of it, has not answered a challenge yet",
    "replayed": "the counter was seen before",
    "too-old": "the counter lies below the replay window",
    "unsupported-version": "another version of the protocol",
    "length": "Length is not the datagram's",
    "parts": "Part and Parts make no sense, or the parts' headers differ",
    "unsupported-option": "an unknown option that must be understood",
    "option-length": "an option's data is shorter or longer than its type allows",
    "trailing": "octets are left over inside an option",
    "repeated-option": "what may stand once stands twice, or a seal stands before the end",
    "bad-value": "a number outside its registry, a bad name, address or combination",
    "missing-option": "an option that the purpose needs is not there",
    "wrong-role": "the sender's role may not ask for that purpose here",
    "repeated-request": "a request seen before; its reply, if there is one yet, is sent again",
    "unexpected-reply": "a reply that no outstanding request of that peer waits for",
    "wrong-receiver": "it is for another node, or says not for whom where a NAPT box is between",
    "bad-origin": "its originator's digest is missing or wrong, its translations undone",
    "old-origin": "its originator's boot is below the one on record",
    "bad-translation": "a translation that its box may not make, or that cannot be undone",
    "no-path": "NAPT box: none of its two sides leads from that sender to that receiver",
    "no-mapping": "NAPT box: no public address for a private one in a reply",
}
