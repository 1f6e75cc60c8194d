"""router.toml, and the routers in the manager's file."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from vmmobility.daemon import config, config_files, node_config, router_config
from vmmobility.daemon.config_template import template
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import Role

MINIMAL = (
    '[node]\nid="tor"\nrole="border-router"\nstate_dir="/s"\naddresses=["10.0.0.1"]\n'
    'api_socket="/a"\nkeys_dir="/k"\n[[manager]]\nid="m"\naddresses=["10.0.0.2"]\n'
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "router.toml"


def test_what_is_optional_is_optional(file: Path):
    file.write_text(MINIMAL)
    loaded = config_files.load(file)
    assert isinstance(loaded, router_config.RouterConfig)
    assert config_files.role_of(loaded) == "router"
    assert loaded.role is Role.BORDER_ROUTER
    assert loaded.addresses == (ip_address("10.0.0.1"),)
    assert loaded.timers == node_config.NodeTimers()


@pytest.mark.parametrize(
    ("there", "instead", "words"),
    [
        ('role="border-router"', 'role="nve"', "node.role"),
        ('[[manager]]\nid="m"\naddresses=["10.0.0.2"]\n', "", "manager"),
        ('id="tor"', 'id="m"', "own id"),
        ('keys_dir="/k"', 'keys_dir="/k"\nlocators=["10.0.0.1"]', "node.locators: unknown key"),
        ('addresses=["10.0.0.1"]', "addresses=[]", "node.addresses"),
    ],
)
def test_what_is_wrong_is_named(file: Path, there: str, instead: str, words: str):
    assert there in MINIMAL
    file.write_text(MINIMAL.replace(there, instead))
    with pytest.raises(ConfigError, match=words) as caught:
        config_files.load(file)
    assert caught.value.remedy


def test_the_manager_knows_routers_nves_and_data_centres(file: Path):
    file.write_text(template("manager"))
    nve, router = config.load_manager(file).peers
    assert (nve.role, nve.serves, nve.dc) == (Role.NVE, (), "")
    assert (router.role, router.serves, router.dc) == (Role.DEFAULT_ROUTER, ("nve-a",), "dc1")


@pytest.mark.parametrize(
    ("there", "instead", "words"),
    [
        ('serves = ["nve-a"]', 'serves = [""]', r"serves\[0\]"),
        ('serves = ["nve-a"]', "serves = [1]", r"serves\[0\]"),
        ('# gate_policy = "abort"', 'gate_policy = "hope"', "gate_policy"),
        ("# max_host_routes = 0", "max_host_routes = -1", "max_host_routes"),
        ("# gate_s = 5", "gate_s = 0", "gate_s"),
        ('role = "nve"', 'role = "nve"\nserves = ["x"]', "serves: unknown key"),
    ],
)
def test_what_is_wrong_of_routers_is_named(file: Path, there: str, instead: str, words: str):
    text = template("manager")
    assert there in text
    file.write_text(text.replace(there, instead))
    with pytest.raises(ConfigError, match=words):
        config.load_manager(file)
