"""[hypervisor] of nve.toml and server.toml: how guests run on a host, and what of it they may have.

Every error names the file, the key, what is wrong and the remedy.  Unknown keys are errors.
Not here: the other tables (config.py, server_config.py).  Rests on toml_table.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from vmmobility.daemon.toml_table import Table
from vmmobility.drivers.hypervisor.external import ExternalHypervisor
from vmmobility.drivers.hypervisor.host_files import IMAGES
from vmmobility.drivers.hypervisor.interface import Hypervisor, Listener
from vmmobility.drivers.hypervisor.light import LightHypervisor
from vmmobility.drivers.hypervisor.qemu import QemuHypervisor
from vmmobility.drivers.hypervisor.settings import DISK_HANG_S, MIB, QemuSettings
from vmmobility.drivers.hypervisor.streams import Streams
from vmmobility.errors import HypervisorError

Accelerator = Literal["auto", "kvm", "tcg"]
ACCELERATORS = ("auto", "kvm", "tcg")
COPY_MIB_PER_S = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class HypervisorConfig:
    """disks: folder of the disk images whose path in a VM's definition is relative; disk_folders:
    where others may lie; images: where kernels and initrds may; tls: folder of the certificates of
    the streams between hosts, which go in the clear without; copy_mib_per_s: pace at which memory
    and each disk are sent away; disk_hang_s: storage that takes nothing for so long ends a move;
    netns: whether VMs may be namespaces (of a lab).
    """

    accelerator: Accelerator = "auto"
    disks: Path | None = None
    disk_folders: tuple[Path, ...] = ()
    images: tuple[Path, ...] = (IMAGES,)
    tls: Path | None = None
    copy_mib_per_s: int = COPY_MIB_PER_S
    disk_hang_s: float = DISK_HANG_S
    netns: bool = False

    @property
    def qemu(self) -> QemuSettings:
        return QemuSettings(
            accelerator=self.accelerator,
            copy_bytes_per_s=self.copy_mib_per_s * MIB,
            disks=self.disks,
            images=self.images,
            disk_folders=self.disk_folders,
            tls=self.tls,
            disk_hang_limit_s=self.disk_hang_s,
        )


def hypervisor_of(top: Table) -> HypervisorConfig:
    """Raises ConfigError."""
    table = top.table("hypervisor")
    made = HypervisorConfig(
        accelerator=cast(Accelerator, table.choice("accelerator", ACCELERATORS, "auto")),
        disks=table.optional_path("disks"),
        disk_folders=table.paths("disk_folders", ()),
        images=table.paths("images", (IMAGES,)),
        tls=table.optional_path("tls"),
        copy_mib_per_s=table.integer("copy_mib_per_s", 1, 1 << 20, COPY_MIB_PER_S),
        disk_hang_s=table.seconds("disk_hang_s", 1, 600, DISK_HANG_S),
        netns=table.boolean("netns", False),
    )
    table.finish()
    return made


def hypervisors(
    config: HypervisorConfig, guests: Path, listener: Listener, note: Callable[..., Any]
) -> dict[str, Hypervisor]:
    """The drivers of this host, by the kinds of VMs that it may have.  note: as EventLog.note"""

    def refused(peer: str, error: HypervisorError) -> None:
        note("stream.refused", peer=peer, reason=error.message, remedy=error.remedy)

    made: dict[str, Hypervisor] = {"qemu": QemuHypervisor(guests, listener, config.qemu, refused)}
    if config.netns:
        made["netns"] = LightHypervisor(guests, listener, Streams.of(config.qemu, refused))
    return {**made, "external": ExternalHypervisor(listener, note)}
