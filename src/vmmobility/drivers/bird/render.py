"""A border router's RouterPlan as BIRD's configuration (bird.conf).

Not here: its parts (filters.py, protocols.py), whether BIRD takes it (check.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from vmmobility.drivers.bird.filters import filters
from vmmobility.drivers.bird.protocols import kernel, ospf, sessions
from vmmobility.drivers.frr.plan import BgpPlan, RouterPlan
from vmmobility.errors import ConfigError


def render(plan: RouterPlan) -> str:
    """The whole of bird.conf."""
    bgp = plan.bgp
    if bgp is None or bgp.transit or plan.igp != "ospf":
        raise ConfigError(f"{plan.hostname}: BIRD is configured for border routers with OSPF alone",
                          "run FRR there")  # fmt: skip
    return "\n".join(_lines(plan, bgp)) + "\n"


def _lines(plan: RouterPlan, bgp: BgpPlan) -> Iterator[str]:
    yield f"# {plan.hostname}"
    yield "log stderr { info, remote, warning, error, auth, fatal, bug };"
    yield f"router id {plan.router_id};"
    yield ""
    yield from filters(plan, bgp)
    yield ""
    yield from kernel(plan)
    yield from ospf(plan)
    yield from sessions(bgp)
