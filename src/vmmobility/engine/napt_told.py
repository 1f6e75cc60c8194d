"""What NAPT boxes tell each other of mappings and flows: values as options, and back.

Not here: when they do (napt_boxes.py, napt_handover.py).
"""

from __future__ import annotations

from ipaddress import IPv4Address

from vmmobility.engine.napt_mapping import VmMapping
from vmmobility.engine.napt_plane import Flow
from vmmobility.wire.options import FlowOption, Mapping

FlowKey = tuple[int, tuple[IPv4Address, int], tuple[IPv4Address, int], tuple[IPv4Address, int]]


def told(mapping: VmMapping) -> Mapping:
    return Mapping(mapping.owner, mapping.private, mapping.public)


def key_of(flow: Flow) -> FlowKey:
    """What a flow is known by."""
    return flow.protocol, flow.private, flow.public, flow.remote


def flow_option(flow: Flow) -> FlowOption:
    return FlowOption(
        flow.protocol,
        flow.outgoing,
        flow.private,
        flow.public,
        flow.remote,
        flow.timeout_s,
        flow.tcp_state,
    )


def flow_of(option: FlowOption) -> Flow:
    return Flow(
        option.protocol,
        option.private,
        option.public,
        option.remote,
        option.outgoing,
        option.timeout_s,
        option.tcp_state,
    )
