"""Who hears of interfaces: what routes rest on is told, what is ours or says nothing new is not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.namespaces import Namespace, wait_for
from vmmobility.drivers.linux.link_watch import LinkWatch

pytestmark = pytest.mark.netns


class Watched:
    """A namespace with one pair of interfaces, watched: `told` counts."""

    def __init__(self) -> None:
        self.space = Namespace("lw")
        self.told = 0
        self.space.ip("link", "add", "one", "type", "veth", "peer", "name", "other")
        self.watch = self.space.call(LinkWatch, self._changed)
        self.space.call(self.watch.open)

    def _changed(self) -> None:
        self.told += 1

    def change(self, *words: str) -> int:
        """Make a change that counts; how often anything was told until it was."""
        before = self.told
        self.space.ip("link", *words)
        wait_for(lambda: self.told > before, f"{' '.join(words)} is told")
        return self.told - before

    def close(self) -> None:
        self.space.call(self.watch.close)
        self.space.close()


@pytest.fixture
def watched() -> Iterator[Watched]:
    one = Watched()
    yield one
    one.close()


@pytest.mark.parametrize(
    "words",
    [
        ("set", "one", "up"),
        ("set", "one", "mtu", "1400"),
        ("set", "one", "name", "two"),
        ("del", "one"),
    ],
)
def test_what_routes_rest_on_is_told(watched: Watched, words: tuple[str, ...]) -> None:
    watched.change("set", "one", "mtu", "1450")  # from here on it is known
    watched.change(*words)


@pytest.mark.parametrize(
    "words", [("set", "one", "alias", "again"), ("set", "vmt5.0", "up"), ("del", "vmt5.0")]
)
def test_what_changes_nothing_for_routes_is_not_told(
    watched: Watched, words: tuple[str, ...]
) -> None:
    watched.space.ip("tuntap", "add", "dev", "vmt5.0", "mode", "tap")
    watched.change("set", "one", "up")
    before = watched.told
    watched.space.ip("link", *words)
    watched.change("set", "one", "mtu", "1300")
    assert watched.told == before + 1


def test_after_its_end_nothing_is_told(watched: Watched) -> None:
    watched.space.call(watched.watch.close)
    watched.space.ip("link", "set", "one", "up")
    watched.space.call(lambda: None)
    assert watched.told == 0
