"""A process that can open no more files."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def descriptors_left(spare: int) -> Iterator[None]:
    """No more than these can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probes = [os.open("/", os.O_RDONLY) for _ in range(spare + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (probes[-1], hard))
    for probe in probes:
        os.close(probe)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
