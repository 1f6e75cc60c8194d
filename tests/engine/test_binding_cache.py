"""Who owns an address: the cache against a plain model."""

from __future__ import annotations

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from vmmobility.engine.binding_cache import (
    Binding,
    BindingCache,
    Previous,
    binding_from_json,
    binding_to_json,
)
from vmmobility.wire.values import Interface, Nve, Prefix, VmKey

VMS = [VmKey(0, "x"), VmKey(0, "y"), VmKey(0, "z"), VmKey(7, "x")]
PREFIXES = [
    ip_network(f"10.0.{third}.{fourth}/{length}", strict=False)
    for length in (16, 24, 30, 32)
    for third in (0, 1)
    for fourth in (0, 1, 5)
] + [ip_network("fd00::1/128"), ip_network("fd00::/64")]
CHOICES = st.lists(st.sampled_from(PREFIXES), min_size=1, max_size=3)


def a_binding(vm: VmKey, *prefixes: object) -> Binding:
    interface = Interface(bytes([2, 0, 0, 0, 0, 1]), tuple(prefixes))  # type: ignore[arg-type]
    return Binding(vm, (interface,), b"", Nve("a"), 1, 1, 1)


def _overlap(one: Prefix, other: Prefix) -> bool:
    return one.version == other.version and one.overlaps(other)


@given(st.lists(st.tuples(st.sampled_from(VMS), CHOICES, st.booleans()), max_size=25))
def test_an_address_has_one_owner(
    steps: list[tuple[VmKey, list[Prefix], bool]],
) -> None:
    cache, model = BindingCache({}), dict[VmKey, set[Prefix]]()
    for vm, prefixes, ends in steps:
        if ends:
            removed = cache.remove(vm)
            assert (removed is not None) == (model.pop(vm, None) is not None)
            continue
        binding = a_binding(vm, *prefixes)
        clashes = {
            other
            for other, held in model.items()
            if other != vm and other.vni == vm.vni
            for one in held
            for wanted in prefixes
            if _overlap(one, wanted)
        }
        found = cache.owner(vm, binding.interfaces)
        assert (found is None) == (not clashes)
        if found is None:
            cache.put(binding)
            model[vm] = set(prefixes)
        else:
            assert found[0] in prefixes
            assert found[1] in clashes
    assert set(cache.bindings) == set(model)
    again = BindingCache(
        {BindingCache.key(vm): binding_to_json(b) for vm, b in cache.bindings.items()}
    )
    for vm in VMS:
        for prefix in PREFIXES:
            asked = (Interface(bytes(6), (prefix,)),)
            assert (again.owner(vm, asked) is None) == (cache.owner(vm, asked) is None)


def test_a_binding_survives_its_journey_through_the_store() -> None:
    binding = a_binding(VMS[0], PREFIXES[0])
    binding.previous["b"] = Previous(Nve("b"), 3)
    binding.ending = 9
    assert binding_from_json(VMS[0], binding_to_json(binding)) == binding


def test_epochs_only_rise_also_over_a_restart() -> None:
    cache = BindingCache({"epoch": 41})
    assert [cache.next_epoch(), cache.next_epoch()] == [42, 43]
