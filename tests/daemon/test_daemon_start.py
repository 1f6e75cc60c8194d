"""Daemons that cannot start say why in two lines, and leave what is there as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.daemon.one_host import ADDRESSES, Host

pytestmark = [pytest.mark.netns]

BOTH = pytest.mark.parametrize("node", ["manager", "nve-a"])
NOBODY = 65534


@pytest.fixture(scope="module")
def shared() -> Iterator[Host]:
    host = Host()
    try:
        yield host
    finally:
        host.close()


@pytest.fixture
def host(shared: Host) -> Iterator[Host]:
    yield shared
    shared.flush()
    for node in ADDRESSES:
        shutil.rmtree(shared.folder / node, ignore_errors=True)


@BOTH
def test_a_missing_key(host: Host, node: str):
    (host.folder / "none").mkdir(exist_ok=True)
    error, remedy = host.run(
        node, host.configure(node, keys_dir=str(host.folder / "none"))
    ).refused()
    assert "no key of" in error
    assert "vmmob key new" in remedy


def test_a_role_that_is_not_the_keys(host: Host):
    host.make_keys(host.folder / "other", nve_role="border-router")
    config = host.configure("manager", keys_dir=str(host.folder / "other"))
    error, remedy = host.run("manager", config).refused()
    assert "nve-a's key says role border-router" in error
    assert "says nve" in error
    assert "new key" in remedy


@BOTH
def test_a_key_that_others_can_read(host: Host, node: str):
    shutil.copytree(host.folder / "keys", host.folder / "open", dirs_exist_ok=True)
    (host.folder / "open" / "manager--nve-a.toml").chmod(0o644)
    config = host.configure(node, keys_dir=str(host.folder / "open"))
    error, remedy = host.run(node, config).refused()
    assert "others can read" in error
    assert "chmod 600" in remedy


@BOTH
@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("[node]", "[node", "no TOML"),
        ("state_dir", "state_dri", "node.state_dir: is missing"),
        ('id = "', 'colour = "red"\nid = "', "node.colour: unknown key"),
    ],
)
def test_a_broken_configuration(host: Host, node: str, old: str, new: str, what: str):
    config = host.configure(node)
    config.write_text(config.read_text().replace(old, new, 1))
    error, _ = host.run(node, config).refused()
    assert str(config) in error
    assert what in error


@BOTH
def test_no_configuration(host: Host, node: str):
    error, remedy = host.run(node, host.folder / "absent.toml").refused()
    assert "cannot be read" in error
    assert "config init" in remedy


@BOTH
def test_an_address_that_is_not_here(host: Host, node: str):
    key = "addresses" if node == "manager" else "locators"
    error, _ = host.run(node, host.configure(node, **{key: ["10.9.9.9"]})).refused()
    assert "cannot listen on 10.9.9.9 port 8747" in error


@BOTH
def test_a_state_folder_that_cannot_be_made(host: Host, node: str):
    config = host.configure(node, state_dir="/proc/vmmobility")
    error, _ = host.run(node, config).refused()
    assert "/proc/vmmobility" in error


def test_an_nve_without_root(host: Host):
    config = host.configure("nve-a")
    host.hand_over(NOBODY)
    try:
        drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        error, remedy = host.run("nve-a", config, before=drop).refused()
    finally:
        host.hand_over(0)
    assert "root" in error
    assert "root" in remedy


def test_a_manager_needs_no_root(host: Host):
    config = host.configure("manager")
    host.hand_over(NOBODY)
    try:
        drop = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
        assert host.end(host.start("manager", config, before=drop)).code == 0
    finally:
        host.hand_over(0)


def test_an_nve_without_tun(host: Host):
    hide = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh")
    error, remedy = host.run("nve-a", host.configure("nve-a"), before=hide).refused()
    assert "/dev/net/tun" in error
    assert remedy


@BOTH
def test_a_second_daemon_beside_the_first(host: Host, node: str):
    """On the same state folder, address or API socket; the first one goes on undisturbed."""
    config = host.configure(node)
    first = host.start(node, config)
    kernel = host.space.ip("route", "show", "table", "all"), host.space.ip("rule")
    relays = host.space.run("ip", "-o", "link")

    error, remedy = host.run(node, config).refused()
    assert "state" in error
    assert remedy

    second = {"state_dir": str(host.folder / node / "second")}
    other = {**second, "api_socket": str(host.folder / "second.sock")}
    error, _ = host.run(node, host.configure(node, **other)).refused()
    assert f"cannot listen on {ADDRESSES[node]} port 8747" in error

    error, remedy = host.run(node, host.configure(node, **second, port=8748)).refused()
    assert f"{host.socket(node)}: another daemon listens there" in error
    assert "end it first" in remedy

    assert (host.space.ip("route", "show", "table", "all"), host.space.ip("rule")) == kernel
    assert host.space.run("ip", "-o", "link") == relays
    ended = host.end(first)
    assert (ended.code, ended.err) == (0, "")
    assert [e["event"] for e in host.events(node)][-1] == "stopped"


def test_flush_removes_all_and_only_without_the_daemon(host: Host):
    config = host.configure("nve-a")
    before = host.space.ip("rule")
    first = host.start("nve-a", config)
    assert "vmmob-" in host.space.ip("link")
    error, _ = host.vmmob("nve", "flush", "--config", config).refused()
    assert "state" in error
    assert "vmmob-" in host.space.ip("link")
    assert host.end(first).code == 0
    assert "vmmob-" in host.space.ip("link"), "a daemon's end changes nothing"
    flushed = host.vmmob("nve", "flush", "--config", config)
    assert (flushed.code, flushed.err) == (0, "")
    assert "vmmob-" not in host.space.ip("link")
    assert host.space.ip("rule") == before
    assert host.space.ip("route", "show", "table", "all", "proto", "77") == ""
    assert host.vmmob("nve", "flush", "--config", config).code == 0, "again, with nothing there"
