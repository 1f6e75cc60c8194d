"""A request's body: what the engine is asked for, and what is refused, by the key's name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vmmobility.api.manager_schemas import LIFE_STATES, NEW_VM
from vmmobility.daemon.recording.codec import argument, text, value_of
from vmmobility.daemon.vm_requests import BESIDES, adjusted, digest_of, life_view, request_of
from vmmobility.drivers.hypervisor.definition import KEYS as DEFINITION_KEYS
from vmmobility.engine.capacity import Resources
from vmmobility.engine.lifecycle_record import Life, life_from_json, life_to_json
from vmmobility.engine.lifecycle_transitions import LifeState
from vmmobility.errors import BadRequest
from vmmobility.wire.definition_keys import api_keys, file_keys
from vmmobility.wire.values import VmKey

ETH0 = {"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5/32", "fd01::5/128"]}
QEMU = {"kind": "qemu", "machine": {"kernel": "/k"}}
DISKS = [{"path": "web1.qcow2", "size_mib": 100}, {"path": "web1-data.qcow2", "size_mib": 50}]


def body(**more: Any) -> dict[str, Any]:
    return {"client_key": "k", "vm_id": "web1", "interfaces": [ETH0], **QEMU, **more}


def test_resources_go_into_the_definition():
    asked = request_of(
        body(
            resources={"vcpus": 2, "memory_mib": 512, "storage_mib": 200, "threads": 4},
            disks=DISKS,
            placement={"nves": ["a"], "dc": "dc1", "anti_affinity": ["web2"]},
        )
    )
    assert asked.resources == Resources(2, 512, 200)
    assert asked.wanted == Resources(4, 512, 200)
    told = json.loads(asked.definition)
    assert (told["vcpus"], told["memory_mib"], len(told["disk"])) == (2, 512, 2)
    assert (asked.nves, asked.dc, asked.apart) == (("a",), "dc1", (VmKey(0, "web2"),))
    assert asked.interfaces[0].mac.hex() == "525400000001"


def test_without_resources_the_definition_says_what_it_takes():
    asked = request_of(body(vcpus=3, memory_mib=300, disks=DISKS))
    assert asked.resources == Resources(3, 300, 150)
    light = request_of(body(kind="netns", machine={}))
    assert light.resources == Resources()
    counted = request_of(body(kind="netns", machine={}, resources={"vcpus": 1, "memory_mib": 64}))
    assert counted.resources == Resources(1, 64, 0)


def test_a_member_of_a_group_and_whatever_else_a_definition_holds_is_taken():
    asked = request_of(body(member=2, redirect="tunnel"))
    told = json.loads(asked.definition)
    assert (told["member"], told["redirect"]) == (2, "tunnel")
    # Each key of a definition is the API's, and whatever the API takes is a definition's.
    fields = set(NEW_VM["properties"]) - set(BESIDES)
    assert set(file_keys(dict.fromkeys(fields))) == set(DEFINITION_KEYS)


def test_keys_of_files_and_of_the_api():
    in_file = {"vm_id": "v", "interface": [1], "disk": [2]}
    in_api = {"vm_id": "v", "interfaces": [1], "disks": [2]}
    assert api_keys(in_file) == api_keys(in_api) == in_api
    assert file_keys(in_file) == file_keys(in_api) == in_file
    for renamed in (api_keys, file_keys):
        with pytest.raises(ValueError, match="say it once"):
            renamed({"disk": [], "disks": []})


def test_disks_are_at_least_what_they_are():
    asked = request_of(body(resources={"storage_mib": 1}, disks=DISKS))
    assert asked.resources.storage_mib == 150


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"client_key": ""}, "client_key"),
        ({"client_key": "x" * 129}, "client_key"),
        ({"client_key": 7}, "client_key"),
        ({"resources": []}, "resources"),
        ({"resources": {"cpus": 1}}, "resources.cpus"),
        ({"resources": {"vcpus": -1}}, "resources.vcpus"),
        ({"resources": {"vcpus": True}}, "resources.vcpus"),
        ({"resources": {"vcpus": 1 << 40}}, "resources.vcpus"),
        ({"vcpus": 1, "resources": {"vcpus": 2}}, "resources.vcpus: 2, but vcpus is 1"),
        ({"placement": []}, "placement"),
        ({"placement": {"rack": 1}}, "placement.rack"),
        ({"placement": {"nves": "a"}}, "placement.nves"),
        ({"placement": {"nves": [1]}}, "placement.nves"),
        ({"placement": {"dc": 1}}, "placement.dc"),
        ({"placement": {"anti_affinity": [""]}}, "placement.anti_affinity"),
        ({"kind": "external", "machine": {"qmp": "/q"}}, "kind"),
        ({"kind": "cloud"}, "kind"),
        ({"interfaces": []}, "interface"),
        ({"interfaces": [{"mac": "x"}]}, "interface[0]"),
        ({"machine": {}}, "machine.kernel"),
        ({"disks": [{}]}, "disk[0]"),
        ({"disks": [], "disk": []}, "disk"),
        ({"member": -1}, "member"),
        ({"member": "1"}, "member"),
        ({"machine": {"kernel": "/k", "append": "\ud800"}}, "machine.append"),
        ({"machine": {"kernel": "/k", "\ud800": ""}}, "machine.'\\ud800'"),
        ({"resources": {"\ud800": 1}}, "resources.'\\ud800'"),
        ({"placement": {"\ud800": 1}}, "placement.'\\ud800'"),
        ({"placement": {"dc": "\ud800"}}, "placement.dc"),
    ],
)
def test_what_is_wrong_is_named(wrong: dict[str, Any], named: str):
    with pytest.raises(BadRequest) as refused:
        request_of(body(**wrong))
    assert named in refused.value.message
    assert refused.value.remedy
    (refused.value.message + refused.value.remedy).encode()  # an answer can be made of it


def test_the_order_of_keys_is_no_other_request():
    one = body(resources={"vcpus": 1, "memory_mib": 64})
    other = dict(reversed(one.items()))
    assert digest_of(one) == digest_of(other)
    assert digest_of(one) != digest_of({**one, "vni": 0})


def test_a_confirmation_adjusts_the_definition_too():
    life = Life(request_of(body(vcpus=4, memory_mib=1024, disks=DISKS)), "a", LifeState.OFFERED)
    assert adjusted(life, {}) is None
    assert adjusted(life, {"resources": {"threads": 2}}) is None
    found = adjusted(life, {"resources": {"vcpus": 2}})
    assert found is not None
    assert found[0] == Resources(2, 1024, 150)
    assert json.loads(found[1])["vcpus"] == 2
    for wrong in ({"storage_mib": 149}, {"vcpus": 0}, {"memory_mib": 0}, {"disks": 1}):
        with pytest.raises(BadRequest):
            adjusted(life, {"resources": wrong})


def test_a_life_is_durable_and_recordable():
    asked = request_of(body(disks=DISKS, placement={"anti_affinity": ["b"]}))
    life = Life(asked, "nve-a", LifeState.FAILED, "no such kernel", onboarded=True)
    again = life_from_json(life.vm, json.loads(json.dumps(life_to_json(life))))
    assert again == life
    assert value_of(json.loads(text(argument(asked)))) == asked


def test_every_state_is_in_the_api():
    assert set(LIFE_STATES["enum"]) == {state.value for state in LifeState}
    life = Life(request_of(body()), "nve-a", LifeState.OFFERED, offer_until=70.0)
    shown = life_view(life, "offered", "nve-a", 10.0)
    assert shown["offer"]["expires_in_s"] == 60.0
    assert life_view(life, "offered", "nve-a", 90.0)["offer"]["expires_in_s"] == 0.0
    life.state = LifeState.RUNNING
    assert life_view(life, "running", "nve-b", 10.0)["offer"] is None
