"""The manager's binding cache against an obvious model, through any life and any restart.

The model is a dictionary that looks at everything each time; the cache keeps indices.
Not here: when the manager does any of this (tests/engine).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vmmobility.engine import binding_cache
from vmmobility.engine.binding_cache import (
    Binding,
    BindingCache,
    EndedAttaches,
    Previous,
    binding_to_json,
)
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.replay_window import WINDOW
from vmmobility.wire.values import Interface, Prefix, VmKey

MOST_PREVIOUS = 3  # in place of 40, so that it is reached
NODES = ("a", "b", "c", "d", "e", "f")
VMS = (VmKey(0, "x"), VmKey(0, "y"), VmKey(0, "a/b"), VmKey(7, "x"))
PREFIXES = tuple(
    ip_network(text)
    for text in (
        "10.0.0.0/16", "10.0.0.0/24", "10.0.0.5/32", "10.0.1.0/24", "10.0.1.5/32", "10.1.0.0/16",
        "fd00::/48", "fd00::/64", "fd00::5/128", "fd00:0:0:1::5/128",
    )
)  # fmt: skip
CHOICES = st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=4, unique=True)


@dataclass
class Known:
    """What the model knows of a VM.  previous: in the order in which they ceased to serve."""

    held: tuple[Prefix, ...]
    node: str
    epoch: int
    previous: dict[str, int] = field(default_factory=dict)
    flags: dict[str, Any] = field(default_factory=lambda: {"released": False, "frozen": False})


class Cache(RuleBasedStateMachine):
    """Each rule does the same to the cache and to the model; `disk` is what was made durable."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: dict[str, Any] = {}
        self.cache = BindingCache(self.disk)
        self.model: dict[VmKey, Known] = {}
        self.epochs = 0

    def save(self, vm: VmKey) -> None:
        binding = self.cache.bindings.get(vm)
        if binding is None:
            self.disk.pop(BindingCache.key(vm), None)
        else:
            self.disk[BindingCache.key(vm)] = json.loads(json.dumps(binding_to_json(binding)))
        self.disk["epoch"] = self.cache.last_epoch

    def clashes(self, vm: VmKey, prefixes: list[Prefix]) -> set[VmKey]:
        return {
            other
            for other, known in self.model.items()
            if other != vm and other.vni == vm.vni
            for held in known.held
            for wanted in prefixes
            if held.version == wanted.version and held.overlaps(wanted)
        }

    @rule(vm=st.sampled_from(VMS), node=st.sampled_from(NODES), prefixes=CHOICES)
    def attach(self, vm: VmKey, node: str, prefixes: list[Prefix]) -> None:
        half = len(prefixes) // 2
        interfaces = (
            Interface(b"\2\0\0\0\0\1", tuple(prefixes[:half])),
            Interface(b"\2\0\0\0\0\2", tuple(prefixes[half:])),
        )
        found, clashes = self.cache.owner(vm, interfaces), self.clashes(vm, prefixes)
        assert (found is None) == (not clashes)
        if found is not None:
            assert found[0] in prefixes
            assert found[1] in clashes
            return
        old, known = self.cache.bindings.get(vm), self.model.get(vm)
        previous = dict(old.previous) if old else {}
        if old is not None and known is not None:
            others = {known.node, *known.previous} - {node}
            assert old.is_full(node) == (len(others) > MOST_PREVIOUS)
            if old.is_full(node):
                return
            previous[old.nve.nve_id] = Previous(old.nve)
            known.previous[known.node] = 0
            known.previous.pop(node, None)
        previous.pop(node, None)
        epoch = self.cache.next_epoch()
        self.epochs += 1
        assert epoch == self.epochs, "an epoch is above every one before, and none is left out"
        nve = make_nve(node, (ip_address("192.0.2.1"), ip_address("2001:db8::1")))
        self.cache.put(Binding(vm, interfaces, b"{}", nve, 1, 1, epoch, previous=previous))
        self.model[vm] = Known(tuple(prefixes), node, epoch, known.previous if known else {})
        self.save(vm)

    @rule(vm=st.sampled_from(VMS), node=st.sampled_from(NODES))
    def acknowledge(self, vm: VmKey, node: str) -> None:
        """A previous NVE has answered the redirect of this epoch."""
        if vm in self.model and node in self.model[vm].previous:
            self.model[vm].previous[node] = self.model[vm].epoch
            self.cache.bindings[vm].previous[node].acknowledged = self.model[vm].epoch
            self.save(vm)

    @rule(vm=st.sampled_from(VMS))
    def let_go(self, vm: VmKey) -> None:
        """Of previous NVEs those may go to which no earlier one can still lead."""
        if vm not in self.model:
            return
        known, free = self.model[vm], []
        for node in known.previous:
            earlier = list(known.previous)[: list(known.previous).index(node)]
            if all(known.previous[e] == known.epoch for e in earlier):
                free.append(node)
        assert self.cache.bindings[vm].free_to_go() == free
        if free:
            del known.previous[free[-1]], self.cache.bindings[vm].previous[free[-1]]
            self.save(vm)

    @rule(vm=st.sampled_from(VMS), flag=st.sampled_from(("released", "frozen")), on=st.booleans())
    def mark(self, vm: VmKey, flag: str, on: bool) -> None:
        if vm in self.model:
            self.model[vm].flags[flag] = on
            setattr(self.cache.bindings[vm], flag, on)
            self.save(vm)

    @rule(vm=st.sampled_from(VMS))
    def remove(self, vm: VmKey) -> None:
        removed = self.cache.remove(vm)
        assert (removed is not None) == (self.model.pop(vm, None) is not None)
        self.save(vm)

    @rule()
    def restart(self) -> None:
        self.cache = BindingCache(json.loads(json.dumps(self.disk)))

    @rule(vm=st.sampled_from(VMS), prefixes=CHOICES)
    def change_in_vain(self, vm: VmKey, prefixes: list[Prefix]) -> None:
        """An answer about owners changes nothing (the invariant looks)."""
        self.cache.owner(vm, [Interface(bytes(6), tuple(prefixes))])

    @invariant()
    def bindings_are_those_of_the_model(self) -> None:
        assert self.cache.last_epoch == self.epochs
        assert set(self.cache.bindings) == set(self.model)
        for vm, known in self.model.items():
            binding = self.cache.bindings[vm]
            assert (binding.vm, binding.nve.nve_id, binding.epoch) == (vm, known.node, known.epoch)
            held = [p for i in binding.interfaces for p in i.prefixes]
            assert held == list(known.held)
            assert {n: p.acknowledged for n, p in binding.previous.items()} == known.previous
            assert list(binding.previous) == list(known.previous), "their order is lost"
            behind = [n for n, at in known.previous.items() if at != known.epoch]
            assert binding.unacknowledged == behind
            assert {f: getattr(binding, f) for f in known.flags} == known.flags

    @invariant()
    def every_address_has_one_owner(self) -> None:
        for vm in (*VMS, VmKey(0, "new"), VmKey(7, "new")):
            for prefix in PREFIXES:
                found = self.cache.owner(vm, [Interface(bytes(6), (prefix,))])
                assert (found is None) == (not self.clashes(vm, [prefix]))


TestCache = Cache.TestCase
TestCache.settings = settings(max_examples=40, stateful_step_count=30)


@pytest.fixture(autouse=True, scope="module")
def few_previous() -> Iterator[None]:
    """A limit that a short life comes to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(binding_cache, "MAX_PREVIOUS", MOST_PREVIOUS)
        yield


class Ended(RuleBasedStateMachine):
    """Ended attaches: each node's last WINDOW, against a list."""

    def __init__(self) -> None:
        super().__init__()
        self.ended, self.model = EndedAttaches(), dict[str, list[tuple[VmKey, int]]]()

    @rule(node=st.sampled_from("ab"), vm=st.sampled_from(VMS), first=st.integers(0, 50),
          count=st.sampled_from((1, 2, WINDOW - 1, WINDOW, WINDOW + 1)))  # fmt: skip
    def add(self, node: str, vm: VmKey, first: int, count: int) -> None:
        known = self.model.setdefault(node, [])
        for number in range(first, first + count):
            self.ended.add(node, vm, number)
            if (vm, number) not in known[-WINDOW:]:
                known.append((vm, number))
            del known[:-WINDOW]

    @rule(node=st.sampled_from("abc"), vm=st.sampled_from(VMS), number=st.integers(0, 1200))
    def ask(self, node: str, vm: VmKey, number: int) -> None:
        assert self.ended.holds(node, vm, number) == ((vm, number) in self.model.get(node, []))


TestEnded = Ended.TestCase
TestEnded.settings = settings(max_examples=10, stateful_step_count=8)


def test_the_model_would_see_a_stale_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache that forgets to give up addresses is found out."""
    monkeypatch.setattr(BindingCache, "_disown", lambda *_: None)
    machine = Cache()
    machine.attach(VMS[0], "a", [PREFIXES[2]])
    machine.remove(VMS[0])
    with pytest.raises(AssertionError):
        machine.every_address_has_one_owner()


def test_the_model_would_see_a_lost_field(monkeypatch: pytest.MonkeyPatch) -> None:
    original = binding_cache.binding_from_json
    monkeypatch.setattr(
        binding_cache, "binding_from_json", lambda vm, v: replace(original(vm, v), previous={})
    )
    machine = Cache()
    for node in "ab":
        machine.attach(VMS[0], node, [PREFIXES[2]])
    machine.restart()
    with pytest.raises(AssertionError):
        machine.bindings_are_those_of_the_model()
