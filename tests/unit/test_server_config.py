"""server.toml, and [[server]] in nve.toml."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from vmmobility.daemon import config_files
from vmmobility.daemon.config import load_nve
from vmmobility.daemon.config_template import template
from vmmobility.daemon.server import look
from vmmobility.daemon.server_config import MOST_SERVERS, ServerConfig, ServerPeer, load_server
from vmmobility.drivers.linux.host_capacity import CapacityLimits
from vmmobility.engine.capacity import ServerRoom, to_server_option
from vmmobility.errors import ConfigError
from vmmobility.wire.authentication import TRAILER
from vmmobility.wire.message import Message, encode_parts
from vmmobility.wire.options import Capacity, KnownBoot, Option
from vmmobility.wire.registry import MAX_DATAGRAM, MAX_PARTS, Kind, Purpose
from vmmobility.wire.server_frames import SERVER_PORT

ONE = '[[server]]\nname = "server-1"\naddress = "10.9.1.2"\nown = "10.9.1.1"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_the_template_is_a_server_s(file: Path) -> None:
    file.write_text(template("server"))
    loaded = config_files.load(file)
    assert isinstance(loaded, ServerConfig)
    assert config_files.role_of(loaded) == "server"
    assert (loaded.node_id, loaded.nve, loaded.port) == ("server-1", "nve-a", SERVER_PORT)
    assert loaded.address == ip_address("10.9.1.2")


def test_a_server_has_limits_as_an_nve_has(file: Path) -> None:
    text = template("server")
    file.write_text(text.replace("# memory_mib = 8192", "memory_mib = 8192"))
    assert load_server(file).capacity == CapacityLimits(memory_mib=8192)
    assert look(load_server(file), used=0).host.total.memory_mib == 8192
    file.write_text(text + "colour = 1\n")
    with pytest.raises(ConfigError, match=r"capacity\.colour"):
        load_server(file)


def test_an_access_link_has_one_ip_version(file: Path) -> None:
    file.write_text(template("server").replace('"10.9.1.1"', '"fd00::1"'))
    with pytest.raises(ConfigError, match=r"nve_address.*another IP version"):
        load_server(file)


def test_an_nve_names_its_servers(file: Path) -> None:
    file.write_text(template("nve") + ONE)
    peer = ServerPeer("server-1", ip_address("10.9.1.2"), ip_address("10.9.1.1"), SERVER_PORT)
    assert load_nve(file).servers == (peer,)
    file.write_text(template("nve"))
    assert load_nve(file).servers == ()


def test_an_nve_has_so_many_servers_as_its_heartbeat_has_room_for(file: Path) -> None:
    def servers(count: int) -> str:
        return "".join(
            f'[[server]]\nname = "s{n}"\naddress = "10.9.{n // 100}.{2 * (n % 100) + 2}"\n'
            f'own = "10.9.{n // 100}.{2 * (n % 100) + 1}"\n'
            for n in range(count)
        )

    file.write_text(template("nve") + servers(MOST_SERVERS))
    assert len(load_nve(file).servers) == MOST_SERVERS
    file.write_text(template("nve") + servers(MOST_SERVERS + 1))
    with pytest.raises(ConfigError, match="one more than the 256 servers"):
        load_nve(file)
    rooms = [ServerRoom("s" * 29 + f"{n:03}", True) for n in range(MOST_SERVERS)]
    options: tuple[Option, ...] = (KnownBoot(1), Capacity(1000), *map(to_server_option, rooms))
    beat = Message(Kind.REQUEST, Purpose.HEARTBEAT, 1, options)
    assert len(encode_parts(beat, MAX_DATAGRAM, TRAILER)) <= MAX_PARTS


@pytest.mark.parametrize(
    ("more", "wrong"),
    [
        (ONE + ONE, "stands here twice"),
        (ONE.replace("server-1", "nve-a"), "is this NVE's own id"),
        (ONE + ONE.replace("server-1", "server-2"), "is another server's"),
        (ONE.replace("10.9.1.1", "fd00::1"), "IP version"),
        (ONE + '[[server]]\nname = "s2"\naddress = "fd00::2"\nown = "fd00::1"\n', "IP version"),
        (ONE + "colour = 1\n", "colour"),
    ],
)
def test_wrong_servers_are_told(file: Path, more: str, wrong: str) -> None:
    file.write_text(template("nve") + more)
    with pytest.raises(ConfigError, match=wrong):
        load_nve(file)
