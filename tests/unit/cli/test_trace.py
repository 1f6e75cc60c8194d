"""`vmmob trace`: a line a step, JSON as it is, and an exit code that says whether all is well."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.cli.command_line import Vmmob
from tests.unit.fake_services import TRACE, FakeManager

CONSISTENT = """\
  manager  manager         bound to → nve-b    VM vm1, epoch 7; away from nve-a
  tor-1    default router  hold table → nve-b  10.1.0.5/32 by vmmobility in table 7701 dev eth1; \
told announce (epoch 8)
  nve-b    serving NVE     delivers to → vm1
10.1.0.5 is of VM vm1 at nve-b; 3 steps, all consistent
"""
WRONG = """\
  manager  manager         bound to → nve-b    VM vm1, epoch 7; away from nve-a
! tor-1    default router  hold table → nve-a  told announce (epoch 8)  \
WRONG: leads to nve-a, and nve-b serves
! nve-b    serving NVE     silent              WRONG: does not answer
10.1.0.5 is of VM vm1 at nve-b; 3 steps, 2 inconsistent, silent: nve-b; \
`vmmob check` mends what the record decides
"""


def changed(**more: Any) -> dict[str, Any]:
    return {**TRACE, **more}


def wrong() -> dict[str, Any]:
    manager, tor, nve = TRACE["steps"]
    told = {"to": "nve-a", "detail": "told announce (epoch 8)", "ok": False}
    silent = {"decision": "silent", "to": None, "ok": False, "wrong": "does not answer"}
    steps = [
        manager,
        {**tor, **told, "wrong": "leads to nve-a, and nve-b serves"},
        {**nve, **silent},
    ]
    return changed(ok=False, silent=["nve-b"], steps=steps)


def test_where_all_is_consistent(vmmob: Vmmob, manager: FakeManager):
    ran = vmmob("trace", "10.1.0.5")
    assert (ran.code, ran.out, ran.err) == (0, CONSISTENT, "")
    assert manager.asked == [("10.1.0.5", "", 5.0)]
    ran = vmmob("trace", "10.1.0.5", "--json")
    assert (ran.code, ran.json) == (0, TRACE)


def test_what_is_wrong_stands_in_its_line(vmmob: Vmmob, manager: FakeManager):
    manager.traced = wrong()
    ran = vmmob("trace", "10.1.0.5")
    assert (ran.code, ran.out, ran.err) == (1, WRONG, "")
    ran = vmmob("trace", "10.1.0.5", "--json")
    assert (ran.code, ran.json) == (1, manager.traced)


@pytest.mark.parametrize(
    ("arrives", "words"),
    [(True, "reaches"), (False, "does not reach"), (None, "was not followed as far as")],
)
def test_a_way_from_a_node(vmmob: Vmmob, manager: FakeManager, arrives: bool | None, words: str):
    manager.traced = changed(**{"from": "tor-1", "arrives": arrives})
    ran = vmmob("trace", "fd01::5", "--from", "tor-1", "--timeout", "0.5")
    assert manager.asked == [("fd01::5", "tor-1", 0.5)]
    last = ran.out.splitlines()[-1]
    assert last == f"10.1.0.5 from tor-1 {words} VM vm1 at nve-b; 3 steps, all consistent"


def test_an_address_of_nobody(vmmob: Vmmob, manager: FakeManager):
    nobody = {**TRACE["steps"][0], "decision": "bound to nobody", "to": None, "detail": ""}
    steps = [{**nobody, "ok": False, "wrong": "no VM is registered with this address"}]
    manager.traced = changed(vm=None, serving=None, ok=False, steps=steps)
    ran = vmmob("trace", "10.1.0.5")
    assert ran.code == 1
    first, last = ran.out.splitlines()
    assert first == (
        "! manager  manager  bound to nobody  WRONG: no VM is registered with this address"
    )
    assert last == "10.1.0.5 is of nobody; 1 step, 1 inconsistent"


@pytest.mark.usefixtures("manager")
@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("10.1.0",), "error: '10.1.0' is no address\nremedy: write an IPv4 or IPv6 address\n"),
        (("10.1.0.5", "--from", "nowhere"),
         "error: no NVE or router nowhere is known\nremedy: see `vmmob show nves`\n"),
        (("10.1.0.5", "--from", "no where"), "error: from: no NVE-ID: "),
    ],
)  # fmt: skip
def test_mistakes(vmmob: Vmmob, arguments: tuple[str, ...], error: str):
    ran = vmmob("trace", *arguments)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(error)
    assert "remedy: " in ran.err


def test_wrong_usage(vmmob: Vmmob):
    assert vmmob("trace").code == 2
    assert vmmob("trace", "10.1.0.5", "--timeout", "0").code == 2
    assert "1: something is wrong or silent" in " ".join(vmmob("trace", "--help").out.split())
