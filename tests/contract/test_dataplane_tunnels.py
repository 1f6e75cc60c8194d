"""Which back end carries tunnels, what each leaves of the other, and what only the kernel's do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from tests.contract.conftest import EMULATED, lack_of_kernel_tunnels
from tests.contract.dataplane_fabric import (
    HOST,
    LOCAL,
    MAC,
    OWN,
    A,
    B,
    C,
    Fabric,
    Node,
    reach,
    receives,
)
from tests.contract.frames import advertised_mac, solicitation, udp, udp_socket
from tests.contract.namespaces import Namespace, wait_for
from vmmobility.drivers.linux import tunnel_choice
from vmmobility.drivers.linux.driver import LinuxDataPlane
from vmmobility.drivers.linux.ownership import DEFAULT_GATEWAY_MAC, KERNEL_TUNNELS, TUN_NAME
from vmmobility.drivers.linux.settings import LinuxSettings, TunnelWish
from vmmobility.drivers.linux.tunnels import COSTS, Choice
from vmmobility.engine.dataplane import Forwarding
from vmmobility.errors import EnvironmentProblem

pytestmark = pytest.mark.netns

REDIRECT = replace(LOCAL, plugged=False, forwarding=Forwarding.REDIRECT, target=B)


# -- the choice ------------------------------------------------------------------------------------


def chosen(wish: TunnelWish) -> Choice:
    settings = LinuxSettings(A.ipv4, A.ipv6, Path(), tunnel=wish)
    return asyncio.run(tunnel_choice.choose(settings))


def test_auto_takes_what_the_probe_finds() -> None:
    choice, lack = chosen("auto"), lack_of_kernel_tunnels()
    assert choice.back_end == ("relay" if lack else "kernel")
    assert not (lack and EMULATED)
    assert choice.why == (lack or "this kernel has all that it takes")
    assert choice.cost == COSTS[choice.back_end]


def test_kernel_tunnels_that_cannot_be_are_an_error_with_the_remedy() -> None:
    lack = lack_of_kernel_tunnels()
    if not lack:
        assert chosen("kernel").back_end == "kernel"
        return
    with pytest.raises(EnvironmentProblem, match="kernel tunnels cannot be used") as refusal:
        chosen("kernel")
    assert lack in refusal.value.message
    assert "modprobe ipip ip6_tunnel" in refusal.value.remedy
    assert 'tunnel = "auto"' in refusal.value.remedy


def test_the_relay_can_be_forced_anywhere() -> None:
    assert chosen("relay") == Choice("relay", "the configuration says so")


def test_the_probe_leaves_nothing_behind() -> None:
    space = Namespace("probe")
    try:
        before = space.ip("-o", "link"), space.run("nft", "list", "ruleset")
        lack: list[str] = []

        def probe() -> None:
            lack.append(tunnel_choice.lack_of_kernel_tunnels())

        async def inside() -> None:
            # A thread begins in the namespace of the one that starts it.
            thread = threading.Thread(target=probe)
            thread.start()
            thread.join()

        space.await_(inside())
        assert lack == [lack_of_kernel_tunnels()]
        after = space.ip("-o", "link"), space.run("nft", "list", "ruleset")
        # A kernel module that was loaded just now brings its own device to every namespace.
        assert [n for n in after[0].splitlines() if "vmmob" in n] == []
        assert after[1] == before[1]
    finally:
        space.close()


def test_a_start_that_cannot_be_changes_nothing(tmp_path: Path) -> None:
    if not lack_of_kernel_tunnels():
        assert chosen("kernel").back_end == "kernel"
        return
    space = Namespace("refused")
    try:
        space.ip("addr", "add", "192.0.2.1/32", "dev", "lo")
        driver = space.call(
            LinuxDataPlane,
            LinuxSettings(IPv4Address("192.0.2.1"), None, tmp_path, tunnel="kernel"),
        )
        with pytest.raises(EnvironmentProblem):
            space.await_(driver.start())
        assert "vmmob" not in space.ip("link") + space.ip("rule")
        space.await_(driver.close())
    finally:
        space.close()


# -- both back ends --------------------------------------------------------------------------------


def test_neighbours_are_answered_whoever_carries_tunnels(fabric: Fabric) -> None:
    fabric.a.apply(LOCAL)
    guest = fabric.a.plug()
    guest.send(solicitation(MAC, OWN[6], "fd77::abcd"))
    assert guest.find(lambda f: advertised_mac(f, "fd77::abcd")) == DEFAULT_GATEWAY_MAC
    guest.close()


def test_nobody_else_listens_for_what_the_back_end_opens(fabric: Fabric) -> None:
    """Two who open the same packet would deliver it twice."""
    inherited = Path(f"/proc/{fabric.a.relay_pid()}/fd")
    held = [str(entry.readlink()) for entry in inherited.iterdir()]
    carries = fabric.back_end == "relay"
    assert ("/dev/net/tun" in held) is carries
    listening = fabric.a.space.run("cat", "/proc/net/raw", "/proc/net/raw6")
    protocols = {line.split()[1].rpartition(":")[2] for line in listening.splitlines()[1:]}
    assert ({"0004", "0029"} <= protocols) is carries
    devices = fabric.a.space.ip("link")
    assert (TUN_NAME in devices) is carries
    assert all((name in devices) is not carries for name in KERNEL_TUNNELS.values())


def test_a_target_changes_from_peer_to_peer_without_a_hole(fabric: Fabric) -> None:
    """b sends on to c what a tunnels to it, and may take from c once it delivers again."""
    fabric.b.apply(replace(LOCAL, accept_from=(A, C)))
    fabric.a.apply(REDIRECT)
    fabric.b.space.await_(fabric.b.driver.audit())  # tells of the relays that other tests killed
    guest = fabric.b.plug()
    for version in (4, 6):
        reach(fabric, guest, version, b"before")
    towards_c = replace(LOCAL, forwarding=Forwarding.REDIRECT, target=C, accept_from=(A, C))
    fabric.b.apply(towards_c)
    assert fabric.b.space.await_(fabric.b.driver.audit()) == []
    fabric.b.apply(replace(LOCAL, accept_from=(A, C)))
    assert fabric.b.space.await_(fabric.b.driver.audit()) == []
    for version in (4, 6):
        reach(fabric, guest, version, b"after")
    guest.close()


# -- the kernel's ----------------------------------------------------------------------------------


kernel_only = pytest.mark.parametrize("standing_fabric", ["kernel"], indirect=True)


def restart(node: Node, back_end: TunnelWish) -> None:
    """The daemon ends, and begins anew with another back end."""
    node.space.await_(node.driver.close())
    node.settings = replace(node.settings, tunnel=back_end)
    node.driver = node.space.call(LinuxDataPlane, node.settings)
    node.space.await_(node.driver.start())


@kernel_only
def test_another_back_end_leaves_nothing_of_the_first(fabric: Fabric) -> None:
    delivery = replace(LOCAL, accept_from=(A,))
    fabric.b.apply(delivery)
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    back_ends: tuple[TunnelWish, ...] = ("relay", "kernel")
    try:
        for back_end in back_ends:
            for node, state in ((fabric.a, REDIRECT), (fabric.b, delivery)):
                restart(node, back_end)
                node.resync(state)
                assert node.space.await_(node.driver.audit()) == []
                assert_alone(node, back_end)
                for version in (4, 6):
                    reach(fabric, guest, version, f"{back_end} {node.settings.ipv4}".encode())
    finally:
        guest.close()
        for node in (fabric.a, fabric.b):
            if node.settings.tunnel != "kernel":
                restart(node, "kernel")


def assert_alone(node: Node, back_end: TunnelWish) -> None:
    """Nothing of the other back end stands at the node."""
    shown = node.space.ip("link") + node.space.ip("rule") + node.space.ip("-6", "rule")
    shown += node.space.ip("route", "show", "table", "all")
    names = list(KERNEL_TUNNELS.values())
    mine, others = (names, [TUN_NAME]) if back_end == "kernel" else ([TUN_NAME], names)
    assert all(name in shown for name in mine), shown
    assert not any(name in shown for name in others), shown
    assert ("tunnels" in node.space.run("nft", "list", "tables")) is (back_end == "kernel")


@kernel_only
def test_each_packet_arrives_once(fabric: Fabric) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    for version in (4, 6):
        reach(fabric, guest, version, b"once")
        assert not receives(guest, b"once", 0.2), "a second copy"
    guest.close()


@kernel_only
def test_tunnels_of_the_hosts_own_work_on_beside(fabric: Fabric) -> None:
    """An operator's ipip tunnel between two NVEs: neither guarded nor taken over."""
    fabric.b.apply(replace(LOCAL, accept_from=(C,)))
    for node, own, peer, address in ((fabric.a, A, B, "192.0.2.1"), (fabric.b, B, A, "192.0.2.2")):
        node.space.ip("link", "add", "theirs", "type", "ipip", "local", str(own.ipv4),
                      "remote", str(peer.ipv4))  # fmt: skip
        node.space.ip("addr", "add", f"{address}/30", "dev", "theirs")
        node.space.ip("link", "set", "theirs", "up")
    with udp_socket(fabric.b.space, 4, "192.0.2.2") as receiver:
        with udp_socket(fabric.a.space, 4, "192.0.2.1") as sender:
            sender.sendto(b"theirs", ("192.0.2.2", 4000))
        assert receiver.recv(100) == b"theirs"
    assert fabric.b.traffic().dropped == 0
    for node in (fabric.a, fabric.b):
        node.space.ip("link", "del", "theirs")


@contextlib.contextmanager
def capture(space: Namespace, interface: str) -> Iterator[socket.socket]:
    """Frames that cross an interface, each with its Ethernet header."""

    def opened() -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        one.bind((interface, 0))
        return one

    frames = space.call(opened)
    frames.settimeout(3)
    with frames:
        yield frames


@kernel_only
@pytest.mark.parametrize("fragments", [False, True])
def test_the_outer_df_bit_is_the_inner_ones(fabric: Fabric, fragments: bool) -> None:
    """RFC 2003 Section 3.1: set where the inner one is; else the outer packet may be fragmented."""
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    fabric.a.apply(REDIRECT)
    guest = fabric.b.plug()
    with (
        capture(fabric.b.space, "eth0") as frames,
        udp_socket(fabric.host, 4, HOST[4]) as sender,
    ):
        sender.setsockopt(socket.IPPROTO_IP, 10, 0 if fragments else 2)  # IP_MTU_DISCOVER
        sender.sendto(b"x" * 100, (OWN[4], 4000))

        def outer() -> bytes:
            while True:
                frame = frames.recv(2000)
                if frame[12:14] == b"\x08\x00" and frame[23] == 4:
                    return frame

        found = outer()
    df = 0x40
    assert (found[34 + 6] & df == 0) is fragments, "the inner header"
    assert (found[14 + 6] & df == 0) is fragments, "the outer header"
    assert found[14 + 8] >= 60, "hops of its own"
    assert receives(guest, b"x" * 100), "its checksum is right"
    guest.close()


@pytest.fixture
def narrow(fabric: Fabric) -> Iterator[Fabric]:
    """The link between the routers takes 1400 octets."""
    _set_mtu(fabric, 1400)
    yield fabric
    _set_mtu(fabric, 1500)
    for space in (fabric.host, fabric.a.space, fabric.b.space):
        for family in ("-4", "-6"):
            space.ip(family, "route", "flush", "cache")


def _set_mtu(fabric: Fabric, mtu: int) -> None:
    fabric.r1.ip("link", "set", "tor2", "mtu", str(mtu))
    fabric.r2.ip("link", "set", "tor1", "mtu", str(mtu))


@kernel_only
@pytest.mark.parametrize("version", [4, 6])
def test_a_path_with_less_room_is_told_to_the_sender(narrow: Fabric, version: int) -> None:
    """A router on the underlay takes 1400 octets: the sender hears what fits beside the header."""
    narrow.b.apply(replace(LOCAL, accept_from=(A,)))
    narrow.a.apply(REDIRECT)
    guest = narrow.b.plug()
    level, discover, mtu = {
        4: (socket.IPPROTO_IP, 10, 14),
        6: (socket.IPPROTO_IPV6, 23, 24),
    }[version]
    header = {4: 20, 6: 40}[version]
    with udp_socket(narrow.host, version, HOST[version]) as sender:
        sender.setsockopt(level, discover, 2)
        sender.connect((OWN[version], 4000))

        def heard() -> bool:
            with contextlib.suppress(OSError):
                sender.send(b"y" * 1380)
            return int(sender.getsockopt(level, mtu)) == 1400 - header

        wait_for(heard, "the path's MTU without the outer header")
        fits = b"z" * (1400 - 2 * header - 8)
        sender.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # of the last that was too long
        sender.send(fits)
        assert receives(guest, fits)
    guest.close()


@kernel_only
def test_what_may_be_fragmented_passes_a_path_with_less_room(narrow: Fabric) -> None:
    narrow.b.apply(replace(LOCAL, accept_from=(A,)))
    narrow.a.apply(REDIRECT)
    guest = narrow.b.plug()
    with udp_socket(narrow.host, 4, HOST[4]) as sender:
        sender.setsockopt(socket.IPPROTO_IP, 10, 0)
        payload = b"w" * 1440
        sender.sendto(payload, (OWN[4], 4000))
        assert receives(guest, payload)
    guest.close()


@kernel_only
def test_a_used_up_hop_limit_is_told_and_counted(fabric: Fabric) -> None:
    fabric.b.apply(replace(LOCAL, accept_from=(A,)))
    guest = fabric.b.plug()
    with (
        fabric.a.space.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 4)) as tunnel,
        fabric.host.call(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        ) as heard,
    ):
        heard.settimeout(3)
        tunnel.sendto(udp(HOST[4], OWN[4], b"spent", 1), (str(B.ipv4), 0))
        answer = heard.recv(2000)
    assert answer[20:22] == b"\x0b\0", "time exceeded in transit"
    assert fabric.b.traffic().dropped == 1
    guest.close()
