"""relay_table.py: the look-up, the verdicts and the guards of the relay."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.frames import checksum, udp
from vmmobility.drivers.linux.congestion_marks import marks_of
from vmmobility.drivers.linux.inside import Inside
from vmmobility.drivers.linux.relay_table import RelayTable, Verdict, read_entry, spend_hop

OWN = {4: "10.77.0.5", 6: "fd77::5"}
HOST = {4: "10.0.9.1", 6: "fd00:9::1"}
PEER = {4: "10.0.2.2", 6: "fd00:2::2"}
TARGET = {4: "10.0.3.2", 6: "fd00:3::2"}


def order(**changes: Any) -> dict[str, Any]:
    made = {
        "vm": "0/vm",
        "mode": "redirect",
        "prefixes": ["10.77.0.5/32", "fd77::5/128"],
        "targets": list(TARGET.values()),
        "accept": list(PEER.values()),
    }
    return {**made, **changes}


def table(*orders: dict[str, Any]) -> RelayTable:
    made = RelayTable()
    made.replace_all([read_entry(one) for one in orders])
    return made


def packet(version: int, hops: int = 64) -> bytes:
    return udp(HOST[version], OWN[version], b"payload", hops)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("mode", "verdict", "counter"),
    [
        ("redirect", Verdict.SEND, "encapsulated"),
        ("local", Verdict.DELIVER, "returned"),
        ("none", Verdict.DROP, "drop_not_here"),
    ],
)
def test_from_the_kernel(version: int, mode: str, verdict: Verdict, counter: str) -> None:
    made = table(order(mode=mode))
    found, peer, same, _ = made.from_kernel(packet(version))
    assert (found, same) == (verdict, packet(version))
    assert peer == TARGET[version] or verdict is not Verdict.SEND
    assert made.counters() == {"0/vm": {counter: 1}}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("changes", "hops", "verdict", "counter"),
    [
        ({"mode": "local"}, 64, Verdict.DELIVER, "decapsulated"),
        ({"mode": "none"}, 64, Verdict.DROP, "drop_not_here"),
        ({}, 64, Verdict.SEND, "forwarded"),
        ({}, 1, Verdict.DROP, "drop_hop_limit"),
        ({"targets": list(PEER.values())}, 64, Verdict.DROP, "drop_same_peer"),
        ({"targets": []}, 64, Verdict.DROP, "drop_no_target"),
        ({"accept": []}, 64, Verdict.DROP, "drop_not_accepted"),
        ({"mode": "local", "accept": []}, 64, Verdict.DROP, "drop_not_accepted"),
    ],
)
def test_from_a_peer(
    version: int, changes: dict[str, Any], hops: int, verdict: Verdict, counter: str
) -> None:
    made = table(order(**changes))
    found, _, _, _ = made.from_peer(packet(version, hops), version, PEER[version])
    assert found is verdict
    assert made.counters() == {"0/vm": {counter: 1}}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("mode", "from_kernel", "from_peer"),
    [
        ("redirect", "drop_outside", "drop_outside"),
        # Back to its tap: it is in no tunnel yet.
        ("local", "returned", "drop_outside"),
        ("none", "drop_not_here", "drop_outside"),
    ],
)
def test_no_sender_outside_the_data_centres_is_tunnelled(
    version: int, mode: str, from_kernel: str, from_peer: str
) -> None:
    made = table(order(mode=mode))
    made.inside = Inside(["10.77.0.0/24", "fd77::/64"])
    made.from_kernel(packet(version))
    assert made.counters() == {"0/vm": {from_kernel: 1}}
    made = table(order(mode=mode))
    made.inside = Inside(["10.77.0.0/24", "fd77::/64"])
    made.from_peer(packet(version), version, PEER[version])
    assert made.counters() == {"0/vm": {from_peer: 1}}


@pytest.mark.parametrize("version", [4, 6])
def test_senders_inside_are_tunnelled(version: int) -> None:
    made = table(order())
    made.inside = Inside([HOST[version]])
    assert made.from_kernel(packet(version))[0] is Verdict.SEND
    assert made.from_peer(packet(version), version, PEER[version])[0] is Verdict.SEND


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("mode", ["local", "redirect"])
@pytest.mark.parametrize("marks", range(4))
def test_congestion_of_the_outer_packet_comes_in_or_ends_here(
    version: int, mode: str, marks: int
) -> None:
    """These ends understand no marks, those of the next packet do."""
    deaf, hears = packet(version), bytearray(packet(version))
    hears[1] |= {4: 2, 6: 2 << 4}[version]
    made = table(order(mode=mode))
    passed = {"local": Verdict.DELIVER, "redirect": Verdict.SEND}[mode]
    verdict = made.from_peer(deaf, version, PEER[version], marks)[0]
    assert verdict is (Verdict.DROP if marks == 3 else passed)
    assert made.counters()["0/vm"].get("drop_congestion", 0) == (marks == 3)
    verdict, _, found, _ = made.from_peer(bytes(hears), version, PEER[version], marks)
    assert verdict is passed
    assert marks_of(found, version) == {0: 2, 1: 1, 2: 2, 3: 3}[marks]


def test_the_longest_prefix_wins() -> None:
    made = table(
        order(vm="wide", prefixes=["10.0.0.0/8", "fd00::/16"]),
        order(vm="narrow", prefixes=["10.77.0.0/24", "fd77::/64"]),
        order(vm="host"),
    )
    for version, addresses in (
        (4, (b"\x0a\1\1\1", b"\x0a\x4d\0\6", b"\x0a\x4d\0\5")),
        (6, (b"\xfd\0" + bytes(14), b"\xfd\x77" + bytes(13) + b"\6",
             b"\xfd\x77" + bytes(13) + b"\5")),
    ):  # fmt: skip
        found = [made.look_up(version, address) for address in addresses]
        names = [entry.vm for entry in found if entry is not None]
        # fd77:: is outside fd00::/16, 10.77 inside 10/8: either way the longest is right.
        assert names == ["wide", "narrow", "host"]
    assert made.look_up(4, b"\xc0\0\2\1") is None


@pytest.mark.parametrize("content", [b"", b"\x45", b"\x60" + bytes(38), b"\x00" * 40])
def test_broken_packets_are_strays(content: bytes) -> None:
    made = table(order())
    for found in (made.from_kernel(content), made.from_peer(content, 4, PEER[4])):
        assert found[0] is Verdict.DROP
    assert sum(made.strays.values()) == 2


def test_an_inner_packet_of_the_other_family_is_a_stray() -> None:
    made = table(order())
    assert made.from_peer(packet(6), 4, PEER[4])[1] == "unknown"
    assert made.strays["malformed"] == 1


@pytest.mark.parametrize("source", ["10.0.9.1", "255.255.255.254", "1.0.0.255"])
@pytest.mark.parametrize("hops", [2, 64, 255])
def test_a_spent_hop_keeps_the_header_checksum_right(source: str, hops: int) -> None:
    spent = spend_hop(udp(source, OWN[4], b"x", hops), 4)
    assert spent is not None
    assert spent[8] == hops - 1
    assert checksum(spent[:20]) == 0


def test_changes_keep_counters_and_removals_forget_them() -> None:
    made = table(order())
    made.from_kernel(packet(4))
    made.change([read_entry(order(mode="local"))], [])
    made.change([read_entry(order(mode="local", prefixes=["10.77.0.5/32"]))], [])
    made.from_kernel(packet(4))
    assert made.from_kernel(packet(6))[1] == "unknown"
    assert made.counters() == {"0/vm": {"encapsulated": 1, "returned": 1}}
    made.change([], ["0/vm", "0/never"])
    assert made.counters() == {}
    made.change([read_entry(order())], [])
    assert made.counters() == {"0/vm": {}}


@pytest.mark.parametrize(
    "changes", [{"mode": "sideways"}, {"prefixes": ["10.0.0.5/24"]}, {"targets": ["b"]}]
)
def test_a_wrong_order_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_entry(order(**changes))
