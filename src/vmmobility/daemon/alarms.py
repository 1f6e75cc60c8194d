"""What wants a person now, read from the state of an engine: one row a condition, none stored.

It is there while the condition is, and goes with it; what has happened is in the log.
Not here: events (daemon/event_log.py).  Rests on the engines' entries and bindings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vmmobility.engine.binding_cache import Binding
from vmmobility.engine.binding_update_list import Entry
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_move import Move
from vmmobility.engine.manager_protection_record import ProtectedVm, ProtectionState
from vmmobility.engine.manager_transitions import MoveState
from vmmobility.engine.nve import NveEngine
from vmmobility.wire.registry import GuestState, Phase
from vmmobility.wire.values import VmKey

# States that only an answer ends: nothing may be guessed there.
ASKED_ON = {
    MoveState.ENDING_GUEST: "its waiting guest must be ended for certain",
    MoveState.TURNING_BACK: "it must serve again before anything else is said",
}

NEARLY_FULL = 0.8  # of max_host_routes
STALE_INTERVALS, STALE_LEAST_S = 3, 20.0  # a checkpoint is stale after so many, and so long
STALE_MOST_MORE_S = 3600.0  # ... and at long intervals when it is late by so much


def _row(
    alarm: str, vm: VmKey, nve: str, what: str, remedy: str, for_s: float | None = None
) -> dict[str, Any]:
    return {
        "alarm": alarm,
        "vni": vm.vni,
        "vm": vm.vm_id,
        "nve": nve,
        "for_s": None if for_s is None else round(for_s, 1),
        "what": what,
        "remedy": remedy,
    }


def _duplicates(binding: Binding, now: float) -> list[dict[str, Any]]:
    nve = binding.nve.nve_id
    return [
        _row(
            "vm.duplicate",
            binding.vm,
            nve,
            f"a guest of it runs, or is kept stopped, at {also} too: {nve} has the binding",
            f"end the copy that is not wanted, at {nve} or at {also}",
        )
        for also in binding.current_duplicates(now)
    ]


def manager_alarms(engine: ManagerEngine, now: float) -> list[dict[str, Any]]:
    """The manager's, by VM."""
    rows = [
        row
        for binding in engine.cache.bindings.values()
        if (row := _of_binding(binding, now)) is not None
    ]
    for binding in engine.cache.bindings.values():
        rows += _duplicates(binding, now)
    rows += _of_limits(engine)
    rows += _of_groups(engine)
    rows += _of_nves(engine, now)
    rows += _of_servers(engine, now)
    for protected in engine.protected.values():
        if (row := _of_protection(engine, protected, now)) is not None:
            rows.append(row)
    for move in engine.moves.values():
        if move.state in ASKED_ON and (row := _of_move(move, engine.settings.step_s, now)):
            rows.append(row)
    return sorted(rows, key=lambda row: (row["vni"] or 0, row["vm"] or "", row["alarm"]))


def _of_groups(engine: ManagerEngine) -> Iterator[dict[str, Any]]:
    for group in engine.groups.values():
        for vm, why in group.out.items():
            binding = engine.cache.bindings.get(vm)
            number = group.members[vm]
            yield _row(
                "group.member-out",
                vm,
                binding.nve.nve_id if binding else "",
                f"member {number} of group {group.name} is announced no more: {why}",
                "mend that, or start it anew; the other members have its load meanwhile",
            )


def _of_limits(engine: ManagerEngine) -> Iterator[dict[str, Any]]:
    most = engine.settings.max_host_routes
    for centre, held in sorted(engine.announced().items()) if most else ():
        if held >= NEARLY_FULL * most:
            yield {
                "alarm": "host-routes.limit",
                "vni": None,
                "vm": None,
                "nve": None,
                "for_s": None,
                "what": f"{centre or 'the fabric'} announces {held} host routes of at most {most}",
                "remedy": "move VMs home, or raise max_host_routes if the routers bear it",
            }


def _of_nves(engine: ManagerEngine, now: float) -> Iterator[dict[str, Any]]:
    for name, pulse in sorted(engine.pulses.items()):
        if not pulse.dead:
            continue
        there = [b.vm for b in engine.cache.bindings.values() if b.nve.nve_id == name]
        those = f"{len(there)} VMs have their" if len(there) != 1 else f"VM {there[0]} has its"
        yield {
            "alarm": "nve.silent",
            "vni": None,
            "vm": None,
            "nve": name,
            "for_s": round(now - pulse.heard, 1),
            "what": f"no heartbeat of {name} comes any more; {those} binding there",
            "remedy": f"start {name}, or see to its host and its links; if the host is dead, fence "
            f"it, then `vmmob vm release VM --fenced {name}` for each VM",
        }


def _of_servers(engine: ManagerEngine, now: float) -> Iterator[dict[str, Any]]:
    for name, pulse in sorted(engine.pulses.items()):
        for server, seen in sorted(pulse.servers.items()):
            if not seen.dead or pulse.dead:
                continue  # of a dead NVE nothing is known of its servers
            bindings = engine.cache.bindings.values()
            there = sum((b.nve.nve_id, b.server) == (name, server) for b in bindings)
            yield {
                "alarm": "server.silent",
                "vni": None,
                "vm": None,
                "nve": name,
                "for_s": None if seen.silent is None else round(now - seen.silent, 1),
                "what": f"{server} does not answer {name} any more; {there} VMs are there",
                "remedy": f"see `vmmob server run` on {server}, and its access link; what its "
                "guests do is not known, and nothing of them expires",
            }


def _of_protection(
    engine: ManagerEngine, protected: ProtectedVm, now: float
) -> dict[str, Any] | None:
    """A standby that could not take over; a copy that grows old."""
    binding, standby = engine.cache.bindings.get(protected.vm), protected.standby.nve_id
    nve = binding.nve.nve_id if binding else standby
    why = f": {protected.trouble}" if protected.trouble else ""
    if protected.state is ProtectionState.FAILED:
        return _row(
            "protection.failed",
            protected.vm,
            nve,
            f"its standby at {standby} could not take over{why}; it runs only if {nve} comes back",
            f"start {nve}; or `vmmob vm unprotect {protected.vm}`, and start it anew",
        )
    if binding is not None and binding.guest is not GuestState.RUNNING:
        return None  # there is nothing to take a checkpoint of
    age = protected.staleness_s(now)
    if age is None:
        age = now - protected.lease_at if protected.trouble else 0.0
    limit = min(STALE_INTERVALS * protected.interval_s, protected.interval_s + STALE_MOST_MORE_S)
    if age > max(limit, STALE_LEAST_S):
        return _row(
            "protection.stale",
            protected.vm,
            nve,
            f"its last complete checkpoint at {standby} is old{why}",
            f"see to {standby}: its NVE, its disk's room, the path to it",
            age,
        )
    return None


def _of_binding(binding: Binding, now: float) -> dict[str, Any] | None:
    vm, nve = binding.vm, binding.nve.nve_id
    if binding.state == "frozen":
        return _row(
            "binding.frozen",
            vm,
            nve,
            "NVEs take it from each other: no attach is granted",
            f"end the copy that should not run, then `vmmob vm release {vm}`",
        )
    if binding.state == "lost":
        return _row(
            "binding.lost",
            vm,
            nve,
            f"{nve} says that it has no such guest",
            "start it anew, there or elsewhere: `vmmob nve start FILE`",
        )
    if binding.state == "departed":
        return _row(
            "binding.departed",
            vm,
            nve,
            f"its guest has left {nve}, and no NVE has registered it yet",
            "where it went, run an NVE that expects it: `vmmob nve expect FILE`",
        )
    if binding.state == "expired":
        return _row(
            "binding.expired",
            vm,
            nve,
            f"{nve} has not refreshed it",
            f"start {nve}; if its host is dead, fence it, then "
            f"`vmmob vm release {vm} --fenced {nve}`",
            now - (binding.expires_at or now),
        )
    return None


def _of_move(move: Move, step_s: float, now: float) -> dict[str, Any] | None:
    """Told after step_s, as its event is (`move.waiting-…`)."""
    entered_s = move.phases[-1][1] / 1000 if move.phases else 0.0
    waits_s = now - move.began - entered_s
    if waits_s < step_s:
        return None
    ends = {MoveState.ENDING_GUEST: move.destination, MoveState.TURNING_BACK: move.source}
    nve = ends[move.state].nve_id
    return _row(
        f"move.waiting-{move.state.value}",
        move.vm,
        nve,
        f"move {move.move_id} waits for {nve}: {ASKED_ON[move.state]}",
        f"start {nve}; if its host is dead, fence it, then "
        f"`vmmob vm release {move.vm} --fenced {nve}`",
        waits_s,
    )


def nve_alarms(engine: NveEngine, now: float) -> list[dict[str, Any]]:
    """An NVE's, by VM."""
    return [
        row for _, entry in sorted(engine.entries.items()) for row in _of_entry(engine, entry, now)
    ]


def _of_entry(engine: NveEngine, entry: Entry, now: float) -> Iterator[dict[str, Any]]:
    own = engine.settings.own.nve_id
    target = entry.target.nve_id if entry.target else "no NVE"
    if entry.phase is Phase.ATTACHING and entry.paused:
        yield _row(
            "guest.refused",
            entry.vm,
            own,
            "its guest is here and is kept stopped: the manager does not grant it",
            f"see `vmmob vm show {entry.vm}`; end one of the copies",
        )
    guarded = engine.guarded.get(entry.vm)
    if guarded is not None and guarded.unguarded:
        yield _row(
            "protection.unguarded",
            entry.vm,
            own,
            f"nobody would pause its guest if this daemon died: {guarded.unguarded}",
            f"mend that; or `vmmob vm unprotect {entry.vm}`, and protect it without fail-over",
        )
    if entry.phase is Phase.DEPARTED:
        yield _row(
            "guest.departed",
            entry.vm,
            own,
            "its guest has left, and no NVE has registered it yet",
            "where it went, run an NVE that expects it (`vmmob nve expect`), or let it go on here",
        )
    if entry.phase is Phase.REDIRECTING and entry.redirecting_since is not None:
        age_s = now - entry.redirecting_since
        if age_s >= engine.settings.redirect_alarm_s:
            yield _row(
                "redirect.old",
                entry.vm,
                own,
                f"packets for it still come here, and are redirected to {target}",
                f"lead its addresses to {target} in the fabric, or move it home",
                age_s,
            )
