"""The API over a real unix socket: routes, and errors with remedies."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.asked_api import VM, asking, failure, manager, nve, raw, request
from tests.unit.fake_services import ALARM, BINDING, DIFFERENCE, FakeManager, FakeNve
from vmmobility.api.client import ManagerClient, NveClient
from vmmobility.api.errors import BadRequest, Conflict, NotFound, Unavailable, status_of
from vmmobility.api.manager_api import manager_api
from vmmobility.api.nve_api import nve_api
from vmmobility.errors import ApiError, ConfigError, HypervisorError
from vmmobility.wire.values import VmKey


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "api.sock"


def test_the_managers_answers(path: Path):
    def question(client: ManagerClient) -> None:
        assert client.status()["role"] == "manager"
        assert client.bindings() == [BINDING]
        assert client.binding(VM) == BINDING
        assert client.vm(VM) == {**BINDING, "move": None, "lifecycle": None, "protection": None}
        assert client.nves()[0]["nve"] == "nve-a"
        move = client.start_move(VM, "nve-b")
        assert (move["vm"], move["to"], move["ok"]) == ("vm1", "nve-b", None)
        assert client.moves() == [move]
        assert client.move(move["id"]) == move
        assert client.vms() == [{**BINDING, "move": move, "lifecycle": None, "protection": None}]
        assert client.move(move["id"], wait_s=0.01)["ok"] is None

    manager(path, question)


def test_a_standbys_time_of_day_is_one(path: Path):
    def question(client: ManagerClient) -> None:
        assert client.protect(VM, {"to": "nve-b", "at": "23:59"})["at"] == "23:59"
        assert client.protected()[0]["fail_over"] is False
        for wrong in ("24:00", "12:60", "1:000", "ab:cd"):
            with pytest.raises(ApiError, match="is no time of day"):
                client.protect(VM, {"to": "nve-b", "at": wrong})
        with pytest.raises(ApiError, match="exclude each other"):
            client.protect(VM, {"to": "nve-b", "at": "03:00", "every_s": 5})

    manager(path, question)


def test_waiting_ends_with_the_move(path: Path):
    service = FakeManager(endings=[{"ok": True, "state": "done"}])

    def question(client: ManagerClient) -> dict[str, Any]:
        return client.move(client.start_move(VM, "nve-b")["id"], wait_s=60)

    began = time.monotonic()
    assert manager(path, question, service)["ok"] is True
    assert time.monotonic() - began < 30


def test_a_starting_move_answers_202(path: Path):
    body = '{"vm": "vm1", "to": "nve-b"}'
    status, move = asking(
        manager_api(FakeManager()), path, lambda: raw(path, request("POST", "/v1/moves", body))
    )
    assert (status, move["vni"]) == (202, 0)


@pytest.mark.parametrize(
    ("line", "body", "status"),
    [
        ("GET /v1/nothing", "", 404),
        ("PUT /v1/moves", "", 405),
        ("GET /v1/bindings/vm1?vni=x", "", 400),
        ("GET /v1/bindings/vm1?vni=99999999", "", 400),
        ("GET /v1/bindings/vm1?vni=1", "", 404),
        ("GET /v1/bindings/a%20b", "", 400),
        ("GET /v1/bindings/other", "", 404),
        ("GET /v1/moves/none", "", 404),
        ("GET /v1/moves/none?wait=0", "", 404),
        ("GET /v1/moves/none?wait=nan", "", 400),
        ("GET /v1/moves/none?wait=-1", "", 400),
        ("POST /v1/moves", "", 400),
        ("POST /v1/moves", "[]", 400),
        ("POST /v1/moves", "{", 400),
        ("POST /v1/moves", "[" * 100_000, 400),
        ("POST /v1/moves", '{"vm": "vm1"}', 400),
        ("POST /v1/moves", '{"vm": 1, "to": "nve-b"}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "vni": "0"}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "vni": true}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "wait": 1}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "timeout_s": 0}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "timeout_s": true}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "timeout_s": 1e9}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "on_timeout": "force"}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "on_timeout": 1}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-b", "copy_storage": "some"}', 400),
        ("POST /v1/moves", '{"vm": "vm1", "to": "nve-a"}', 409),
        ("POST /v1/moves", '{"vm": "vm1", "to": "broken"}', 500),
        ("POST /v1/moves/none/abort", "", 404),
        ("POST /v1/bindings/vm1/release", "", 409),
        ("POST /v1/bindings/vm1/release?fenced=a%20b", "", 400),
        ("POST /v1/bindings/vm1/release?fenced=", "", 400),
        ("POST /v1/bindings/vm1/release?fenced=nve-z", "", 409),
        ("PUT /v1/onboarded/vm1", "", 400),
        ("PUT /v1/onboarded/vm1", '{"vm_id": "vm2", "interfaces": [{}]}', 400),
        ("PUT /v1/onboarded/vm1", '{"vm_id": "vm1"}', 400),
        ("PUT /v1/onboarded/vm1", '{"vm_id": "vm1", "interfaces": [{}], "nves": [1]}', 400),
        ("DELETE /v1/onboarded/vm1", "", 404),
        ("PUT /v1/groups/web", "", 400),
        ("PUT /v1/groups/web", '{"members": ["vm1"]}', 400),
        ("PUT /v1/groups/web", '{"members": {"vm1": true}}', 400),
        ("PUT /v1/groups/web", '{"members": {"a b": 1}}', 400),
        ("PUT /v1/groups/web", '{"members": {"vm1": 1}, "more": 1}', 400),
        ("DELETE /v1/groups/web", "", 404),
        ("GET /v1/check", "", 405),
        ("POST /v1/check?timeout=x", "", 400),
        ("POST /v1/check?timeout=4000", "", 400),
    ],
)
def test_every_refusal_is_json_with_a_remedy(path: Path, line: str, body: str, status: int):
    method, target = line.split()
    got, answer = asking(
        manager_api(FakeManager()), path, lambda: raw(path, request(method, target, body))
    )
    assert got == status, answer
    assert answer["error"]
    assert answer["remedy"]


def test_a_body_has_a_limit(path: Path):
    body = '"' + "x" * (1 << 20) + '"'
    with NveClient(path) as client:
        error = asking(
            nve_api(FakeNve()),
            path,
            lambda: failure(lambda: client.start_vm({"vm_id": "vm1", "pad": body})),
        )
    assert isinstance(error, BadRequest)


def test_the_client_raises_the_services_errors(path: Path):
    def question(client: ManagerClient) -> None:
        assert isinstance(failure(lambda: client.vm(VmKey(0, "no"))), NotFound)
        assert isinstance(failure(lambda: client.start_move(VM, "nve-a")), Conflict)
        assert isinstance(failure(lambda: client.start_move(VM, "down")), Unavailable)
        error = failure(lambda: client.start_move(VM, "broken"))
        assert type(error) is ApiError
        assert "ZeroDivisionError" in error.message

    manager(path, question)


def test_names_are_quoted(path: Path):
    strange = VmKey(3, "ä?&#%41;:@")
    service = FakeManager()
    service.held = [{**BINDING, "vni": 3, "vm": strange.vm_id}]
    assert manager(path, lambda client: client.binding(strange), service)["vm"] == strange.vm_id


def test_the_nves_answers(path: Path):
    definition = {"vm_id": "vm1", "vni": 0, "kind": "qemu", "interfaces": []}

    def question(client: NveClient) -> None:
        assert client.status()["role"] == "nve"
        assert client.vms() == []
        assert client.start_vm(definition)["phase"] == "serving"
        assert [vm["vm"] for vm in client.vms()] == ["vm1"]
        assert isinstance(failure(lambda: client.start_vm({**definition, "kind": "x"})), BadRequest)
        assert isinstance(failure(lambda: client.start_vm({"vm_id": ""})), ApiError)
        assert client.stop_vm(VM)["vm"] == "vm1"
        assert isinstance(failure(lambda: client.stop_vm(VM)), NotFound)

    nve(path, question)


def test_path_and_definition_must_agree(path: Path):
    status, answer = asking(
        nve_api(FakeNve()), path, lambda: raw(path, request("PUT", "/v1/vms/a", '{"vm_id": "b"}'))
    )
    assert status == 400
    assert "path" in answer["error"]


def test_statuses_of_other_errors():
    assert status_of(ConfigError("x")) == 400
    assert status_of(HypervisorError("x")) == 503
    assert status_of(ApiError("x")) == 503
    assert status_of(NotFound("x")) == 404


def test_an_expired_binding_is_released(path: Path) -> None:
    service = FakeManager()
    service.held = [{**BINDING}]
    with pytest.raises(Conflict, match="lease lives"):
        manager(path, lambda client: client.release(VM, "nve-a"), service)
    service.held = [{**BINDING, "state": "expired"}]
    with pytest.raises(Conflict, match="not at nve-b"):
        manager(path, lambda client: client.release(VM, "nve-b"), service)
    released = manager(path, lambda client: client.release(VM, "nve-a"), service)
    assert released["state"] == "released"
    with pytest.raises(NotFound):
        manager(path, lambda client: client.release(VmKey(7, "vm1"), "nve-a"), service)


def test_a_frozen_binding_is_thawed(path: Path) -> None:
    service = FakeManager()
    service.held = [{**BINDING, "state": "frozen"}]
    assert manager(path, lambda client: client.release(VM), service)["state"] == "serving"
    with pytest.raises(Conflict, match="not frozen"):
        manager(path, lambda client: client.release(VM), service)


def test_a_move_is_given_up(path: Path):
    def question(client: ManagerClient) -> None:
        move = client.start_move(VM, "nve-b")
        assert client.abort_move(move["id"])["state"] == "turning-back"
        assert isinstance(failure(lambda: client.abort_move("none")), NotFound)

    manager(path, question)


def test_vms_are_onboarded(path: Path):
    strange = {
        "vm_id": "ä?#",
        "vni": 3,
        "interfaces": BINDING["interfaces"],
        "nves": ["nve-a"],
    }

    def question(client: ManagerClient) -> None:
        assert client.onboarded() == []
        row = client.onboard(strange)
        assert (row["vm"], row["vni"], row["nves"]) == ("ä?#", 3, ["nve-a"])
        assert client.onboarded() == [row]
        assert isinstance(failure(lambda: client.onboard({**strange, "nves": ["a b"]})), BadRequest)
        assert isinstance(failure(lambda: client.onboard({**strange, "nves": "a"})), BadRequest)
        assert isinstance(failure(lambda: client.onboard({**strange, "kind": "x"})), BadRequest)
        assert isinstance(failure(lambda: client.offboard(VmKey(0, "ä?#"))), NotFound)
        assert client.offboard(VmKey(3, "ä?#")) == row
        assert client.onboarded() == []

    manager(path, question)


def test_checks_and_alarms(path: Path):
    service = FakeManager()
    service.compared = {**service.compared, "drift": [DIFFERENCE], "repaired": 1}
    service.raised = [ALARM]

    def question(client: ManagerClient) -> None:
        assert client.check(5)["drift"] == [DIFFERENCE]
        assert client.alarms() == [ALARM]
        service.pause_s = 2.0
        error = failure(lambda: client.check(0.5))
        assert isinstance(error, Unavailable)
        assert "0.5 s" in error.message

    manager(path, question, service)
    assert nve(path, lambda client: (client.check(5)["checked"], client.alarms())) == (1, [])


def test_guests_of_other_hands_are_expected(path: Path):
    definition = {"vm_id": "vm1", "vni": 0, "kind": "external", "interfaces": [{}, {}]}

    def question(client: NveClient) -> None:
        assert client.expect_vm(definition)["ports"] == ["vmt0.0", "vmt0.1"]
        assert [vm["expected"] for vm in client.vms()] == [True]
        assert isinstance(
            failure(lambda: client.expect_vm({**definition, "kind": "qemu"})), BadRequest
        )
        assert client.unexpect_vm(VM)["vm"] == "vm1"
        assert isinstance(failure(lambda: client.unexpect_vm(VM)), NotFound)

    nve(path, question)
