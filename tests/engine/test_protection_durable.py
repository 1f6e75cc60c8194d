"""What is recorded of warm standbys comes back from the store as it was; the tables are total."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

from tests.engine.conversation import interfaces_of, vm_key
from vmmobility.engine.binding_update_list import make_nve
from vmmobility.engine.manager_protection_record import (
    TABLE,
    Happened,
    ProtectedVm,
    ProtectionState,
    load_protected,
    picture,
    protected_key,
    protected_to_json,
)
from vmmobility.engine.protection_record import (
    Guarded,
    Standby,
    guarded_to_json,
    load_guarded,
    load_standbys,
    record_key,
    standby_to_json,
)
from vmmobility.wire.options import Endpoint, Protection

VM = vm_key("vm/1")
THERE = make_nve("b", (ip_address("10.0.2.2"), ip_address("fd00:0:2::2")))
DOOR = Endpoint(ip_address("fd00:0:2::2"), 49152)
TERMS = Protection(True, 5000, 10000, "abc")


def test_records_survive_the_store() -> None:
    guarded = Guarded(VM, THERE, DOOR, TERMS, 7, handed=True)
    standby = Standby(VM, interfaces_of("vm1", 1, 2), b"{}", THERE, TERMS, 7, b"\1" * 16)
    protected = ProtectedVm(
        VM, THERE, 5.0, True, 10.0, ProtectionState.TAKING_OVER, True, DOOR, "abc", 9, b"\2" * 16, 4
    )
    state = {
        record_key("guarded", VM): guarded_to_json(guarded),
        record_key("standby", VM): standby_to_json(standby),
        protected_key(VM): protected_to_json(protected),
    }
    back = json.loads(json.dumps(state))
    assert load_guarded(back) == {VM: guarded}
    assert load_standbys(back) == {VM: standby}
    assert load_protected(back) == {VM: protected}
    assert load_protected({}) == {}


def test_a_store_of_before_has_none() -> None:
    old = {"epoch": 3, "vm/0/vm1": {"phase": 0, "epoch": 3}, "binding/0/vm1": {}}
    assert (load_guarded(old), load_standbys(old), load_protected(old)) == ({}, {}, {})


def test_every_state_is_reached_and_left() -> None:
    reached = set(TABLE.values()) | {ProtectionState.PREPARING}
    assert reached == set(ProtectionState)
    assert {what for _, what in TABLE} == set(Happened)
    assert {state for state, _ in TABLE} == set(ProtectionState) - {ProtectionState.ENDING}


def test_the_page_shows_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "design" / "manager.md").read_text()
    assert picture() in page
