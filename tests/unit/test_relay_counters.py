"""counters.py: numbers only grow, whatever their sources do."""

from vmmobility.drivers.dataplane import Traffic
from vmmobility.drivers.linux.counters import Ledger
from vmmobility.wire.values import VmKey

VM = VmKey(0, "vm")


def test_sources_add_up_and_survive_their_restart() -> None:
    ledger = Ledger()
    ledger.note(VM, "redirected", "relay", 9)
    ledger.open(VM)
    for raw in (5, 7, 2):
        ledger.note(VM, "redirected", "relay", raw)
    ledger.note(VM, "redirected", "route", 1)
    assert ledger.totals(VM) == Traffic(redirected=10)


def test_a_told_restart_counts_anew_even_from_a_higher_number() -> None:
    ledger = Ledger()
    ledger.open(VM)
    ledger.note(VM, "consumed", "tap", 4)
    ledger.restart(VM, "tap")
    ledger.note(VM, "consumed", "tap", 6)
    assert ledger.totals(VM) == Traffic(consumed=10)


def test_an_entry_begins_at_zero_again() -> None:
    ledger = Ledger()
    ledger.open(VM)
    ledger.note(VM, "dropped", "filter", 4)
    ledger.close(VM)
    ledger.open(VM)
    assert ledger.totals(VM) == Traffic()
