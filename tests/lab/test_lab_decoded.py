"""What others' software reads of a move: tshark decodes the UPDATEs and the LSAs that go by.

The VM leaves for the other data centre and comes home; captured are the wire between the border
routers and the one between the far border router and its ToR.
"""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path

import pytest

from tests.contract.namespaces import wait_for
from tests.lab.decoding import MAX_AGE, Capture, Lsa, Update, missing_tools
from tests.lab.lab_command import Lab
from vmmobility.drivers.bird import check as bird
from vmmobility.drivers.frr.check import missing_tools as missing_frr
from vmmobility.drivers.frr.plan import COMMUNITY, HOST_TAG

pytestmark = [
    pytest.mark.netns,
    pytest.mark.lab,
    pytest.mark.timeout(180),
    pytest.mark.skipif(missing_tools() != "", reason=f"{missing_tools()}: run make setup"),
    pytest.mark.skipif(missing_frr() != "", reason=f"{missing_frr()}: run make setup"),
]

VM = (ip_network("10.11.0.5"), ip_network("fd0b::5"))
IGP = 0
WRITTEN_S = 20.0
TYPE_1 = 1


def move(folder: Path, to: str) -> None:
    environment = {**os.environ, "VMMOB_SOCKET": str(folder / "nodes/manager/api.sock")}
    command = [sys.executable, "-m", "vmmobility", "move", "vm1", to, "--wait"]
    subprocess.run(command, check=True, env=environment, capture_output=True, timeout=60)


def until_written(bgp: Capture) -> None:
    """Wait until the last words of the way home are in the file: tshark writes with a delay."""

    def withdrawn() -> bool:
        return set(VM) <= {prefix for update in bgp.updates() for prefix in update.withdrawn}

    wait_for(withdrawn, "the withdrawals are captured", WRITTEN_S)


def there_and_home(lab: Lab, fabric: str) -> tuple[list[Update], list[Lsa]]:
    """The UPDATEs between the border routers, the LSAs between border-2 and tor-2a."""
    lab.call("up", fabric)
    (folder,) = lab.folder.glob("vmmobility-lab/vml*")
    space = f"{folder.name}-border-2"
    bgp = Capture(space, "border-1", lab.out / "bgp.pcapng")
    ospf = Capture(space, "tor-2a", lab.out / "ospf.pcapng")
    try:
        move(folder, "nve-2a")
        move(folder, "nve-1a")
        until_written(bgp)
    finally:
        bgp.stop()
        ospf.stop()
        lab.call("down")
    return bgp.updates(), ospf.lsas()


@pytest.mark.parametrize(
    "fabric",
    [
        "two-dc-light",
        pytest.param(
            "two-dc-bird-light",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(
                    bird.missing_tools() != "", reason=f"{bird.missing_tools()}: run make setup"
                ),
            ],
        ),
    ],
)
def test_tshark_reads_updates_and_lsas_as_they_are_meant(lab: Lab, fabric: str) -> None:
    updates, lsas = there_and_home(lab, fabric)
    for prefix in VM:
        told = [update for update in updates if prefix in update.reached]
        assert told, updates
        for update in told:
            assert (update.origin, update.communities) == (IGP, frozenset({COMMUNITY}))
        withdrawn = [update for update in updates if prefix in update.withdrawn]
        assert withdrawn, updates
        assert withdrawn[-1].at_s > told[-1].at_s
        assert {update.source for update in withdrawn} == {update.source for update in told}

        mine = [lsa for lsa in lsas if lsa.prefix == prefix]
        assert mine, lsas
        assert {(lsa.tag, lsa.metric_type) for lsa in mine} == {(HOST_TAG, TYPE_1)}
        assert mine[0].age_s < MAX_AGE
        assert mine[-1].age_s == MAX_AGE
        assert len({lsa.origin for lsa in mine}) == 1
        print(f"{prefix}: {told[0]}, {withdrawn[-1]}, {mine[0]}, {mine[-1]}")
