"""filter.py: elements that nft knows as numbers, written and read back."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from vmmobility.drivers.linux.filter import TOO_BIG, count_script, prefix_of
from vmmobility.drivers.linux.filter_listing import _numbers


@pytest.mark.parametrize(
    "text",
    ["10.77.0.5/32", "10.78.0.0/24", "0.0.0.0/0", "0.0.0.0/32", "255.255.255.255/32",
     "fd77::5/128", "fd78::/64", "::/0", "::/128", "ff00::/8"],
)  # fmt: skip
def test_a_prefix_survives_as_numbers(text: str) -> None:
    prefix = ip_network(text)
    (line,) = [one for one in count_script([prefix], [TOO_BIG]).splitlines() if TOO_BIG in one]
    element = line.partition("{")[2].partition("}")[0].strip()
    shown = f"\t\telements = {{ {element} counter packets 3 bytes 99 }}\n"
    assert list(_numbers(shown, prefix.version)) == [prefix]


@pytest.mark.parametrize(("first", "last"), [(0, 2), (1, 2), (2, 5), (3, 4)])
@pytest.mark.parametrize("version", [4, 6])
def test_a_range_that_is_no_prefix_is_none(first: int, last: int, version: int) -> None:
    assert prefix_of(first, last, version) is None
