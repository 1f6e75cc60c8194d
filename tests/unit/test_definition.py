from __future__ import annotations

import json
import os
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmmobility.drivers.hypervisor.definition import ENCODED_LIMIT, decode, encode, load
from vmmobility.drivers.hypervisor.interface import Disk, VmDefinition
from vmmobility.engine.dataplane import RedirectPolicy, policy_of
from vmmobility.errors import ConfigError, DecodeError
from vmmobility.wire.definition_keys import member_of
from vmmobility.wire.values import Interface, VmKey

DEFINITION = VmDefinition(
    VmKey(0, "web-1"),
    "qemu",
    (
        Interface(
            bytes.fromhex("525400000001"),
            (ip_network("10.1.0.5/32"), ip_network("fd01::5/128")),
        ),
        Interface(bytes.fromhex("525400000002"), (ip_network("10.2.0.8/29"),)),
    ),
    vcpus=2,
    memory_mib=256,
    machine={"kernel": "/boot/vmlinuz", "initrd": "/boot/initrd", "append": "quiet"},
)

TOML = """
vm_id = "web-1"
kind = "qemu"
vcpus = 2
memory_mib = 256

[machine]
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd"
append = "quiet"

[[interface]]
mac = "52:54:00:00:00:01"
addresses = ["10.1.0.5/32", "fd01::5/128"]

[[interface]]
mac = "52:54:00:00:00:02"
addresses = ["10.2.0.8/29"]
"""


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(encode(DEFINITION)), **changes}


def interface(**changes: Any) -> dict[str, Any]:
    return {"mac": "52:54:00:00:00:01", "addresses": ["10.1.0.5/32"], **changes}


def test_what_is_encoded_is_decoded() -> None:
    assert decode(encode(DEFINITION)) == DEFINITION


def test_equal_definitions_have_equal_bytes_without_white_space() -> None:
    assert encode(decode(encode(DEFINITION))) == encode(DEFINITION)
    assert b" " not in encode(DEFINITION)


def test_a_toml_file_gives_the_same(tmp_path: Path) -> None:
    path = tmp_path / "web-1.toml"
    path.write_text(TOML)
    assert load(path) == DEFINITION


def test_defaults() -> None:
    lean = {"vm_id": "a", "machine": {"kernel": "/k"}, "interface": [interface()]}
    found = decode(json.dumps(lean).encode())
    assert (found.vm.vni, found.kind, found.vcpus, found.memory_mib) == (0, "qemu", 1, 128)


def test_a_guest_that_others_run_has_a_monitor() -> None:
    path = "/" + "q" * 106  # the longest that a socket can have
    found = decode(json.dumps(document(kind="external", machine={"qmp": path})).encode())
    assert (found.kind, found.machine) == ("external", {"qmp": path})
    assert decode(encode(found)) == found


@pytest.mark.parametrize("policy", RedirectPolicy)
def test_a_vm_may_say_how_it_is_redirected(policy: RedirectPolicy) -> None:
    found = decode(json.dumps(document(redirect=policy.value)).encode())
    assert found.redirect is policy
    assert decode(encode(found)) == found
    assert policy_of(encode(found)) is policy


def test_a_definition_without_a_policy_says_nothing_of_it() -> None:
    assert b"redirect" not in encode(DEFINITION)  # an NVE that does not know the key takes it


def test_a_vm_may_say_which_member_of_a_group_it_is() -> None:
    found = decode(json.dumps(document(member=2)).encode())
    assert found.member == member_of(encode(found)) == 2
    assert decode(encode(found)) == found
    assert b"member" not in encode(DEFINITION)
    for strange in (b"{}", b"[]", b"", b'{"member": "2"}', b'{"member": 70000}'):
        assert member_of(strange) == 0


def disk(**changes: Any) -> dict[str, Any]:
    return {"path": "a.img", "format": "raw", "size_mib": 64, **changes}


def test_a_vm_may_have_disks_and_boot_from_them() -> None:
    given = document(disk=[disk(), {"path": "/pool/b.qcow2", "size_mib": 10240}], machine={})
    found = decode(json.dumps(given).encode())
    assert found.disks == (Disk("a.img", "raw", 64), Disk("/pool/b.qcow2", "qcow2", 10240))
    assert decode(encode(found)) == found
    assert b"disk" not in encode(DEFINITION)  # an NVE that does not know the key takes it


WRONG = [
    ("disk", {"disk": {}}),
    ("disk", {"disk": [disk(path=str(n)) for n in range(9)]}),
    ("disk", {"kind": "external", "machine": {"qmp": "/a"}, "disk": [disk()]}),
    ("disk[0]", {"disk": ["a.img"]}),
    ("disk[0].bus", {"disk": [disk(bus="ide")]}),
    ("disk[0].path", {"disk": [disk(path="")]}),
    ("disk[0].path", {"disk": [disk(path="../a.img")]}),
    ("disk[0].path", {"disk": [disk(path="a/")]}),
    ("disk[0].path", {"disk": [disk(path="a\nb")]}),
    ("disk[0].path", {"disk": [disk(path="a" * 256)]}),
    ("disk[0].format", {"disk": [disk(format="vmdk")]}),
    ("disk[0].size_mib", {"disk": [disk(size_mib=0)]}),
    ("disk[0].size_mib", {"disk": [{"path": "a.img"}]}),
    ("disk[1].path", {"disk": [disk(), disk()]}),
    ("member", {"member": 65536}),
    ("member", {"member": "one"}),
    ("redirect", {"redirect": "sideways"}),
    ("redirect", {"redirect": ["tunnel"]}),
    ("vm_id", {"vm_id": ""}),
    ("vm_id", {"vm_id": 5}),
    ("vm_id", {"vm_id": "ü" * 128}),
    ("vm_id", {"vm_id": "a\nb"}),
    ("vni", {"vni": -1}),
    ("vni", {"vni": 1 << 24}),
    ("vni", {"vni": True}),
    ("kind", {"kind": "xen"}),
    ("kind", {"kind": []}),
    ("vcpus", {"vcpus": 0}),
    ("vcpus", {"vcpus": 1.5}),
    ("memory_mib", {"memory_mib": "128"}),
    ("colour", {"colour": "red"}),
    ("machine", {"machine": []}),
    ("machine.kernel", {"machine": {}}),
    ("machine.append", {"machine": {"kernel": "/k", "append": 1}}),
    ("machine.append", {"machine": {"kernel": "/k", "append": "\ud800"}}),
    ("machine.append", {"machine": {"kernel": "/k", "append": "a\0b"}}),
    ("machine.kernel", {"machine": {"kernel": "/\udcff"}}),
    ("machine.'\\ud800'", {"machine": {"kernel": "/k", "\ud800": "x"}}),
    ("vm_id", {"vm_id": "\ud800"}),
    ("disk[0].path", {"disk": [disk(path="\ud800")]}),
    ("machine.disk", {"machine": {"kernel": "/k", "disk": "/d"}}),
    ("machine.qmp", {"kind": "external", "machine": {}}),
    ("machine.qmp", {"kind": "external", "machine": {"qmp": "run/web.qmp"}}),
    ("machine.qmp", {"kind": "external", "machine": {"qmp": "/" + "ü" * 54}}),
    ("machine.qmp", {"kind": "external", "machine": {"qmp": "/a\0b"}}),
    ("machine.qmp", {"kind": "external", "machine": {"qmp": "/\ud800"}}),
    ("machine.kernel", {"kind": "external", "machine": {"qmp": "/a", "kernel": "/k"}}),
    ("machine.qmp", {"machine": {"kernel": "/k", "qmp": "/a"}}),
    ("machine.namespace", {"kind": "netns", "machine": {"namespace": "../../proc/1/ns/net"}}),
    ("machine.namespace", {"kind": "netns", "machine": {"namespace": ".."}}),
    ("machine.namespace", {"kind": "netns", "machine": {"namespace": ""}}),
    ("interface", {"interface": []}),
    ("interface", {"interface": {"mac": "52:54:00:00:00:01"}}),
    ("interface", {"interface": [interface()] * 17}),
    ("interface[0]", {"interface": [3]}),
    ("interface[0].mtu", {"interface": [interface(mtu=9000)]}),
    ("interface[0].mac", {"interface": [interface(mac="52:54:00:00:00")]}),
    ("interface[0].mac", {"interface": [interface(mac="01:00:5e:00:00:01")]}),
    ("interface[0].mac", {"interface": [interface(mac=None)]}),
    ("interface[0].addresses", {"interface": [interface(addresses=[])]}),
    ("interface[0].addresses", {"interface": [interface(addresses=["10.1.0.5/24"])]}),
    ("interface[0].addresses", {"interface": [interface(addresses=["ff02::1/128"])]}),
    ("interface[0].addresses", {"interface": [interface(addresses=["0.0.0.0/0"])]}),
    ("interface[0].addresses", {"interface": [interface(addresses=["10.1.0.5/32"] * 2)]}),
    ("interface[0].addresses", {"interface": [interface(addresses=[167837701])]}),
    ("interface[1].mac", {"interface": [interface(), interface()]}),
]


@pytest.mark.parametrize(("key", "changes"), WRONG)
def test_a_wrong_key_is_named(key: str, changes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(json.dumps(document(**changes)).encode())
    assert f"VM definition: {key}: " in caught.value.message
    assert caught.value.reason == "definition"


@pytest.mark.parametrize("text", ["", "vm_id = ", 'vm_id = "a"\nvcpus = 0\n'])
def test_a_wrong_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "vm.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"vm\.toml"):
        load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read"):
        load(tmp_path / "absent.toml")


def test_more_than_the_limit_is_refused_unread() -> None:
    with pytest.raises(DecodeError, match="octets"):
        decode(b" " * (ENCODED_LIMIT + 1))


@given(st.binary(max_size=200))
def test_any_bytes_give_a_definition_or_a_decode_error(data: bytes) -> None:
    with suppress(DecodeError):
        decode(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(document())), JSON))
def test_any_values_give_a_definition_or_a_decode_error(changes: dict[str, Any]) -> None:
    with suppress(DecodeError):
        decode(json.dumps(document(**changes)).encode())


def with_lone_surrogates(text: str) -> st.SearchStrategy[str]:
    return st.text(st.sampled_from(text + "\ud800\udcff\0\n"), min_size=1, max_size=6)


@given(st.sampled_from(["kernel", "initrd", "append"]), with_lone_surrogates("/a. \u00fc"))
def test_every_text_that_is_taken_can_be_given_to_a_program(key: str, value: str) -> None:
    machine = {"kernel": "/k", key: value}
    try:
        found = decode(json.dumps(document(machine=machine)).encode())
    except DecodeError as refused:
        refused.message.encode()
    else:
        meant = json.loads(json.dumps(value))  # two escaped surrogates are one character
        assert os.fsencode(found.machine[key]).decode() == meant
        assert "\0" not in value
