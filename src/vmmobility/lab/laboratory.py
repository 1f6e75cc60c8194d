"""A running lab: a fabric's namespaces with daemons and virtual machines in them.

Up and down as a whole; what happens in between is steps.py's.  Rests on namespaces, frr, bird,
gobgp, daemons, faults, teardown, workdir.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from vmmobility.drivers.hypervisor.interface import VmDefinition
from vmmobility.errors import LabError
from vmmobility.lab import namespaces, teardown, tunnel_capture, workdir
from vmmobility.lab.bird import Bird
from vmmobility.lab.by_hand import ByHand
from vmmobility.lab.control_capture import Captured
from vmmobility.lab.control_capture import read as read_capture
from vmmobility.lab.convergence import Convergence
from vmmobility.lab.daemons import Daemons
from vmmobility.lab.fabric import Fabric, Vm
from vmmobility.lab.fault_eyes import Eyes
from vmmobility.lab.faults import Faults
from vmmobility.lab.frr import Frr
from vmmobility.lab.gobgp import Collectors
from vmmobility.lab.guest.image import guest_image, kernel_arguments
from vmmobility.lab.guest_disks import RECORDS, disk_of, make_disk
from vmmobility.lab.hosts import Hosts
from vmmobility.lab.inside import NETNS, python, python_environment
from vmmobility.lab.logbook import Logbook
from vmmobility.lab.namespaces import Namespaces
from vmmobility.lab.narrator import Narrator, Say
from vmmobility.lab.route_recorder import RouteRecorder
from vmmobility.lab.tunnel_capture import Capture
from vmmobility.lab.workdir import LabInfo
from vmmobility.wire.registry import UDP_PORT
from vmmobility.wire.values import Interface, VmKey

VM_START_S = 90.0
_CAPTURE_START_S, _CAPTURE_POLL_S = 10.0, 0.02
_KINDS = {"guest": "qemu", "netns": "netns", "external": "external"}


class Laboratory:
    """One lab, from up() to down().  watched: the lab itself looks at every QEMU."""

    def __init__(self, fabric: Fabric, info: LabInfo, say: Say, *, watched: bool = False) -> None:
        self.fabric = fabric
        self.info = info
        self.say = say
        self.spaces = Namespaces(fabric, info.lab_id)
        self.frr = Frr(fabric, self.spaces, info.folder / "frr")
        self.bird = Bird(fabric, self.spaces, info.folder / "bird")
        self.collectors = Collectors(fabric, self.spaces, info.folder / "gobgp")
        self.convergence = Convergence(fabric, self.spaces, self.frr, self.bird)
        self.daemons = Daemons(fabric, self.spaces, info.folder)
        self.faults = Faults(self.spaces)
        self.hosts = Hosts(self.spaces, self.daemons, self.faults)
        homes = {nve.name: self.daemons.home(nve.name) for nve in fabric.of_kind("nve")}
        guests = watched and any(vm.kind == "guest" for vm in fabric.vms)
        self.eyes = Eyes(homes, info.folder / "consoles") if guests else None
        self.by_hand = ByHand(fabric, self.spaces, self.daemons, say)
        logs = {node.name: self.daemons.log(node.name) for node in self.daemons.nodes}
        self.logbook = Logbook(logs, Narrator(say).hear)
        self.routes = RouteRecorder(fabric, self.spaces, info.folder / "routes")
        self._helpers: list[subprocess.Popen[bytes]] = []

    def up(self, start_vms: bool = True) -> None:
        """Namespaces, FRR and its like, daemons, VMs (unless not wanted): all running and
        registered on return."""
        self.say(f"fabric {self.fabric.name}: {len(self.fabric.names())} namespaces, "
                 f"prefix {self.info.lab_id}")  # fmt: skip
        self.spaces.up()
        names = namespaces.existing(self.info.lab_id)
        inodes = {name: (NETNS / name).stat().st_ino for name in names}
        self.info = replace(self.info, namespaces=inodes)
        self.info.save()
        self.routes.start()
        self.collectors.start()
        self.bird.start()
        self.frr.start()
        self.daemons.configure()
        if self.eyes is not None:
            self.daemons.first_in_path = self.eyes.open()
        self._await_convergence()
        self._start_capture()
        self._start_tunnel_captures()
        self.daemons.start_all()
        self.logbook.start()
        self.say("the manager and " + ", ".join(n.name for n in self.fabric.of_kind("nve"))
                 + " answer")  # fmt: skip
        if start_vms:
            self._start_vms([vm for vm in self.fabric.vms if vm.kind != "external"])

    def _await_convergence(self) -> None:
        if self.frr.plans:
            seconds = self.convergence.wait()
            bird = f", BIRD at {', '.join(self.bird.plans)}" if self.bird.plans else ""
            self.say(f"FRR has converged at {len(self.frr.plans)} routers{bird}, {seconds:.1f} s")

    def _start_capture(self) -> None:
        """Write down every control message, where all of them pass: at the manager."""
        if not self.fabric.of_kind("manager"):
            return
        command = python("vmmobility.lab.control_capture", str(self._capture_file), str(UDP_PORT),
                         namespace=self.spaces.name(self.daemons.manager))  # fmt: skip
        self._helpers.append(subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, env=python_environment(),
        ))  # fmt: skip

    def _start_tunnel_captures(self) -> None:
        """Write down what tunnels carry, where somebody is outside the data centres."""
        for nve in self.fabric.of_kind("nve") if self.fabric.dc_prefixes else ():
            ends = [end for link in self.fabric.links if (end := link.end(nve.name)) is not None]
            self._helpers.append(subprocess.Popen(
                python("vmmobility.lab.tunnel_capture", str(self._tunnel_file(nve.name)),
                       *(end.interface for end in ends), namespace=self.spaces.name(nve.name)),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                start_new_session=True, env=python_environment(),
            ))  # fmt: skip
        deadline = time.monotonic() + _CAPTURE_START_S
        while late := [nve for nve, found in self.tunnelled().items() if not found.ready]:
            if time.monotonic() > deadline:
                raise LabError(f"no capture of tunnels began at {', '.join(late)}", "try again")
            time.sleep(_CAPTURE_POLL_S)

    def _tunnel_file(self, nve: str) -> Path:
        return self.info.folder / f"tunnelled-{nve}.txt"

    def tunnelled(self) -> dict[str, Capture]:
        """What tunnels have carried past each NVE; none where nobody is outside."""
        nves = self.fabric.of_kind("nve") if self.fabric.dc_prefixes else ()
        return {nve.name: tunnel_capture.read(self._tunnel_file(nve.name)) for nve in nves}

    @property
    def _capture_file(self) -> Path:
        return self.info.folder / "control.txt"

    def captured(self) -> list[Captured]:
        """Every control message that the manager has sent or got so far."""
        return read_capture(self._capture_file)

    def _start_vms(self, vms: Sequence[Vm]) -> None:
        for group in self.fabric.groups:
            members = {vm: number for number, vm in enumerate(group.vms, 1)}
            body = {"vni": 0, "members": members}
            self.daemons.ask(self.daemons.manager, "PUT", f"/v1/groups/{group.name}", body)
        bodies = {vm.name: self.definition(vm) for vm in vms}
        for vm in vms:
            if vm.kind == "netns":
                command = python("vmmobility.lab.light_guest", vm.name,
                                 namespace=self.spaces.name(vm.name))  # fmt: skip
                self._helpers.append(subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                    env=python_environment()))  # fmt: skip

        def start(vm: Vm) -> None:
            if vm.disk_mib:
                make_disk(self.daemons.state_dir(vm.home), vm)
            self.daemons.ask(vm.home, "PUT", f"/v1/vms/{vm.name}", bodies[vm.name], VM_START_S)
            self.say(f"{vm.name} runs at {vm.home}")

        with ThreadPoolExecutor(max(1, len(vms))) as pool:
            list(pool.map(start, vms))

    def definition(self, vm: Vm, nve: str = "") -> dict[str, Any]:
        """The VM as the NVE's API wants it.  nve: where, for what differs from host to host."""
        addresses = [str(ip_network(a.ip)) for a in vm.addresses]
        return {
            "vm_id": vm.name,
            "vni": 0,
            "kind": _KINDS[vm.kind],
            "vcpus": vm.vcpus,
            "memory_mib": vm.memory_mib,
            "machine": self._machine(vm, nve),
            "interfaces": [{"mac": vm.mac, "addresses": addresses}],
            **({"redirect": vm.redirect} if vm.redirect else {}),
            **({"disk": [asdict(disk_of(vm))]} if vm.disk_mib else {}),
        }

    def _machine(self, vm: Vm, nve: str) -> dict[str, str]:
        if vm.kind == "netns":
            return {"namespace": self.spaces.name(vm.name)}
        if vm.kind == "external":
            return {"qmp": str(self.by_hand.monitor(vm.name, nve or vm.home))}
        return self._boot_files(vm)

    def hand_definition(self, vm: Vm) -> VmDefinition:
        """An external VM as hands start it: the same machine as a guest of the NVE's own."""
        interface = Interface(
            bytes.fromhex(vm.mac.replace(":", "")), tuple(ip_network(a.ip) for a in vm.addresses)
        )
        return VmDefinition(VmKey(0, vm.name), "qemu", (interface,), vm.vcpus, vm.memory_mib,
                            dict(self._boot_files(vm)))  # fmt: skip

    def _boot_files(self, vm: Vm) -> dict[str, str]:
        image = guest_image(workdir.cache(), self.say)
        mac = bytes.fromhex(vm.mac.replace(":", ""))
        interface = Interface(mac, tuple(a.network for a in vm.addresses))
        checked_mib = vm.memory_mib // 4
        return {
            "kernel": str(image.kernel),
            "initrd": str(image.initrd),
            "append": kernel_arguments(
                [interface], checked_mib, vm.dirty_mibps, RECORDS if vm.disk_mib else 0
            ),
        }

    def addresses(self, vm: str) -> list[str]:
        """The VM's own addresses, IPv4 first."""
        found = sorted(self.fabric.vm(vm).addresses, key=lambda a: a.version)
        return [str(address.ip) for address in found]

    def known_as(self, vm: str) -> list[str]:
        """The VM's addresses as correspondents know it: behind a NAPT box, its public IPv4 one."""
        ipv4, *others = self.addresses(vm)
        public = self.daemons.public(vm) if self.daemons.boxes else ""
        return [public or ipv4, *others]

    def detach(self) -> None:
        """Let the lab live on without this process."""
        if self.eyes is not None:
            self.eyes.close()
        self.logbook.stop()

    def down(self) -> list[str]:
        """End and remove everything; what is left all the same."""
        self.routes.stop()
        if self.logbook.started:
            self.logbook.stop()
        if self.eyes is not None:
            self.eyes.close()
        self.by_hand.end_all()
        self.daemons.end_all()
        self.frr.stop()
        self.bird.stop()
        self.collectors.stop()
        left = teardown.tear_down(self.info)
        for process in self._helpers:
            process.kill()
            process.wait()
        return left


def build(fabric: Fabric, name: str, owned: bool, say: Say, *, watched: bool = False) -> Laboratory:
    """A new lab, up; nothing is left of it if it cannot come up."""
    info = workdir.create(name, fabric.name, owned)
    lab = Laboratory(fabric, info, say, watched=watched)
    try:
        lab.up()
    except BaseException:
        lab.down()
        raise
    return lab
