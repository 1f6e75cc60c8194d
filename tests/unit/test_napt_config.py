"""napt.toml, and `via` in the other daemons' files: what is taken, and every error's words."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from vmmobility.daemon.config import load_manager, load_nve
from vmmobility.daemon.config_template import template
from vmmobility.daemon.napt_config import load_napt, settings_of
from vmmobility.engine.napt_plane import PortMapping
from vmmobility.engine.napt_settings import NaptPolicy
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import Role

BOX = '[[napt]]\nid = "napt-1"\naddresses = ["10.1.255.1"]\npool = ["198.51.100.0/28"]\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "napt.toml"


def test_the_template_says_all(file: Path) -> None:
    file.write_text(template("napt"))
    config = load_napt(file)
    assert config.inside == (IPv4Network("10.1.0.0/16"),)
    assert config.policy is NaptPolicy.KEEP
    inner, manager, other = config.neighbours
    assert (inner.id, inner.role, inner.inside) == ("nve-a", Role.NVE, True)
    assert (manager.role, manager.inside) == (Role.MANAGER, False)
    assert other.behind == (("nve-b", Role.NVE),)
    assert other.pool == (IPv4Network("198.51.100.16/28"),)
    assert other.detour == IPv4Address("192.0.2.2")
    [port] = config.ports
    assert port == PortMapping(6, IPv4Address("10.1.0.80"), 80, IPv4Address("192.0.2.201"), 8080)
    settings = settings_of(config)
    assert (settings.mapping_s, settings.quarantine_s, settings.hold_s) == (3600, 600, 60)


WRONG = [
    ('pool = ["198.51.100.0/28"]', 'pool = ["10.1.9.0/24"]', "pool", "overlaps inside"),
    ('pool = ["198.51.100.0/28"]', 'pool = ["2001:db8::/64"]', "pool", "never translated"),
    ('ports_pool = ["192.0.2.200"]', 'ports_pool = ["198.51.100.3"]', "ports_pool", "in the pool"),
    ('policy = "keep"', 'policy = "drop"', "policy", "drop"),
    ('behind = ["nve-b:nve"]', 'behind = ["nve-b"]', "behind", "no role"),
    ('behind = ["nve-b:nve"]', 'behind = ["nve-b:napt"]', "behind", "no originator"),
    ('behind = ["nve-b:nve"]', 'behind = ["nve-a:nve"]', "neighbour", "nve-a (nve) is behind"),
    ('side = "inside"', 'side = "outside"', "neighbour", "both sides"),
    ('protocol = "tcp"', 'protocol = "icmp"', "protocol", "icmp"),
    ('private = "10.1.0.80"', 'private = "ten"', "private", "ten"),
    ('pool = ["198.51.100.0/28"]', 'pool = ["192.0.2.1/32"]', "pool", "own address"),
    ('pool = ["198.51.100.0/28"]', 'pool = ["192.0.2.2/32"]', "pool", "napt-2's address"),
    ('public = "192.0.2.201"', 'public = "198.51.100.9"', "pool", "[[port]]"),
    ('ports_pool = ["192.0.2.200"]', 'ports_pool = ["10.1.0.3"]', "ports_pool", "is inside"),
    ('pool = ["198.51.100.16/28"]', 'pool = ["198.51.100.8/29"]', "pool", "of napt-2"),
    ('detour = ["192.0.2.2"]', 'detour = ["192.0.2.2", "192.0.2.3"]', "detour", "2 addresses"),
    ('detour = ["192.0.2.2"]', 'detour = ["2001:db8::1"]', "detour", "never translated"),
    ("[napt]", "[napt]\ncolour = 1", "colour", "unknown"),
]


@pytest.mark.parametrize(("old", "new", "key", "words"), WRONG)
def test_what_is_wrong_is_said(file: Path, old: str, new: str, key: str, words: str) -> None:
    text = template("napt")
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        load_napt(file)
    assert str(file) in caught.value.message
    assert key in caught.value.message
    assert words in caught.value.message.lower() + caught.value.remedy
    assert caught.value.remedy


def manager_file(file: Path, *more: str) -> None:
    text = template("manager").replace('addresses = ["198.51.100.2", "2001:db8:a::2"]', more[0], 1)
    file.write_text(text.replace("[manager]\n", "".join(more[1:]) + "[manager]\n", 1))


def test_a_manager_reaches_an_nve_via_a_box(file: Path) -> None:
    manager_file(file, 'via = "napt-1"', BOX)
    config = load_manager(file)
    assert (config.peers[0].via, config.peers[0].addresses) == ("napt-1", ())
    [box] = config.napts
    assert (box.id, box.pool) == ("napt-1", (IPv4Network("198.51.100.0/28"),))


def test_an_nve_reaches_its_manager_via_a_box(file: Path) -> None:
    text = template("nve").replace('addresses = ["192.0.2.10", "2001:db8::10"]', 'via = "napt-1"')
    file.write_text(text.replace("[timers]", BOX + "[timers]", 1))
    assert load_nve(file).managers[0].via == "napt-1"


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ("", "which stands nowhere"),
        (BOX.replace('addresses = ["10.1.255.1"]\n', ""), "has no addresses"),
        (BOX + BOX, "stands here twice"),
        (BOX + BOX.replace("napt-1", "napt-9"), "of napt-1 overlaps"),
        (BOX.replace("198.51.100.0/28", "2001:db8::/64"), "never translated"),
    ],
)
def test_a_via_that_leads_nowhere_is_said(file: Path, box: str, words: str) -> None:
    manager_file(file, 'via = "napt-1"', box)
    with pytest.raises(ConfigError, match=words):
        load_manager(file)


def test_a_box_is_no_peer(file: Path) -> None:
    manager_file(file, 'addresses = ["198.51.100.2"]')
    file.write_text(file.read_text().replace('role = "nve"', 'role = "napt"', 1))
    with pytest.raises(ConfigError, match="NAPT box") as caught:
        load_manager(file)
    assert "[[napt]]" in caught.value.remedy
