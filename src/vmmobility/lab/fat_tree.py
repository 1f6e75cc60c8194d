"""A fat tree of a given size as a fabric: `fat-tree-K`, K even, every switch a router with K ports.

K pods of K/2 edge and K/2 aggregation routers, (K/2)² core routers; one NVE an edge router.
Not here: what a fabric is (fabric.py).  Gives TOML data, so that it is read like a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

PATTERN = "fat-tree-K"
LEAST, MOST = 2, 12  # ports; 12 are 180 routers
_NAME = re.compile(r"fat-tree-(\d+)")


def is_name(name: str) -> bool:
    """Whether a fabric of that name is made here."""
    found = _NAME.fullmatch(name)
    return found is not None and LEAST <= int(found[1]) <= MOST and int(found[1]) % 2 == 0


def data(name: str) -> dict[str, Any]:
    """The fabric of that name."""
    found = _NAME.fullmatch(name)
    assert found is not None
    ports = int(found[1])
    edges = [(pod, n) for pod in range(1, ports + 1) for n in range(1, ports // 2 + 1)]
    last = f"{ports}-{ports // 2}"
    return {
        "description": f"A fat tree of routers with {ports} ports, OSPF; an NVE an edge router",
        "router": list(_routers(ports, edges)),
        "nve": [
            {
                "name": f"nve-{pod}-{n}",
                "prefixes": [f"10.{pod}.{n}.0/24", f"fd01:{pod:x}:{n:x}::/64"],
            }
            for pod, n in edges
        ],
        "manager": [{"name": "manager"}],
        "correspondent": [{"name": "near"}, {"name": "far"}],
        "link": [
            {
                "nodes": nodes,
                "prefixes": [f"172.{16 + i // 256}.{i % 256}.0/24", f"fd00:0:{i:x}::/64"],
            }
            for i, nodes in enumerate(_links(ports, edges, last), 1)
        ],
        "vm": [{"name": "vm1", "kind": "netns", "home": "nve-1-1",
                "addresses": ["10.1.1.5", "fd01:1:1::5"]}],
    }  # fmt: skip


def _routers(ports: int, edges: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    common = {"frr": True, "dc": "dc1"}
    for number in range(1, (ports // 2) ** 2 + 1):
        yield {"name": f"core-{number}", **common}
    for pod, n in edges:
        yield {"name": f"agg-{pod}-{n}", **common}
        yield {"name": f"edge-{pod}-{n}", "role": "default", **common}


def _links(ports: int, edges: list[tuple[int, int]], last: str) -> Iterator[list[str]]:
    half = ports // 2
    for pod, n in edges:
        yield [f"edge-{pod}-{n}", f"nve-{pod}-{n}"]
        for other in range(1, half + 1):
            yield [f"agg-{pod}-{other}", f"edge-{pod}-{n}"]
            yield [f"core-{(n - 1) * half + other}", f"agg-{pod}-{n}"]
    yield ["edge-1-1", "manager"]
    yield ["edge-1-1", "near"]
    yield [f"edge-{last}", "far"]
