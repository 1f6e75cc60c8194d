"""What is durable of load-shared groups, at the manager and at routers; old records have none."""

from __future__ import annotations

import json
from ipaddress import ip_address

from tests.engine.conversation import interfaces_of, vm_key
from vmmobility.engine.binding_cache import Binding, BindingCache
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.fabric_record import FabricEntry, Lead, Told, fabric_to_json, load_fabric
from vmmobility.engine.group_record import Group, group_to_json, load_groups
from vmmobility.engine.router import RouteEntry, load_routes, route_to_json
from vmmobility.wire.registry import RouteState
from vmmobility.wire.values import VmKey

WEB1, WEB2, OTHER = vm_key("vm1"), vm_key("vm2"), vm_key("vm3")
ADDRESSES = interfaces_of("vm1", 1, 1)
A = make_nve("a", (ip_address("10.0.1.2"), ip_address("fd00:0:1::2")))
B = make_nve("b", (ip_address("10.0.2.2"),))


def stored(value: object) -> object:
    return json.loads(json.dumps(value))


def test_a_group_survives_its_journey_through_the_store() -> None:
    group = Group("web", 0, {WEB1: 1, WEB2: 7}, 12, (WEB1,), {WEB2: "b is silent"})
    assert load_groups({group.key: stored(group_to_json(group)), "epoch": 3}) == {"web": group}


def test_what_a_router_was_told_survives_with_its_group() -> None:
    lead = Lead(RouteState.ANNOUNCE, A, None, "web", 1, ((2, B), (2, A)))
    entry = FabricEntry(WEB1, ADDRESSES, {"ra": Told(lead, 9, True)})
    assert load_fabric({entry.key: stored(fabric_to_json(entry))}) == {WEB1: entry}


def test_a_record_of_before_groups_is_of_none() -> None:
    entry = FabricEntry(WEB1, ADDRESSES, {"ra": Told(Lead(RouteState.WATCH, A), 9, True)})
    value = fabric_to_json(entry)
    assert value is not None
    assert "group" not in value["routers"]["ra"]
    assert load_fabric({entry.key: stored(value)}) == {WEB1: entry}


def test_a_router_knows_the_group_again() -> None:
    entry = RouteEntry(WEB1, 9, RouteState.ANNOUNCE, ADDRESSES, A, None, "web", (B,))
    (found,) = load_routes({entry.key: stored(route_to_json(entry))})
    assert found == entry
    assert found.routes().others == (B,)
    alone = RouteEntry(WEB1, 9, RouteState.ANNOUNCE, ADDRESSES, A)
    assert "group" not in route_to_json(alone)
    (found,) = load_routes({alone.key: stored(route_to_json(alone))})
    assert found == alone


def a_binding(vm: VmKey, at: str = "a") -> Binding:
    return Binding(vm, ADDRESSES, b"{}", make_nve(at, ()), 1, 1, 1)


def test_members_own_their_addresses_together_until_the_last_has_gone() -> None:
    cache = BindingCache({})
    cache.put(a_binding(WEB1))
    assert cache.owner(WEB2, ADDRESSES) is not None
    assert cache.owner(WEB2, ADDRESSES, (WEB1,)) is None
    cache.put(a_binding(WEB2, "b"))
    assert cache.owner(OTHER, ADDRESSES) is not None
    assert cache.owner(OTHER, ADDRESSES, (WEB1,)) is not None
    cache.remove(WEB1)
    assert cache.owner(OTHER, ADDRESSES) is not None
    cache.remove(WEB2)
    assert cache.owner(OTHER, ADDRESSES) is None
    address = ADDRESSES[0].prefixes[0].network_address
    assert cache.holder(0, address) is None


def test_a_member_may_not_have_a_part_of_anothers_prefix() -> None:
    cache = BindingCache({})
    cache.put(a_binding(WEB1))
    (interface,) = ADDRESSES
    wider = tuple(p.supernet(prefixlen_diff=1) for p in interface.prefixes)
    assert cache.owner(WEB2, (type(interface)(interface.mac, wider),), (WEB1,)) is not None
