"""`vmmob group`: load-shared groups, by the commands, against a manager that only remembers."""

from __future__ import annotations

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import FakeManager


def test_a_group_is_declared_shown_and_deleted(vmmob: Vmmob, manager: FakeManager) -> None:
    assert vmmob("group", "create", "web", "vm1", "vm2").out == "group web: members 1 vm1, 2 vm2\n"
    heading, row = vmmob("group", "list").out.splitlines()
    assert heading.split() == ["GROUP", "EPOCH", "IN", "SERVICE", "OUT", "ABSENT"]
    assert row.split()[:3] == ["web", "9", "vm1,"]
    shown = vmmob("group", "show", "web")
    assert [line.split()[:3] for line in shown.out.splitlines()[-2:]] == [
        ["1", "vm1", "nve-a"],
        ["2", "vm2", "nve-a"],
    ]
    assert vmmob("group", "show", "web", "--json").json == manager.declared["web"]
    assert vmmob("group", "delete", "web").out == "group web: deleted\n"
    assert manager.declared == {}


def test_members_have_the_numbers_that_they_are_given(vmmob: Vmmob, manager: FakeManager) -> None:
    ran = vmmob("group", "create", "web", "vm1:4", "vm2:2", "--vni", "0", "--json")
    assert [(m["vm"], m["member"]) for m in ran.json["members"]] == [("vm1", 4), ("vm2", 2)]


def test_wrong_words_are_wrong_usage(vmmob: Vmmob, manager: FakeManager) -> None:
    for words in (["web"], ["web", "vm1:x"], ["web", "vm1", "vm1"]):
        assert vmmob("group", "create", *words).code == 2


def test_what_is_not_there_is_an_error_with_a_remedy(vmmob: Vmmob, manager: FakeManager) -> None:
    for verb in ("show", "delete"):
        ran = vmmob("group", verb, "web")
        assert ran.code == 1
        assert ran.err == ("error: no group web is declared\nremedy: see `vmmob group list`\n")
