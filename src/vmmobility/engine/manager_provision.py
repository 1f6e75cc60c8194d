"""VMs that no NVE has yet: an NVE is told all of one, and given the leave to register it (8.1).

GUEST(running) with Interface Groups, Definition and Ticket: the NVE registers the VM with that
ticket, boots it, and then answers.  The record is durable first, and ends with the answer; until
then the request is repeated, so a restart of either end finds it.  The ticket only says that this
manager wants the VM there: whether nobody else has it is looked at as with any attach.

Not here: who decides where a VM comes to be, VMs that are bound (manager_guests.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from vmmobility.engine.admission import too_long
from vmmobility.engine.binding_update_list import interface_from_json, interface_to_json
from vmmobility.engine.manager_move import GuestRefused
from vmmobility.engine.outputs import Event
from vmmobility.wire.message import Message, definition_options
from vmmobility.wire.options import (
    Epoch,
    GuestStateOption,
    InterfaceGroup,
    Reason,
    ServerOption,
    Ticket,
    VmId,
)
from vmmobility.wire.registry import GuestState, Purpose, Role, Status
from vmmobility.wire.values import Interface, VmKey

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from vmmobility.engine.binding_cache import Binding, BindingCache
    from vmmobility.engine.channel import Channel
    from vmmobility.engine.outputs import Outbox

PREFIX = "provision/"


@dataclass(slots=True)
class Provision:
    """A VM that an NVE is told to bring up.  kept: it stays bound when its guest ends by itself;
    server: of an NVE that stands apart, the one with the room."""

    vm: VmKey
    nve_id: str
    interfaces: tuple[Interface, ...]
    definition: bytes
    ticket: bytes
    epoch: int
    kept: bool = True
    server: str = ""


class ManagerProvision:
    """Bringing VMs up; a part of ManagerEngine."""

    if TYPE_CHECKING:
        cache: BindingCache
        channel: Channel
        outbox: Outbox
        jitter: random.Random
        _hear_guest: Callable[[Binding, Message, float], None]
        _heed_epoch: Callable[[Message, float], None]
        _new_epoch: Callable[[], int]
        _mates: Callable[[VmKey], tuple[VmKey, ...]]

    provisions: dict[VmKey, Provision]

    def provision(
        self,
        vm: VmKey,
        to: str,
        interfaces: Sequence[Interface],
        definition: bytes,
        now: float,
        kept: bool = True,
        server: str = "",
    ) -> Provision:
        """Tell an NVE that has nothing of this VM to register and boot it.  Raises GuestRefused.

        How it ends: _provisioned or _provision_failed.  Said again while it is under way, nothing
        changes.
        """
        going = self.provisions.get(vm)
        wanted = (to, tuple(interfaces), definition)
        if going is not None and (going.nve_id, going.interfaces, going.definition) == wanted:
            return going
        self._check_provision(vm, to, interfaces, definition)
        ticket = self.jitter.getrandbits(128).to_bytes(16, "big")
        epoch = self._new_epoch()
        made = Provision(vm, to, tuple(interfaces), definition, ticket, epoch, kept, server)
        self.provisions[vm] = made
        self._save_provision(made)
        self.outbox.emit(Event("provision.begun", {"vm": vm.vm_id, "vni": vm.vni, "nve": to}))
        self._ask_provision(made, now)
        return made

    def _check_provision(
        self, vm: VmKey, to: str, interfaces: Sequence[Interface], definition: bytes
    ) -> None:
        binding, going = self.cache.bindings.get(vm), self.provisions.get(vm)
        at = binding.nve.nve_id if binding else going.nve_id if going else ""
        if at:
            raise GuestRefused("conflict", f"VM {vm} is at {at} already", "see `vmmob vm show`")
        peer = self.channel.peers.get(to)
        if peer is None or peer.role is not Role.NVE or not peer.endpoints:
            raise GuestRefused("unknown-nve", f"no NVE {to} is known", "see `vmmob show nves`")
        clash = self.cache.owner(vm, interfaces, self._mates(vm))
        if clash is not None:
            why = f"{clash[0]} belongs to VM {clash[1]}"
            raise GuestRefused("conflict", why, "give it addresses of its own")
        long = too_long(interfaces, definition)
        if long or not any(i.prefixes for i in interfaces):
            why = f"VM {vm}: {long or 'it has no address'}"
            raise GuestRefused("conflict", why, "correct its definition")

    def cancel_provision(self, vm: VmKey) -> None:
        """Its ticket is void: if it is not registered yet it will not be.  (One that is has a
        binding: delete it.)"""
        going = self.provisions.get(vm)
        if going is not None:
            peer = self.channel.peers.get(going.nve_id)
            if peer is not None:
                self.channel.withdraw_subject(peer, (vm, "guest"))
            self._end_provision(going)

    def _is_provisioned(self, vm: VmKey, ticket: bytes, node: str) -> bool:
        """Whether the ticket of an attach is the leave to bring the VM up at that NVE."""
        going = self.provisions.get(vm)
        return going is not None and (going.ticket, going.nve_id) == (ticket, node)

    def _ask_provision(self, going: Provision, now: float) -> None:
        peer = self.channel.peers.get(going.nve_id)
        if peer is None:
            return
        self.channel.request(
            peer,
            Purpose.GUEST,
            [
                VmId(going.vm),
                Epoch(going.epoch),
                Ticket(going.ticket),
                GuestStateOption(GuestState.RUNNING, going.kept),
                *(InterfaceGroup(i) for i in going.interfaces),
                *definition_options(going.definition),
                *((ServerOption(going.server),) if going.server else ()),
            ],
            now,
            partial(self._provision_answered, going),
            subject=(going.vm, "guest"),
        )

    def _provision_answered(self, going: Provision, reply: Message, now: float) -> None:
        if self.provisions.get(going.vm) is not going:
            return
        if reply.status is Status.STALE_EPOCH:
            # It has acted on a later epoch since: of its own attach, or one that this manager,
            # whose state was set back, does not know.
            self._heed_epoch(reply, now)
            going.epoch = self._new_epoch()
            self._save_provision(going)
            self._ask_provision(going, now)
            return
        self._end_provision(going)
        binding = self.cache.bindings.get(going.vm)
        if binding is not None:
            self._hear_guest(binding, reply, now)
        detail = {"vm": going.vm.vm_id, "vni": going.vm.vni, "nve": going.nve_id}
        if reply.status.accepted:
            self.outbox.emit(Event("provision.done", detail))
            self._provisioned(going, now)
            return
        words = reply.find(Reason)
        status = reply.status.name.lower().replace("_", "-")
        why = f"{status}: {words.text}" if words else status
        self.outbox.emit(Event("provision.failed", {**detail, "reason": why}))
        self._provision_failed(going, reply.status, why, now)

    def _provisioned(self, going: Provision, now: float) -> None:
        """It runs there, and is bound: for whoever keeps a record of the VM's life."""

    def _provision_failed(self, going: Provision, status: Status, why: str, now: float) -> None:
        """It does not run there, and is not bound, or not for long: likewise."""

    # ---- durable -------------------------------------------------------------------------------

    def _save_provision(self, going: Provision) -> None:
        value = {
            "nve": going.nve_id,
            "interfaces": [interface_to_json(i) for i in going.interfaces],
            "definition": going.definition.decode(),
            "ticket": going.ticket.hex(),
            "epoch": going.epoch,
            "kept": going.kept,
            **({"server": going.server} if going.server else {}),
        }
        self.outbox.record(_key(going.vm), value)

    def _end_provision(self, going: Provision) -> None:
        del self.provisions[going.vm]
        self.outbox.record(_key(going.vm), None)

    def _load_provisions(self, state: Mapping[str, Any]) -> None:
        self.provisions = {}
        for key, value in state.items():
            if key.startswith(PREFIX):
                vni, _, vm_id = key.removeprefix(PREFIX).partition("/")
                vm = VmKey(int(vni), vm_id)
                self.provisions[vm] = Provision(
                    vm,
                    value["nve"],
                    tuple(interface_from_json(i) for i in value["interfaces"]),
                    value["definition"].encode(),
                    bytes.fromhex(value["ticket"]),
                    value["epoch"],
                    value["kept"],
                    value.get("server", ""),
                )

    def _resume_provisions(self, now: float) -> None:
        """After a restart: the same request again."""
        for going in self.provisions.values():
            self._ask_provision(going, now)


def _key(vm: VmKey) -> str:
    return f"{PREFIX}{vm.vni}/{vm.vm_id}"
