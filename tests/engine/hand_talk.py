"""The scenario language about guests and the hands that are not ours.

Not here: the language itself (conversation.py), hypervisors (fake_hypervisor.py).
"""

from __future__ import annotations

from tests.engine.fake_hypervisor import Hypervisor, Life
from tests.engine.network import World
from vmmobility.wire.values import VmKey


def vm_key(name: str) -> VmKey:
    return VmKey(0, name)


class HandTalk:
    """Verbs; a part of Conversation."""

    @property
    def world(self) -> World:
        raise NotImplementedError

    def do_break(self, node: str, stage: str) -> None:
        self._hypervisor(node).break_next.add(stage)

    def do_kill(self, vm: str, node: str) -> None:
        self._hypervisor(node).kill(vm_key(vm))

    def do_fence(self, vm: str, node: str) -> None:
        """An operator stops the guest's CPUs from outside."""
        self._hypervisor(node).guests[vm_key(vm)].life = Life.PAUSED

    def do_start_by_hand(self, vm: str, node: str) -> None:
        self._hypervisor(node).start_by_hand(vm_key(vm))

    def do_migrate_by_hand(self, vm: str, source: str, destination: str) -> None:
        self._hypervisor(source).migrate_by_hand(vm_key(vm), self._hypervisor(destination))

    def do_resume_by_hand(self, vm: str, node: str) -> None:
        """resume-by-hand vm1 at a: the guest that has left, or was stopped, goes on."""
        self._hypervisor(node).resume_by_hand(vm_key(vm))

    def _hypervisor(self, node: str) -> Hypervisor:
        hypervisor = self.world.nodes[node].hypervisor
        assert hypervisor is not None
        return hypervisor
