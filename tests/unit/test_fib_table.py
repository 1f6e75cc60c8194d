"""fib_table.py: look-ups as the kernel makes them, and words that come late, twice, in part."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from vmmobility.drivers.linux.fib_messages import FibRoute, Hop
from vmmobility.drivers.linux.fib_table import NLM_F_APPEND, FibTable
from vmmobility.drivers.linux.netlink import NLM_F_CREATE, NLM_F_REPLACE


def route(
    prefix: str,
    *gateways: str,
    metric: int = 20,
    protocol: int = 188,
    kind: int = 1,
    nh_id: int = 0,
) -> FibRoute:
    """Through gateways `IFINDEX ADDRESS` or `IFINDEX`."""
    net = ip_network(prefix)
    hops = []
    for gateway in gateways:
        index, _, address = gateway.partition(" ")
        hops.append(Hop(int(index), ip_address(address) if address else None))
    bits = int(net.network_address)
    return FibRoute(
        net.version, net.prefixlen, bits, 254, metric, protocol, kind, tuple(hops), nh_id
    )


def table(*routes: FibRoute) -> FibTable:
    made = FibTable()
    for one in routes:
        made.append(one)
    return made


FAMILIES = {
    4: ("10.0.0.0/8", "10.7.0.0/16", "10.7.0.5/32", "10.7.0.5", "10.9.0.1", "192.0.2.1"),
    6: ("fd00::/8", "fd07::/64", "fd07::5/128", "fd07::5", "fd09::1", "2001:db8::1"),
}


@pytest.mark.parametrize("version", FAMILIES)
def test_the_longest_match(version: int) -> None:
    wide, home, host, address, away, nowhere = FAMILIES[version]
    made = table(route(wide, "1 fe80::1"), route(home, "2 fe80::2"), route(host, "3"))
    at = ip_address(address)
    assert made.hops(at) == {(3, at)}
    assert made.hops(ip_network(host)) == {(3, at)}
    assert made.hops(ip_network(host), shorter_only=True) == {(2, ip_address("fe80::2"))}
    assert made.hops(ip_network(home), shorter_only=True) == {(1, ip_address("fe80::1"))}
    assert made.hops(ip_network(wide), shorter_only=True) == frozenset()
    assert made.hops(ip_address(away)) == {(1, ip_address("fe80::1"))}
    assert made.hops(ip_address(nowhere)) == frozenset()
    assert len(made) == 3
    assert [one.prefix for one in made.at(ip_network(home))] == [ip_network(home)]
    assert made.at(ip_network(away)) == []


def test_a_default_route_has_nothing_shorter() -> None:
    made = table(route("0.0.0.0/0", "1 10.0.0.1"))
    assert made.hops(ip_address("192.0.2.1")) == {(1, ip_address("10.0.0.1"))}
    assert made.hops(ip_network("0.0.0.0/0"), shorter_only=True) == frozenset()


def test_a_connected_route_leads_to_the_destination_itself() -> None:
    made = table(route("10.0.1.0/24", "1", "2"))
    own = ip_address("10.0.1.9")
    assert made.hops(own) == made.hops(ip_network("10.0.1.9/32")) == {(1, own), (2, own)}


def test_the_lowest_metric_wins_and_the_dead_do_not() -> None:
    made = table(
        route("10.0.0.0/8", "1 10.0.1.1", metric=30),
        route("10.0.0.0/8", "2 10.0.2.1", metric=20),
        route("10.0.0.0/8", metric=10),
    )
    assert made.hops(ip_address("10.1.1.1")) == {(2, ip_address("10.0.2.1"))}
    assert [one.metric for one in made.at(ip_network("10.0.0.0/8"))] == [10, 20, 30]


def test_a_blackhole_ends_the_search() -> None:
    made = table(route("10.0.0.0/8", "1 10.0.1.1"), route("10.7.0.0/16", kind=6))
    assert made.hops(ip_address("10.7.0.1")) == frozenset()
    found = made.match(ip_address("10.7.0.1"))
    assert found is not None
    assert found.kind_text == "blackhole"


def test_ours_can_be_passed_over() -> None:
    made = table(
        route("10.7.0.5/32", "1 10.0.1.1", metric=7, protocol=77),
        route("10.7.0.5/32", "2 10.0.2.1"),
    )
    at = ip_address("10.7.0.5")
    first, other = made.match(at), made.match(at, others_only=True)
    assert first is not None
    assert other is not None
    assert (first.ours, other.ours) == (True, False)


def test_words_are_taken_once() -> None:
    made = FibTable()
    one, two = route("10.0.0.0/8", "1 10.0.1.1"), route("fd00::/8", "1 fd00::1", "2 fd00::2")
    for word in (one, two):
        assert made.learn(word, NLM_F_CREATE)
        assert not made.learn(word, NLM_F_CREATE)
        assert not made.learn(word, NLM_F_APPEND | NLM_F_CREATE)
        assert made.forget(word)
        assert not made.forget(word)
    assert len(made) == 0
    assert made == FibTable()


def test_order_within_one_metric() -> None:
    """IPv4: what is appended comes behind, else before; a replacement takes its place."""
    first, second, third = (route("10.0.0.0/8", f"{n} 10.0.{n}.1") for n in (1, 2, 3))
    made = table(first)
    made.learn(second, NLM_F_APPEND | NLM_F_CREATE)
    made.learn(third, NLM_F_CREATE)
    assert made.at(first.prefix) == [third, first, second]
    new = route("10.0.0.0/8", "4 10.0.4.1")
    assert made.learn(new, NLM_F_REPLACE)
    assert made.at(first.prefix) == [new, first, second]
    assert not made.forget(third), "it is not there: nothing else goes in its stead"
    assert made.forget(first)
    assert made.at(first.prefix) == [new, second]


def test_next_hops_are_added_and_removed_in_part() -> None:
    """IPv6: the whole is told when one is added, the part when one goes."""
    one, both = route("fd07::/64", "1 fd00:1::2"), route("fd07::/64", "2 fd00:2::2", "1 fd00:1::2")
    made = table(one)
    assert made.learn(both, NLM_F_APPEND | NLM_F_CREATE)
    assert made.at(one.prefix) == [both]
    assert not made.unsure
    assert made.forget(one)
    assert [len(left.hops) for left in made.at(one.prefix)] == [1]
    assert made.unsure, "whose number it bears now is not told"
    assert made.learn(one, NLM_F_REPLACE)
    assert made.at(one.prefix) == [one]


def test_next_hops_of_two_hands_are_unsure() -> None:
    made = table(route("fd07::5/128", "1 fd00:1::2", metric=7, protocol=77))
    made.learn(route("fd07::5/128", "2 fd00:2::2", "1 fd00:1::2", metric=7), NLM_F_CREATE)
    assert made.unsure


def test_a_replacement_finds_its_kind() -> None:
    """IPv6: a gateway's replaces gateways, a link's a link's, and each the other only in want."""
    link, gate = route("fd07::/64", "1"), route("fd07::/64", "2 fd00:2::2")
    new = route("fd07::/64", "3 fd00:3::2")
    made = table(link, gate)
    made.learn(new, NLM_F_REPLACE)
    assert made.at(link.prefix) == [link, new]
    made.forget(link)
    made.learn(link, NLM_F_REPLACE)
    assert made.at(link.prefix) == [link]


def test_objects_in_use_are_counted() -> None:
    made = table(route("10.0.0.0/8", "1 10.0.1.1", nh_id=5), route("10.1.0.0/16", nh_id=5, kind=6))
    assert made.nh_ids == {5: 2}
    made.learn(route("10.0.0.0/8", "2 10.0.2.1", nh_id=6), NLM_F_REPLACE)
    assert made.nh_ids == {5: 1, 6: 1}
    made.forget(route("10.1.0.0/16", nh_id=5, kind=6))
    assert made.nh_ids == {6: 1}
