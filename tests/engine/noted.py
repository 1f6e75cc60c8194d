"""A dict by VM that notes whose entries change, so that safety.py looks again at those alone."""

from __future__ import annotations

from typing import Any, TypeVar

from vmmobility.wire.values import VmKey

T = TypeVar("T")


class Noted(dict[VmKey, T]):
    """A dict that notes in `touched` whose entries change."""

    def __init__(self, touched: set[VmKey]) -> None:
        super().__init__()
        self.touched = touched

    def __setitem__(self, vm: VmKey, value: T) -> None:
        self.touched.add(vm)
        super().__setitem__(vm, value)

    def __delitem__(self, vm: VmKey) -> None:
        self.touched.add(vm)
        super().__delitem__(vm)

    def pop(self, vm: VmKey, *default: Any) -> Any:
        self.touched.add(vm)
        return super().pop(vm, *default)

    def clear(self) -> None:
        self.touched.update(self)
        super().clear()

    def update(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("entry by entry")

    def setdefault(self, *_: Any) -> Any:
        raise NotImplementedError("entry by entry")
