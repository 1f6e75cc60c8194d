"""The Linux NAPT plane beyond the contract: changes, detours, other hands, its kernel.

Not here: what crosses it (test_napt_plane_protocols.py).
"""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest

from tests.contract.namespaces import wait_for
from tests.contract.napt_planes import (
    BOX2,
    POOL,
    PUBLIC,
    SECOND,
    TCP,
    WORLD,
    A,
    B,
    C,
    LinuxBox,
    LinuxPair,
    detour,
    port,
    state,
    static,
)
from vmmobility.drivers.linux import napt_table
from vmmobility.drivers.linux.napt_driver import LinuxNaptPlane
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.errors import DataPlaneError, EnvironmentProblem

pytestmark = pytest.mark.netns
OURS = (("rule", "show"), ("route", "show", "table", "all"))


# -- changes ----------------------------------------------------------------------------------


def test_no_packet_meets_a_hole_while_the_rules_change(box: LinuxBox) -> None:
    """Each packet is a new flow, so each one asks the rules."""
    wanted = [state(static(A, PUBLIC)), state(static(A, PUBLIC), static(B, SECOND), pool=())]
    box.apply(wanted[0])
    ear = box.world.socket(box.world.outside, socket.SOCK_DGRAM, WORLD, 9)
    ear.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
    done = threading.Event()
    sent = 0

    def hammer() -> None:
        nonlocal sent
        while not done.is_set():
            mouth = box.world.inside.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
            with mouth:
                mouth.bind((A, 0))
                mouth.sendto(b"?", (WORLD, 9))
            sent += 1
            assert ear.recvfrom(9)[1][0] == PUBLIC

    caught: list[BaseException] = []

    def guarded() -> None:
        try:
            hammer()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    for n in range(60):
        assert box.apply(wanted[n % 2]) == []
    done.set()
    thread.join(20)
    assert caught == []
    assert sent > 60


def test_refused_rules_leave_what_stood(box: LinuxBox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.apply(state(static(A, PUBLIC)))

    async def refuse(script: str) -> None:
        raise DataPlaneError("nft: no")

    with monkeypatch.context() as patch:
        patch.setattr(napt_table, "run", refuse)
        assert [str(f) for f in box.apply(state(static(A, SECOND)))] == ["rules: nft: no"]
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert [d.repaired for d in box.audit()] == [True, True]
    assert box.hands.outgoing((A, 7001), (WORLD, 9)) == (SECOND, 7001)


def test_a_public_address_that_is_translated_outward_alone_is_not_claimed(box: LinuxBox) -> None:
    """It is routed to another box: what is sent to it from inside goes on, by this one's routes."""
    elsewhere = "203.0.113.5"
    box.apply(state(outward=[static(A, elsewhere)]))
    ear = box.world.socket(box.world.outside, socket.SOCK_DGRAM, WORLD, 9)
    for host, public in ((A, elsewhere), (C, POOL)):
        mouth = box.world.socket(box.world.inside, socket.SOCK_DGRAM, host, 7000)
        mouth.sendto(b"?", (WORLD, 9))
        assert ear.recvfrom(9)[1] == (public, 7000)
    box.world.outside.ip("addr", "add", f"{elsewhere}/32", "dev", "lo")
    far = box.world.socket(box.world.outside, socket.SOCK_DGRAM, elsewhere, 9)
    mouth.sendto(b"?", (elsewhere, 9))
    assert far.recvfrom(9)[1] == (POOL, 7000)
    assert box.usage().unmapped == 0


def test_refused_rules_leave_no_new_detour(box: LinuxBox, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lead to nothing, or out untranslated, what has its mapping here still."""
    box.apply(state(static(A, PUBLIC), detour(B, BOX2)))
    standing = [box.hands.ours("-d", *what) for what in OURS]

    async def refuse(script: str) -> None:
        raise DataPlaneError("nft: no")

    changed = state(detour(A, "10.0.1.2"), detour(C, BOX2))  # a new table, and one that stands
    with monkeypatch.context() as patch:
        patch.setattr(napt_table, "run", refuse)
        assert [f.item for f in box.apply(changed)] == ["rules"]
    assert [box.hands.ours("-d", *what) for what in OURS] == standing
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)
    assert box.apply(changed) == []
    assert box.hands.outgoing((A, 7001), (WORLD, 9)) == (A, 7001)


# -- detours ----------------------------------------------------------------------------------


def test_a_detour_without_a_way_drops_and_comes_back(box: LinuxBox) -> None:
    """What has a mapping elsewhere never leaves by another way, nor with its private address."""
    far = "10.55.0.1"
    box.space.ip("route", "add", "blackhole", "10.55.0.0/24")
    failures = box.apply(state(detour(A, far)))
    assert [f.item for f in failures] == [f"detour {A}"]
    assert far in failures[0].reason
    mouth = box.world.socket(box.world.inside, socket.SOCK_DGRAM, A, 7000)
    mouth.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR
    mouth.connect((WORLD, 9))
    mouth.send(b"?")
    with pytest.raises(OSError, match="No route to host"):
        mouth.recv(9)
    assert box.audit() == [], "what could not be is no drift"
    box.space.ip("route", "replace", "10.55.0.0/24", "via", "10.0.1.2")
    assert [d.repaired for d in box.audit()] == [True]
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (A, 7000)


def test_a_link_that_goes_down_leaks_nothing(box: LinuxBox) -> None:
    box.apply(state(detour(A, BOX2)))
    box.space.ip("link", "set", "side", "down")
    shown = box.hands.ours("-d", "route", "show", "table", str(int(IPv4Address(BOX2))))
    kinds = {r.get("type") for r in shown if r["dst"] == "default"}
    assert kinds == {"unreachable"}
    drift = box.audit()
    assert drift == [], "a way that the fabric has not is no drift"
    box.space.ip("link", "set", "side", "up")
    wait_for(lambda: box.audit(), "the way is put back")
    assert box.audit() == []


def test_a_detour_turns_to_another_box(box: LinuxBox) -> None:
    box.apply(state(detour(A, BOX2), detour(B, BOX2)))
    box.apply(state(detour(A, "10.0.1.2"), detour(B, BOX2)))
    rules = {r["src"]: r["table"] for r in box.hands.ours("-d", "rule", "show")}
    assert rules == {A: str(int(IPv4Address("10.0.1.2"))), B: str(int(IPv4Address(BOX2)))}
    box.apply(state(detour(A, "10.0.1.2")))
    left = {r["table"] for r in box.hands.ours("-d", "route", "show", "table", "all")}
    assert left == {str(int(IPv4Address("10.0.1.2")))}
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (A, 7000)


def test_an_nve_or_a_router_in_the_same_kernel_leaves_ours_alone(box: LinuxBox) -> None:
    desired = state(detour(A, BOX2))
    box.apply(desired)
    router = box.space.call(LinuxRouterPlane)
    box.await_(router.start())
    box.await_(router.resync({}))
    assert box.audit() == []
    box.await_(router.remove_all())
    assert box.audit() == []
    assert box.resync(desired) == []


# -- other hands ------------------------------------------------------------------------------

MEDDLING: dict[str, tuple[str, Callable[[LinuxBox], object]]] = {
    "a rule goes": (
        "chain leaving",
        lambda box: box.hands.nft("flush", "chain", "ip", "vmmob_napt", "leaving"),
    ),
    "a rule comes": (
        "chain outgoing",
        lambda box: box.hands.nft("insert", "rule", "ip", "vmmob_napt", "outgoing", "accept"),
    ),
    "a chain comes": (
        "chain own",
        lambda box: box.hands.nft("add", "chain", "ip", "vmmob_napt", "own"),
    ),
    "a set comes": (
        "set own",
        lambda box: box.hands.nft("add", "set", "ip", "vmmob_napt", "own", "{type ipv4_addr;}"),
    ),
    "an element comes": (
        "elements exempt",
        lambda box: box.hands.nft(
            "add", "element", "ip", "vmmob_napt", "exempt", "{198.51.100.0-198.51.100.200}"
        ),
    ),
    "the pool goes": (
        "chain pool",
        lambda box: box.hands.nft("flush", "chain", "ip", "vmmob_napt", "pool"),
    ),
    "a policy changes": (
        "chain forward",
        lambda box: box.hands.nft(
            "add chain ip vmmob_napt forward"
            " { type filter hook forward priority filter; policy drop; }"
        ),
    ),
    "forwarding ends": (
        "sysctl net.ipv4.ip_forward",
        lambda box: box.space.run("sysctl", "-qw", "net.ipv4.ip_forward=0"),
    ),
    "connections are not taken up in their middle": (
        "sysctl net.netfilter.nf_conntrack_tcp_loose",
        lambda box: box.space.run("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"),
    ),
    "a time-out is cut": (
        "sysctl net.netfilter.nf_conntrack_udp_timeout",
        lambda box: box.space.run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=30"),
    ),
    "a detour's rule goes": (
        f"detour {B}",
        lambda box: box.space.ip("rule", "del", "from", B, "priority", "79"),
    ),
    "a detour's rule comes": (
        f"detour {C}",
        lambda box: box.space.ip(
            "rule", "add", "from", C, "table", "7", "priority", "79", "protocol", "78"
        ),
    ),
}


@pytest.mark.parametrize("name", MEDDLING)
def test_an_audit_finds_and_mends(box: LinuxBox, name: str) -> None:
    item, meddle = MEDDLING[name]
    desired = state(static(A, PUBLIC), port(TCP, C, 80, "192.0.2.1", 80), detour(B, BOX2))
    box.apply(desired)
    meddle(box)
    found = box.audit()
    assert [(d.item, d.repaired) for d in found] == [(item, True)], [str(d) for d in found]
    assert found[0].found
    assert box.audit() == []
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == (POOL, 7000)


def test_counts_outlive_a_repair(box: LinuxBox) -> None:
    box.apply(state(pool=()))
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) is None
    box.hands.nft("flush", "chain", "ip", "vmmob_napt", "leaving")
    assert box.audit()
    assert box.usage().no_pool == 1


def test_what_cannot_be_mended_is_told(box: LinuxBox, monkeypatch: pytest.MonkeyPatch) -> None:
    box.apply(state(static(A, PUBLIC)))
    box.hands.remove_table()

    async def refuse(script: str) -> None:
        raise DataPlaneError("nft: no")

    monkeypatch.setattr(napt_table, "run", refuse)
    assert [(d.item, d.repaired) for d in box.audit()] == [("table vmmob_napt", False)]


def test_others_tables_and_flows_are_left_alone(box: LinuxBox) -> None:
    box.hands.nft("add table ip other; add chain ip other post"
                  " { type nat hook postrouting priority 90; };"
                  f" add rule ip other post ip saddr {C} snat to 10.0.1.1")  # fmt: skip
    box.apply(state(static(A, PUBLIC)))
    assert box.hands.outgoing((A, 7000), (WORLD, 9)) == (PUBLIC, 7000)
    assert box.hands.outgoing((C, 7000), (WORLD, 9)) == ("10.0.1.1", 7000)
    box.remove_all()
    assert box.hands.nft("list", "tables").split() == ["table", "ip", "other"]
    box.start()
    assert [len(box.export(host)) for host in (A, C)] == [0, 1]
    box.hands.nft("delete", "table", "ip", "other")


# -- the environment --------------------------------------------------------------------------


def test_time_outs_are_long_enough_and_longer_ones_stay(linux_pair: LinuxPair) -> None:
    """RFC 4787, REQ-5; RFC 5382, REQ-5; RFC 5508, REQ-1."""
    box = linux_pair[0]

    def value(name: str) -> int:
        return int(box.space.run("sysctl", "-n", f"net.netfilter.nf_conntrack_{name}"))

    assert value("udp_timeout") >= 120
    assert value("udp_timeout_stream") >= 120
    assert value("tcp_timeout_established") >= 7440
    assert value("tcp_timeout_fin_wait") >= 240
    assert value("icmp_timeout") >= 60
    box.space.run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=900")
    box.start()
    assert value("udp_timeout") == 900


def test_a_strict_reverse_path_is_made_loose(box: LinuxBox) -> None:
    box.space.run("sysctl", "-qw", "net.ipv4.conf.side.rp_filter=1")
    box.start()
    assert box.space.run("sysctl", "-n", "net.ipv4.conf.all.rp_filter").strip() == "2"


@pytest.mark.parametrize(("program", "package"), [("nft", "nftables"), ("unshare", "util-linux")])
def test_a_missing_program_is_named(
    box: LinuxBox, monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None if name == program else f"/{name}")
    with pytest.raises(EnvironmentProblem, match=program) as caught:
        box.start()
    assert package in caught.value.remedy


def test_a_kernel_that_cannot_translate_is_named(
    box: LinuxBox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(napt_table, "_PICTURE", ("sh", "-c", "echo 'no such chain' >&2; exit 1"))
    with pytest.raises(EnvironmentProblem, match="no such chain") as caught:
        box.start()
    assert "nft_chain_nat" in caught.value.remedy


def test_without_root_it_says_so(box: LinuxBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentProblem, match="root"):
        box.start()


def test_before_start_is_an_error_that_says_so(box: LinuxBox) -> None:
    fresh = box.space.call(LinuxNaptPlane)
    for call in (fresh.apply(state()), fresh.audit(), fresh.usage(), fresh.drop_flows(
        IPv4Address(A))):  # fmt: skip
        with pytest.raises(DataPlaneError, match="start"):
            box.await_(call)


def test_a_listing_that_is_none_is_a_typed_error() -> None:
    for text in ("", "{}", '{"nftables": [7]}', '{"nftables": [{"rule": {}}]}', "[]"):
        with pytest.raises(DataPlaneError, match="listing"):
            napt_table.read(text)
