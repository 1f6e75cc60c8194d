"""The NVE's Binding Update List: one entry a VM (draft Section 5, after RFC 5213).

An entry's (epoch, phase) is durable before it is acknowledged; when an entry goes, its epoch stays
behind as a tombstone.  Not here: what moves an entry from phase to phase (nve.py, nve_moves.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

from vmmobility.engine.channel import Received
from vmmobility.engine.dataplane import (
    Forwarding,
    Outside,
    RedirectPolicy,
    VmDataPlane,
    policy_of,
)
from vmmobility.wire.registry import GuestLife, GuestState, Mobility, Phase
from vmmobility.wire.values import Interface, Nve, Prefix, VmKey

# What each phase means for the data plane: (taps exist, where packets go).
DATA_PLANE: Mapping[Phase, tuple[bool, Forwarding]] = {
    Phase.NONE: (False, Forwarding.NONE),
    Phase.ATTACHING: (True, Forwarding.LOCAL),
    Phase.SERVING: (True, Forwarding.LOCAL),
    Phase.PREPARED: (True, Forwarding.NONE),
    Phase.COPYING: (True, Forwarding.LOCAL),
    Phase.CONVERGED: (True, Forwarding.LOCAL),
    Phase.DELIVERING: (True, Forwarding.LOCAL),
    Phase.SWITCHED: (True, Forwarding.REDIRECT),
    Phase.REDIRECTING: (False, Forwarding.REDIRECT),
    Phase.FAILED: (True, Forwarding.LOCAL),
    Phase.DEPARTED: (True, Forwarding.LOCAL),
    Phase.STOPPED: (True, Forwarding.LOCAL),
    Phase.RELOCATING: (True, Forwarding.LOCAL),
    Phase.STANDBY: (False, Forwarding.NONE),  # no entry is in it: see nve_protection.py
}


@dataclass(slots=True)
class Check:
    """A look at the hypervisor and the kernel under way for one entry.

    started:  whether the guest was known to be here when it was asked for
    life, drift: the answers, None until they are there
    requests: the manager's CHECKs, and commands: people's, that wait for both
    traffic:  the packet counters, for people; nothing waits for them
    """

    started: bool
    life: GuestLife | None = None
    drift: tuple[str, ...] | None = None
    requests: list[Received] = field(default_factory=list)
    commands: list[int] = field(default_factory=list)
    traffic: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Contest:
    """The manager's question about the guest alone: another NVE says that it has it.

    started: whether the guest was known to be here when it was asked
    behind:  how many answers of the hypervisor come before the one to this question, and it
    """

    received: Received
    started: bool
    behind: int


@dataclass(slots=True)
class Entry:
    """What this NVE holds of one VM.

    epoch:      highest that this node has acted on for the VM (the tombstone's, too)
    granted:    epoch of the attach that the manager accepted from here, 0 if none
    server:     where its guest is, if this node stands apart from its servers; else ""
    server_to:  RELOCATING: the server that it moves to; else: where what is left of it is ended
    target:     PREPARED: the source; COPYING to SWITCHED: the destination; REDIRECTING: the
                serving NVE
    accept:     NVEs that may tunnel this VM's packets to here
    came_from:  phase to fall back to when a preparation is given up (NONE or REDIRECTING)
    relaying:   PREPARED only: the fabric turns to here, and packets go on to the source
    turned:     SWITCHED only: the guest is about to stop, so the redirect is wanted now
    unplugged:  REDIRECTING only: the local guest is gone, so its taps may go
    move_epoch: epoch of the move that is prepared or under way here
    ending:     the guest is being stopped, or is gone, and its deregistration is under way
    expected:   other hands than ours run this VM's guests: one may come or start here at any time
    claiming:   ATTACHING only: without a move of the manager's; packets go where they went before
                until it is accepted (target: where this node redirected to)
    arrived:    ATTACHING only: such a guest runs here (RUNNING: it was started, ARRIVED: moved)
    paused:     ATTACHING only: that guest was stopped until its attach is accepted
    leftover:   NONE, REDIRECTING: a guest of it may still be at the hypervisor, which is to end it
    guest:      SERVING, STOPPED: what the guest is: it runs, is suspended, or stopped
    wanted:     what the manager wants it to be; settled: that is so, and nothing is under way
    guest_epoch: of the manager's last order about the guest, 0 if there was none
    grace_s:    so long may the guest that is to stop take to shut itself down
    crashed:    of a protected VM, STOPPED or about to be deregistered: its guest has ended, and
                neither was it told to nor has it shut itself down
    kept:       when the guest ends by itself the VM stays here, stopped
    commands:   people's commands that wait for the guest to start, or (ending) to stop
    unended:    claiming, PREPARED: the guest that was here before could not be ended yet
    booting:    its guest was ordered to start, and the hypervisor has not said how that ended
    fabric_direct: REDIRECTING only: the manager says that the fabric leads to the serving NVE
    rolling_back: SERVING only: once packets come here again, the guest is let go on
    resumes:    how often the hypervisor has refused that
    proceeding: SWITCHED only: the guest may stop as soon as the redirect is in place
    redirected, inbound: packets sent on, and all that came for the VM, when last counted
    lifetime_s: granted lifetime; refresh_at, drained_at: monotonic seconds
    request:    the manager's request that waits for the data plane or the hypervisor
    tag:        number of the newest data plane state asked for
    lingering:  NONE only: the kernel has not said yet that it holds nothing of it any more
    unwatched:  expected, and the hypervisor is not yet told to watch for its guests
    forgotten:  SWITCHED only: the manager knows neither move nor VM any more, the copy was ended
    contests:   questions about the guest alone; queries: how many the hypervisor has to answer
    check:      a look at hypervisor and kernel under way; check_at: when the next is due, or
                (REDIRECTING) the next question whether the redirect still stands
    fenced:     SERVING only: its guest is paused, and gets no packet, until a refresh is accepted
    redirecting_since: monotonic seconds; alarmed: people were told that it has been long
    """

    vm: VmKey
    interfaces: tuple[Interface, ...] = ()
    definition: bytes = b""
    phase: Phase = Phase.NONE
    epoch: int = 0
    granted: int = 0
    attach_id: int = 0
    server: str = ""
    server_to: str = ""
    ticket: bytes = b""
    mobility: Mobility = Mobility.HOT
    target: Nve | None = None
    accept: tuple[Nve, ...] = ()
    came_from: Phase = Phase.NONE
    lifetime_s: float = 0.0
    turned: bool = False
    unplugged: bool = False
    move_epoch: int = 0
    ending: bool = False
    expected: bool = False
    claiming: bool = False
    arrived: GuestLife = GuestLife.NONE
    paused: bool = False
    leftover: bool = False
    relaying: bool = False
    guest: GuestState = GuestState.RUNNING
    wanted: GuestState = GuestState.RUNNING
    settled: bool = True
    guest_epoch: int = 0
    grace_s: int = 0
    kept: bool = False
    crashed: bool = False
    # not durable
    started: bool = False
    booting: bool = False
    unended: bool = False
    fabric_direct: bool = False
    proceeding: bool = False
    rolling_back: bool = False
    resumes: int = 0
    refresh_at: float | None = None
    quiet_since: float | None = None
    redirected: int = 0
    inbound: int = 0
    delivered_before: int = 0
    draining: bool = False
    request: Received | None = None
    tag: int = 0
    commands: list[int] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    lingering: bool = False
    unwatched: bool = False
    forgotten: bool = False
    contests: list[Contest] = field(default_factory=list)
    queries: int = 0
    check: Check | None = None
    check_at: float | None = None
    redirecting_since: float | None = None
    alarmed: bool = False
    fenced: bool = False

    def data_plane(self, policy: RedirectPolicy) -> VmDataPlane:
        """What the kernel should hold for this entry now.

        policy: the NVE's; the VM's definition wins over it
        """
        policy = policy_of(self.definition) or policy
        plugged, forwarding = DATA_PLANE[self.phase]
        if self.phase is Phase.SWITCHED and not self.turned:
            forwarding = Forwarding.LOCAL
        if self.fenced and self.phase is Phase.SERVING:
            forwarding = Forwarding.NONE  # its standby may be about to take over
        if self.phase is Phase.REDIRECTING:
            plugged = not self.unplugged
        if self.claiming:
            # Created here, or come by other hands, and not yet accepted: another node may serve
            # it.  What led there before still does.
            forwarding = Forwarding.NONE if self.target is None else Forwarding.REDIRECT
        if self.phase is Phase.PREPARED or self._failed_prepared:
            # It redirects to the source as before, or once it was told that the fabric turns.
            # Until then the source would not accept it from here (invariant 3).
            redirects = self.relaying or self.came_from is Phase.REDIRECTING
            forwarding = Forwarding.REDIRECT if redirects else Forwarding.NONE
        if self.phase is Phase.DEPARTED and self.target is not None:
            forwarding = Forwarding.REDIRECT  # it left before it was accepted here
        plugged = plugged or self.expected
        target = self.target if forwarding is Forwarding.REDIRECT else None
        # A grant on its way makes others redirect to here, while what is known here is older: what
        # they send must not go round (invariant 3).
        unsure = self.claiming or self.phase is Phase.DEPARTED
        led_on = forwarding is Forwarding.REDIRECT and not unsure
        # Without a route of its own a node would hand to the fabric what comes out of a tunnel.
        accept = self.accept if led_on or forwarding is Forwarding.LOCAL else ()
        if self.phase in (Phase.COPYING, Phase.CONVERGED) and self.target is not None:
            accept = tuple(dict.fromkeys((*accept, self.target)))  # what its destination relays
        # What comes from outside may not be tunnelled: before the switch it waits for the guest.
        early = forwarding is Forwarding.REDIRECT and self.phase is Phase.PREPARED
        outside = Outside.QUEUE if early and self.relaying else Outside.DROP
        return VmDataPlane(
            self.vm,
            self.interfaces,
            plugged,
            forwarding,
            target,
            policy,
            accept,
            outside,
            server=self._circuit_to if plugged else "",
            sends=tuple(filter(None, {self.server, self.server_to} - {self._circuit_to}))
            if self.phase is Phase.RELOCATING
            else (),
        )

    @property
    def _circuit_to(self) -> str:
        """The server that its packets go to."""
        moves = self.phase is Phase.RELOCATING and self.turned
        return self.server_to if moves else self.server

    @property
    def _failed_prepared(self) -> bool:
        """Whether it failed before it was told to deliver (which raises the epoch to the move's):
        the source serves, whatever becomes of the manager."""
        return self.phase is Phase.FAILED and self.epoch < self.move_epoch

    @property
    def heeded(self) -> int:
        """The highest epoch that the manager has named, also for a move that is only prepared."""
        return max(self.epoch, self.move_epoch)

    @property
    def resting(self) -> Phase:
        """Its phase at the serving NVE when no move is under way."""
        return Phase.SERVING if self.guest is GuestState.RUNNING else Phase.STOPPED

    @property
    def words(self) -> str:
        """Where it stands, for people: of a VM that does not run, what its guest is."""
        named = self.guest if self.phase is Phase.STOPPED else self.phase
        return named.name.lower()

    @property
    def is_tombstone(self) -> bool:
        """Whether nothing is held of the VM but its epoch."""
        return self.phase is Phase.NONE and not self.expected

    @property
    def prefixes(self) -> Iterator[Prefix]:
        for interface in self.interfaces:
            yield from interface.prefixes


class BindingUpdateList(dict[VmKey, Entry]):
    """All entries, tombstones included (phase NONE)."""

    def entry(self, vm: VmKey) -> Entry:
        """The VM's entry; a new one in phase NONE if there is none."""
        return self.setdefault(vm, Entry(vm))

    def sharer(self, vm: VmKey, interfaces: Iterable[Interface]) -> Entry | None:
        """Another VM that is still in some phase here, or of which the kernel still holds what it
        was, and has one of these addresses: a kernel could not tell whose a packet is."""
        wanted = [p for interface in interfaces for p in interface.prefixes]
        held_here = (e for e in self.values() if e.phase or e.lingering)
        others = (e for e in held_here if e.vm != vm and e.vm.vni == vm.vni)
        for entry in others:
            for held in entry.prefixes:
                if any(p.version == held.version and p.overlaps(held) for p in wanted):
                    return entry
        return None

    @staticmethod
    def key(vm: VmKey) -> str:
        """The entry's key in the store."""
        return f"vm/{vm.vni}/{vm.vm_id}"


def interface_to_json(interface: Interface) -> dict[str, Any]:
    return {"mac": interface.mac_text, "addresses": [str(p) for p in interface.prefixes]}


def interface_from_json(value: Mapping[str, Any]) -> Interface:
    mac = bytes.fromhex(value["mac"].replace(":", ""))
    return Interface(mac, tuple(ip_network(a) for a in value["addresses"]))


def nve_to_json(nve: Nve | None) -> dict[str, Any] | None:
    if nve is None:
        return None
    return {"nve": nve.nve_id, "locators": [str(a) for a in nve.locators]}


def nve_from_json(value: Mapping[str, Any]) -> Nve:
    return make_nve(value["nve"], tuple(ip_address(a) for a in value["locators"]))


def make_nve(nve_id: str, locators: tuple[Any, ...]) -> Nve:
    """An NVE of at most one locator a family."""
    by_family = {a.version: a for a in locators}
    return Nve(nve_id, by_family.get(4), by_family.get(6))


def entry_to_json(entry: Entry) -> dict[str, Any]:
    """The durable part of an entry; a tombstone is its epoch alone (and, until the guest that was
    here has ended for certain, its definition, by which the hypervisor knows it)."""
    at = {"server": entry.server} if entry.server else {}
    at |= {"server_to": entry.server_to} if entry.server_to else {}
    if entry.is_tombstone:
        tombstone: dict[str, Any] = {"phase": int(Phase.NONE), "epoch": entry.epoch}
        if entry.leftover:
            tombstone |= {"leftover": entry.definition.decode(), **at}
        return tombstone
    return {
        **at,
        "phase": int(entry.phase),
        "epoch": entry.epoch,
        "granted": entry.granted,
        "attach_id": entry.attach_id,
        "ticket": entry.ticket.hex(),
        "mobility": int(entry.mobility),
        "interfaces": [interface_to_json(i) for i in entry.interfaces],
        "definition": entry.definition.decode(),
        "target": nve_to_json(entry.target),
        "accept": [nve_to_json(n) for n in entry.accept],
        "came_from": int(entry.came_from),
        "lifetime_s": entry.lifetime_s,
        "move_epoch": entry.move_epoch,
        "ending": entry.ending,
        "turned": entry.turned,
        "unplugged": entry.unplugged,
        "expected": entry.expected,
        "claiming": entry.claiming,
        "arrived": int(entry.arrived),
        "paused": entry.paused,
        "relaying": entry.relaying,
        "guest": int(entry.guest),
        "wanted": int(entry.wanted),
        "settled": entry.settled,
        "guest_epoch": entry.guest_epoch,
        "grace_s": entry.grace_s,
        "kept": entry.kept,
        "crashed": entry.crashed,
    }


def entry_from_json(vm: VmKey, value: Mapping[str, Any]) -> Entry:
    if "interfaces" not in value:
        left = value.get("leftover")
        definition = left.encode() if left is not None else b""
        found = Entry(vm, definition=definition, epoch=value["epoch"], leftover=left is not None)
        found.server, found.server_to = value.get("server", ""), value.get("server_to", "")
        return found
    return Entry(
        vm,
        interfaces=tuple(interface_from_json(i) for i in value["interfaces"]),
        definition=value["definition"].encode(),
        phase=Phase(value["phase"]),
        epoch=value["epoch"],
        granted=value["granted"],
        attach_id=value["attach_id"],
        server=value.get("server", ""),
        server_to=value.get("server_to", ""),
        ticket=bytes.fromhex(value["ticket"]),
        mobility=Mobility(value["mobility"]),
        target=nve_from_json(value["target"]) if value["target"] else None,
        accept=tuple(nve_from_json(n) for n in value["accept"]),
        came_from=Phase(value["came_from"]),
        lifetime_s=value["lifetime_s"],
        move_epoch=value.get("move_epoch", 0),
        ending=value.get("ending", False),
        turned=value["turned"],
        unplugged=value["unplugged"],
        expected=value.get("expected", False),
        claiming=value.get("claiming", False),
        arrived=GuestLife(value.get("arrived", GuestLife.NONE)),
        paused=value.get("paused", False),
        relaying=value.get("relaying", False),
        guest=GuestState(value.get("guest", GuestState.RUNNING)),
        wanted=GuestState(value.get("wanted", GuestState.RUNNING)),
        settled=value.get("settled", True),
        guest_epoch=value.get("guest_epoch", 0),
        grace_s=value.get("grace_s", 0),
        kept=value.get("kept", False),
        crashed=value.get("crashed", False),
    )


def load(state: Mapping[str, Any]) -> BindingUpdateList:
    """The list from the store's keys "vm/VNI/VM-ID"."""
    entries = BindingUpdateList()
    for key, value in state.items():
        kind, _, rest = key.partition("/")
        if kind == "vm":
            vni, _, vm_id = rest.partition("/")
            vm = VmKey(int(vni), vm_id)
            entries[vm] = entry_from_json(vm, value)
    return entries
