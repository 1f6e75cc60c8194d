"""What options say: one dataclass for each, named in the table of options.py.

Not here: their numbers, octets and bounds (options.py), the header (message.py).
Rests on values and registry.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from vmmobility.wire.move_terms import MoveTerms
from vmmobility.wire.registry import GuestLife, GuestState, Mobility, Phase, RouteState
from vmmobility.wire.values import Address, Interface, Nve, VmKey


@dataclass(frozen=True, slots=True)
class VmId:
    """The VM's key: virtual network identifier and VM-ID (Section 5)."""

    vm: VmKey


@dataclass(frozen=True, slots=True)
class InterfaceGroup:
    """One interface: its MAC and the VM's addresses on it (Section 5, Virtual Machine Address)."""

    interface: Interface


@dataclass(frozen=True, slots=True)
class ServingNve:
    """The NVE that serves the VM, or will: NVE-ID and locators."""

    nve: Nve


@dataclass(frozen=True, slots=True)
class PreviousNve:
    """An NVE that served the VM and may still send packets for it on (repeated; source first)."""

    nve: Nve


@dataclass(frozen=True, slots=True)
class Epoch:
    """The binding's place in the domain-wide order of accepted attaches."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Ticket:
    """The manager's leave for one move: 16 octets, single-use."""

    ticket: bytes


@dataclass(frozen=True, slots=True)
class AttachId:
    """The NVE's name for one attach; a repetition carries the same."""

    attach_id: int


@dataclass(frozen=True, slots=True)
class MobilityKind:
    """Hot, warm, cold or standby, and the member of a load-shared group (0: none)."""

    mobility: Mobility
    member: int = 0


@dataclass(frozen=True, slots=True)
class PhaseOption:
    """Request: the phase asked for.  Reply: the phase held."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Timestamp:
    """The sender's clock in nanoseconds since 1970: for display and one sender's order only."""

    time_ns: int


@dataclass(frozen=True, slots=True)
class Definition:
    """The VM's definition for the hypervisor: UTF-8 JSON, opaque to the protocol.

    Longer ones are cut into several options of this type; their data is joined in order.
    """

    data: bytes


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the destination hypervisor expects the VM's memory (Section 6): address, TCP port."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Measurements:
    """Figures for people: UTF-8 JSON object of numbers; never acted on."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Supported:
    """With UNSUPPORTED_VERSION: the versions spoken.  With UNSUPPORTED_OPTION: the type refused."""

    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a request was rejected, in words, UTF-8."""

    text: str


@dataclass(frozen=True, slots=True)
class Nonce:
    """CHALLENGE: 16 octets that were never used before; the reply brings them back."""

    nonce: bytes


@dataclass(frozen=True, slots=True)
class KnownBoot:
    """CHALLENGE: the highest boot of the receiver that the sender has seen; 0 is none."""

    boot: int


@dataclass(frozen=True, slots=True)
class Guest:
    """What the sender's hypervisor has of the VM's guest."""

    life: GuestLife


@dataclass(frozen=True, slots=True)
class GuestStateOption:
    """GUEST: the state that is wanted, or held (its reply).  REFRESH, ATTACH: the one held.

    kept:    a guest that ends by itself leaves its VM stopped; else its binding ends, too
    grace_s: so long may a guest take to shut itself down; 0: it is ended at once
    ordered: the epoch of the last GUEST that made it so; 0: none did
    """

    state: GuestState
    kept: bool = False
    grace_s: int = 0
    ordered: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """ROUTE: what a router is to do for the VM; in its reply, what it does (Section 7.2)."""

    state: RouteState


@dataclass(frozen=True, slots=True)
class Sight:
    """How the fabric leads a VM's packets, whatever host routes this node itself holds.

    direct:  they reach the serving NVE without passing another (Section 7.2's gate)
    covered: the prefixes that cover the VM's addresses lead to the serving NVE: it is at home
    """

    direct: bool
    covered: bool


@dataclass(frozen=True, slots=True)
class Protection:
    """PROTECT: how a VM is protected by a warm standby (Section 2).

    fail_over:   the standby takes over when the primary's lease has ended: the primary pauses its
                 guest before that
    interval_ms: from the beginning of one checkpoint to that of the next
    lease_ms:    how long an accepted REFRESH counts, from its sending
    token:       what the standby's door wants to see, UTF-8; "" where none is known yet
    at_min:      a checkpoint begins daily, so many minutes after midnight UTC, and interval_ms is a
                 day; None: it does not
    """

    fail_over: bool
    interval_ms: int
    lease_ms: int
    token: str = ""
    at_min: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The last complete checkpoint at the standby: its number (0: none), and its age."""

    number: int
    age_ms: int = 0


@dataclass(frozen=True, slots=True)
class OriginAuthentication:
    """The originator's seal for the receiver itself, over the message as it was before any box
    (Section 9); `boot` is the originator's towards its own neighbour."""

    key_id: int
    boot: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Translation:
    """What a NAPT box has put in the place of an IPv4 address, everywhere in this message."""

    box: str
    original: IPv4Address
    substitute: IPv4Address


@dataclass(frozen=True, slots=True)
class Mapping:
    """The VM's public address, and the private one to which this box has mapped it."""

    box: str
    private: IPv4Address
    public: IPv4Address


@dataclass(frozen=True, slots=True)
class FlowOption:
    """HANDOVER: one translated flow that is alive (engine/napt_plane.Flow; seconds)."""

    protocol: int
    outgoing: bool
    private: tuple[IPv4Address, int]
    public: tuple[IPv4Address, int]
    remote: tuple[IPv4Address, int]
    timeout_s: int
    tcp_state: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """HEARTBEAT: what VMs may have of the sender's host, in all and still (Section 8.1).

    interval_ms: the sender's next heartbeat comes after so long; a total of 0 is not told
    """

    interval_ms: int
    vcpus: int = 0
    vcpus_free: int = 0
    memory_mib: int = 0
    memory_free_mib: int = 0
    storage_mib: int = 0
    storage_free_mib: int = 0


@dataclass(frozen=True, slots=True)
class GroupOption:
    """The load-shared group whose member this VM is (Section 7, hot standby): the group's epoch,
    the VM's number in it, the group's name."""

    epoch: int
    member: int
    name: str


@dataclass(frozen=True, slots=True)
class GroupMember:
    """Another member of that group that is in service: its number and its NVE (repeated)."""

    member: int
    nve: Nve


@dataclass(frozen=True, slots=True)
class UnknownOption:
    """An option of a type that this node does not know, kept as it came."""

    type: int  # with the U bit as received
    data: bytes


Option = (
    VmId
    | InterfaceGroup
    | ServingNve
    | PreviousNve
    | Epoch
    | Ticket
    | AttachId
    | MobilityKind
    | PhaseOption
    | Timestamp
    | Definition
    | Endpoint
    | Measurements
    | Supported
    | Reason
    | Nonce
    | KnownBoot
    | Guest
    | GuestStateOption
    | Route
    | Sight
    | Protection
    | Checkpoint
    | OriginAuthentication
    | Translation
    | Mapping
    | FlowOption
    | MoveTerms
    | Capacity
    | GroupOption
    | GroupMember
    | UnknownOption
)
