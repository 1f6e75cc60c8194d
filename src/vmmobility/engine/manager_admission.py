"""Who gets the room that hosts have: sums of what is given out, and where a new VM goes (8.1).

Of each host VMs get no more than it tells (heartbeats), whatever was promised before: what is
offered, confirmed and brought up counts, what VMs without a request take counts, and what a move
brings counts at both of its ends, as a protected VM does at its standby's.  Beyond that a host
that is used by others has what it says.
An NVE that stands apart has no room of its own: each VM must fit one of its servers.
Not here: the requests (manager_lifecycle.py), how a host is measured (drivers/linux).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from vmmobility.engine.capacity import NOTHING, Resources, resources_of
from vmmobility.engine.lifecycle_record import Life, LifeRefused, VmRequest
from vmmobility.engine.lifecycle_transitions import LifeState
from vmmobility.engine.manager_move import MoveRefused
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.wire.registry import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_liveness import Pulse, ServerSeen
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_provision import Provision
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.wire.values import VmKey

UNITS = {"vcpus": "vCPUs", "memory_mib": "MiB of memory", "storage_mib": "MiB of storage"}
KINDS = tuple(field.name for field in fields(Resources))
MOST_NAMED = 8  # NVEs in one refusal

Place = tuple[str, str]
"""An NVE, and its server; "" where it has guests on its own host."""
Room = dict[str, "int | None"]
"""What there is of each kind; None: not known, and so not limited."""


@dataclass(frozen=True, slots=True)
class Share:
    """One VM's part of a host.  there: the host's own figures of what is free have it; server: of
    an NVE that stands apart; "" is not known: then it may be any of them, and counts at each."""

    vm: VmKey
    nve_id: str
    resources: Resources
    there: bool
    server: str = ""


class ManagerAdmission:
    """Room; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        settings: ManagerSettings
        pulses: dict[str, Pulse]
        lives: dict[VmKey, Life]
        provisions: dict[VmKey, Provision]
        _current: dict[VmKey, Move]
        protected: dict[VmKey, ProtectedVm]
        liveness_of: Callable[[str, float], str]
        servers_of: Callable[[str], Mapping[str, ServerSeen]]
        server_liveness: Callable[[str, str], str]
        _is_cordoned: Callable[[str], bool]
        _mates: Callable[[VmKey], tuple[VmKey, ...]]

    # ---- sums ----------------------------------------------------------------------------------

    def taken_of(self, vm: VmKey) -> Resources:
        """What a VM takes of its host: what was asked for it, else what its definition says."""
        life = self.lives.get(vm)
        if life is not None:
            return life.request.wanted
        binding = self.cache.bindings.get(vm)
        return resources_of(binding.definition) if binding is not None else NOTHING

    def _shares(self, but: VmKey | None = None) -> Iterable[Share]:
        """Everything that hosts have given out; `but`: a VM that does not count."""
        for life in self.lives.values():
            bound = life.vm in self.cache.bindings
            failed = life.state is LifeState.FAILED
            if life.vm == but or bound or (failed and life.vm not in self.provisions):
                continue  # one that is bound counts below
            yield Share(life.vm, life.nve_id, life.request.wanted, False, life.server)
        for vm, binding in self.cache.bindings.items():
            if vm == but:
                continue
            taken = self.taken_of(vm)
            held = self.lives.get(vm)
            rests = held is not None and held.state is LifeState.STOPPED
            yield Share(vm, binding.nve.nve_id, taken, not rests, binding.server)
            protected = self.protected.get(vm)
            if protected is not None and protected.state is not ProtectionState.ENDING:
                # It may run there; what its checkpoints take the host sees itself.
                yield Share(vm, protected.standby.nve_id, replace(taken, storage_mib=0), False)
            move = self._current.get(vm)
            if move is not None and (move.destination.nve_id, move.server) != (
                binding.nve.nve_id,
                binding.server,
            ):
                yield Share(vm, move.destination.nve_id, taken, False, move.server)

    def _spots(self, nve_id: str) -> Sequence[str]:
        """Its servers; "" for one that has guests on its own host."""
        return tuple(self.servers_of(nve_id)) or ("",)

    def room_of(self, nve_id: str, but: VmKey | None = None, server: str = "") -> Room:
        """What a new VM may have there, by kind; of an NVE that stands apart, unless a server is
        named, at the one with the most memory."""
        rooms = self._rooms(but)
        if server or not self.servers_of(nve_id):
            return rooms[nve_id, server]
        return max((rooms[nve_id, name] for name in self.servers_of(nve_id)), key=_memory)

    def _rooms(self, but: VmKey | None = None) -> dict[Place, Room]:
        given: defaultdict[Place, Resources] = defaultdict(lambda: NOTHING)
        unseen: defaultdict[Place, Resources] = defaultdict(lambda: NOTHING)
        for share in self._shares(but):
            spots = self._spots(share.nve_id)
            for spot in [share.server] if share.server in spots else spots:
                given[share.nve_id, spot] += share.resources
                if not share.there:
                    unseen[share.nve_id, spot] += share.resources
        return {
            (nve_id, spot): self._room((nve_id, spot), given[nve_id, spot], unseen[nve_id, spot])
            for nve_id, peer in self.channel.peers.items()
            if peer.role is Role.NVE
            for spot in self._spots(nve_id)
        }

    def _room(self, place: Place, given: Resources, unseen: Resources) -> Room:
        nve_id, server = place
        pulse = self.pulses.get(nve_id)
        found: Room = dict.fromkeys(KINDS)
        if pulse is None:
            return found
        host = pulse.servers[server].room.host if server else pulse.capacity
        for kind in KINDS:
            total = getattr(host.total, kind)
            if total:
                left = total - getattr(given, kind)
                free = getattr(host.free, kind) - getattr(unseen, kind)
                found[kind] = max(0, min(left, free))
        return found

    # ---- a new VM ------------------------------------------------------------------------------

    def _place_new(self, asked: VmRequest, now: float) -> Place:
        """The NVE, and server, that gets it; raises LifeRefused, saying what was short, and where.

        Best fit: of those with room, the one that has least memory left then, so that large VMs
        find room later; of equal ones the first by name.
        """
        rooms = self._rooms(asked.vm)
        out = {_named(p): why for p in rooms if (why := self._kept_out(p, asked, now))}
        able = [place for place in sorted(rooms) if _named(place) not in out]
        fits = [place for place in able if not self._short_of(asked, place, rooms[place])]
        if not fits:
            what = "; ".join([*self._shortages(asked, able, rooms), *_others(out)])
            raise LifeRefused(
                "no-room",
                f"no NVE has room for VM {asked.vm}: {what or 'none is configured'}",
                "ask for less, let it be elsewhere, or make room: see `vmmob show nves`",
            )

        return min(fits, key=lambda place: (_memory(rooms[place]), place))

    def _still_fits(self, place: Place, asked: VmRequest, now: float) -> bool:
        """Whether an offer there can be kept."""
        room = self._rooms(asked.vm).get(place)
        if room is None or self._kept_out(place, asked, now):
            return False
        return not self._short_of(asked, place, room)

    def _short_of(self, asked: VmRequest, place: Place, room: Room) -> list[str]:
        """What is short for it there, in words with figures."""
        found = _short(asked.wanted, room)
        seen = self.servers_of(place[0]).get(place[1])
        if seen is not None and 0 < seen.room.threads < asked.threads:
            found.append(f"{asked.threads} threads wanted, its host has {seen.room.threads}")
        return found

    def _kept_out(self, place: Place, asked: VmRequest, now: float) -> str:
        """Why an NVE, or a server of it, is not looked at for it, in words; "" if it is."""
        nve_id, server = place
        liveness, pulse = self.liveness_of(nve_id, now), self.pulses.get(nve_id)
        if asked.nves and nve_id not in asked.nves:
            return "not asked for"
        if asked.dc and asked.dc not in self._centres_of(nve_id):
            return f"not in {asked.dc}"
        if liveness != "alive":
            return "it sends no heartbeats" if liveness == "none" else f"it is {liveness}"
        if pulse is None or pulse.sequence is None:
            return "not heard since the manager's start"
        if self._is_cordoned(nve_id):
            return "it is cordoned"
        for other in (*asked.apart, *self._mates(asked.vm)):
            if self.place_of(other) == nve_id:
                return f"VM {other} is there"
        if server and self.server_liveness(*place) != "alive":
            return "it does not answer"
        return ""

    def _centres_of(self, nve_id: str) -> set[str]:
        return {site.dc for site in self.settings.routers if nve_id in site.serves and site.dc}

    def place_of(self, vm: VmKey) -> str:
        """The NVE that has a VM, or is to have it; "" for none."""
        binding, life = self.cache.bindings.get(vm), self.lives.get(vm)
        if binding is not None:
            return binding.nve.nve_id
        return life.nve_id if life is not None and life.state is not LifeState.FAILED else ""

    # ---- a move --------------------------------------------------------------------------------

    def _check_room(self, binding: Binding, to: str, server: str = "") -> str:
        """Whether a move's destination has room; raises MoveRefused.  The server there that the VM
        is to come to: the one that is named, else that with the most memory free; "" where the NVE
        has guests on its own host, or has told of no server yet."""
        self._check_server(to, server)
        if self.servers_of(to):
            server, lack = self._server_for(binding, to, server)
        else:
            lack = self._lacks_at(binding, (to, ""))
        if lack:
            raise MoveRefused(
                "conflict",
                f"{lack}, for VM {binding.vm}",
                f"move it to another NVE, or make room at {to}: see `vmmob show nves`",
            )
        return server

    def _check_server(self, nve_id: str, server: str) -> None:
        """Whether an NVE has that server, by its own word; raises MoveRefused."""
        known = self.servers_of(nve_id)
        if server and server not in known:
            its = f"its servers are {', '.join(known)}" if known else "it has told of no servers"
            raise MoveRefused(
                "unknown-server",
                f"{nve_id} has no server {server}: {its}",
                "name one of them, or none: see `vmmob show servers`",
            )

    def _server_for(self, binding: Binding, nve_id: str, wanted: str = "") -> tuple[str, str]:
        """The server of an NVE that stands apart which a VM is moved to: of those that answer and
        have room, other than where it is, the one with the most memory free (or only the one that
        is wanted).  Or "", and why there is none."""
        rooms, fit, unfit = self._rooms(binding.vm), [], []
        for name in [wanted] if wanted else self.servers_of(nve_id):
            if (nve_id, name) == (binding.nve.nve_id, binding.server):
                continue
            lack = self._lacks_at(binding, (nve_id, name), rooms)
            if lack:
                unfit.append(lack)
            else:
                fit.append((-_memory(rooms[nve_id, name]), name))
        if fit:
            return min(fit)[1], ""
        more = f"; and {len(unfit) - MOST_NAMED} more" if len(unfit) > MOST_NAMED else ""
        return "", "; ".join(unfit[:MOST_NAMED]) + more or f"{nve_id} has no other server"

    def _lacks(self, binding: Binding, nve_id: str) -> str:
        """Why no host there can take a VM that is to be moved, in words; "" if one can."""
        if self.servers_of(nve_id):
            return self._server_for(binding, nve_id)[1]
        return self._lacks_at(binding, (nve_id, ""))

    def _lacks_at(
        self, binding: Binding, place: Place, rooms: dict[Place, Room] | None = None
    ) -> str:
        """What of one host is too small for it, in words; "" if nothing is.

        Storage is not looked at: images may be there already, or be shared."""
        nve_id, server = place
        pulse = self.pulses.get(nve_id)
        if pulse is None or pulse.sequence is None:
            return ""
        if server and self.server_liveness(*place) != "alive":
            return f"{_named(place)} does not answer"
        wanted, room = self.taken_of(binding.vm), (rooms or self._rooms(binding.vm))[place]
        for kind in ("vcpus", "memory_mib"):
            want, left = getattr(wanted, kind), room[kind]
            if left is not None and want > left:
                return f"{_named(place)} has {left} {UNITS[kind]} left, {want} are wanted"
        return ""

    # ---- words ---------------------------------------------------------------------------------

    def _shortages(
        self, asked: VmRequest, able: list[Place], rooms: dict[Place, Room]
    ) -> list[str]:
        """By kind, where every host is short of it; else by host."""
        found = []
        for kind in KINDS:
            want = getattr(asked.wanted, kind)
            offers = [(rooms[place][kind], _named(place)) for place in able]
            known = [(most, name) for most, name in offers if most is not None]
            if known and len(known) == len(offers) and all(most < want for most, _ in known):
                most, name = max(known, key=lambda each: each[0])
                found.append(f"{want} {UNITS[kind]} wanted, most free {most} at {name}")
        if not found:
            found = [
                f"{_named(place)}: {', '.join(self._short_of(asked, place, rooms[place]))}"
                for place in able[:MOST_NAMED]
            ]
        return found


def _memory(room: Room) -> float:
    memory = room["memory_mib"]
    return float("inf") if memory is None else memory


def _named(place: Place) -> str:
    """A host, for people."""
    nve_id, server = place
    return f"{server} of {nve_id}" if server else nve_id


def _short(wanted: Resources, room: Room) -> list[str]:
    """What is short for it, in words with figures."""
    found = []
    for kind in KINDS:
        want, most = getattr(wanted, kind), room[kind]
        if most is not None and want > most:
            found.append(f"{want} {UNITS[kind]} wanted, {most} free")
    return found


def _others(out: dict[str, str]) -> list[str]:
    told = [f"{name}: {why}" for name, why in sorted(out.items())]
    more = len(told) - MOST_NAMED
    return told if more <= 0 else [*told[:MOST_NAMED], f"and {more} more"]
