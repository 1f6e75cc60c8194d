"""The outbox: in order, and nothing before the records made with it or before it are durable."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vmmobility.engine.outputs import Event, Halt, Outbox, Persist


def names(outputs: list[object]) -> list[str]:
    return [o.name if isinstance(o, Event) else type(o).__name__ for o in outputs]


def test_without_records_outputs_leave_at_once() -> None:
    outbox = Outbox()
    outbox.emit(Event("a"))
    assert names(list(outbox.flush())) == ["a"]
    assert not outbox.flush()


def test_with_records_they_wait() -> None:
    outbox = Outbox()
    outbox.emit(Event("a"))
    outbox.record("k", 1)
    assert outbox.flush() == [Persist(1, (("k", 1),))]
    outbox.emit(Event("b"))  # needs no record, but comes after what does
    assert not outbox.flush()
    outbox.persisted(1)
    assert names(list(outbox.flush())) == ["a", "b"]


def test_one_sync_may_answer_for_several() -> None:
    outbox = Outbox()
    for name in "abc":
        outbox.emit(Event(name))
        outbox.record(name, name)
        outbox.flush()
    outbox.persisted(2)
    assert names(list(outbox.flush())) == ["a", "b"]
    outbox.persisted(3)
    assert names(list(outbox.flush())) == ["c"]


def test_the_newest_value_of_a_key_counts() -> None:
    outbox = Outbox()
    outbox.record("k", 1)
    outbox.record("k", None)
    assert outbox.flush() == [Persist(1, (("k", None),))]


def test_after_a_failed_write_it_says_halt_and_nothing_more() -> None:
    outbox = Outbox()
    outbox.emit(Event("a"))
    outbox.record("k", 1)
    outbox.flush()
    outbox.emit(Event("b"))
    outbox.persist_failed("disk full")
    assert outbox.flush() == [Halt("disk full")]
    outbox.emit(Event("c"))
    outbox.record("k", 2)
    assert not outbox.flush()
    outbox.persisted(1)
    assert not outbox.flush()


@given(st.lists(st.sampled_from(["emit", "record", "flush", "persisted"]), max_size=60))
def test_order_and_durability_hold_in_any_use(steps: list[str]) -> None:
    outbox = Outbox()
    emitted, left, recorded_before, unsynced = 0, 0, dict[int, int](), list[int]()
    records = durable = 0
    covers = dict[int, int]()
    for step in [*steps, "flush", "persisted", "flush"]:
        if step == "emit":
            outbox.emit(Event(str(emitted)))
            emitted += 1
        elif step == "record":
            records += 1
            outbox.record(f"k{records}", records)
        elif step == "persisted" and unsynced:
            number = unsynced.pop(0)
            durable = covers[number]
            outbox.persisted(number)
        elif step == "flush":
            # Made together with the records of its batch, whichever came first.
            for made in range(emitted):
                recorded_before.setdefault(made, records)
            for output in outbox.flush():
                if isinstance(output, Persist):
                    covers[output.number] = records
                    unsynced.append(output.number)
                else:
                    assert isinstance(output, Event)
                    assert output.name == str(left), "out of order"
                    assert recorded_before[left] <= durable, "before its record"
                    left += 1
