"""What every store promises: the journal on disk and its in-memory twin."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmmobility.errors import StoreError
from vmmobility.store.interface import Store
from vmmobility.store.journal import Journal
from vmmobility.store.memory import MemoryDisk, MemoryStore


class World(Protocol):
    """A place that outlives stores, and its switches for failures."""

    def open(self) -> Store: ...
    def fail_write(self) -> None: ...
    def fail_sync(self) -> None: ...
    def tear(self) -> None: ...


class OnDisk:
    def __init__(self, directory: Path, patch: pytest.MonkeyPatch) -> None:
        self.directory, self.patch = directory, patch

    def open(self) -> Store:
        return Journal.open(self.directory)

    def _fail_once(self, call: str, number: int) -> None:
        real: Callable[..., Any] = getattr(os, call)

        def failing(*_: object) -> None:
            self.patch.setattr(os, call, real)
            raise OSError(number, os.strerror(number))

        self.patch.setattr(os, call, failing)

    def fail_write(self) -> None:
        self._fail_once("pwrite", errno.ENOSPC)

    def fail_sync(self) -> None:
        self._fail_once("fdatasync", errno.EIO)

    def tear(self) -> None:
        with (self.directory / "journal").open("r+b") as file:
            written = file.read().rstrip(b"\0")
            file.seek(len(written))
            file.write(b"\x00\x00\x01\x00torn")


class InMemory:
    def __init__(self) -> None:
        self.disk = MemoryDisk()

    def open(self) -> Store:
        return MemoryStore.open(self.disk)

    def fail_write(self) -> None:
        self.disk.fail_write = True

    def fail_sync(self) -> None:
        self.disk.fail_sync = True

    def tear(self) -> None:
        self.disk.torn = 8


@pytest.fixture(params=["journal", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return OnDisk(tmp_path / "state", monkeypatch) if request.param == "journal" else InMemory()


def reopened(world: World, store: Store) -> dict[str, Any]:
    store.close()
    again = world.open()
    state = again.load()
    again.close()
    return state


def test_a_new_store_is_empty_and_clean(world: World):
    store = world.open()
    assert store.load() == {}
    assert store.recovered is None
    store.close()


def test_a_batch_is_found_again(world: World):
    store = world.open()
    store.append([("vm/1", {"nve": "a", "epoch": 7}), ("vm/2", [1, 2.5, None, True, "ä\ud800"])])
    store.append([("vm/1", {"nve": "b", "epoch": 8}), ("vm/3", 0)])
    expected = {
        "vm/1": {"nve": "b", "epoch": 8},
        "vm/2": [1, 2.5, None, True, "ä\ud800"],
        "vm/3": 0,
    }
    assert store.load() == expected
    assert list(store.load()) == ["vm/1", "vm/2", "vm/3"]
    assert reopened(world, store) == expected


def test_none_deletes_also_what_is_absent(world: World):
    store = world.open()
    store.append([("a", 1), ("b", 2)])
    store.append([("a", None), ("never", None)])
    assert reopened(world, store) == {"b": 2}


def test_later_changes_of_one_batch_win(world: World):
    store = world.open()
    store.append([("a", 1), ("a", None), ("b", 1), ("b", 2)])
    assert reopened(world, store) == {"b": 2}


def test_load_gives_a_copy(world: World):
    store = world.open()
    value = {"list": [1]}
    store.append([("a", value)])
    value["list"].append(2)
    store.load()["a"]["list"].append(3)
    assert store.load() == {"a": {"list": [1]}}
    store.close()


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, object(), b"octets"])
def test_what_is_no_json_changes_nothing(world: World, value: object):
    store = world.open()
    store.append([("a", 1)])
    with pytest.raises((TypeError, ValueError)):
        store.append([("a", 2), ("b", value)])
    with pytest.raises(TypeError):
        store.append([(1, "x")])  # type: ignore[list-item]
    store.append([("c", 3)])
    assert reopened(world, store) == {"a": 1, "c": 3}


def test_a_batch_that_is_too_long_changes_nothing(world: World):
    store = world.open()
    with pytest.raises(StoreError, match="more than a frame holds"):
        store.append([("a", 1), ("b", "x" * (1 << 24))])
    store.append([("c", 3)])
    assert reopened(world, store) == {"c": 3}


def test_a_full_disk_ends_all_writing(world: World):
    store = world.open()
    store.append([("a", 1)])
    world.fail_write()
    with pytest.raises(StoreError) as failure:
        store.append([("a", 2)])
    assert failure.value.remedy
    with pytest.raises(StoreError, match="refuses"):
        store.append([("a", 3)])
    assert reopened(world, store) == {"a": 1}


def test_a_failed_sync_is_never_tried_again(world: World):
    store = world.open()
    store.append([("a", 1)])
    world.fail_sync()
    with pytest.raises(StoreError):
        store.append([("a", 2), ("b", 2)])
    with pytest.raises(StoreError, match="refuses"):
        store.append([("a", 3)])
    # Unknown whether it is there; never half of it.
    assert reopened(world, store) in ({"a": 1}, {"a": 2, "b": 2})


def test_one_holder_at_a_time(world: World):
    store = world.open()
    with pytest.raises(StoreError) as failure:
        world.open()
    assert failure.value.remedy
    store.close()
    world.open().close()


def test_a_closed_store_refuses(world: World):
    store = world.open()
    store.close()
    store.close()
    with pytest.raises(StoreError, match="closed"):
        store.append([("a", 1)])


def test_a_torn_end_is_dropped_and_told_once(world: World):
    store = world.open()
    store.append([("a", 1)])
    store.close()
    world.tear()
    store = world.open()
    assert store.recovered is not None
    assert store.recovered.dropped == 8
    store.append([("b", 2)])
    store.close()
    store = world.open()
    assert store.recovered is None
    assert reopened(world, store) == {"a": 1, "b": 2}


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
BATCHES = st.lists(st.lists(st.tuples(st.sampled_from("abcd"), JSON), max_size=4), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(batches=BATCHES)
def test_it_is_a_dictionary(world: World, batches: list[list[tuple[str, Any]]]):
    store = world.open()
    store.append([(key, None) for key in store.load()])
    model: dict[str, Any] = {}
    for batch in batches:
        store.append(batch)
        for key, value in batch:
            if value is None:
                model.pop(key, None)
            else:
                model[key] = value
        assert store.load() == model
    assert reopened(world, store) == model
