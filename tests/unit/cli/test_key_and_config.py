"""`vmmob key` and `vmmob config`, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.command_line import Vmmob


def test_keys_from_new_to_retire(vmmob: Vmmob, tmp_path: Path):
    directory = tmp_path / "keys"
    file = directory / "manager--nve-a.toml"
    make = ("key", "new", "nve-a:nve", "manager:manager", "--dir", directory)
    assert vmmob(*make).out == f"{file}: made; copy it to both nodes\n"
    assert vmmob(*make).out == f"{file}: is there, kept\n"
    assert vmmob(*make, "--json").json == {"file": str(file), "made": False}
    assert vmmob("key", "retire", file).code == 1
    for step in ("rotate", "activate", "retire"):
        ran = vmmob("key", step, file)
        assert ran.code == 0
        assert "next: " in ran.out
    listed = vmmob("key", "list", "--dir", directory)
    assert "manager:manager, nve-a:nve" in listed.out
    (pair,) = vmmob("key", "list", "--dir", directory, "--json").json
    assert (pair["signs"], [key["id"] for key in pair["keys"]]) == (2, [2])
    secret = file.read_text().partition('secret = "')[2][:64]
    assert secret not in listed.out + json.dumps(pair)
    assert vmmob("key", "new", "nve-a:nve", "manager:napt", "--dir", directory).code == 1


@pytest.mark.parametrize("role", ["manager", "nve"])
def test_configuration(vmmob: Vmmob, tmp_path: Path, role: str):
    file = tmp_path / "c.toml"
    text = vmmob("config", "init", role).out
    assert vmmob("config", "init", role, "--output", file).code == 0
    assert file.read_text() == text
    assert vmmob("config", "init", role, "--output", file).code == 1
    assert f"configuration of {role}" in vmmob("config", "check", file).out
    assert "lifetime_s" in vmmob("config", "show", file).out
    shown = vmmob("config", "show", file, "--json").json
    assert (shown["role"], shown["port"]) == (role, 8747)
    file.write_text(text.replace("[timers]", "[timrs]"))
    ran = vmmob("config", "check", file)
    assert ran.code == 1
    assert "did you mean timers?" in ran.err
