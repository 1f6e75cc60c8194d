"""Configuration: the documented files load; every mistake is named by file, key and remedy."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from vmmobility.daemon import config, config_files
from vmmobility.daemon.config_template import template
from vmmobility.daemon.hypervisor_config import HypervisorConfig
from vmmobility.daemon.napt_config import NaptTimers
from vmmobility.daemon.node_config import NodeTimers
from vmmobility.daemon.server_config import ServerConfig
from vmmobility.engine.dataplane import RedirectPolicy
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import UDP_PORT, Role

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
DOCUMENTED = re.findall(r"```toml\n(.*?)```", ARCHITECTURE.read_text(encoding="utf-8"), re.DOTALL)
MANAGER = next(text for text in DOCUMENTED if text.startswith("# manager.toml"))
NVE = next(text for text in DOCUMENTED if text.startswith("# nve.toml"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vmmob.toml"


def test_the_documented_manager(file: Path):
    file.write_text(MANAGER)
    loaded = config.load_manager(file)
    assert loaded == config_files.load(file)
    assert loaded.node_id == "manager"
    assert loaded.addresses == (ip_address("10.0.9.2"), ip_address("fd00:0:9::2"))
    assert loaded.port == UDP_PORT
    assert loaded.log_file is None
    (peer,) = loaded.peers
    assert (peer.id, peer.role) == ("nve-a", Role.NVE)
    assert loaded.timers == config.ManagerTimers()
    assert loaded.strict is False


def test_the_documented_nve(file: Path):
    file.write_text(NVE)
    loaded = config.load_nve(file)
    assert loaded == config_files.load(file)
    assert loaded.node_id == "nve-a"
    assert loaded.nve.ipv4 == ip_address("10.0.1.2")
    assert loaded.nve.ipv6 == ip_address("fd00:0:1::2")
    assert loaded.home_prefixes == (ip_network("10.1.0.0/24"), ip_network("fd01::/64"))
    assert loaded.redirect is RedirectPolicy.AUTO
    assert loaded.managers[0].role is Role.MANAGER
    assert loaded.timers == config.NveTimers()
    assert loaded.hypervisor == HypervisorConfig()
    assert loaded.tunnel == "auto"


def test_a_host_says_which_of_its_files_vms_may_have(file: Path):
    file.write_text(NVE)
    safe = config.load_nve(file).hypervisor
    assert safe.qemu.images == (Path("/var/lib/vmmobility/images"),)
    assert (safe.qemu.disk_folders, safe.netns) == ((), False)
    more = 'images = ["/i"]\ndisk_folders = ["/p", "/q"]\nnetns = true\n'
    file.write_text(NVE.replace("[hypervisor]\n", f"[hypervisor]\n{more}"))
    told = config.load_nve(file).hypervisor
    assert (told.qemu.images, told.netns) == ((Path("/i"),), True)
    assert told.qemu.disk_folders == (Path("/p"), Path("/q"))


@pytest.mark.parametrize("tunnel", ["auto", "kernel", "relay"])
def test_who_carries_tunnels_can_be_chosen(file: Path, tunnel: str):
    file.write_text(NVE.replace('tunnel = "auto"', f'tunnel = "{tunnel}"'))
    assert config.load_nve(file).tunnel == tunnel


def test_another_tunnel_is_refused_by_name(file: Path):
    file.write_text(NVE.replace('tunnel = "auto"', 'tunnel = "gre"'))
    with pytest.raises(ConfigError, match="tunnel") as refusal:
        config.load_nve(file)
    assert "auto, kernel, relay" in str(refusal.value) + refusal.value.remedy


@pytest.mark.parametrize("role", ["manager", "nve", "router", "napt"])
@pytest.mark.parametrize("uncomment", [False, True])
def test_templates_are_valid_and_show_the_defaults(file: Path, role: str, uncomment: bool):
    text = template(role)
    if uncomment:
        text = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
        assert "check_s" in text
    file.write_text(text)
    loaded = config_files.load(file)
    assert not isinstance(loaded, ServerConfig)
    timers = (config.ManagerTimers(), config.NveTimers(), NodeTimers(), NaptTimers())
    assert loaded.timers in timers
    assert loaded.port == UDP_PORT


def test_no_template_for_another_role():
    with pytest.raises(ConfigError):
        template("switch")


def test_what_is_optional_is_optional(file: Path):
    file.write_text(
        '[node]\nid="n"\nstate_dir="/s"\nlocators=["10.0.0.1"]\nhome_prefixes=[]\n'
        'api_socket="/a"\nkeys_dir="/k"\n[[manager]]\nid="m"\naddresses=["10.0.0.2"]\n'
    )
    loaded = config.load_nve(file)
    assert loaded.nve.ipv6 is None
    assert loaded.home_prefixes == ()
    assert loaded.dc_prefixes == ()


def test_the_data_centres_prefixes_may_lie_in_one_another(file: Path):
    own = 'dc_prefixes = ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "fd01::1/128"]'
    file.write_text(NVE.replace(HOME_PREFIXES, f"{HOME_PREFIXES}\n{own}"))
    found = [str(prefix) for prefix in config.load_nve(file).dc_prefixes]
    assert found == ["10.0.0.0/8", "10.1.0.0/16", "fd00::/8", "fd01::1/128"]


def test_given_values_are_taken(file: Path):
    file.write_text(
        MANAGER.replace("# port = 8747", "port = 99")
        .replace('# log_file = "…"', 'log_file="/l"')
        .replace("# strict = false", "strict = true")
        .replace("# freeze_after = 5", "freeze_after = 3\ncheck_s = 2")
        .replace("# ask_s = 5", "ask_s = 1")
        .replace("[timers]", "[timers]\nticket_s = 1.5\nretransmit_s = 1\nretransmit_max_s = 2")
    )
    loaded = config.load_manager(file)
    assert config_files.load(file) == loaded
    assert loaded.strict is True
    assert (loaded.port, loaded.log_file) == (99, Path("/l"))
    assert loaded.timers == config.ManagerTimers(
        ticket_s=1.5, retransmit_s=1, retransmit_max_s=2, freeze_after=3, check_s=2, ask_s=1
    )


LOCATORS = 'locators = ["10.0.1.2", "fd00:0:1::2"]'
HOME_PREFIXES = 'home_prefixes = ["10.1.0.0/24", "fd01::/64"]'
WRONG_NVE = [
    # what stands there, what is put in its place, the key that the error names, its remedy
    (LOCATORS, 'locators = []', "node.locators", "at least one"),
    (LOCATORS, "", "node.locators", "add it"),
    (LOCATORS, 'locators = "10.0.1.2"', "node.locators", "a list"),
    (LOCATORS, "locators = [1]", "node.locators[0]", "text"),
    (LOCATORS, 'locators = ["10.0.1.2", "10.0.1.3"]', "node.locators[1]", "one a family"),
    (LOCATORS, 'locators = ["10.0.1.2", "10.0.1.2"]', "node.locators[1]", "remove"),
    (LOCATORS, 'locators = ["10.0.1.2", "fe80::1"]', "node.locators[1]", "fabric"),
    (LOCATORS, 'locators = ["169.254.1.1"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["127.0.0.1"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["::1"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["224.0.0.1"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["ff02::1"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["0.0.0.0"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["::"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["255.255.255.255"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["2001:db8::1%eth0"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["::ffff:10.0.0.1"]', "node.locators[0]", "fabric"),
    (LOCATORS, 'locators = ["10.0.1.256"]', "node.locators[0]", "192.0.2.1"),
    ("locators =", "locator =", "node.locators", "is node.locator meant"),
    ("home_prefixes =", "home_prefix =", "node.home_prefixes", "is node.home_prefix meant"),
    (HOME_PREFIXES, "", "node.home_prefixes", "if there are none, []"),
    ("10.1.0.0/24", "10.1.0.1/24", "node.home_prefixes[0]", "did you mean 10.1.0.0/24?"),
    ("10.1.0.0/24", "10.1.0/24", "node.home_prefixes[0]", "192.0.2.0/24"),
    ("fd01::/64", "10.1.0.0/24", "node.home_prefixes[1]", "remove"),
    (HOME_PREFIXES, HOME_PREFIXES + "\ndc_prefixes = []", "node.dc_prefixes", "remove the key"),
    *(
        (HOME_PREFIXES, f"{HOME_PREFIXES}\ndc_prefixes = [{given}]", f"node.{key}", remedy)
        for given, key, remedy in (
            ('"10.0.0.0/8"', "dc_prefixes", "add the data centres' IPv6 prefixes"),
            ('"fd00::/8"', "dc_prefixes", "add the data centres' IPv4 prefixes"),
            ('"10.0.0.1/8", "fd00::/8"', "dc_prefixes[0]", "did you mean 10.0.0.0/8?"),
            ('"10.0.0.0/8", "fd00::/8", "10.0.0.0/8"', "dc_prefixes[2]", "remove one"),
            ('"0.0.0.0/0", "fd00::/8"', "dc_prefixes", "every sender counts as inside"),
            ('"10.0.0.0/8", "::/1", "8000::/1"', "dc_prefixes", "every sender counts as inside"),
            ('"10.0.0.0/8", "ff00::/8"', "dc_prefixes[1]", "no host sends"),
            ('"10.0.0.0/8", "here"', "dc_prefixes[1]", "192.0.2.0/24"),
            ('"10.0.0.0/8", 6', "dc_prefixes[1]", "text"),
        )
    ),
    (HOME_PREFIXES, HOME_PREFIXES + '\ndc_prefixes = "10.0.0.0/8"', "node.dc_prefixes", "a list"),
    (HOME_PREFIXES, HOME_PREFIXES + "\ndc_prefix = []", "node.dc_prefix", "node.dc_prefixes"),
    ('redirect = "auto"', 'redirect = "tunel"', "node.redirect", "did you mean 'tunnel'?"),
    ('redirect = "auto"', 'redirect = "x"', "node.redirect", "host-route"),
    ('id = "nve-a"', 'id = "nve a"', "node.id", "another name"),
    ('id = "nve-a"', f'id = "{"x" * 33}"', "node.id", "another name"),
    ('id = "nve-a"', "id = 7", "node.id", "a text"),
    ('id = "nve-a"', 'id = "manager"', "manager[0].id", "id of its own"),
    ('"/var/lib/vmmobility/nve"', '"nve"', "node.state_dir", "absolute"),
    ('"/var/lib/vmmobility/nve"', '""', "node.state_dir", ""),
    ("/run/vmmobility/nve.sock", "/" + "x" * 107, "node.api_socket", "shorter"),
    ("lifetime_s = 120", "lifetime_s = 121", "timers.lifetime_s", "120 or 124"),
    ("lifetime_s = 120", "lifetime_s = 0", "timers.lifetime_s", ""),
    ("lifetime_s = 120", "lifetime_s = 120.0", "timers.lifetime_s", "whole number"),
    ("lifetime_s = 120", "lifetime_s = true", "timers.lifetime_s", "whole number"),
    ("lifetime_s = 120", "ticket_s = 1", "timers.ticket_s", "known here"),
    ("drain_s = 30", "drain_s = nan", "timers.drain_s", ""),
    ("drain_s = 30", 'drain_s = "30"', "timers.drain_s", "a number"),
    ("# check_s = 60", "check_s = 0", "timers.check_s", ""),
    ("# redirect_alarm_s = 86400", "redirect_alarm_s = true", "timers.redirect_alarm_s", "number"),
    ("drain_s = 30", "ask_s = 1", "timers.ask_s", "known here"),
    ("drain_s = 30", "retransmit_s = 9", "timers.retransmit_max_s", ""),
    ('accelerator = "auto"', 'images = ["i"]', "hypervisor.images[0]", "absolute"),
    ('accelerator = "auto"', 'images = "/i"', "hypervisor.images", "a list"),
    ('accelerator = "auto"', "netns = 1", "hypervisor.netns", "true or false"),
    ('accelerator = "auto"', 'accelerator = "hvf"', "hypervisor.accelerator", "kvm"),
    ("[hypervisor]", "[hypervizor]", "hypervizor", "did you mean hypervisor?"),
    ("[[manager]]", "[manager]", "manager", "a list"),
    ("[[manager]]", "[[menager]]", "menager", "did you mean manager?"),
    ('addresses = ["10.0.9.2", "fd00:0:9::2"]', "", "manager[0].addresses", "add it"),
    ("[node]", "node = 1\n[nod]", "node", "a table"),
    ("[node]", "[node", "TOML", "line"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "key", "remedy"), WRONG_NVE)
def test_a_mistake_in_an_nve_file(file: Path, old: str, new: str, key: str, remedy: str):
    assert old in NVE
    file.write_text(NVE.replace(old, new, 1))
    with pytest.raises(ConfigError) as failure:
        config.load_nve(file)
    assert f"{file}: " in failure.value.message
    assert key in failure.value.message
    assert failure.value.remedy
    assert remedy in failure.value.remedy


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('role = "nve"', 'role = "hypervisor"', "peer[0].role"),
        ('role = "nve"', "", "peer[0].role"),
        ('id = "nve-a"', 'id = "manager"', "peer[0].id"),
        ('addresses = ["10.0.1.2", "fd00:0:1::2"]', "", "peer[0].addresses"),
        ('addresses = ["10.0.9.2", "fd00:0:9::2"]', 'addresses = ["fe80::1"]', "node.addresses[0]"),
        ("lifetime_s = 120", "step_s = 0", "timers.step_s"),
        ("# freeze_after = 5", "freeze_after = 1", "timers.freeze_after"),
        ("# freeze_s = 180", "freeze_s = 0", "timers.freeze_s"),
        ("# ask_s = 5", 'ask_s = "5"', "timers.ask_s"),
        ("# check_s = 60", "redirect_alarm_s = 9", "timers.redirect_alarm_s"),
        ("# strict = false", "strict = 1", "manager.strict"),
        ("# strict = false", "strikt = true", "manager.strikt"),
        ("[manager] ", "[[manager]] ", "manager"),
        ("# port = 8747", "port = 65536", "node.port"),
        ("# port = 8747", "prot = 1", "node.prot"),
        ("[timers]", '[[peer]]\nid = "nve-a"\nrole = "nve"\naddresses = ["::1"]', "peer[1].id"),
    ],
)
def test_a_mistake_in_a_manager_file(file: Path, old: str, new: str, key: str):
    assert old in MANAGER
    file.write_text(MANAGER.replace(old, new, 1))
    with pytest.raises(ConfigError, match=re.escape(f"{file}: {key}: ")) as failure:
        config.load_manager(file)
    assert failure.value.remedy


def test_a_manager_may_have_no_peer_yet(file: Path):
    file.write_text(MANAGER.partition("[[peer]]")[0])
    assert config.load_manager(file).peers == ()


def test_a_file_that_cannot_be_read(file: Path):
    with pytest.raises(ConfigError, match="No such file") as failure:
        config_files.load(file)
    assert "config init" in failure.value.remedy
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="no TOML"):
        config_files.load(file)
