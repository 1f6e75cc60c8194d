"""Checkpoints of the fake hypervisors: what a standby has on its disk, complete or not.

What a guest is at the moment of a checkpoint is a number that rises with each (`Guest.value`).  A
part of fake_hypervisor.Hypervisor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vmmobility.wire.values import VmKey

if TYPE_CHECKING:
    from tests.engine.fake_hypervisor import Hypervisor


@dataclass
class Store:
    """On a standby's disk.  complete: (number, value); staged: what is on its way; port: of the
    door, 0 while it is closed; told: the value that a primary was told is complete; ran: activated
    """

    complete: tuple[int, int] = (0, 0)
    staged: tuple[int, int] = (0, 0)
    port: int = 0
    told: int = 0
    ran: bool = False


class FakeCheckpoints:
    """See drivers/hypervisor/interface.py for each order."""

    if TYPE_CHECKING:
        guests: dict[VmKey, Any]
        own: Any
        _pace: Any
        _later: Any
        _report: Callable[..., None]
        _powered: int
        _daemon: int
        _port: int

        def _run(self, vm: VmKey) -> Any: ...
        def _is_running(self, vm: VmKey) -> bool: ...
        def _leave(self, vm: VmKey) -> None: ...

    def __init__(self) -> None:
        self.stores: dict[VmKey, Store] = {}
        self.find_door: Callable[[str, str, int], Hypervisor | None] = lambda own, address, at: None
        self.clock: Callable[[], float] = lambda: 0.0
        self.rate: Callable[[], float] = lambda: 1.0
        self.armed: dict[VmKey, float] = {}
        self.lost_checkpoint: Callable[[VmKey, int, int], None] = lambda vm, had, has: None
        self.took_last: Callable[[VmKey, int], None] = lambda vm, value: None

    def close_doors(self) -> None:
        """The daemon has ended."""
        for store in self.stores.values():
            store.port = 0

    def _receive_checkpoints(
        self, vm: VmKey, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], str]:
        if vm in self.guests:
            return {}, "it lives here"
        store = self.stores.setdefault(vm, Store())
        if not store.port:
            self._port += 1
            store.port = self._port
        number = store.complete[0]
        place = {"address": arguments["address"], "port": store.port}
        return {**place, "token": "t0", "number": number}, ""

    def _checkpoint(
        self, vm: VmKey, arguments: dict[str, Any]
    ) -> tuple[dict[str, Any], str] | None:
        final = arguments["final"]
        if not self._is_running(vm):
            return {}, "it does not run here"
        guest = self.guests[vm]
        guest.value += 1
        value = guest.value
        if final:
            self.took_last(vm, value)
            self._leave(vm)
        place = (self.own.nve_id, arguments["address"], arguments["port"])
        there = self.find_door(*place)
        store = there.stores.get(vm) if there is not None else None
        powered, daemon = self._powered, self._daemon
        if store is None:
            self._outcome(vm, final, "cannot connect to its standby", 0)
            return None
        number, port = store.complete[0] + 1, store.port
        store.staged = (number, value)

        def complete() -> None:
            gone = powered != self._powered or daemon != self._daemon
            cut = self.find_door(*place) is None
            if gone or cut or vm not in self.guests or store.port != port or store.ran:
                if not gone and vm in self.guests:
                    self._outcome(vm, final, "the path broke", 0)
                return
            store.complete, store.told = (number, value), value
            self._outcome(vm, final, "", number)

        self._later(self._pace.copy_s, complete)
        return None

    def _outcome(self, vm: VmKey, final: bool, reason: str, number: int) -> None:
        detail = {"ok": not reason, "final": final, "age_ms": 0, "number": number}
        self._report(vm, "checkpoint", {**detail, **({"reason": reason} if reason else {})})

    def _activate(self, vm: VmKey, arguments: dict[str, Any]) -> tuple[dict[str, Any], str] | None:
        store = self.stores.get(vm)
        if self._is_running(vm):
            return None
        if store is None or not store.complete[0]:
            return {}, "no checkpoint of it is complete here"
        if store.ran:
            return {}, "it has run here, and has ended"
        store.port, store.ran = 0, True
        guest = self._run(vm)
        guest.value = self._content(store)
        if guest.value < store.told or guest.value != store.complete[1]:
            self.lost_checkpoint(vm, store.told, guest.value)
        del self.stores[vm]
        self._later(0.0, lambda: self._report(vm, "resumed", {}))
        return None

    @staticmethod
    def _content(store: Store) -> int:
        return store.complete[1]

    def _unprotect(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        return

    def _drop_checkpoints(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        self.stores.pop(vm, None)

    def arm(self, vm: VmKey, until: float | None) -> None:
        """Who outlives the daemon pauses the guest then."""
        if until is None:
            self.armed.pop(vm, None)
            return
        self.armed[vm] = until
        self._later(max(0.0, (until - self.clock()) / self.rate()), lambda: self._guard(vm))

    def _guard(self, vm: VmKey) -> None:
        until = self.armed.get(vm)
        if until is not None and until <= self.clock() + 1e-6:
            del self.armed[vm]
            self._pause(vm, {})

    def _pause(self, vm: VmKey, arguments: dict[str, Any]) -> None:
        raise NotImplementedError
