"""What a router must have and be: the right to change routes, forwarding, the rule for table 7701.

Each missing thing is an EnvironmentProblem with its remedy.  Not here: anything of a VM; what an
NVE needs (environment.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vmmobility.drivers.linux import policy_rules, sysctl
from vmmobility.drivers.linux.netlink import Netlink, Refusal
from vmmobility.drivers.linux.ownership import HOLD_RULE_PRIORITY, HOLD_TABLE
from vmmobility.drivers.linux.policy_rules import Rule
from vmmobility.errors import EnvironmentProblem
from vmmobility.wire.values import FAMILIES

_STATUS = Path("/proc/self/status")
_CAP_NET_ADMIN = 1 << 12
_EEXIST = 17

SETTINGS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    # Else routes that name a next hop object (FRR's) are told without their next hops.
    "net/ipv4/nexthop_compat_mode": "1",
    # Of several next hops a packet's whole flow (addresses, protocol, ports) takes one: else all
    # packets of two hosts do (0), and members of a load-shared group share no load of one host.
    "net/ipv4/fib_multipath_hash_policy": "1",
    "net/ipv6/fib_multipath_hash_policy": "1",
}


def check_rights() -> None:
    """Raise EnvironmentProblem unless this process may change routes and rules."""
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff" and not int(value, 16) & _CAP_NET_ADMIN:
            raise EnvironmentProblem(
                "the router agent may not change routes: it lacks the capability CAP_NET_ADMIN",
                "run it as root, or under systemd with AmbientCapabilities=CAP_NET_ADMIN",
            )


def ensure_settings() -> None:
    """Forwarding in both families, flows that stay on their path.  Raises EnvironmentProblem where
    that may not be set."""
    sysctl.ensure(SETTINGS)


def wanted_rules() -> list[Rule]:
    """All packets look up table 7701 before the main table."""
    return [Rule(v, "", HOLD_TABLE, HOLD_RULE_PRIORITY) for v in FAMILIES]


def held_rules(netlink: Netlink) -> list[Rule]:
    """The rules of ours for table 7701; those of an NVE are not a router's."""
    return [rule for rule in policy_rules.rules_of_ours(netlink) if rule.table == HOLD_TABLE]


def ensure_rules(netlink: Netlink) -> None:
    """Have each rule once, and no other of ours.  Raises EnvironmentProblem."""
    wanted, held = wanted_rules(), held_rules(netlink)
    missing = [rule for rule in wanted if rule not in held]
    outcomes = netlink.batch([policy_rules.new_rule(rule) for rule in missing]) if missing else []
    for rule, outcome in zip(missing, outcomes, strict=True):
        if isinstance(outcome, Refusal) and outcome.number != _EEXIST:
            raise EnvironmentProblem(
                f"IPv{rule.version}: the kernel refuses the rule for table {rule.table}: {outcome}",
                "it needs policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)",
            )
    surplus = [rule for rule in held if rule not in wanted]
    if surplus:
        netlink.batch([policy_rules.delete_rule(rule) for rule in surplus])


def remove_rules(netlink: Netlink) -> None:
    """Remove every rule of ours for table 7701."""
    if held := held_rules(netlink):
        netlink.batch([policy_rules.delete_rule(rule) for rule in held])


def faults(netlink: Netlink) -> Iterator[tuple[str, str]]:
    """What differs of settings and rules: (item, what is wrong) in words."""
    for key, value, current in sysctl.differing(SETTINGS):
        yield f"sysctl {key.replace('/', '.')}", f"is {current}; it should be {value}"
    wanted, held = wanted_rules(), held_rules(netlink)
    for rule in wanted:
        if rule not in held:
            yield f"rule {_words(rule)}", "is gone"
    for rule in held:
        if rule not in wanted:
            yield f"rule {_words(rule)}", "stands, and should not"


def _words(rule: Rule) -> str:
    whose = rule.interface or "all packets"
    return f"IPv{rule.version} of {whose}, table {rule.table}, priority {rule.priority}"
