"""Onboarded VMs: in strict mode nothing else may attach (design, Rights).

A record says which interfaces a VM has and, if it names any, at which NVEs it may be.  Without
strict mode records are kept, and looked at by nobody.
Not here: which addresses no VM may have (admission.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmmobility.engine.admission import not_a_vm_s, too_long
from vmmobility.engine.binding_update_list import interface_from_json, interface_to_json
from vmmobility.engine.manager_move import CommandRefused, Move
from vmmobility.engine.manager_protection_record import ProtectionState
from vmmobility.engine.outputs import Event
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Interface, VmKey

if TYPE_CHECKING:
    from vmmobility.engine.binding_cache import BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.manager_protection_record import ProtectedVm
    from vmmobility.engine.manager_settings import ManagerSettings
    from vmmobility.engine.outputs import Outbox


@dataclass(frozen=True, slots=True)
class Onboarded:
    """One VM on record.  nves: where it may be; none named is anywhere."""

    vm: VmKey
    interfaces: tuple[Interface, ...]
    nves: tuple[str, ...] = ()


class OnboardingRefused(CommandRefused):
    """A VM that cannot be put on record."""


class ManagerOnboarding:
    """The record of onboarded VMs; a part of ManagerEngine."""

    if TYPE_CHECKING:
        channel: Channel
        outbox: Outbox
        settings: ManagerSettings
        _current: dict[VmKey, Move]
        protected: dict[VmKey, ProtectedVm]
        cache: BindingCache
        _mates: Callable[[VmKey], tuple[VmKey, ...]]

    onboarded: dict[VmKey, Onboarded]

    def onboard(
        self, vm: VmKey, interfaces: Sequence[Interface], nves: Sequence[str], now: float
    ) -> Onboarded:
        """Put a VM on record, or change its record; raises OnboardingRefused.

        A binding that does not fit the new record is left alone: it ends, or moves, as ever.
        """
        record = Onboarded(vm, tuple(interfaces), tuple(nves))
        self._unmoved(vm)
        self._check_record(record)
        self._standby_allowed(vm, record)
        self.onboarded[vm] = record
        value = {"interfaces": [interface_to_json(i) for i in interfaces], "nves": list(nves)}
        self.outbox.record(f"onboarded/{vm.vni}/{vm.vm_id}", value)
        self.outbox.emit(Event("vm.onboarded", {"vm": vm.vm_id, "vni": vm.vni}))
        return record

    def _unmoved(self, vm: VmKey) -> None:
        """A record that changed under a move would refuse the guest where it runs already."""
        if vm in self._current:
            raise OnboardingRefused(
                "conflict",
                f"VM {vm} is being moved",
                f"wait for move {self._current[vm].move_id}, or give it up: `vmmob move abort`",
            )

    def _standby_allowed(self, vm: VmKey, record: Onboarded | None) -> None:
        """In strict mode a record that does not let the standby's attach in would strand the VM
        when its standby takes over."""
        protected, binding = self.protected.get(vm), self.cache.bindings.get(vm)
        if not self.settings.strict or protected is None or binding is None:
            return
        standby = protected.standby.nve_id
        if protected.state is ProtectionState.TAKING_OVER:
            raise OnboardingRefused(
                "conflict",
                f"the standby of VM {vm} at {standby} is taking over",
                "wait until it serves, or has failed: see `vmmob show protected`",
            )
        why = _off(record, vm, binding.interfaces, standby)
        if why and protected.state is not ProtectionState.ENDING:
            raise OnboardingRefused(
                "conflict",
                f"VM {vm} has a standby at {standby}: {why} by that record",
                f"`vmmob vm unprotect {vm}` first",
            )

    def _check_record(self, record: Onboarded) -> None:
        vm = record.vm
        if not any(i.prefixes for i in record.interfaces):
            raise OnboardingRefused("conflict", f"VM {vm} has no address", "give it one")
        long = too_long(record.interfaces, b"")
        if long:
            raise OnboardingRefused("conflict", f"VM {vm}: {long}", "give it fewer addresses")
        wrong = not_a_vm_s(
            record.interfaces, self.settings.shortest_ipv4, self.settings.shortest_ipv6
        )
        if wrong is not None:
            raise OnboardingRefused("conflict", f"no VM may have {wrong}", "choose another")
        for node in record.nves:
            peer = self.channel.peers.get(node)
            if peer is None or peer.role is not Role.NVE:
                raise OnboardingRefused(
                    "unknown-nve", f"no NVE {node} is known", "see `vmmob show nves`"
                )
        taken = {
            prefix: other.vm
            for other in self.onboarded.values()
            if other.vm != vm and other.vm.vni == vm.vni and other.vm not in self._mates(vm)
            for interface in other.interfaces
            for prefix in interface.prefixes
        }
        for prefix in (p for i in record.interfaces for p in i.prefixes):
            for held, owner in taken.items():
                if held.version == prefix.version and held.overlaps(prefix):
                    raise OnboardingRefused(
                        "conflict", f"{prefix} is on record for VM {owner}", "choose another"
                    )

    def offboard(self, vm: VmKey, now: float) -> None:
        """Take a VM off the record; raises OnboardingRefused if it is not on it."""
        self._unmoved(vm)
        self._standby_allowed(vm, None)
        if self.onboarded.pop(vm, None) is None:
            raise OnboardingRefused(
                "unknown-vm", f"VM {vm} is not onboarded", "see `vmmob show onboarded`"
            )
        self.outbox.record(f"onboarded/{vm.vni}/{vm.vm_id}", None)
        self.outbox.emit(Event("vm.offboarded", {"vm": vm.vm_id, "vni": vm.vni}))

    def _off_record(self, vm: VmKey, interfaces: Sequence[Interface], node: str) -> str:
        """Why strict mode forbids this VM there, or the empty string."""
        if not self.settings.strict:
            return ""
        return _off(self.onboarded.get(vm), vm, interfaces, node)

    def _load_onboarded(self, state: Mapping[str, Any]) -> None:
        self.onboarded = {}
        for key, value in state.items():
            kind, _, rest = key.partition("/")
            if kind == "onboarded":
                vni, _, vm_id = rest.partition("/")
                vm = VmKey(int(vni), vm_id)
                interfaces = tuple(interface_from_json(i) for i in value["interfaces"])
                self.onboarded[vm] = Onboarded(vm, interfaces, tuple(value["nves"]))


def _off(record: Onboarded | None, vm: VmKey, interfaces: Sequence[Interface], node: str) -> str:
    """Why a record forbids this VM there, or the empty string."""
    if record is None:
        return f"VM {vm} is not onboarded"
    if record.nves and node not in record.nves:
        return f"VM {vm} may not be at {node}"
    if set(map(_canonical, interfaces)) != set(map(_canonical, record.interfaces)):
        return f"VM {vm} has other addresses on record"
    return ""


def _canonical(interface: Interface) -> tuple[bytes, frozenset[Any]]:
    return interface.mac, frozenset(interface.prefixes)
