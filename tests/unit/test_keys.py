"""Pairwise keys: made once, turned over in steps, refused when others could have read them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from vmmobility.daemon import keys
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import Role

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
MANAGER = keys.Node("manager", Role.MANAGER)
NVE_A = keys.Node("nve-a", Role.NVE)
ROUTER = keys.Node("a\"q\\'ü", Role.BORDER_ROUTER)


def refused(call: object, *arguments: object) -> ConfigError:
    with pytest.raises(ConfigError) as failure:
        call(*arguments)  # type: ignore[operator]
    assert failure.value.remedy
    return failure.value


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    return keys.create(tmp_path / "keys", NVE_A, MANAGER, NOW)[0]


def test_a_pair_is_the_same_from_both_ends(pair: Path):
    assert pair.name == "manager--nve-a.toml"
    assert pair.stat().st_mode & 0o777 == 0o600
    assert pair.parent.stat().st_mode & 0o777 == 0o700
    at_nve = keys.load_keys(pair.parent, "nve-a")
    at_manager = keys.load_keys(pair.parent, "manager")
    assert list(at_nve) == ["manager"]
    assert at_nve["manager"].role is Role.MANAGER
    assert at_manager["nve-a"].role is Role.NVE
    assert at_nve["manager"].secrets == at_manager["nve-a"].secrets
    assert at_nve["manager"].signing == 1
    assert len(at_nve["manager"].secrets[1]) == 32
    assert keys.read_pair(pair).keys[0].created == NOW.replace(microsecond=0)


def test_secrets_are_not_in_the_repr(pair: Path):
    held = keys.load_keys(pair.parent, "nve-a")["manager"]
    assert held.secrets[1].hex() not in repr(held)
    assert repr(held.secrets[1]) not in repr(held) + repr(keys.read_pair(pair))


def test_other_pairs_are_left_out(pair: Path):
    keys.create(pair.parent, ROUTER, MANAGER, NOW)
    assert set(keys.load_keys(pair.parent, "manager")) == {"nve-a", ROUTER.name}
    assert keys.load_keys(pair.parent, "nve-z") == {}
    assert keys.load_keys(pair.parent, ROUTER.name)["manager"].role is Role.MANAGER


def test_making_a_pair_again_keeps_it(pair: Path):
    before = pair.read_bytes()
    assert keys.create(pair.parent, MANAGER, NVE_A, NOW) == (pair, False)
    assert pair.read_bytes() == before
    error = refused(keys.create, pair.parent, MANAGER, keys.Node("nve-a", Role.NAPT), NOW)
    assert "nve-a:nve" in error.message
    refused(keys.create, pair.parent, MANAGER, MANAGER, NOW)


def test_names_that_share_a_file_name_are_told_apart(tmp_path: Path):
    path, _ = keys.create(tmp_path, keys.Node("a--b", Role.NVE), keys.Node("c", Role.NVE), NOW)
    refused(keys.create, tmp_path, keys.Node("a", Role.NVE), keys.Node("b--c", Role.NVE), NOW)
    assert keys.read_pair(path).peer_of("c") == keys.Node("a--b", Role.NVE)


def test_a_key_is_turned_over_in_three_steps(pair: Path):
    refused(keys.retire, pair)
    assert keys.activate(pair).signs == 1
    keys.rotate(pair, NOW)
    held = keys.load_keys(pair.parent, "nve-a")["manager"]
    assert (set(held.secrets), held.signing) == ({1, 2}, 1)
    refused(keys.rotate, pair, NOW)
    refused(keys.retire, pair)  # the old one signs
    keys.activate(pair)
    held = keys.load_keys(pair.parent, "nve-a")["manager"]
    assert (set(held.secrets), held.signing) == ({1, 2}, 2)
    second = held.secrets[2]
    keys.retire(pair)
    assert keys.load_keys(pair.parent, "nve-a")["manager"].secrets == {2: second}
    assert [key.id for key in keys.rotate(pair, NOW).keys] == [2, 3]
    assert pair.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in pair.parent.iterdir()] == [pair.name]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_what_others_can_reach_is_refused(pair: Path, mode: int):
    pair.chmod(mode)
    error = refused(keys.load_keys, pair.parent, "nve-a")
    assert str(pair) in error.message
    assert "chmod 600" in error.remedy


def test_a_missing_folder_or_file(tmp_path: Path):
    assert "vmmob key new" in refused(keys.load_keys, tmp_path / "none", "a").remedy
    refused(keys.rotate, tmp_path / "none.toml", NOW)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("signs = 1", "signs = 2", "signs"),
        ("signs = 1", "sign = 1", "signs"),
        ("signs = 1", "signs = 1\nsings = 2", "sings"),
        ('role = "nve"', 'role = "nvr"', "node[1].role"),
        ('name = "nve-a"', 'name = "nve a"', "node[1].name"),
        ('name = "nve-a"', 'name = "nve-b"', "manager--nve-b.toml"),
        ('name = "nve-a"', 'name = "manager"', "node"),
        ('secret = "', 'secret = "zz', "key[0].secret"),
        ("id = 1", "id = 0", "key[0].id"),
        ("created = 2026", "created = 26", "TOML"),
        ("[[key]]", "[[kez]]", "key"),
        ("[[node]]", "[node", "TOML"),
    ],
)
def test_a_wrong_file_names_the_key(pair: Path, old: str, new: str, named: str):
    secret = keys.read_pair(pair).keys[0].secret.hex()
    text = pair.read_text()
    assert old in text
    pair.write_text(text.replace(old, new))
    error = refused(keys.read_pair, pair)
    assert named in error.message
    assert str(pair) in error.message
    assert secret not in str(error)


@pytest.mark.parametrize(
    "text", ["nve-a", "nve-a:", "nve-a:nvr", ":nve", "a b:nve", "x" * 33 + ":nve"]
)
def test_wrong_nodes(text: str):
    refused(keys.parse_node, text)


def test_nodes_are_parsed():
    assert keys.parse_node("r1:default-router") == keys.Node("r1", Role.DEFAULT_ROUTER)
    assert keys.parse_node("a:b:nve") == keys.Node("a:b", Role.NVE)
