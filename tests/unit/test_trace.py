"""A trace as the manager composes it: each inconsistency named, and the way followed hop by hop."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from vmmobility.daemon.trace import Tracer
from vmmobility.engine.binding_update_list import make_nve, nve_to_json
from vmmobility.engine.channel import Peer
from vmmobility.engine.fabric_record import RouterSite
from vmmobility.engine.manager import ManagerEngine
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.outputs import Endpoint
from vmmobility.errors import BadRequest, NotFound
from vmmobility.wire.registry import Role
from vmmobility.wire.values import Address, Nve, VmKey

VM = VmKey(0, "vm1")
V4, V6 = "10.1.0.5", "fd01::5"
SITES = (
    RouterSite("tor-1", False, ("nve-a",), "dc1"),
    RouterSite("edge-1", True, (), "dc1"),
    RouterSite("tor-2", False, ("nve-b",), "dc2"),
    RouterSite("edge-2", True, (), "dc2"),
)
NUMBERS = {"tor-1": 11, "edge-1": 12, "tor-2": 21, "edge-2": 22, "nve-a": 1, "nve-b": 2, "nve-c": 3}


def nve(name: str) -> Nve:
    number = NUMBERS[name]
    return make_nve(name, (ip_address(f"10.0.{number}.2"), ip_address(f"fd00:0:{number}::2")))


def binding(at: str = "nve-b", **more: Any) -> dict[str, Any]:
    """Away from nve-a, its home, unless `at` is that."""
    home = nve_to_json(nve("nve-a"))
    previous = [] if at == "nve-a" else [{**(home or {}), "acknowledged": 7}]
    return {
        "interfaces": [{"mac": "52:54:00:00:00:01", "addresses": [f"{V4}/32", f"{V6}/128"]}],
        "definition": "{}", "nve": nve_to_json(nve(at)), "boot": 1, "attach_id": 1, "epoch": 7,
        "mobility": 1, "lifetime_s": 120.0, "previous": previous, "ending": 0,
        "at_home": at == "nve-a", "home": home, **more,
    }  # fmt: skip


def told(state: str, epoch: int = 9, **more: Any) -> dict[str, Any]:
    lead = {"state": state, "serving": nve_to_json(nve("nve-b")), "previous": None}
    return {"epoch": epoch, "acknowledged": True, **lead, **more}


ORDERS = {"tor-1": told("WATCH"), "edge-1": told("WATCH"), "edge-2": told("WATCH"),
          "tor-2": told("ANNOUNCE")}  # fmt: skip


def route(prefix: str, gateway: str | None, table: int = 254, **more: Any) -> dict[str, Any]:
    hop = {"interface": "eth0", **({"gateway": gateway} if gateway else {})}
    return {"priority": 32766, "table": table, "prefix": prefix, "metric": 20, "protocol": 188,
            "kind": "unicast", "next_hops": [hop], "leads": True, **more}  # fmt: skip


def locator(name: str, version: int = 4) -> str:
    return str(nve(name).locator(version))


def router(*rows: dict[str, Any], state: str = "watch", **more: Any) -> dict[str, Any]:
    return {"refused": "", "reason": "", "epoch": 9, "route": state, "direct": True,
            "covered": False, "rows": list(rows), "more": False, **more}  # fmt: skip


def host(name: str) -> dict[str, Any]:
    return route(f"{V4}/32", locator(name))


def nve_says(phase: str, forwarding: str, **more: Any) -> dict[str, Any]:
    shown = {"drift": 0, "forwarding": forwarding, "delivered": 5}
    return {"refused": "", "reason": "", "epoch": 7, "phase": phase, "guest": "none",
            "target": None, "shown": shown, **more}  # fmt: skip


def right() -> dict[str, Any]:
    """What all nodes answer while all is as it should be: vm1 is away, at nve-b."""
    held = route(f"{V4}/32", locator("nve-b"), 7701, protocol=77, ours=True)
    announced = route(f"{V4}/32", locator("nve-b"), protocol=77, ours=True, leads=False)
    return {
        "tor-1": router(host("edge-1")),
        "edge-1": router(host("edge-2")),
        "edge-2": router(host("tor-2")),
        "tor-2": router(held, announced, state="announce"),
        "nve-a": nve_says("redirecting", "redirect", target="nve-b"),
        "nve-b": nve_says("serving", "local", guest="running"),
        "nve-c": nve_says("none", "none", epoch=0),
    }


class Domain:
    """A manager with records, and what the nodes answer."""

    def __init__(
        self,
        held: dict[str, Any] | None = None,
        orders: dict[str, Any] | None = None,
        sites: Sequence[RouterSite] = SITES,
        **more: Any,
    ) -> None:
        held = binding() if held is None else held
        orders = ORDERS if orders is None else orders
        state: dict[str, Any] = {"binding/0/vm1": held} if held else {}
        if orders:
            state["fabric/0/vm1"] = {"interfaces": binding()["interfaces"], "routers": orders}
        peers = []
        for name in NUMBERS:
            ends = tuple(Endpoint(a, 8747) for a in nve(name).locators)
            role = {"t": Role.DEFAULT_ROUTER, "e": Role.BORDER_ROUTER}.get(name[0], Role.NVE)
            peers.append(Peer(name, role, ends, {1: b"x" * 32}, 1))
        settings = ManagerSettings("manager", routers=tuple(sites))
        self.engine = ManagerEngine(settings, peers, {**state, **more}, 1, random.Random(1), 0.0)
        self.answers: dict[str, Any] = right()
        self.asked: list[tuple[VmKey | None, list[str]]] = []

    async def _ask(
        self, vm: VmKey | None, address: Address, nodes: Sequence[str], seconds: float
    ) -> dict[str, Any]:
        self.asked.append((vm, list(nodes)))
        return {node: self.answers.get(node) for node in nodes}

    def trace(self, address: str = V4, start: str = "") -> dict[str, Any]:
        found = asyncio.run(Tracer(self.engine, self._ask).trace(address, start, 5.0))
        assert found["ok"] is all(step["ok"] for step in found["steps"])
        return found

    def wrong(self, node: str, address: str = V4) -> str:
        """What is wrong with that node; nothing is with the others."""
        found = self.trace(address)
        others = {s["node"]: s["wrong"] for s in found["steps"] if s["wrong"] and s["node"] != node}
        assert not others
        return next(str(s["wrong"]) for s in found["steps"] if s["node"] == node)


def line(found: dict[str, Any]) -> list[str]:
    return [f"{s['node']} {s['decision']} {s['to']}" for s in found["steps"]]


# ---- from every node -----------------------------------------------------------------------------


def test_where_all_is_as_it_should_be():
    domain = Domain()
    found = domain.trace()
    assert found["ok"], [s["wrong"] for s in found["steps"]]
    assert line(found) == [
        "manager bound to nve-b",
        "tor-1 host route edge-1",
        "edge-1 host route edge-2",
        "tor-2 hold table nve-b",
        "edge-2 host route tor-2",
        "nve-b delivers to vm1",
        "nve-a redirects to nve-b",
    ]
    assert [s["role"] for s in found["steps"]][1:3] == ["default router", "border router"]
    assert (found["vm"], found["serving"], found["from"], found["silent"]) == (
        "vm1", "nve-b", None, [],
    )  # fmt: skip
    assert len(domain.asked) == 1
    tor_2 = found["steps"][3]
    assert tor_2["detail"] == (
        "10.1.0.5/32 by vmmobility in table 7701 dev eth0; told announce (epoch 9); direct"
    )


def test_at_home_nothing_is_told_and_covering_prefixes_lead():
    domain = Domain(binding("nve-a"), {})
    quiet: dict[str, Any] = {"state": "none", "epoch": 0, "direct": None}
    domain.answers["tor-1"] = router(route("10.1.0.0/24", locator("nve-a")), **quiet)
    for name, to in (("edge-1", "tor-1"), ("edge-2", "edge-1"), ("tor-2", "edge-2")):
        domain.answers[name] = router(route("10.0.0.0/8", locator(to)), **quiet)
    domain.answers["nve-a"] = nve_says("serving", "local", guest="running")
    found = domain.trace()
    assert found["ok"], [s["wrong"] for s in found["steps"]]
    assert found["steps"][1]["decision"] == "covering prefix"
    domain.answers["edge-2"] = router(host("tor-2"), **quiet)
    assert "a stale host route: the VM is at home" in domain.wrong("edge-2")


def test_a_stale_route_leads_to_another_nve():
    domain = Domain()
    domain.answers["tor-1"] = router(host("nve-a"), direct=False)
    wrong = domain.wrong("tor-1")
    assert "the fabric does not lead straight to nve-b" in wrong
    assert "leads to nve-a, and nve-b serves" in wrong


ROUTERS = {
    "holds no host route in the main table": router(
        route(f"{V4}/32", locator("nve-b"), 7701, ours=True), state="announce"
    ),
    "holds no route in table 7701": router(
        route(f"{V4}/32", locator("nve-b"), ours=True), state="announce"
    ),
    "is at epoch 8, was told epoch 9": {**right()["tor-2"], "epoch": 8},
    "was told announce, and is at none": {**right()["tor-2"], "route": "none"},
    "refuses to say: data-plane-failure: no table": {
        **right()["tor-2"], "refused": "data-plane-failure", "reason": "no table",
    },
    "no route leads there": router(state="announce"),
    "does not answer": None,
}  # fmt: skip


@pytest.mark.parametrize("words", ROUTERS)
def test_what_is_wrong_with_a_router(words: str):
    domain = Domain()
    domain.answers["tor-2"] = ROUTERS[words]
    assert words in domain.wrong("tor-2")


def test_an_order_that_was_not_obeyed_yet():
    domain = Domain(orders={**ORDERS, "tor-2": told("ANNOUNCE", acknowledged=False)})
    assert "has not yet done what it was told: told announce (epoch 9)" in domain.wrong("tor-2")


def test_a_route_of_ours_that_nobody_ordered():
    domain = Domain()
    row = route(f"{V4}/32", locator("nve-b"), protocol=77, ours=True)
    domain.answers["edge-1"] = router(row)
    assert domain.wrong("edge-1") == "a stale route of ours stands in the main table"


def test_what_was_cut_off_is_not_called_missing():
    domain = Domain()
    domain.answers["tor-2"] = router(state="announce", more=True)
    found = domain.trace()
    assert found["ok"]
    assert found["steps"][3]["decision"] == "unknown"


NVES = {
    ("nve-b", "should serve the VM, and is in phase none"): nve_says("none", "none"),
    ("nve-b", "is at epoch 6, the binding at 7"): nve_says("serving", "local", epoch=6),
    ("nve-b", "should deliver to its own taps"): nve_says("serving", "none"),
    ("nve-b", "its kernel or guest differed: kernel: route gone"): nve_says(
        "serving", "local", reason="kernel: route gone"
    ),
    ("nve-a", "is a previous NVE, and redirects nowhere: it is in phase none"): nve_says(
        "none", "none"
    ),
    ("nve-a", "redirects to nve-c, and nve-b serves"): nve_says(
        "redirecting", "redirect", target="nve-c"
    ),
    ("nve-a", "redirects by epoch 5, the binding is at 7"): nve_says(
        "redirecting", "redirect", target="nve-b", epoch=5
    ),
    ("nve-a", "a guest of the VM runs here, and nve-b serves it"): nve_says(
        "redirecting", "redirect", target="nve-b", guest="running"
    ),
    ("nve-a", "does not answer"): None,
}


@pytest.mark.parametrize(("node", "words"), NVES)
def test_what_is_wrong_with_an_nve(node: str, words: str):
    domain = Domain()
    domain.answers[node] = NVES[node, words]
    assert words in domain.wrong(node)
    assert domain.trace()["silent"] == ([node] if NVES[node, words] is None else [])


def test_a_redirect_that_was_not_acknowledged():
    held = binding()
    held["previous"][0]["acknowledged"] = 6
    assert Domain(held).wrong("nve-a") == "has not acknowledged the redirect of epoch 7"


def test_a_home_that_redirects_no_more():
    domain = Domain(binding(previous=[]))
    domain.answers["nve-a"] = nve_says("none", "none")
    assert "the covering prefix leads here" in domain.wrong("nve-a")
    domain.engine.cache.bindings[VM].fabric_direct = True
    assert domain.trace()["ok"]


def test_a_binding_that_wants_a_person():
    domain = Domain()
    domain.engine.cache.bindings[VM].expired = True
    assert domain.wrong("manager") == "the binding is expired"


# ---- the way from a node -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "way"),
    [
        ("tor-1", ["tor-1", "edge-1", "edge-2", "tor-2", "nve-b"]),
        ("edge-2", ["edge-2", "tor-2", "nve-b"]),
        ("nve-a", ["nve-a", "nve-b"]),
        ("nve-b", ["nve-b"]),
    ],
)
def test_the_way_is_followed(start: str, way: list[str]):
    domain = Domain()
    found = domain.trace(V4, start)
    assert [s["node"] for s in found["steps"]] == ["manager", *way]
    assert found["arrives"] is True
    assert found["ok"]
    assert [nodes for _, nodes in domain.asked] == [[node] for node in way]


def test_what_an_nve_does_not_take_goes_to_its_router():
    sites = [RouterSite("tor-1", False, ("nve-a", "nve-c"), "dc1"), *SITES[1:]]
    found = Domain(sites=sites).trace(V4, "nve-c")
    assert [s["node"] for s in found["steps"]][1:4] == ["nve-c", "tor-1", "edge-1"]
    assert found["arrives"] is True


def test_next_hops_that_are_nobody_s_are_followed_by_data_centre():
    """IPv6 next hops are link-local as a rule."""
    domain = Domain()
    held = route(f"{V6}/128", "fe80::1", 7701, ours=True)
    main = route(f"{V6}/128", "fe80::1", ours=True, leads=False)
    for name in ("tor-1", "edge-1", "edge-2"):
        domain.answers[name] = router(route(f"{V6}/128", "fe80::1"))
    domain.answers["tor-2"] = router(held, main, state="announce")
    found = domain.trace(V6, "tor-1")
    assert [s["node"] for s in found["steps"]][1:] == ["tor-1", "edge-1", "edge-2", "tor-2",
                                                       "nve-b"]  # fmt: skip
    assert found["arrives"] is True
    assert "edge-1 is next by its data centre, not by its address" in found["steps"][1]["detail"]


def test_where_the_fabric_is_not_direct_the_home_redirects():
    domain = Domain()
    cover = route("10.1.0.0/24", locator("nve-a"))
    domain.answers["tor-1"] = router(cover, direct=False)
    found = domain.trace(V4, "tor-1")
    assert [s["node"] for s in found["steps"]][1:] == ["tor-1", "nve-a", "nve-b"]
    assert found["arrives"] is True
    assert not found["ok"]


def test_a_circle_is_named():
    domain = Domain()
    domain.answers["edge-1"] = router(host("tor-1"), direct=False)
    found = domain.trace(V4, "tor-1")
    assert found["arrives"] is False
    assert "packets go in a circle: tor-1 had them before" in found["steps"][-1]["wrong"]


def test_a_way_ends_where_nobody_answers():
    domain = Domain()
    domain.answers["edge-2"] = None
    found = domain.trace(V4, "tor-1")
    assert (found["arrives"], found["silent"]) == (None, ["edge-2"])


def test_a_blackhole_ends_the_way():
    domain = Domain()
    domain.answers["edge-1"] = router(route("10.1.0.0/24", None, kind="blackhole"), direct=False)
    found = domain.trace(V4, "tor-1")
    assert found["steps"][-1]["decision"] == "blackhole"
    assert found["arrives"] is False
    assert "drops them: blackhole" in found["steps"][-1]["wrong"]


def test_without_routers_the_covering_prefix_leads_home():
    domain = Domain(orders={}, sites=())
    found = domain.trace(V4, "nve-c")
    assert [s["node"] for s in found["steps"]][1:] == ["nve-c", "nve-a", "nve-b"]
    assert found["arrives"] is True


# ---- nobody's addresses, and mistakes ------------------------------------------------------------


def test_an_address_of_nobody():
    domain = Domain({}, {})
    quiet: dict[str, Any] = {"state": "none", "epoch": 0, "direct": None}
    for name in ("tor-1", "edge-1", "tor-2", "edge-2"):
        domain.answers[name] = router(route("10.1.0.0/24", locator("nve-a")), **quiet)
    found = domain.trace()
    assert not found["ok"]
    assert (found["vm"], found["serving"]) == (None, None)
    assert found["steps"][0]["wrong"] == "no VM is registered with this address"
    assert [(s["node"], s["decision"], s["to"]) for s in found["steps"][1:2]] == [
        ("tor-1", "covering prefix", "nve-a")
    ]
    assert domain.asked == [(None, ["tor-1", "edge-1", "tor-2", "edge-2"])]
    way = domain.trace(V4, "tor-1")
    assert [s["node"] for s in way["steps"]] == ["manager", "tor-1", "nve-a"]
    assert way["arrives"] is None


def test_a_host_route_of_a_vm_that_is_no_more():
    domain = Domain({}, {"tor-2": {"epoch": 12, "acknowledged": False}})
    found = domain.trace()
    assert "routers are being told to forget VM vm1" in found["steps"][0]["detail"]
    (tor_2,) = [s for s in found["steps"] if s["node"] == "tor-2"]
    assert "a stale route of ours stands in table 7701" in tor_2["wrong"]
    assert "has not yet done what it was told" in tor_2["wrong"]


def test_the_longest_prefix_around_an_address_says_whose_it_is():
    held = binding()
    held["interfaces"][0]["addresses"] = ["fd01:0:0:7::/64"]
    domain = Domain(held, {})
    assert domain.trace("fd01:0:0:7::99")["vm"] == "vm1"
    assert domain.trace("fd01:0:0:8::99")["vm"] is None


@pytest.mark.parametrize("address", ["", "10.1.0", "vm1", "10.1.0.5/32", "fe80::1%eth0"])
def test_what_is_no_address(address: str):
    with pytest.raises(BadRequest, match="no address") as caught:
        Domain().trace(address)
    assert "IPv4 or IPv6" in caught.value.remedy


def test_a_node_that_is_not_known():
    with pytest.raises(NotFound, match="no NVE or router nowhere") as caught:
        Domain().trace(V4, "nowhere")
    assert "show routers" in caught.value.remedy


def test_rows_that_make_no_sense_are_shown_as_they_are():
    domain = Domain()
    odd = {"leads": True, "table": "x", "prefix": 7, "next_hops": [{"gateway": 9}, 3], "kind": []}
    domain.answers["tor-1"] = router(odd)
    assert domain.trace()["steps"][1]["node"] == "tor-1"
    assert domain.trace(V4, "tor-1")["arrives"] is not True


# ---- a load-shared group -------------------------------------------------------------------------


def a_group() -> Domain:
    """vm1 at nve-b and vm2 at nve-a, its home, are members of one group; both are announced."""
    vms = {"vm1": 1, "vm2": 2}
    group = {"vni": 0, "members": vms, "epoch": 8, "present": list(vms), "out": {}}
    orders = {name: {**one, "group": ["web", 1, []]} for name, one in ORDERS.items()}
    mate = {**binding("nve-a"), "epoch": 8}
    records: dict[str, Any] = {"group/web": group, "binding/0/vm2": mate}
    domain = Domain(orders=orders, **records)
    held = route(f"{V4}/32", locator("nve-a"), 7701, protocol=77, ours=True)
    announced = route(f"{V4}/32", locator("nve-a"), protocol=77, ours=True, leads=False)
    domain.answers |= {"tor-1": router(held, announced), "edge-1": router(host("tor-1"))}
    return domain


def test_what_leads_to_another_member_of_its_group_is_no_fault():
    found = a_group().trace()
    assert found["ok"], [s["wrong"] for s in found["steps"] if s["wrong"]]
    assert "shares the load with VM vm2 at nve-a" in found["steps"][0]["detail"]


def test_a_way_that_ends_at_another_member_arrives():
    found = a_group().trace(start="edge-1")
    assert found["arrives"]
    assert line(found)[1:] == [
        "edge-1 host route tor-1",
        "tor-1 hold table nve-a",
        "nve-a delivers to vm2",
    ]
