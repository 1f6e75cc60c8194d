"""Load-shared groups at the manager (Section 7, hot standby): declared, joined, left.

An operator declares which VMs are members of a group, and those may share their addresses; nobody
else may.  A member whose NVE is silent, or says that its guest is gone, goes out of service at
once: its routers announce it no more - unless it is the last that could serve, for silence proves
nothing (fail static).  It comes back under a fresh epoch of its own.  The group's epoch rises with
each change of who is in service.  An NVE has at most one member of a group, in any part: packets of
their address cannot be told apart there.

Not here: what routers do (manager_group_routes.py), who is silent (manager_liveness.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmmobility.engine.group_record import MAX_MEMBERS, Group, GroupRefused, group_to_json
from vmmobility.engine.manager_group_routes import ManagerGroupRoutes
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Event
from vmmobility.wire.options import MobilityKind
from vmmobility.wire.registry import GuestState, Mobility, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from vmmobility.engine.binding_cache import Binding
    from vmmobility.engine.manager_liveness import Pulse
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.wire.message import Message
    from vmmobility.wire.values import VmKey

SHOW = "see `vmmob group list`"


class ManagerGroups(ManagerGroupRoutes):
    """Groups; a part of ManagerEngine."""

    if TYPE_CHECKING:
        pulses: dict[str, Pulse]
        _silent_since: Callable[[str], float | None]
        _server_is_dead: Callable[[str, str], bool]
        _takes_over: Callable[[VmKey], bool]
        protected: dict[VmKey, ProtectedVm]

    # ---- people --------------------------------------------------------------------------------

    def declare_group(
        self, name: str, vni: int, numbered: Sequence[tuple[int, VmKey]], now: float
    ) -> Group:
        """Declare a group, or change who belongs to it; raises GroupRefused.

        numbered: its members, each with its number
        """
        members = {vm: number for number, vm in numbered}
        old = self.groups.get(name)
        self._check_members(name, vni, members)
        leaving = [vm for vm in (old.members if old else ()) if vm not in members]
        self._check_leaving(old, leaving)
        for vm in [*members, *leaving]:
            if vm in self._current:
                move = self._current[vm].move_id
                raise GroupRefused("conflict", f"VM {vm} is being moved", f"wait for move {move}")
        group = Group(name, vni, dict(members), old.epoch if old else 0)
        if old is not None:
            group.present = tuple(vm for vm in old.present if vm in members)
            group.out = {vm: why for vm, why in old.out.items() if vm in members}
        for vm in leaving:
            del self._groups_of[vm]
        self.groups[name] = group
        self._groups_of |= dict.fromkeys(members, group)
        self._save_group(group)
        self.outbox.emit(Event("group.declared", self._words(group)))
        self._settle_group(group, now)
        self._follow_left(leaving, now)
        return group

    def _check_members(self, name: str, vni: int, members: Mapping[VmKey, int]) -> None:
        if not 1 <= len(members) <= MAX_MEMBERS:
            raise GroupRefused(
                "conflict", f"group {name}: {len(members)} members", f"name 1 to {MAX_MEMBERS}"
            )
        numbers = list(members.values())
        if len(set(numbers)) < len(numbers) or not all(1 <= n <= 0xFFFF for n in numbers):
            raise GroupRefused(
                "conflict", f"group {name}: members have different numbers from 1", "number them so"
            )
        for vm in members:
            other = self._groups_of.get(vm)
            if other is not None and other.name != name:
                raise GroupRefused("conflict", f"VM {vm} is a member of group {other.name}", SHOW)
            if vm.vni != vni:
                raise GroupRefused("conflict", f"VM {vm} is of another virtual network", SHOW)
        old = self.groups.get(name)
        if old is not None and old.vni != vni:
            raise GroupRefused("conflict", f"group {name} is of VNI {old.vni}", SHOW)
        for vm in members:
            one = self.cache.bindings.get(vm)
            if one is None:
                continue
            for mate in (mate for mate in members if mate != vm):
                other_one = self.cache.bindings.get(mate)
                if other_one is not None and _at_one_nve(one, other_one):
                    raise GroupRefused(
                        "conflict",
                        f"VMs {vm} and {mate} are both at {one.nve.nve_id}",
                        "move one: an NVE has at most one member of a group",
                    )
                standby = self._standby_of(vm)
                theirs = {self._standby_of(mate), other_one.nve.nve_id if other_one else ""}
                if standby and standby in theirs:
                    raise GroupRefused(
                        "conflict",
                        f"VM {vm} has its standby at {standby}, as VM {mate} has, or is there",
                        f"`vmmob vm unprotect {vm}` first: an NVE has at most one member",
                    )

    def _check_leaving(self, group: Group | None, leaving: list[VmKey]) -> None:
        """(VNI, address) has one owner again."""
        for vm in leaving:
            binding = self.cache.bindings.get(vm)
            mates = group.mates(vm) if group and binding else ()
            shared = {p for i in binding.interfaces for p in i.prefixes} if binding else set()
            for mate in mates:
                other = self.cache.bindings.get(mate)
                theirs = {p for i in other.interfaces for p in i.prefixes} if other else set()
                if shared & theirs:
                    raise GroupRefused(
                        "conflict",
                        f"VMs {vm} and {mate} serve {min(shared & theirs, key=str)} together",
                        "stop one of them first",
                    )

    def delete_group(self, name: str, now: float) -> Group:
        """No group any more; raises GroupRefused while members share an address."""
        group = self.groups.get(name)
        if group is None:
            raise GroupRefused("unknown-group", f"no group {name} is declared", SHOW)
        self._check_leaving(group, list(group.members))
        for vm in group.members:
            if vm in self._current:
                move = self._current[vm].move_id
                raise GroupRefused("conflict", f"VM {vm} is being moved", f"wait for move {move}")
        del self.groups[name]
        for vm in group.members:
            del self._groups_of[vm]
        self.outbox.record(group.key, None)
        self.outbox.emit(Event("group.deleted", {"group": name, "vni": group.vni}))
        self._follow_left(list(group.members), now)
        return group

    def _follow_left(self, left: list[VmKey], now: float) -> None:
        for vm in left:
            binding = self.cache.bindings.get(vm)
            if binding is not None:
                self._follow_routes(binding, now)
                self._redirect_previous(binding, now)

    # ---- who may attach, and where ---------------------------------------------------------------

    def _group_objection(self, message: Message, node: str) -> tuple[Status, str] | None:
        """What stands against an attach without a ticket, by its group."""
        vm, kind = message.vm, message.find(MobilityKind)
        group = self._groups_of.get(vm)
        if kind is not None and kind.mobility is Mobility.STANDBY:
            number = group.members[vm] if group else 0
            if kind.member and kind.member != number:
                why = f"VM {vm} is not member {kind.member} of a group: `vmmob group create`"
                return Status.ADMINISTRATIVELY_PROHIBITED, why
        binding = self.cache.bindings.get(vm)
        if binding is not None and binding.nve.nve_id == node:
            return None
        return self._mate_there(vm, node)

    def _mate_there(self, vm: VmKey, node: str) -> tuple[Status, str] | None:
        """Which other member has a part at that NVE, or its standby."""
        for mate in self._mates(vm):
            if self._standby_of(mate) == node:
                why = f"{node} has the standby of VM {mate} of the same group: choose another NVE"
                return Status.ADMINISTRATIVELY_PROHIBITED, why
        return self._mate_active(vm, node)

    def _standby_of(self, vm: VmKey) -> str:
        """The NVE that may let a protected VM run; "" for none."""
        protected = self.protected.get(vm)
        over = protected is None or protected.state is ProtectionState.ENDING
        return "" if protected is None or over else protected.standby.nve_id

    def _mate_active(self, vm: VmKey, node: str) -> tuple[Status, str] | None:
        """Which other member has a part at that NVE."""
        for mate in self._mates(vm):
            binding, move = self.cache.bindings.get(mate), self._current.get(mate)
            ends = [move.destination.nve_id] if move else []
            if binding is not None and node in [binding.nve.nve_id, *ends]:
                why = f"{node} has VM {mate} of the same group: choose another NVE"
                return Status.ADMINISTRATIVELY_PROHIBITED, why
            if binding is not None and node in binding.previous:
                why = f"{node} still redirects to VM {mate} of the same group"
                return Status.TRY_AGAIN, why
        return None

    def _has_mate(self, vm: VmKey, node: str) -> bool:
        """Whether another member has a part at that NVE, which has its packets then."""
        return self._mate_active(vm, node) is not None

    # ---- who is in service -----------------------------------------------------------------------

    def _settle_groups(self, now: float, node: str = "") -> None:
        """Look at all groups; or at those that have a member at this NVE."""
        for group in self.groups.values():
            bound = [self.cache.bindings.get(vm) for vm in group.members]
            if not node or any(b is not None and b.nve.nve_id == node for b in bound):
                self._settle_group(group, now)

    def _settle_member(self, vm: VmKey, now: float) -> None:
        """A VM was attached, or is being removed."""
        group = self._groups_of.get(vm)
        if group is not None:
            self._settle_group(group, now)

    def _settle_group(self, group: Group, now: float) -> None:
        bound = [
            binding
            for vm in group.ordered
            if (binding := self.cache.bindings.get(vm)) is not None and not binding.ending
        ]
        failing = {
            b.vm: why for b in bound if (why := self._failing(b) or self._still_out(group, b))
        }
        able = [b.vm for b in bound if b.vm not in failing]
        out = failing
        if not able:
            # "never withdraw the last one": whoever was in service stays in.
            out = {vm: why for vm, why in failing.items() if vm in group.out}
            out = out if len(out) < len(bound) else {}
        back = [b for b in bound if b.vm in group.out and b.vm not in out]
        present = tuple(b.vm for b in bound if b.vm not in out)
        if present != group.present or out != group.out:
            self._change(group, present, out)
        for binding in back:
            # The epoch of a move, or of a take-over, is taken already.
            if binding.vm not in self._current and not self._takes_over(binding.vm):
                binding.epoch = self._new_epoch()
                self._save_binding(binding)
                self._redirect_previous(binding, now)
        for vm in group.members:
            known = self.cache.bindings.get(vm)
            if known is not None:
                self._follow_routes(known, now)
                break  # the others with it

    def _change(self, group: Group, present: tuple[VmKey, ...], out: dict[VmKey, str]) -> None:
        left = [vm for vm in group.present if vm not in present]
        joined = [vm for vm in present if vm not in group.present]
        group.present, group.out = present, out
        if left or joined:
            group.epoch = self._new_epoch()
        self._save_group(group)
        for name, vms in (("group.left", left), ("group.joined", joined)):
            for vm in vms:
                why = {"reason": out[vm]} if vm in out else {}
                detail = {**self._words(group), "vm": vm.vm_id, "member": group.members[vm]}
                self.outbox.emit(Event(name, {**detail, **why}))

    def _failing(self, binding: Binding) -> str:
        """Why a member cannot serve, or ""."""
        node = binding.nve.nve_id
        if self._takes_over(binding.vm):
            return "its standby is taking over"
        if self._silent_since(node) is not None:
            return _silent(node)
        if self._server_is_dead(node, binding.server):
            return f"{binding.server} of {node} does not answer"
        if binding.lost:
            return _lost(node)
        if binding.departed:
            return _departed(node)
        order, running = binding.order, GuestState.RUNNING
        if order is not None and order.state is not running:
            return "its guest is told to stop"  # its load goes before it does
        return "" if binding.guest is running else f"its guest is {binding.guest.name.lower()}"

    def _still_out(self, group: Group, binding: Binding) -> str:
        """Why a member was out when this manager started, while nobody has shown that this is over:
        what it went by is not durable, that it was out is."""
        why, node = group.out.get(binding.vm, ""), binding.nve.nve_id
        if not why or binding.sure:
            return ""
        unheard = node in self.pulses and self.pulses[node].sequence is None
        stands = why in (_lost(node), _departed(node)) or (why == _silent(node) and unheard)
        return why if stands else ""

    def _nve_fell_silent(self, nve_id: str, now: float) -> None:
        """Three of its heartbeats are missing."""
        super()._nve_fell_silent(nve_id, now)  # type: ignore[misc]
        self._settle_groups(now, nve_id)

    def _nve_speaks_again(self, nve_id: str, now: float) -> None:
        super()._nve_speaks_again(nve_id, now)  # type: ignore[misc]
        self._settle_groups(now, nve_id)

    def _servers_changed(self, nve_id: str, now: float) -> None:
        super()._servers_changed(nve_id, now)  # type: ignore[misc]
        self._settle_groups(now, nve_id)

    def _save_group(self, group: Group) -> None:
        self.outbox.record(group.key, group_to_json(group))

    @staticmethod
    def _words(group: Group) -> dict[str, object]:
        return {
            "group": group.name,
            "vni": group.vni,
            "epoch": group.epoch,
            "in_service": [vm.vm_id for vm in group.present],
        }


def _at_one_nve(one: Binding, other: Binding) -> bool:
    return one.nve.nve_id == other.nve.nve_id


def _silent(node: str) -> str:
    return f"{node} is silent"


def _lost(node: str) -> str:
    return f"{node} has no such guest"


def _departed(node: str) -> str:
    return f"its guest has left {node}"


__all__ = ["ManagerGroups"]
