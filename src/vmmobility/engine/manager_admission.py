"""Who gets the room that hosts have: sums of what is given out, and where a new VM goes (8.1).

Of each host VMs get no more than it tells (heartbeats), whatever was promised before: what is
offered, confirmed and brought up counts, what VMs without a request take counts, and what a move
brings counts at both of its ends.  Beyond that a host that is used by others has what it says.
Not here: the requests (manager_lifecycle.py), how a host is measured (drivers/linux).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from vmmobility.engine.capacity import NOTHING, Resources, resources_of
from vmmobility.engine.lifecycle_record import Life, LifeRefused, VmRequest
from vmmobility.engine.lifecycle_transitions import LifeState
from vmmobility.engine.manager_move import MoveRefused
from vmmobility.wire.registry import Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_liveness import Pulse
    from vmmobility.engine.manager_move import Move
    from vmmobility.engine.manager_provision import Provision
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.wire.values import VmKey

UNITS = {"vcpus": "vCPUs", "memory_mib": "MiB of memory", "storage_mib": "MiB of storage"}
KINDS = tuple(field.name for field in fields(Resources))
MOST_NAMED = 8  # NVEs in one refusal


@dataclass(frozen=True, slots=True)
class Share:
    """One VM's part of a host.  there: the host's own figures of what is free have it."""

    vm: VmKey
    nve_id: str
    resources: Resources
    there: bool


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
        liveness_of: Callable[[str, float], str]
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
            yield Share(life.vm, life.nve_id, life.request.wanted, False)
        for vm, binding in self.cache.bindings.items():
            if vm == but:
                continue
            taken = self.taken_of(vm)
            held = self.lives.get(vm)
            rests = held is not None and held.state is LifeState.STOPPED
            yield Share(vm, binding.nve.nve_id, taken, not rests)
            move = self._current.get(vm)
            if move is not None and move.destination.nve_id != binding.nve.nve_id:
                yield Share(vm, move.destination.nve_id, taken, False)

    def room_of(self, nve_id: str, but: VmKey | None = None) -> dict[str, int | None]:
        """What a new VM may have there, by kind; None: not known, and so not limited."""
        return self._rooms(but)[nve_id]

    def _rooms(self, but: VmKey | None = None) -> dict[str, dict[str, int | None]]:
        given = dict.fromkeys(self.channel.peers, NOTHING)
        unseen = dict(given)
        for share in self._shares(but):
            if share.nve_id in given:
                given[share.nve_id] += share.resources
                if not share.there:
                    unseen[share.nve_id] += share.resources
        return {
            nve_id: self._room(nve_id, given[nve_id], unseen[nve_id])
            for nve_id, peer in self.channel.peers.items()
            if peer.role is Role.NVE
        }

    def _room(self, nve_id: str, given: Resources, unseen: Resources) -> dict[str, int | None]:
        pulse = self.pulses.get(nve_id)
        found: dict[str, int | None] = dict.fromkeys(KINDS)
        if pulse is None:
            return found
        for kind in KINDS:
            total = getattr(pulse.capacity.total, kind)
            if total:
                left = total - getattr(given, kind)
                free = getattr(pulse.capacity.free, kind) - getattr(unseen, kind)
                found[kind] = max(0, min(left, free))
        return found

    # ---- a new VM ------------------------------------------------------------------------------

    def _place_new(self, asked: VmRequest, now: float) -> str:
        """The NVE that gets it; raises LifeRefused, saying what was short, and where.

        Best fit: of those with room, the one that has least memory left then, so that large VMs
        find room later; of equal ones the first by name.
        """
        rooms = self._rooms(asked.vm)
        out = {name: why for name in rooms if (why := self._kept_out(name, asked, now))}
        able = [name for name in sorted(rooms) if name not in out]
        fits = [name for name in able if not _short(asked.wanted, rooms[name])]
        if not fits:
            what = "; ".join([*_shortages(asked.wanted, able, rooms), *_others(out)])
            raise LifeRefused(
                "no-room",
                f"no NVE has room for VM {asked.vm}: {what or 'none is configured'}",
                "ask for less, let it be elsewhere, or make room: see `vmmob show nves`",
            )

        def left(name: str) -> float:
            memory = rooms[name]["memory_mib"]
            return float("inf") if memory is None else memory - asked.wanted.memory_mib

        return min(fits, key=lambda name: (left(name), name))

    def _still_fits(self, nve_id: str, asked: VmRequest, now: float) -> bool:
        """Whether an offer there can be kept."""
        kept_out = self._kept_out(nve_id, asked, now)
        return not kept_out and not _short(asked.wanted, self.room_of(nve_id, asked.vm))

    def _kept_out(self, nve_id: str, asked: VmRequest, now: float) -> str:
        """Why an NVE is not looked at for it, in words; "" if it is."""
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

    def _check_room(self, binding: Binding, to: str) -> None:
        """Whether a move's destination has room; raises MoveRefused."""
        lack = self._lacks(binding, to)
        if lack:
            raise MoveRefused(
                "conflict",
                f"{lack}, for VM {binding.vm}",
                f"move it to another NVE, or make room at {to}: see `vmmob show nves`",
            )

    def _lacks(self, binding: Binding, nve_id: str) -> str:
        """What of its host is too small for a VM that is to be moved there, in words; "" if none.

        Storage is not looked at: images may be there already, or be shared."""
        pulse = self.pulses.get(nve_id)
        if pulse is None or pulse.sequence is None:
            return ""
        wanted, room = self.taken_of(binding.vm), self.room_of(nve_id, binding.vm)
        for kind in ("vcpus", "memory_mib"):
            want, left = getattr(wanted, kind), room[kind]
            if left is not None and want > left:
                return f"{nve_id} has {left} {UNITS[kind]} left, {want} are wanted"
        return ""


def _short(wanted: Resources, room: dict[str, int | None]) -> list[str]:
    """What is short for it, in words with figures."""
    found = []
    for kind in KINDS:
        want, most = getattr(wanted, kind), room[kind]
        if most is not None and want > most:
            found.append(f"{want} {UNITS[kind]} wanted, {most} free")
    return found


def _shortages(
    wanted: Resources, able: list[str], rooms: dict[str, dict[str, int | None]]
) -> list[str]:
    """By kind, where every NVE is short of it; else by NVE."""
    found = []
    for kind in KINDS:
        want = getattr(wanted, kind)
        offers = [(rooms[name][kind], name) for name in able]
        known = [(most, name) for most, name in offers if most is not None]
        if known and len(known) == len(offers) and all(most < want for most, _ in known):
            most, name = max(known, key=lambda each: each[0])
            found.append(f"{want} {UNITS[kind]} wanted, most free {most} at {name}")
    if not found:
        found = [f"{name}: {', '.join(_short(wanted, rooms[name]))}" for name in able[:MOST_NAMED]]
    return found


def _others(out: dict[str, str]) -> list[str]:
    told = [f"{name}: {why}" for name, why in sorted(out.items())]
    more = len(told) - MOST_NAMED
    return told if more <= 0 else [*told[:MOST_NAMED], f"and {more} more"]
