"""docs/protocol.md says what the code does: tables, option sections, drop reasons, constants."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vmmobility.engine import (
    admission,
    challenge,
    channel,
    manager_fabric,
    manager_redirects,
    nve_unmanaged,
    peer,
    replay_window,
    router,
)
from vmmobility.engine.manager_settings import ManagerSettings
from vmmobility.engine.napt_settings import NaptSettings
from vmmobility.engine.nve_transitions import RULES
from vmmobility.wire import formats
from vmmobility.wire.authentication import DATA, TRAILER
from vmmobility.wire.options import AUTHENTICATION_TYPE, OPTIONS, RECEIVER_TYPE
from vmmobility.wire.registry import (
    DROP_REASONS,
    LIFETIME_UNIT_S,
    MAX_DATAGRAM,
    MAX_PARTS,
    UDP_PORT,
    VERSION,
    RouteState,
)

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text("utf-8")
PLAIN = " ".join(PAGE.split())
MANAGER = ManagerSettings("manager")
BOX = NaptSettings("napt", (), ())


def test_the_tables_are_the_code_s():
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "protocol_tables.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr


def test_every_option_has_its_section():
    found = re.findall(r"^### 4\.\d+\. (.+) \((\d+)\)$", PAGE, re.MULTILINE)
    declared = {(d.name, str(d.number)) for d in OPTIONS}
    trailers = {("Authentication", str(AUTHENTICATION_TYPE)), ("Receiver", str(RECEIVER_TYPE))}
    assert set(found) == declared | trailers


def test_every_heading_is_linked_and_every_link_leads_somewhere():
    headings = {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE)) == headings


def test_the_states_of_a_router_are_explained_in_their_order():
    table = PAGE.split("| State | This router itself leads")[1].split("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, re.MULTILINE) == [s.name for s in RouteState]


def test_every_action_of_an_nve_is_explained():
    explained = PAGE.split("| Action | What it does")[1].split("\n\n")[0]
    assert {rule.action for rule in RULES} <= set(re.findall(r"`(\w+)`", explained))


@pytest.mark.parametrize(
    "sentence",
    [
        f"The port is **{UDP_PORT}**",
        f"MUST NOT exceed **{MAX_DATAGRAM:,} octets**",
        f"up to **{MAX_PARTS} parts**",
        f"| Version | 8 | {VERSION} |",
        f"in units of {LIFETIME_UNIT_S} s",
        f"the last **{TRAILER}** octets",
        f"Length = {DATA}",
        f"which of the **{replay_window.WINDOW:,}** counters",
        f"**reply cache** of at least **{peer.REPLY_CACHE}** entries",
        f"for **{peer.ASSEMBLY_S:.0f} s** and at most **{peer.ASSEMBLIES}** a peer",
        f"after **{channel.Retransmission().first_s * 1000:.0f} ms**",
        f"up to **{channel.Retransmission().most_s:.0f} s**",
        f"MUST NOT exceed **{admission.MAX_VM_OCTETS:,} octets**",
        f"({admission.MAX_VM_OCTETS:,} octets, {admission.MAX_PREVIOUS} previous NVEs)",
        f"at most **{admission.MAX_PREFIXES}** prefixes",
        f"more than **{admission.MAX_PREVIOUS}** previous NVEs",
        f"**/{MANAGER.shortest_ipv4}** of IPv4 and **/{MANAGER.shortest_ipv6}** of IPv6",
        f"MUST remember the last {replay_window.WINDOW:,} such",
        f"the same is sent again {manager_redirects.REDIRECT_RETRY_S:.0f} s later",
        f"A state has {MANAGER.step_s:.0f} s, copying {MANAGER.copy_s:.0f} s",
        f"announcing and withdrawing {MANAGER.gate_s:.0f} s each",
        f"the state (**{MANAGER.gate_s:.0f} s**) is over, the operator's policy counts: "
        f"`{MANAGER.gate_policy}` (the default)",
        f"the same `ROUTE` is sent again **{manager_fabric.ROUTE_RETRY_S:.0f} s** later",
        f"the router tries again every {router.RETRY_S:.0f} s",
        f"an interval of {router.RouterSettings('').report_s:.0f} s or so",
        f"the ticket's life ({MANAGER.ticket_s:.0f} s)",
        f"more often than once in **{channel.Retransmission().first_s * 1000:.0f} ms** a peer",
        f"stored (0 if none) + 1 + {challenge.STEP_BITS} random bits",
        f"above 2^{challenge.FLOOR.bit_length() - 1}, and not below Known Boot",
        f"has **{MANAGER.ask_s:.0f} s** to answer",
        f"within **{MANAGER.freeze_s:.0f} s** freeze the binding",
        f"every {MANAGER.check_s:.0f} s or so",
        f"({nve_unmanaged.REFUSED_RETRY_S:.0f} s for a guest that other hands brought)",
        f"after {nve_unmanaged.DEPARTED_ASK_S:.0f} s and then every",
        f"({BOX.mapping_s:,.0f} s unless configured",
        f"else for a further {BOX.quarantine_s:.0f} s",
        f"and again every {BOX.hold_s:.0f} s",
        f"1 to {formats.MAX_NAME} octets (a node's: 1 to {formats.MAX_NODE_NAME})",
    ],
)
def test_constants_are_the_code_s(sentence):
    assert sentence in PLAIN


def test_every_range_of_no_vm_is_named():
    for network in admission.FORBIDDEN:
        whole = network.prefixlen == network.max_prefixlen
        assert f" {network.network_address if whole else network}" in PLAIN.replace(",", " ")


def test_every_reason_of_a_drop_is_registered():
    counted = r'(?:DecodeError|_drop)\(\s*"([a-z-]+)"|drops\["([a-z-]+)"\]'
    found = {
        name
        for folder in ("wire", "engine")
        for path in (ROOT / "src" / "vmmobility" / folder).glob("*.py")
        for names in re.findall(counted, path.read_text("utf-8"))
        for name in names
        if name
    }
    window = replay_window.ReplayWindow(boot=5, high=2000)
    found |= {
        str(window.check(*mark)) for mark in ((4, 1), (5, 2000), (5, 2000 - replay_window.WINDOW))
    }
    found.add(str(replay_window.ReplayWindow().check(1, 1)))
    found |= {"unsupported-version", "unsupported-option"}  # raised by their own classes
    assert found == set(DROP_REASONS)
