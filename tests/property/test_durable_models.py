"""What is durable against models: the journal with crashes at any octet, replay windows over
restarts, the Binding Update List and what routers are told, and hold, through the store.

Not here: the journal's own system calls (tests/unit/test_journal_compaction.py).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.property.test_wire_properties import interfaces, names, nves, uints
from vmmobility.engine import binding_update_list as bul
from vmmobility.engine.binding_update_list import BindingUpdateList, Entry
from vmmobility.engine.fabric_record import FabricEntry, Lead, Told, fabric_to_json, load_fabric
from vmmobility.engine.replay_window import ReplayWindow
from vmmobility.engine.router import RouteEntry, load_routes, route_to_json
from vmmobility.store.journal import Journal
from vmmobility.wire.registry import GuestLife, GuestState, Mobility, Phase, RouteState
from vmmobility.wire.values import VmKey

JSON = st.recursive(
    st.none() | st.booleans() | uints(64) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
BATCHES = st.lists(st.tuples(st.sampled_from("abcdef") | st.text(max_size=6), JSON), max_size=5)


class JournalMachine(RuleBasedStateMachine):
    """A journal is a dictionary, whatever happens to the octets after the last sync."""

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")  # syncs cost nothing there, and no disk is asked to lose power
        place = memory if memory.is_dir() else None
        self.folder = Path(tempfile.mkdtemp(prefix="journal-", dir=place))
        self.store = Journal.open(self.folder)
        self.model: dict[str, Any] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def told(self, batch: list[tuple[str, Any]]) -> dict[str, Any]:
        state = dict(self.model)
        for key, value in batch:
            state.pop(key, None) if value is None else state.update({key: value})
        return state

    @rule(batch=BATCHES)
    def append(self, batch: list[tuple[str, Any]]) -> None:
        self.store.append(batch)
        self.model = self.told(batch)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Journal.open(self.folder)
        assert self.store.recovered is None

    @rule(batch=BATCHES, where=st.floats(0, 1), what=st.sampled_from(("cut", "zeros", "noise",
          "first")), noise=st.randoms(use_true_random=False))  # fmt: skip
    def crash(self, batch: list[tuple[str, Any]], where: float, what: str, noise: Any) -> None:
        """Power is lost in a write: of its octets some are on the disk, and perhaps wrong ones."""
        path, before = self.folder / "journal", self.store._end
        after = self.told(batch)
        self.store.append(batch)
        end = self.store._end
        self.store.close()
        data = bytearray(path.read_bytes())
        place = before + int(where * (end - before))
        if what == "cut":
            del data[place:]
        elif what == "zeros":
            data[place:end] = bytes(end - place)
        elif what == "noise":
            data[place:end] = noise.randbytes(end - place)
        else:
            data[before:place] = bytes(place - before)
        whole = bytes(data[before:end]) == path.read_bytes()[before:end]
        path.write_bytes(data)
        self.store = Journal.open(self.folder)
        self.model = after if whole else self.model

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        assert self.store.load() == self.model


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=40, stateful_step_count=20)


class Receiver(RuleBasedStateMachine):
    """A receiver that crashes: what a datagram led to, once durable, it leads to only once."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, int]] = []
        self.boot, self.counter = 1, 0
        self.window, self.disk = ReplayWindow(1, 0), (1, 0)
        self.waiting: list[tuple[int, int]] = []  # accepted, and their effects not yet durable
        self.effects: list[tuple[int, int]] = []

    @rule(leap=st.sampled_from((1, 1, 1, 2, 700, 1024, 5000)))
    def send(self, leap: int) -> None:
        self.counter += leap
        self.sent.append((self.boot, self.counter))

    @rule(leap=st.integers(1, 1 << 40))
    def sender_restarts(self, leap: int) -> None:
        self.boot, self.counter = self.boot + leap, 0

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """Any datagram that was ever sent, again and again."""
        if self.sent:
            boot, counter = data.draw(st.sampled_from(self.sent))
            why = self.window.check(boot, counter)
            if why is None:
                self.window.accept(counter)
                self.waiting.append((boot, counter))
            else:
                ahead = boot == self.window.boot and counter > self.window.high
                assert not ahead, "what was never heard is refused"

    @rule()
    def prove(self) -> None:
        """The sender answers a challenge: all that it said before counts as seen."""
        if self.window.boot != self.boot:
            self.counter += 1
            self.window = ReplayWindow(self.boot, self.counter)

    @rule()
    def sync(self) -> None:
        self.disk = (self.window.boot, self.window.high)
        self.effects += self.waiting
        self.waiting = []

    @rule()
    def receiver_restarts(self) -> None:
        self.window = ReplayWindow(*self.disk)
        self.waiting = []

    @invariant()
    def nothing_takes_effect_twice(self) -> None:
        assert len(set(self.effects)) == len(self.effects)
        assert self.disk <= (self.window.boot, self.window.high), "a mark goes back"


TestReceiver = Receiver.TestCase
TestReceiver.settings = settings(max_examples=80, stateful_step_count=40)

# ---- the Binding Update List -------------------------------------------------------------------

vms = st.builds(VmKey, st.integers(0, (1 << 24) - 1), names(64))
DURABLE: dict[str, st.SearchStrategy[Any]] = {
    "interfaces": st.lists(interfaces, max_size=3).map(tuple),
    "definition": st.text(max_size=40).map(str.encode),
    "phase": st.sampled_from(Phase),
    "epoch": uints(64),
    "granted": uints(64),
    "attach_id": uints(64),
    "ticket": st.just(b"") | st.binary(min_size=16, max_size=16),
    "mobility": st.sampled_from(Mobility),
    "target": st.none() | nves,
    "accept": st.lists(nves, max_size=4).map(tuple),
    "came_from": st.sampled_from(Phase),
    "lifetime_s": st.integers(0, 1 << 18).map(float),
    "move_epoch": uints(64),
    "ending": st.booleans(),
    "turned": st.booleans(),
    "unplugged": st.booleans(),
    "expected": st.booleans(),
    "claiming": st.booleans(),
    "arrived": st.sampled_from(GuestLife),
    "paused": st.booleans(),
    "relaying": st.booleans(),
    "guest": st.sampled_from(GuestState),
    "wanted": st.sampled_from(GuestState),
    "settled": st.booleans(),
    "guest_epoch": uints(64),
    "grace_s": uints(16),
    "kept": st.booleans(),
    "crashed": st.booleans(),
}


def entries() -> st.SearchStrategy[Entry]:
    return st.builds(Entry, vms, **DURABLE)


@given(st.lists(entries(), max_size=4, unique_by=lambda e: e.vm))
def test_a_list_survives_its_journey_through_the_store(held: list[Entry]) -> None:
    state = {BindingUpdateList.key(e.vm): bul.entry_to_json(e) for e in held}
    loaded = bul.load(json.loads(json.dumps(state)))
    assert set(loaded) == {e.vm for e in held}
    for entry in held:
        again = loaded[entry.vm]
        if entry.is_tombstone:
            assert (again.phase, again.epoch) == (Phase.NONE, entry.epoch)
        else:
            for name in DURABLE:
                assert type(getattr(again, name)) is type(getattr(entry, name)), name
                assert getattr(again, name) == getattr(entry, name), name
        assert bul.entry_to_json(again) == bul.entry_to_json(entry), "and a second time the same"


def test_what_an_entry_writes_is_what_this_test_knows() -> None:
    """A new durable field wants its line in DURABLE."""
    entry = Entry(VmKey(0, "x"), phase=Phase.SERVING)
    assert set(bul.entry_to_json(entry)) == set(DURABLE)
    assert set(DURABLE) <= {f.name for f in fields(Entry)}


# ---- routers: what they hold, and what the manager has told them ---------------------------------

HELD: dict[str, st.SearchStrategy[Any]] = {
    "epoch": uints(64),
    "state": st.sampled_from(RouteState),
    "interfaces": st.lists(interfaces, max_size=3).map(tuple),
    "serving": nves,
    "previous": st.none() | nves,
}


@given(st.lists(st.builds(RouteEntry, vms, **HELD), max_size=4, unique_by=lambda e: e.vm))
def test_a_routers_entries_survive_their_journey_through_the_store(held: list[RouteEntry]) -> None:
    state = {entry.key: route_to_json(entry) for entry in held}
    loaded = {e.vm: e for e in load_routes(json.loads(json.dumps(state)))}
    assert set(loaded) == {e.vm for e in held}
    for entry in held:
        again = loaded[entry.vm]
        assert (again.state, again.epoch) == (entry.state, entry.epoch)
        if entry.state is not RouteState.NONE:
            assert again == entry
            assert again.routes() == entry.routes()
        assert route_to_json(again) == route_to_json(entry), "and a second time the same"


leads = st.builds(Lead, st.sampled_from([s for s in RouteState if s]), nves, st.none() | nves)
tolds = st.builds(
    Told, st.none() | leads, uints(64), st.booleans(), st.lists(nves, max_size=3).map(tuple)
)
fabric_entries = st.builds(
    FabricEntry,
    vms,
    st.lists(interfaces, max_size=3).map(tuple),
    st.dictionaries(names(64), tolds, min_size=1, max_size=4),
)


@given(st.lists(fabric_entries, max_size=4, unique_by=lambda e: e.vm))
def test_what_routers_were_told_survives_its_journey_too(told: list[FabricEntry]) -> None:
    state = {entry.key: fabric_to_json(entry) for entry in told}
    assert load_fabric(json.loads(json.dumps(state))) == {entry.vm: entry for entry in told}


@given(st.lists(leads, min_size=1, max_size=5))
def test_a_router_may_lead_wherever_it_was_told_until_it_obeys(orders: list[Lead]) -> None:
    told = Told(None, 0)
    for epoch, lead in enumerate(orders, 1):
        told = told.then(lead, epoch)
    before = [lead.target for lead in orders[:-1] if lead.target is not None]
    assert told.held == tuple(dict.fromkeys(before))
    told.done()
    assert not told.held
