"""What an engine asks of the world, and the outbox that keeps the order.

An engine's outputs leave in the order in which they were made, and nothing leaves before the
records made with it or before it are durable (design, invariant 4).
Not here: carrying them out (daemon/pump.py).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address
from typing import Any, NamedTuple

from vmmobility.engine.dataplane import VmDataPlane
from vmmobility.engine.fabric_routes import VmRoutes
from vmmobility.engine.napt_plane import Flow, NaptState
from vmmobility.wire.values import Address, VmKey


class Endpoint(NamedTuple):
    """A UDP endpoint of a node."""

    address: Address
    port: int


@dataclass(frozen=True, slots=True)
class Send:
    """A datagram to send; from `source` if given (replies leave from the address asked)."""

    data: bytes
    destination: Endpoint
    source: Address | None = None


@dataclass(frozen=True, slots=True)
class Persist:
    """Write these changes (key -> JSON value, None deletes) as one; answer persisted(number)."""

    number: int
    changes: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class SetDataPlane:
    """Make the kernel hold this; answer data_plane_applied(vm, tag, failures)."""

    state: VmDataPlane
    tag: int


@dataclass(frozen=True, slots=True)
class SetRoutes:
    """Make a router's kernel hold this; answer routes_applied(vm, tag, failures, sight)."""

    state: VmRoutes
    tag: int


@dataclass(frozen=True, slots=True)
class SetNapt:
    """Make a NAPT box's kernel hold this; answer napt_applied(tag, failures)."""

    state: NaptState
    tag: int


@dataclass(frozen=True, slots=True)
class ExportFlows:
    """Read the flows of a private address that are alive; answer flows_exported(number, flows,
    error)."""

    number: int
    private: IPv4Address


@dataclass(frozen=True, slots=True)
class ImportFlows:
    """Continue these flows of another box here; answer flows_imported(number, failures)."""

    number: int
    flows: tuple[Flow, ...]


@dataclass(frozen=True, slots=True)
class DropFlows:
    """Forget the flows of a private address: another box has them, or its mapping is over.

    public: the mapping's public address, and its flows alone; None: all flows of the private one
    """

    private: IPv4Address
    public: IPv4Address | None = None


@dataclass(frozen=True, slots=True)
class Explain:
    """Look how a router's kernel leads these addresses; answer explained(number, rows, sight,
    error).  watched: the VM of which the sight is wanted, too."""

    number: int
    addresses: tuple[Address, ...]
    watched: VmRoutes | None


class Order(Enum):
    """What a hypervisor can be told; each is answered by order_done(vm, order, result, error)."""

    START = "start"
    STOP = "stop"
    PAUSE = "pause"
    RESUME = "resume"
    KEEP = "keep"
    RETIRE = "retire"
    PREPARE_INCOMING = "prepare-incoming"
    COPY_OUT = "copy-out"
    SWITCH_OVER = "switch-over"
    PROCEED = "proceed"
    CANCEL = "cancel"
    ANNOUNCE = "announce"
    QUERY = "query"
    WATCH = "watch"
    UNWATCH = "unwatch"
    RECEIVE = "receive-checkpoints"
    CHECKPOINT = "checkpoint"
    ACTIVATE = "activate"
    UNPROTECT = "unprotect"
    DROP_STANDBY = "drop-checkpoints"
    ARM = "arm"


@dataclass(frozen=True, slots=True)
class HypervisorOrder:
    """One order for one guest.  arguments: definition, address, port, terms (a MoveTerms, if any
    are asked) as the order needs.

    QUERY's result is {"life": the name of a GuestLife in small letters}; RECEIVE's is address,
    port, token, number.  ARM has until: monotonic seconds at which the guest is paused whatever
    becomes of the daemon, or None: not any more.
    """

    order: Order
    vm: VmKey
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CountTraffic:
    """Read a VM's packet counters; answer traffic_counted(vm, label, traffic)."""

    vm: VmKey
    label: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Compare the kernel with what was asked for this VM, and repair it; answer
    audited(vm, drift): in words, what was found to differ."""

    vm: VmKey


@dataclass(frozen=True, slots=True)
class MeasureHost:
    """Look how much of this host VMs may have; answer host_measured(capacity)."""


@dataclass(frozen=True, slots=True)
class CommandDone:
    """The end of a command that came in by the API: its result, or why it failed."""

    command: int
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that people want to know (docs/architecture.md, Events)."""

    name: str
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop the process: a record could not be made durable, so nothing more may be said."""

    reason: str


Output = (
    Send
    | Persist
    | SetDataPlane
    | SetRoutes
    | SetNapt
    | ExportFlows
    | ImportFlows
    | DropFlows
    | Explain
    | HypervisorOrder
    | CountTraffic
    | Audit
    | MeasureHost
    | CommandDone
    | Event
    | Halt
)


class Outbox:
    """Collects outputs and records between two flushes and holds outputs back until durable."""

    def __init__(self) -> None:
        self._changes: dict[str, Any] = {}
        self._outputs: list[Output] = []
        self._held: deque[tuple[int, list[Output]]] = deque()
        self._ready: list[Output] = []
        self._number = 0
        self._halted = False

    def record(self, key: str, value: Any) -> None:
        """A change that must be durable before anything of this batch leaves."""
        self._changes[key] = value

    def emit(self, output: Output) -> None:
        self._outputs.append(output)

    def flush(self) -> list[Output]:
        """What may be carried out now: at most one Persist, last, and outputs free to leave."""
        ready, self._ready = self._ready, []
        if self._halted:
            return ready
        if self._changes:
            self._number += 1
            ready.append(Persist(self._number, tuple(self._changes.items())))
            self._held.append((self._number, self._outputs))
            self._changes, self._outputs = {}, []
        elif self._held:
            self._held[-1][1].extend(self._outputs)
            self._outputs = []
        else:
            ready.extend(self._outputs)
            self._outputs = []
        return ready

    def persisted(self, number: int) -> None:
        """All changes up to Persist `number` are durable: let their outputs go."""
        while self._held and self._held[0][0] <= number:
            self._ready.extend(self._held.popleft()[1])

    def persist_failed(self, reason: str) -> None:
        """Say nothing that rests on the lost record, nor anything after it."""
        self._halted = True
        self._held.clear()
        self._outputs.clear()
        self._changes.clear()
        self._ready.append(Halt(reason))


class Flushing:
    """The part of every engine that hands out what its outbox holds."""

    outbox: Outbox

    def flush(self) -> list[Output]:
        return self.outbox.flush()

    def persisted(self, number: int) -> None:
        self.outbox.persisted(number)

    def persist_failed(self, reason: str) -> None:
        self.outbox.persist_failed(reason)
