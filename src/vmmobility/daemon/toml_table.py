"""Reading a TOML table strictly: every error names file, key, what is wrong and the remedy.

A Table hands out checked values and remembers which keys were asked for; finish() refuses the rest.
Not here: which keys there are (config.py, keys.py).  Rests on ipaddress and difflib.
"""

from __future__ import annotations

import difflib
import ipaddress
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vmmobility.errors import ConfigError
from vmmobility.wire.formats import check_name
from vmmobility.wire.values import Address, Prefix

_MISSING: Any = object()
_KINDS = {
    dict: "a table",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    datetime: "a date with time",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), f"a {type(value).__name__}")


class Table:
    """One table of a file; `where` is its name in errors ("" at the top, "node", "peer[2]")."""

    def __init__(self, file: Path, values: Mapping[str, Any], where: str = "") -> None:
        self._file = file
        self._values = values
        self._where = where
        self._known: set[str] = set()

    def key(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def wrong(self, name: str, what: str, remedy: str = "correct this key") -> ConfigError:
        """The error for one key of this table."""
        return ConfigError(f"{self._file}: {self.key(name)}: {what}", remedy)

    def __contains__(self, name: str) -> bool:
        self._known.add(name)
        return name in self._values

    def is_list(self, name: str) -> bool:
        """Whether the file has it, and as a list ([[name]]); the key is not asked for by this."""
        return isinstance(self._values.get(name), list)

    def finish(self) -> None:
        """Raises ConfigError at the first key that nobody asked for, with the likeliest one."""
        for name in self._values:
            if name in self._known:
                continue
            close = difflib.get_close_matches(name, sorted(self._known), 1, 0.6)
            remedy = f"did you mean {self.key(close[0])}?" if close else ""
            known = ", ".join(sorted(self._known))
            raise self.wrong(name, "unknown key", remedy or f"remove it; known here: {known}")

    def _misspelt(self, name: str) -> str:
        """What to say, besides, of a key that is missing."""
        close = difflib.get_close_matches(name, set(self._values) - self._known, 1)
        return f"; or is {self.key(close[0])} meant to be it?" if close else ""

    def _take(self, name: str, kinds: tuple[type, ...], default: Any) -> Any:
        if name not in self:
            if default is _MISSING:
                remedy = f"add it: {_KINDS[kinds[0]]}{self._misspelt(name)}"
                raise self.wrong(name, "is missing", remedy)
            return default
        value = self._values[name]
        if type(value) not in kinds:
            raise self.wrong(name, f"is {_kind(value)}", f"write {_KINDS[kinds[0]]}")
        return value

    # --- sub-tables ---

    def table(self, name: str) -> Table:
        """A [name]; empty if it is absent."""
        return Table(self._file, self._take(name, (dict,), {}), self.key(name))

    def tables(self, name: str) -> Iterator[Table]:
        """The [[name]]s; none if it is absent."""
        for index, value in enumerate(self._take(name, (list,), [])):
            if not isinstance(value, dict):
                raise self.wrong(f"{name}[{index}]", f"is {_kind(value)}", f"write [[{name}]]")
            yield Table(self._file, value, self.key(f"{name}[{index}]"))

    # --- values ---

    def text(self, name: str, default: str = _MISSING) -> str:
        value: str = self._take(name, (str,), default)
        if value == "" and default != "":
            raise self.wrong(name, "is empty")
        return value

    def name(self, name: str, most: int) -> str:
        """A node's name of at most so many octets."""
        try:
            return check_name(self.text(name), most)
        except ValueError as error:
            raise self.wrong(name, str(error), "choose another name") from None

    def names(self, name: str, most: int) -> tuple[str, ...]:
        """A list of names, each of at most so many octets; none if the key is missing."""
        if name not in self:
            return ()
        found = []
        for key, text in self._texts(name):
            try:
                found.append(check_name(text, most))
            except ValueError as error:
                raise self.wrong(key, str(error)) from None
        return tuple(found)

    def choice(self, name: str, choices: tuple[str, ...], default: str = _MISSING) -> str:
        value = self.text(name, default)
        if value not in choices:
            close = difflib.get_close_matches(value, choices, 1)
            remedy = f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(choices)}"
            raise self.wrong(name, f"{value!r} is none of {', '.join(choices)}", remedy)
        return value

    def integer(self, name: str, least: int, most: int, default: int = _MISSING) -> int:
        value: int = self._take(name, (int,), default)
        if not least <= value <= most:
            raise self.wrong(name, f"{value} is not in {least} to {most}")
        return value

    def boolean(self, name: str, default: bool = _MISSING) -> bool:
        value: bool = self._take(name, (bool,), default)
        return value

    def seconds(self, name: str, least: float, most: float, default: float) -> float:
        value = float(self._take(name, (float, int), default))
        if not least <= value <= most:  # a NaN is not either
            raise self.wrong(name, f"{value:g} s is not in {least:g} to {most:g} s")
        return value

    def path(self, name: str, default: Path | None = _MISSING) -> Path:
        """An absolute path."""
        if default is not _MISSING and name not in self:
            return default  # type: ignore[return-value]
        path = Path(self.text(name))
        if not path.is_absolute():
            raise self.wrong(name, f"{str(path)!r} is relative", "write an absolute path")
        return path

    def paths(self, name: str, default: tuple[Path, ...]) -> tuple[Path, ...]:
        """Absolute paths."""
        if name not in self:
            return default
        found = tuple((key, Path(text)) for key, text in self._texts(name))
        for key, path in found:
            if not path.is_absolute():
                raise self.wrong(key, f"{str(path)!r} is relative", "write an absolute path")
        return tuple(path for _, path in found)

    def optional_path(self, name: str) -> Path | None:
        return self.path(name) if name in self else None

    def timestamp(self, name: str) -> datetime:
        """A date with time; without a zone it is UTC."""
        value: datetime = self._take(name, (datetime,), _MISSING)
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts, as they stand."""
        return tuple(text for _, text in self._texts(name))

    # --- addresses ---

    def _texts(self, name: str) -> Iterator[tuple[str, str]]:
        for index, value in enumerate(self._take(name, (list,), _MISSING)):
            entry = f"{name}[{index}]"
            if not isinstance(value, str):
                raise self.wrong(entry, f"is {_kind(value)}", "write it as text")
            yield entry, value

    def addresses(self, name: str, *, loopback: bool) -> tuple[Address, ...]:
        """One address or more that a peer can reach; loopback: whether that is one of them."""
        found: list[Address] = []
        for entry, text in self._texts(name):
            try:
                address = ipaddress.ip_address(text)
            except ValueError:
                raise self.wrong(
                    entry, f"{text!r} is no IP address", 'write like "192.0.2.1" or "2001:db8::1"'
                ) from None
            problem = unreachable(address, loopback=loopback)
            if problem:
                raise self.wrong(entry, f"{text} is {problem}", "use an address of the fabric")
            if address in found:
                raise self.wrong(entry, f"{text} stands here twice", "remove one")
            found.append(address)
        if not found:
            raise self.wrong(name, "is empty", "give at least one address")
        return tuple(found)

    def address(self, name: str, *, loopback: bool) -> Address:
        """One address, written as a text; what it may be, as addresses() says."""
        one = Table(self._file, {name: [self.text(name)]}, self._where)
        return one.addresses(name, loopback=loopback)[0]

    def prefixes(self, name: str) -> tuple[Prefix, ...]:
        """Prefixes without host bits; that there are none must be said: []."""
        if name not in self:
            remedy = f"add it: a list of prefixes{self._misspelt(name)}; if there are none, []"
            raise self.wrong(name, "is missing", remedy)
        found: list[Prefix] = []
        for entry, text in self._texts(name):
            try:
                prefix = ipaddress.ip_network(text, strict=False)
            except ValueError:
                raise self.wrong(
                    entry, f"{text!r} is no prefix", 'write like "192.0.2.0/24"'
                ) from None
            if ipaddress.ip_interface(text).ip != prefix.network_address:
                raise self.wrong(entry, f"{text} has host bits set", f"did you mean {prefix}?")
            if prefix in found:
                raise self.wrong(entry, f"{text} stands here twice", "remove one")
            found.append(prefix)
        return tuple(found)


def unreachable(address: Address, *, loopback: bool) -> str:
    """Why no peer on a routed fabric can reach this address; empty if one can."""
    if address.version == 6 and (address.scope_id is not None or address.ipv4_mapped is not None):
        return "scoped to a link" if address.scope_id is not None else "an IPv4-mapped address"
    if address.is_loopback:
        return "" if loopback else "a loopback address"
    problems = {
        "link-local": address.is_link_local,
        "a multicast address": address.is_multicast,
        "the unspecified address": address.is_unspecified,
        "the broadcast address": str(address) == "255.255.255.255",
    }
    return next((problem for problem, true in problems.items() if true), "")
