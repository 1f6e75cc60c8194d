"""A TOML table read key by key: wrong types and unknown keys are errors that say where.

Not here: what the keys mean (fabric.py, scenario.py).  Rests on tomllib and errors.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from vmmobility.errors import LabError

T = TypeVar("T")
_MISSING: Any = object()
_TYPE_NAMES = {str: "a string", int: "a whole number", bool: "true or false", list: "an array",
               dict: "a table", float: "a number", object: "it"}  # fmt: skip


def load(path: Path) -> dict[str, Any]:
    """The file's TOML, or a LabError that names the file."""
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}", "give the path of a TOML file") from error
    except (ValueError, RecursionError) as error:  # tomllib raises both, and its own
        raise LabError(f"{path}: not TOML: {error}", "correct the file at that line") from error


class Table:
    """One table: `take` its keys, then leave; what was not taken is an unknown key."""

    def __init__(self, data: dict[str, Any], where: str) -> None:
        self._data = dict(data)
        self._known: list[str] = []
        self.where = where

    def take(self, key: str, kind: type[T], default: T = _MISSING) -> T:
        """The value of `key`, of type `kind`; without a default the key is required."""
        self._known.append(key)
        value = self._data.pop(key, _MISSING)
        if value is _MISSING:
            if default is _MISSING:
                raise LabError(f"{self.where}: `{key}` is missing", f"add {_TYPE_NAMES[kind]}")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise LabError(f"{self.where}: `{key}` is {value!r}", f"make it {_TYPE_NAMES[kind]}")
        return value

    def has(self, key: str) -> bool:
        """Whether the key is given (and not yet taken)."""
        return key in self._data

    def peek(self, key: str) -> Any:
        """The value of `key` without taking it."""
        return self._data.get(key)

    def strings(self, key: str, default: tuple[str, ...] = _MISSING) -> tuple[str, ...]:
        """An array of strings."""
        values = self.take(key, list, _MISSING if default is _MISSING else list(default))
        for value in values:
            if not isinstance(value, str):
                raise LabError(f"{self.where}: `{key}` holds {value!r}", "use strings only")
        return tuple(values)

    def choice(self, key: str, choices: tuple[str, ...], default: str = _MISSING) -> str:
        """A string out of `choices`."""
        value = self.take(key, str, default)
        if value not in choices:
            raise LabError(
                f"{self.where}: `{key}` is {value!r}", "use one of " + ", ".join(choices)
            )
        return value

    def tables(self, key: str) -> Iterator[Table]:
        """The tables of an array of tables; each is checked for unknown keys when done with."""
        for number, data in enumerate(self.take(key, list, []), 1):
            if not isinstance(data, dict):
                raise LabError(f"{self.where}: `{key}` is not a table", f"write [[{key}]]")
            table = Table(data, f"{self.where}: {key} {data.get('name', number)}")
            yield table
            table.finish()

    def finish(self) -> None:
        """Every key left is unknown: an error that names the nearest known one."""
        for key in self._data:
            near = difflib.get_close_matches(key, self._known, 1)
            remedy = f"did you mean `{near[0]}`?" if near else "known: " + ", ".join(self._known)
            raise LabError(f"{self.where}: unknown key `{key}`", remedy)


@contextmanager
def whole(data: dict[str, Any], where: str) -> Iterator[Table]:
    """A table that must be used up when the block ends."""
    table = Table(data, where)
    yield table
    table.finish()
