"""The NAPT box's nftables table in the kernel beside the one that should be there.

What should be there is known in nft's own words: the script is run in an empty network namespace,
and what nft lists there is the picture that the kernel's table is compared with, rule by rule and
element by element.  So no version of nft can surprise, and a restart needs no memory.

Not here: the script (napt_rules.py), repair (napt_driver.py).  Rests on `nft` and `unshare`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import Any

from vmmobility.drivers.linux.filter import run_nft
from vmmobility.drivers.linux.napt_rules import Content, whole_script
from vmmobility.drivers.linux.ownership import NAPT_TABLE
from vmmobility.errors import DataPlaneError

_LIST = ("nft", "-j", "list", "table", "ip", NAPT_TABLE)
_PICTURE = ("unshare", "--net", "sh", "-c", "nft -f - && " + " ".join(_LIST))
_FEW_SHOWN = 4

run = run_nft


@dataclass(slots=True)
class Listing:
    """What nft lists of our table.

    frame:    what never changes: `chain forward`, `set inside`, … -> its nature, rules included
    elements: of each set and map, in one order; `pool`: the rules of that chain
    counts:   (packets, octets) of each counter
    """

    frame: dict[str, str] = field(default_factory=dict)
    elements: dict[str, frozenset[str]] = field(default_factory=dict)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def dropped(self) -> dict[str, int]:
        """Packets by counter."""
        return {name: packets for name, (packets, _) in self.counts.items()}

    def prefixes(self, name: str) -> list[IPv4Network]:
        """The elements of a set of addresses."""
        items = (_plain(json.loads(item)) for item in self.elements.get(name, ()))
        # A range that is no prefix was not put there by us.
        return [IPv4Network(item) for item in items if "-" not in item]


async def held() -> Listing | None:
    """What the kernel holds; None where there is no table.  Raises DataPlaneError."""
    code, output, errors = await _run(*_LIST)
    if code == 0:
        return read(output)
    if "No such file" in errors:
        return None
    raise _refusal(errors)


async def picture(wanted: Content) -> Listing:
    """What it should hold.  Raises DataPlaneError where nft or the kernel cannot do it."""
    code, output, errors = await _run(*_PICTURE, text=whole_script(wanted))
    if code != 0:
        raise _refusal(errors)
    return read(output)


def _refusal(errors: str) -> DataPlaneError:
    first = (errors.strip().splitlines() or ["no reason given"])[0]
    return DataPlaneError(f"nft: {first}", "check `nft list ruleset`")


async def _run(*words: str, text: str = "") -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(text.encode())
    return process.returncode, output.decode(), errors.decode(errors="replace")


def read(text: str) -> Listing:
    """Read nft's JSON.  Raises DataPlaneError for what is none."""
    found = Listing()
    rules: dict[str, list[str]] = {}
    try:
        for entry in json.loads(text)["nftables"]:
            ((kind, body),) = entry.items()
            if kind == "rule":
                rules.setdefault(body["chain"], []).append(_words(body["expr"]))
            elif kind == "counter":
                found.frame[f"counter {body['name']}"] = ""
                found.counts[body["name"]] = (int(body["packets"]), int(body["bytes"]))
            elif kind in ("set", "map"):
                items = body.pop("elem", ())
                found.elements[body["name"]] = frozenset(_words(item) for item in items)
                found.frame[f"{kind} {body['name']}"] = _words(body)
            elif kind == "chain":
                found.frame[f"chain {body['name']}"] = _words(body)
            elif kind != "metainfo":
                found.frame[f"{kind} {body['name']}"] = ""
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataPlaneError(f"nft: its listing cannot be read: {error}") from error
    pool = rules.pop("pool", [])
    found.elements["pool"] = frozenset(f"{n} {rule}" for n, rule in enumerate(pool))
    for chain, texts in rules.items():
        found.frame[f"chain {chain}"] = found.frame.get(f"chain {chain}", "") + "\n".join(texts)
    return found


def _words(value: Any) -> str:
    """JSON without what differs from kernel to kernel: handles, counts."""
    return json.dumps(_bare(value), sort_keys=True)


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if k not in ("handle", "packets", "bytes")}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    return value


def faults(shown: Listing | None, wanted: Listing) -> Iterator[tuple[str, str]]:
    """What differs: (item, in words what is wrong)."""
    if shown is None:
        yield f"table {NAPT_TABLE}", "is gone"
        return
    for name, nature in wanted.frame.items():
        if name not in shown.frame:
            yield name, "is gone"
        elif shown.frame[name] != nature:
            words = "has other rules" if name.startswith("chain ") else "is not as it should be"
            yield name, words
    for name in shown.frame:
        if name not in wanted.frame:
            yield name, "stands, and should not"
    for name, items in wanted.elements.items():
        there = shown.elements.get(name, frozenset())
        if name == "pool":
            if there != items:
                yield "chain pool", "has other rules"
        elif there != items:
            lacks, more = sorted(items - there), sorted(there - items)
            parts = [_some("lacks", lacks)] if lacks else []
            parts += [_some("should not have", more)] if more else []
            yield f"elements {name}", " and ".join(parts)


def _some(verb: str, items: list[str]) -> str:
    shown = ", ".join(_plain(json.loads(item)) for item in items[:_FEW_SHOWN])
    more = len(items) - _FEW_SHOWN
    return f"{verb} {shown}" + (f" and {more} more" if more > 0 else "")


def _plain(value: Any) -> str:
    """An element in a person's words."""
    if isinstance(value, dict):
        if "prefix" in value:
            return f"{value['prefix']['addr']}/{value['prefix']['len']}"
        if "range" in value:
            return "-".join(map(str, value["range"]))
        inner = next(iter(value.values()))
        return " . ".join(map(str, inner)) if isinstance(inner, list) else str(inner)
    if isinstance(value, list):
        return " : ".join(map(_plain, value))
    return str(value)


def only_elements(shown: Listing | None, wanted: Listing) -> bool:
    """Whether nothing but elements (and the pool's rules) has to change."""
    return shown is not None and shown.frame == wanted.frame
