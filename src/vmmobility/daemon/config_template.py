"""The files that `vmmob config init` writes: every key, with its default or an example.

Not here: what is valid (config.py).  A test loads these texts, so they cannot drift apart.
Rests on config.py for the defaults.
"""

from __future__ import annotations

from vmmobility.daemon.config import ManagerTimers, NveTimers
from vmmobility.daemon.hypervisor_config import COPY_MIB_PER_S
from vmmobility.daemon.napt_config import NaptTimers
from vmmobility.daemon.node_config import RECORD_MIB, NodeTimers
from vmmobility.drivers.hypervisor.settings import DISK_HANG_S
from vmmobility.drivers.linux.host_capacity import CapacityLimits
from vmmobility.errors import ConfigError
from vmmobility.wire.registry import UDP_PORT
from vmmobility.wire.server_frames import SERVER_PORT

_MANAGER = """\
# vmmobility: configuration of the manager.  Check it with `vmmob config check FILE`.

[node]
id = "manager"
state_dir = "/var/lib/vmmobility/manager"  # its journal; for this daemon alone
addresses = ["192.0.2.10", "2001:db8::10"]  # where it listens
api_socket = "/run/vmmobility/manager.sock"
keys_dir = "/etc/vmmobility/keys"  # pairwise keys, made by `vmmob key new`
# port = {port}  # UDP
# log_file = "/var/log/vmmobility/manager.log"  # JSON lines; standard error unless given
# record = "/var/log/vmmobility/recordings"  # what it hears, for `vmmob replay`; off unless given
# record_mib = {record_mib}  # a recording ends at this size

# Every node that may speak to it: one [[peer]] each.
[[peer]]
id = "nve-a"
role = "nve"
addresses = ["198.51.100.2", "2001:db8:a::2"]

# A router has a role of default-router or border-router, and runs `vmmob router run`.
[[peer]]
id = "tor-a"
role = "default-router"
addresses = ["198.51.100.1", "2001:db8:a::1"]
serves = ["nve-a"]  # the NVEs whose default router it is; none of a border router
dc = "dc1"  # the data centre that it is a part, or the edge, of

[manager]
# strict = false  # true: only VMs that `vmmob vm onboard` has named may register
# gate_policy = "abort"  # abort | proceed: when the fabric does not follow a move within gate_s
# max_host_routes = 0  # so many VM addresses may a data centre's routers announce; 0: any number

[api]  # beside the unix socket, which needs no token; without listen there is that alone
# listen = ["127.0.0.1:8749", "[::1]:8749"]  # any other address needs TLS
# tls_certificate = "/etc/vmmobility/api.crt"  # PEM, with its chain
# tls_key = "/etc/vmmobility/api.key"
# tokens = "/etc/vmmobility/api-tokens.json"  # made by `vmmob token new`

[timers]  # seconds; these are the defaults
# lifetime_s = {timers.lifetime_s}  # longest registration lifetime granted, a multiple of 4
# ticket_s = {timers.ticket_s:g}  # a move's ticket is void after this
# step_s = {timers.step_s:g}  # a step of a move may take so long
# copy_s = {timers.copy_s:g}  # the copy before the switch may take so long
# ask_s = {timers.ask_s:g}  # an NVE that is asked about a VM's guest has so long to answer
# check_s = {timers.check_s:g}  # NVEs that are silent about a VM are asked about it so often
# freeze_after = {timers.freeze_after}  # so many changes of NVE that no move made ...
# protect_lease_s = {timers.protect_lease_s:g}  # a VM that may fail over is paused, cut off so long
# protect_margin_s = {timers.protect_margin_s:g}  # ... and its standby takes over so much later
# freeze_s = {timers.freeze_s:g}  # ... within so long freeze the VM's binding
# offer_s = {timers.offer_s:g}  # room that a new VM was offered is held so long
# gate_s = {timers.gate_s:g}  # a move waits so long for the fabric to lead to its destination
# retransmit_s = {timers.retransmit_s:g}  # first retransmission; then doubled each time
# retransmit_max_s = {timers.retransmit_max_s:g}  # longest gap between two of them
"""

_NVE = """\
# vmmobility: configuration of an NVE.  Check it with `vmmob config check FILE`.

[node]
id = "nve-a"
state_dir = "/var/lib/vmmobility/nve"  # its journal; for this daemon alone
locators = ["198.51.100.2", "2001:db8:a::2"]  # its underlay addresses, one a family
home_prefixes = ["203.0.113.0/24", "2001:db8:a1::/64"]  # routed here by the fabric; [] if none
api_socket = "/run/vmmobility/nve.sock"
keys_dir = "/etc/vmmobility/keys"  # pairwise keys, made by `vmmob key new`
redirect = "auto"  # auto | host-route | tunnel
# The prefixes of all hosts in your data centres: VMs, NVEs, routers, servers.  Tunnels carry no
# packet of any other sender (Section 3 of the draft).  Without it every sender counts as inside.
# dc_prefixes = ["198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32"]
tunnel = "auto"  # auto | kernel | relay: who carries tunnelled packets; auto asks the kernel
# port = {port}  # UDP
# log_file = "/var/log/vmmobility/nve.log"  # JSON lines; standard error unless given
# record = "/var/log/vmmobility/recordings"  # what it hears, for `vmmob replay`; off unless given
# record_mib = {record_mib}  # a recording ends at this size

# The managers that it registers with: one [[manager]] each.
[[manager]]
id = "manager"
addresses = ["192.0.2.10", "2001:db8::10"]

# An NVE that stands apart from its hypervisor hosts has one [[server]] for each: `vmmob config init
# server` shows its keys.

[timers]  # seconds; these are the defaults
# lifetime_s = {timers.lifetime_s}  # registration lifetime asked for, a multiple of 4
# drain_s = {timers.drain_s:g}  # a redirect is drained after so long without a packet
# check_s = {timers.check_s:g}  # list, kernel and hypervisor are compared so often
# redirect_alarm_s = {timers.redirect_alarm_s:g}  # a redirect that lives longer is an alarm
# heartbeat_s = {timers.heartbeat_s:g}  # the manager is told so often that this host lives
# retransmit_s = {timers.retransmit_s:g}  # first retransmission; then doubled each time
# retransmit_max_s = {timers.retransmit_max_s:g}  # longest gap between two of them

[hypervisor]
accelerator = "auto"  # auto | kvm | tcg
# images = ["/var/lib/vmmobility/images"]  # VMs may have kernels and initrds from here alone
# disks = "/var/lib/vmmobility/disks"  # of images with a relative path; else inside state_dir
# disk_folders = []  # further folders where a VM's disk may lie, as of shared storage
# tls = "/etc/vmmobility/tls"  # certificates; memory, disks, checkpoints go by TLS: all or none
# copy_mib_per_s = {copy_mib_per_s}  # pace at which memory and each disk are sent away
# disk_hang_s = {disk_hang_s:g}  # storage that takes nothing for so long ends a move

{capacity}"""


_CAPACITY = """\
# What VMs may have of this host; the manager gives out no more.
[capacity]
# vcpus = 16  # in all; vcpus_per_cpu for each CPU unless given
# memory_mib = 8192  # in all; what the host has, less the reserve, unless given
# storage_mib = 102400  # in all; likewise, of the file system of their disks
# vcpus_per_cpu = {limits.vcpus_per_cpu}
# reserve_memory_mib = {limits.reserve_memory_mib}  # kept for the host itself
# reserve_storage_mib = {limits.reserve_storage_mib}
"""


_ROUTER = """\
# vmmobility: configuration of a router.  Check it with `vmmob config check FILE`.

[node]
id = "tor-a"
role = "default-router"  # default-router | border-router
state_dir = "/var/lib/vmmobility/router"  # its journal; for this daemon alone
addresses = ["198.51.100.1", "2001:db8:a::1"]  # where it listens
api_socket = "/run/vmmobility/router.sock"
keys_dir = "/etc/vmmobility/keys"  # pairwise keys, made by `vmmob key new`
# port = {port}  # UDP
# log_file = "/var/log/vmmobility/router.log"  # JSON lines; standard error unless given
# record = "/var/log/vmmobility/recordings"  # what it hears, for `vmmob replay`; off unless given
# record_mib = {record_mib}  # a recording ends at this size

# The managers that it obeys: one [[manager]] each.
[[manager]]
id = "manager"
addresses = ["192.0.2.10", "2001:db8::10"]

[timers]  # seconds; these are the defaults
# check_s = {timers.check_s:g}  # kernel and record are compared, and the manager is told, so often
# retransmit_s = {timers.retransmit_s:g}  # first retransmission; then doubled each time
# retransmit_max_s = {timers.retransmit_max_s:g}  # longest gap between two of them
"""


_NAPT = """\
# vmmobility: configuration of a NAPT box.  Check it with `vmmob config check FILE`.

[node]
id = "napt-1"
state_dir = "/var/lib/vmmobility/napt"  # its journal; for this daemon alone
addresses = ["10.1.255.1", "192.0.2.1"]  # where it listens: on both sides
api_socket = "/run/vmmobility/napt.sock"
keys_dir = "/etc/vmmobility/keys"  # pairwise keys with its neighbours, made by `vmmob key new`
# port = {port}  # UDP
# log_file = "/var/log/vmmobility/napt.log"  # JSON lines; standard error unless given

[napt]
inside = ["10.1.0.0/16"]  # this data centre's private addresses
pool = ["198.51.100.0/28"]  # public addresses routed here, one for each NVE and each VM
exempt = ["203.0.113.0/24"]  # destinations that are never translated; [] if none
ports_pool = ["192.0.2.200"]  # public addresses whose ports all else from inside shares
policy = "keep"  # keep | hand-over: a VM's mapping when it moves to another data centre

# Public ports that lead inside: one [[port]] each.
[[port]]
protocol = "tcp"  # tcp | udp
private = "10.1.0.80"
private_port = 80
public = "192.0.2.201"
public_port = 8080

# Every node that it speaks to itself, on either side.
[[neighbour]]
id = "nve-a"
role = "nve"
side = "inside"
addresses = ["10.1.0.2"]

[[neighbour]]
id = "manager"
role = "manager"
side = "outside"
addresses = ["192.0.2.10"]

# Another box: who is behind it, its pool, and where traffic goes whose mapping it keeps.
[[neighbour]]
id = "napt-2"
role = "napt"
side = "outside"
addresses = ["192.0.2.2"]
behind = ["nve-b:nve"]
pool = ["198.51.100.16/28"]
detour = ["192.0.2.2"]

[timers]  # seconds; these are the defaults
# mapping_s = {timers.mapping_s:g}  # a VM's mapping of which nothing was heard for so long ends
# quarantine_s = {timers.quarantine_s:g}  # then nobody else gets its public address for so long
# move_s = {timers.move_s:g}  # a move under way keeps it so long at least
# linger_s = {timers.linger_s:g}  # what was handed over is translated here so much longer
# hold_s = {timers.hold_s:g}  # another box's mapping is held anew so often
# check_s = {timers.check_s:g}  # kernel and record are compared so often
# retransmit_s = {timers.retransmit_s:g}  # first retransmission; then doubled each time
# retransmit_max_s = {timers.retransmit_max_s:g}  # longest gap between two of them
"""


_SERVER = """\
# vmmobility: configuration of a server's agent: a hypervisor host that its NVE stands apart from.
# Check it with `vmmob config check FILE`.  The NVE's file names this server, too:
#     [[server]]  name, address (this server's), own (the NVE's), both on their access link

[server]
name = "server-1"
nve = "nve-a"
address = "10.9.1.2"  # on the access link: where it listens, and guests' memory is expected
nve_address = "10.9.1.1"  # the NVE's, of the same IP version
state_dir = "/var/lib/vmmobility/server"  # its guests; for this daemon alone
keys_dir = "/etc/vmmobility/keys"  # the pair's key: `vmmob key new nve-a:nve server-1:server`
# port = {port}  # TCP
# log_file = "/var/log/vmmobility/server.log"  # JSON lines; standard error unless given

[hypervisor]
accelerator = "auto"  # auto | kvm | tcg
# images = ["/var/lib/vmmobility/images"]  # VMs may have kernels and initrds from here alone
# disks = "/var/lib/vmmobility/disks"  # of images with a relative path; else inside state_dir
# disk_folders = []  # further folders where a VM's disk may lie, as of shared storage
# tls = "/etc/vmmobility/tls"  # certificates; memory, disks, checkpoints go by TLS: all or none
# copy_mib_per_s = {copy_mib_per_s}  # pace at which memory and each disk are sent away
# disk_hang_s = {disk_hang_s:g}  # storage that takes nothing for so long ends a move

{capacity}"""


def template(role: str) -> str:
    """The file of a "manager", an "nve", a "router", a "napt" or a "server".  Raises ConfigError
    on another role."""
    if role == "manager":
        return _MANAGER.format(port=UDP_PORT, record_mib=RECORD_MIB, timers=ManagerTimers())
    if role == "nve":
        return _NVE.format(
            port=UDP_PORT,
            record_mib=RECORD_MIB,
            timers=NveTimers(),
            copy_mib_per_s=COPY_MIB_PER_S,
            disk_hang_s=DISK_HANG_S,
            capacity=_CAPACITY.format(limits=CapacityLimits()),
        )
    if role == "router":
        return _ROUTER.format(port=UDP_PORT, record_mib=RECORD_MIB, timers=NodeTimers())
    if role == "napt":
        return _NAPT.format(port=UDP_PORT, timers=NaptTimers())
    if role == "server":
        return _SERVER.format(
            port=SERVER_PORT,
            copy_mib_per_s=COPY_MIB_PER_S,
            disk_hang_s=DISK_HANG_S,
            capacity=_CAPACITY.format(limits=CapacityLimits()),
        )
    raise ConfigError(
        f"no configuration for the role {role!r}", "use manager, nve, router, napt or server"
    )
