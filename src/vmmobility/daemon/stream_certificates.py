"""The certificates of the streams between hosts ([hypervisor] tls): whether others believe them.

A daemon starts with unsound ones all the same: its guests run on, only nothing is moved.
Not here: what the files are (drivers/hypervisor/stream_tls.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vmmobility.daemon.config import NveConfig
from vmmobility.daemon.server_config import ServerConfig
from vmmobility.drivers.hypervisor.stream_tls import StreamTls
from vmmobility.errors import ConfigError, HypervisorError


def check_certificates(config: Any) -> None:
    """See that other hosts would believe what the configuration names, if it names any, where they
    dial this one.  Raises ConfigError."""
    if isinstance(config, NveConfig):
        addresses = config.locators
    elif isinstance(config, ServerConfig):
        addresses = (config.address,)
    else:
        return
    if config.hypervisor.tls is None:
        return
    try:
        StreamTls(config.hypervisor.tls).check(tuple(map(str, addresses)))
    except HypervisorError as error:
        raise ConfigError(f"{config.file}: hypervisor.tls: {error.message}", error.remedy) from None


def tell_certificates(config: NveConfig | ServerConfig, note: Callable[..., None]) -> None:
    """An event if they are not sound, and nothing can be moved by them."""
    try:
        check_certificates(config)
    except ConfigError as error:
        note("tls.unusable", reason=error.message, remedy=error.remedy)
