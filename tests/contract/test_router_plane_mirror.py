"""The mirror of the kernel's tables: what the kernel holds, by words, lost words and dumps."""

from __future__ import annotations

import random
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.contract.namespaces import wait_for
from tests.contract.router_planes import (
    ANNOUNCE,
    BOTH,
    FAR,
    HOLD,
    VM,
    Kernel,
    LinuxHands,
    linux_router,
    routes,
)
from vmmobility.drivers.linux import rtnetlink
from vmmobility.drivers.linux.fib import Fib
from vmmobility.drivers.linux.fib_messages import dump_routes
from vmmobility.drivers.linux.fib_table import FibTable
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.linux.router_driver import LinuxRouterPlane
from vmmobility.errors import DataPlaneError

pytestmark = pytest.mark.netns


# -- words ------------------------------------------------------------------------------------


def _differs(kernel: Kernel) -> set[tuple[Any, ...]]:
    """How the mirror and a dump differ."""

    def differs() -> set[tuple[Any, ...]]:
        kernel.fib.drain()
        with Netlink() as netlink:
            shown = {("kernel", *_plain(route)) for route in dump_routes(netlink, (254, 7701))}
        held = {("kernel", *_plain(r)) for table in kernel.fib.tables.values() for r in table}
        return (shown - held) | {("mirror", *one[1:]) for one in held - shown}

    return kernel.call(differs)


def _plain(route: Any) -> tuple[Any, ...]:
    return (route.table, route.prefix, route.metric, route.protocol, route.kind,
            frozenset(route.hops), route.nh_id)  # fmt: skip


def _script(draw: random.Random, lines: int, protocols: Sequence[int]) -> str:
    """Commands of a busy routing daemon, many of which the kernel will refuse."""
    commands = []
    for _ in range(lines):
        version = draw.choice((4, 6))
        length = draw.choice((24, 28, 32) if version == 4 else (64, 120, 128))
        host = "10.50.0.0" if version == 4 else "fd50::"
        verb = draw.choice(("add", "add", "replace", "append", "prepend", "del", "del"))
        metric = draw.choice((5, 20))
        numbers = draw.sample((1, 2, 3), draw.choice((1, 1, 2, 3)))
        gates = [f"10.0.{n}.2" if version == 4 else f"fd00:{n}::2" for n in numbers]
        way = f"via {gates[0]}" if len(gates) == 1 else " ".join(f"nexthop via {g}" for g in gates)
        if draw.random() < 0.1:
            # Of its own metric: a dump leaves out what lies between joined next hops.
            way, metric = f"dev eth{numbers[0]}", 30
        if verb == "del" and draw.random() < 0.5:
            way = ""
        table = draw.choice(("254", "7701", "99"))
        commands.append(f"-{version} route {verb} {host}/{length} {way} metric {metric} "
                        f"proto {draw.choice(protocols)} table {table}")  # fmt: skip
    return "\n".join(commands)


@pytest.mark.parametrize("protocols", [(188,), (77, 188)], ids=["one daemon", "several"])
@pytest.mark.parametrize("seed", range(4))
def test_the_mirror_is_what_the_kernel_holds(
    kernel: Kernel,
    seed: int,
    protocols: Sequence[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw = random.Random(seed)
    reloads = kernel.fib.reloads
    if len(protocols) == 1:  # nothing is unsure then: it must do by words alone
        never = property(lambda table: False, lambda table, value: None)
        monkeypatch.setattr(FibTable, "unsure", never, raising=False)
    for turn in range(15):
        script = tmp_path / "commands"
        lines = _script(draw, 12, protocols).splitlines()
        for family in ("-4", "-6"):
            mine = [line.partition(" ")[2] for line in lines if line.startswith(family)]
            script.write_text("\n".join(mine) + "\n")
            kernel.hands.space.run("sh", "-c", f"ip {family} -force -batch {script} || true")
        assert _differs(kernel) == set(), f"seed {seed}, turn {turn}: {lines}"
    assert len(protocols) > 1 or kernel.fib.reloads == reloads, "by words alone"


def test_look_ups_agree_with_the_kernels(kernel: Kernel, tmp_path: Path) -> None:
    draw = random.Random(7)
    for _ in range(10):
        script = tmp_path / "commands"
        for family in ("-4", "-6"):
            lines = [x for x in _script(draw, 20, (77, 188)).splitlines() if x.startswith(family)]
            lines = [x.partition(" ")[2] for x in lines if "dev" not in x]
            script.write_text("\n".join(x.replace("7701", "254") for x in lines) + "\n")
            kernel.hands.space.run("sh", "-c", f"ip {family} -force -batch {script} || true")
        for text in ("10.50.0.0", "10.50.0.9", "10.50.0.77", "fd50::", "fd50::9", "fd50::1:9"):
            address = ip_address(text)

            def seen(address: Any = address) -> tuple[Any, Any]:
                kernel.fib.drain()
                with Netlink() as netlink:
                    asked = rtnetlink.look_up(netlink, address)
                return kernel.fib.main.hops(address), asked

            hops, asked = kernel.call(seen)
            if isinstance(asked, Refusal):
                assert hops == frozenset()
            else:
                assert (asked.ifindex, asked.gateway or address) in hops


def test_lost_words_are_made_good(tmp_path: Path) -> None:
    for router in linux_router():
        driver, hands = router.plane, router.hands
        assert isinstance(driver, LinuxRouterPlane)
        assert isinstance(hands, LinuxHands)
        driver._fib = Fib(driver._fabric_changed, receive_bytes=4096)
        router.start()
        router.resync()
        reloads = driver._fib.reloads
        script = tmp_path / "commands"
        lines = [f"route add 10.60.{i >> 8}.{i & 255}/32 via 10.0.2.2" for i in range(2000)]
        script.write_text("\n".join([*lines, "route add 10.0.99.0/24 via 10.0.2.2",
                                     "route add 10.77.0.0/24 via 10.0.2.2"]))  # fmt: skip

        def storm() -> None:
            # Within one turn of the driver's loop, which so cannot listen.
            hands.space.run("ip", "-batch", str(script))  # noqa: B023

        router.call(storm)
        alone = routes(HOLD, FAR)
        wanted = type(alone)(VM, (ip_network(BOTH[0]),), FAR, HOLD)
        assert router.sight(wanted) == (True, True)
        assert driver._fib.reloads > reloads


def test_a_table_that_cannot_be_read_closes_the_gate(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.apply(routes(ANNOUNCE))
    assert kernel.sight(routes(HOLD)) == (True, False)

    def broken(netlink: Netlink, kind: int, body: bytes) -> list[bytes]:
        raise DataPlaneError("netlink: the dump kept changing", "resynchronise later")

    with monkeypatch.context() as patch:
        patch.setattr(Netlink, "dump", broken)
        kernel.call(lambda: kernel.fib._take(b"\x20\0\0\0\x18\0\0\0" + bytes(8) + b"\2\x20\xff"
                                             + bytes(21)))  # fmt: skip
        with pytest.raises(DataPlaneError):
            kernel.call(kernel.fib.reload)
        assert kernel.sight(routes(HOLD)) == (False, False)
        with pytest.raises(DataPlaneError):
            kernel.apply(routes(HOLD))
    wait_for(lambda: kernel.sight(routes(HOLD)) == (True, False), "read again")
    kernel.apply(routes(HOLD))
    assert kernel.ways("main") == [set(), set()]
