"""The feed of events: what is kept, who hears what, who is cut off; and server-sent events."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.namespaces import wait_for
from tests.unit.asked_api import raw, request
from tests.unit.cli.command_line import Ran
from tests.unit.tcp_api import LOOPBACKS, TcpApi, tcp_api
from vmmobility.api import event_routes
from vmmobility.api.client import ManagerClient, _events_of
from vmmobility.api.declared import ApiRole
from vmmobility.api.errors import BadRequest
from vmmobility.api.tokens import add_token, revoke_token
from vmmobility.daemon import event_feed
from vmmobility.daemon.event_feed import (
    KEPT,
    LOST,
    MOST_OF_ASKER,
    MOST_READERS,
    MOST_WAITING,
    EventFeed,
    Wanted,
)
from vmmobility.engine.outputs import Event
from vmmobility.errors import Unavailable

ALL = Wanted()


def feeding(test: Callable[[EventFeed], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await test(EventFeed(7))

    asyncio.run(run())


def names(reader: event_feed.Reader) -> list[str]:
    return [row["event"] for row in reader.waiting()]


def test_what_came_after_an_id():
    async def run(feed: EventFeed) -> None:
        for number in range(5):
            feed.on_event(Event(f"move.{number}", {"vm": "vm1"}))
        feed.on_event(Event("drop", {"reason": "x"}))
        assert names(feed.follow("", ALL)) == []
        assert names(feed.follow("7-3", ALL)) == ["move.3", "move.4"]
        assert names(feed.follow("7-5", ALL)) == []
        assert len(names(feed.follow("0", ALL))) == 5

    feeding(run)


@pytest.mark.parametrize("after", ["6-3", "7-99999", "x", "7-", "7--1", "7-1", "-"])
def test_what_is_no_more_is_told(after: str):
    async def run(feed: EventFeed) -> None:
        for number in range(KEPT + 10):
            feed.add("move.done", {"n": number})
        rows = list(feed.follow(after, Wanted(kinds=frozenset({"move"}))).waiting())
        assert (rows[0]["event"], rows[0]["after"]) == (LOST, after)
        assert len(rows) == KEPT + 1

    feeding(run)


def test_who_hears_what():
    async def run(feed: EventFeed) -> None:
        readers = {
            "kind": feed.follow("", Wanted(frozenset({"move", "binding.lost"}))),
            "vm": feed.follow("", Wanted(vm=(0, "vm1"))),
            "vni": feed.follow("", Wanted(vm=(3, "vm1"))),
            "move": feed.follow("", Wanted(move="m1")),
            "audit": feed.follow("", Wanted(audit=True)),
            "all": feed.follow("", ALL),
        }
        feed.add("move.done", {"vm": "vm1", "vni": 0, "move": "m1"})
        feed.add("binding.lost", {"vm": "vm1", "vni": 3})
        feed.add("binding.expired", {"vm": "vm2", "vni": 0})
        feed.add("api.request", {"who": "ci"})
        feed.add("move.progress", {"vm": "vm1", "vni": 0, "move": "m1"}, keep=False)
        heard = {}
        for name, reader in readers.items():
            rows = []
            while not reader._rows.empty():
                rows.append(await reader.next(1))
            heard[name] = [row["event"] for row in rows if row]
        assert heard == {
            "kind": ["move.done", "binding.lost", "move.progress"],
            "vm": ["move.done", "move.progress"],
            "vni": ["binding.lost"],
            "move": ["move.done", "move.progress"],
            "audit": [
                "move.done",
                "binding.lost",
                "binding.expired",
                "api.request",
                "move.progress",
            ],
            "all": ["move.done", "binding.lost", "binding.expired", "move.progress"],
        }
        assert [row["event"] for _, row in feed._kept][-1] == "api.request"

    feeding(run)


def test_who_does_not_keep_up_is_cut_off_and_the_others_go_on():
    async def run(feed: EventFeed) -> None:
        slow, quick = feed.follow("", ALL), feed.follow("", ALL)
        for number in range(MOST_WAITING + 1):
            feed.add("move.done", {"n": number})
            assert (await quick.next(1) or {})["n"] == number
        assert slow.is_cut_off
        assert await slow.next(1) is None
        assert feed.cut_off == 1
        feed.add("move.done", {})
        assert await quick.next(1)

    feeding(run)


def test_only_so_many_follow():
    async def run(feed: EventFeed) -> None:
        readers = [feed.follow("", ALL) for _ in range(MOST_READERS)]
        with pytest.raises(Unavailable):
            feed.follow("", ALL)
        readers[0].close()
        assert not feed.follow("", ALL).is_closed

    feeding(run)


def test_who_is_afar_takes_no_place_from_who_is_here_nor_all_from_others():
    async def run(feed: EventFeed) -> None:
        for _ in range(MOST_OF_ASKER):
            feed.follow("", ALL, "ci")
        with pytest.raises(Unavailable, match="this token"):
            feed.follow("", ALL, "ci")
        for number in range(MOST_READERS - MOST_OF_ASKER):
            feed.follow("", ALL, f"token-{number}")
        with pytest.raises(Unavailable):
            feed.follow("", ALL, "another")
        assert not feed.follow("", ALL).is_closed

    feeding(run)


def test_what_is_no_event_of_an_engine_is_looked_for_while_somebody_follows(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(event_feed, "LOOK_S", 0.01)
    looks: list[list[tuple[str, dict[str, Any], bool]]] = [
        [("move.progress", {}, False)],
        [("alarm.raised", {"alarm": "a"}, True)],
    ]

    async def run() -> None:
        feed = EventFeed(1, lambda: looks.pop() if looks else [])
        reader = feed.follow("", ALL)
        first, second = await reader.next(5), await reader.next(5)
        assert first is not None
        assert (first["event"], first["id"]) == ("alarm.raised", "1-1")
        assert second is not None
        assert "id" not in second
        assert await reader.next(0.05) is None

    asyncio.run(run())


# --- server-sent events ---


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TcpApi]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_routes, "HEARTBEAT_S", 0.05)
        patch.setattr(event_routes, "WRITE_S", 0.3)
        with tcp_api(tmp_path_factory.mktemp("events")) as api:
            yield api


def happen(api: TcpApi, name: str, **detail: Any) -> None:
    loop = api.service.loop
    assert loop is not None
    loop.call_soon_threadsafe(lambda: api.service.feed.add(name, detail))


@pytest.mark.parametrize("address", LOOPBACKS)
def test_events_come_as_they_happen(api: TcpApi, address: str):
    with (
        api.client(api.secrets["read"], address) as client,
        client.events(10, kind="move") as events,
    ):
        assert next(events) is None  # it has begun
        happen(api, "binding.lost", vm="vm1")
        happen(api, "move.done", vm="ä\n\nb", move="m1")
        event = next(event for event in events if event)
        assert (event["event"], event["vm"]) == ("move.done", "ä\n\nb")
        assert next(events) is None  # and goes on
    happen(api, "move.failed", vm="vm1")
    with api.client(api.secrets["read"], address) as client:
        with client.events(10, after=event["id"], follow="false") as events:
            assert [row["event"] for row in events if row] == ["move.failed"]
        with client.events(10, after="0-1", follow="false") as events:
            assert next(row["event"] for row in events if row) == LOST


def test_who_asks_is_told_to_administrators_alone(api: TcpApi):
    for role, hears in (("operate", False), ("admin", True)):
        with api.client(api.secrets[role]) as client:
            client.events(10)  # the loop is known
            with client.events(10, after="0", follow="false") as events:
                list(events)
            happen(api, "api.request", who="ci")
            with client.events(10, kind="api", follow="false") as events:
                assert any(row for row in events if row) is hears


def test_its_form_on_the_wire(api: TcpApi):
    bearer = f"Authorization: Bearer {api.secrets['read']}\r\n"
    with socket.create_connection(("127.0.0.1", api.ports["127.0.0.1"]), timeout=10) as sock:
        head = f"GET /v1/events HTTP/1.1\r\nHost: x\r\n{bearer}Last-Event-ID: 9-9\r\n\r\n"
        sock.sendall(head.encode())
        text = b""
        while b"\n\n\r\n" not in text or LOST.encode() not in text:
            text += sock.recv(65536)
    assert b"content-type: text/event-stream" in text
    assert f"event: {LOST}\ndata: {{".encode() in text


def test_a_reader_that_takes_nothing_is_cut_off(api: TcpApi):
    wait_for(lambda: not api.service.feed._readers, "who followed before has left")
    bearer = f"Authorization: Bearer {api.secrets['read']}\r\n"
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", api.ports["127.0.0.1"]))
        sock.sendall(f"GET /v1/events HTTP/1.1\r\nHost: x\r\n{bearer}\r\n".encode())
        wait_for(lambda: api.service.feed._readers, "it follows")
        for number in range(400):
            happen(api, "move.done", text="x" * 20_000, number=number)
        wait_for(lambda: not api.service.feed._readers, "it is cut off")


def test_a_reader_that_leaves_is_forgotten(api: TcpApi):
    wait_for(lambda: not api.service.feed._readers, "who followed before has left")
    with api.client(api.secrets["read"]) as client, client.events(10) as events:
        next(events)
        assert len(api.service.feed._readers) == 1
    wait_for(lambda: not api.service.feed._readers, "it is forgotten")


def test_a_token_that_is_revoked_hears_no_more(api: TcpApi):
    """Also while one event follows another."""
    for busy in (False, True):
        secret, made = add_token(api.tokens, "passing", ApiRole.READ, time.time(), None)
        with api.client(secret) as client, client.events(10) as events:
            next(events)
            revoke_token(api.tokens, made.name)
            deadline = time.monotonic() + 20
            for _ in events:
                assert time.monotonic() < deadline
                if busy:
                    happen(api, "move.done")
        wait_for(lambda: not api.service.feed._readers, "it is forgotten")


def test_an_event_has_no_line_in_it_but_its_own(api: TcpApi):
    """What another token wrote breaks nobody's stream."""
    nasty = "a\u2028b\u2029c\x85d\x0b\x0c\x1c\re\nf"
    with api.client(api.secrets["read"]) as client, client.events(10) as events:
        next(events)
        happen(api, "move.done", vm=nasty)
        assert next(row for row in events if row)["vm"] == nasty
    assert event_routes.written({"event": "x", "text": nasty}).isascii()


def test_a_client_takes_a_newline_alone_for_the_end_of_a_line():
    text = 'id: 1\ndata: {"vm": "a\u2028b\x85c"}\n\n:\n\n'.encode()
    parts = iter([text[:25], text[25:26], text[26:]])
    assert list(_events_of(parts)) == [{"vm": "a\u2028b\x85c"}, None]


@pytest.mark.parametrize(
    "query", ["follow=maybe", "vm=a%20b", "vm=vm1&vni=x", f"move={'x' * 300}", f"kind={'x' * 300}"]
)
def test_what_cannot_be_followed(api: TcpApi, query: str):
    status, answer = raw(api.socket, request("GET", f"/v1/events?{query}"))
    assert (status, bool(answer["remedy"])) == (400, True)
    with (
        ManagerClient(api.socket) as client,
        pytest.raises(BadRequest),
        client.events(5, follow="x"),
    ):
        pass


def test_events_by_the_command_line(api: TcpApi, tmp_path: Path, capsys: Any):
    from vmmobility.cli import main as cli

    def vmmob(*words: str) -> Ran:
        with pytest.raises(SystemExit) as end:
            cli.main(["events", "--socket", str(api.socket), *words])
        return Ran(int(end.value.code or 0), *capsys.readouterr())

    happen(api, "move.done", vm="vm9", vni=0, move="m9", at_ms=12.5)
    line = vmmob("--vm", "vm9").out
    assert line.split()[1:] == ["move.done", "vm9", "move=m9", "at_ms=12.5"]
    [row] = [json.loads(text) for text in vmmob("--move", "m9", "--json").out.splitlines()]
    assert row["vm"] == "vm9"
    assert vmmob("--kind", "binding.lost", "--vm", "vm9").out == ""
