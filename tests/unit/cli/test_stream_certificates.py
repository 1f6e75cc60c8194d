"""`[hypervisor] tls` of an NVE and of a server: `vmmob config check`, and a daemon's log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.command_line import Vmmob
from tools.make_stream_certificates import Authority
from vmmobility.daemon.config_files import load
from vmmobility.daemon.config_template import template
from vmmobility.daemon.stream_certificates import tell_certificates

DIALLED = {"nve": ["198.51.100.2", "2001:db8:a::2"], "server": ["10.9.1.2"]}


@pytest.fixture(params=["nve", "server"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def written(role: str, folder: Path, tls: Path) -> Path:
    file = folder / f"{role}.toml"
    file.write_text(template(role).replace("[hypervisor]\n", f'[hypervisor]\ntls = "{tls}"\n'))
    return file


def told(file: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    loaded: Any = load(file)
    tell_certificates(loaded, lambda name, **detail: events.append({"name": name, **detail}))
    return events


def test_sound_certificates(vmmob: Vmmob, tmp_path: Path, role: str):
    tls = Authority(tmp_path / "ca").issue(tmp_path / "tls", DIALLED[role])
    file = written(role, tmp_path, tls)
    assert vmmob("config", "check", file).code == 0
    assert vmmob("config", "show", file, "--json").json["hypervisor"]["tls"] == str(tls)
    assert told(file) == []


def test_none_is_in_the_clear(vmmob: Vmmob, tmp_path: Path, role: str):
    file = tmp_path / "c.toml"
    file.write_text(template(role))
    assert vmmob("config", "check", file).code == 0
    assert vmmob("config", "show", file, "--json").json["hypervisor"]["tls"] is None


def test_a_folder_of_nothing(vmmob: Vmmob, tmp_path: Path, role: str):
    file = written(role, tmp_path, tmp_path / "tls")
    ran = vmmob("config", "check", file)
    assert ran.code == 1
    assert f"{file}: hypervisor.tls: {tmp_path}/tls/ca-cert.pem cannot be read" in ran.err
    assert "put it there" in ran.err
    (event,) = told(file)  # a daemon starts all the same: its guests run on
    assert event["name"] == "tls.unusable"
    assert "ca-cert.pem cannot be read" in event["reason"]
    assert event["remedy"]


def test_an_address_that_no_certificate_names(vmmob: Vmmob, tmp_path: Path, role: str):
    tls = Authority(tmp_path / "ca").issue(tmp_path / "tls", ["192.0.2.99"])
    ran = vmmob("config", "check", written(role, tmp_path, tls))
    assert ran.code == 1
    assert f"server-cert.pem does not name {DIALLED[role][0]}" in ran.err
    assert f"IP:{DIALLED[role][0]}" in ran.err
