#!/bin/busybox sh
# PID 1 of the lab's guest: mounts, modules, addresses from the kernel's command line, guestd.
#
# vmm=MAC,PREFIX,PREFIX...   one an interface, in order; the first carries the default routes
# mem_mib=N dirty_mibps=R    passed to guestd
# disk_records=N disk_every_ms=M   passed to diskd, for the first disk
B=/bin/busybox
IP="$B ip"
$B mkdir -p /proc /sys /dev
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev
while read -r module; do $B insmod "/modules/$module"; done < /modules/order

mem_mib=0 dirty_mibps=0 disk_records=0 disk_every_ms=10
set -- $($B cat /proc/cmdline)
for word; do
    case $word in
        mem_mib=*) mem_mib=${word#*=} ;;
        dirty_mibps=*) dirty_mibps=${word#*=} ;;
        disk_records=*) disk_records=${word#*=} ;;
        disk_every_ms=*) disk_every_ms=${word#*=} ;;
    esac
done

# No router discovery, no duplicate address detection; announcements on (QEMU asks for them).
quieten() {
    echo 1 > "/proc/sys/net/ipv4/conf/$1/arp_notify"
    echo 0 > "/proc/sys/net/ipv4/conf/$1/rp_filter"
    echo 1 > "/proc/sys/net/ipv6/conf/$1/ndisc_notify"
    echo 0 > "/proc/sys/net/ipv6/conf/$1/accept_dad"
    echo 0 > "/proc/sys/net/ipv6/conf/$1/accept_ra"
}
quieten all
quieten default
$IP link set lo up

device_of() {
    for path in /sys/class/net/*; do
        [ "$($B cat "$path/address")" = "$1" ] && echo "${path##*/}" && return
    done
}

# own DEVICE ADDRESS/FULL | FIRST@PREFIX: a host address, or a whole prefix and its first address.
own() {
    case $2 in *:*) family=-6 full=128 ;; *) family=-4 full=32 ;; esac
    case $2 in
        *@*)
            $IP $family addr add "${2%@*}/$full" dev "$1"
            $IP $family route add local "${2#*@}" dev lo
            ;;
        *) $IP $family addr add "$2" dev "$1" ;;
    esac
}

first_device=
for word; do
    case $word in vmm=*) ;; *) continue ;; esac
    mac=${word#vmm=} mac=${mac%%,*}
    device=$(device_of "$mac")
    [ -n "$device" ] || { echo "init: no interface has MAC $mac"; continue; }
    quieten "$device"
    # Addresses before the link comes up: then the kernel announces them itself.
    for entry in $(echo "${word#*,}" | $B tr , ' '); do
        case $entry in vmm=*) ;; *) own "$device" "$entry" ;; esac
    done
    $IP link set "$device" up
    if [ -z "$first_device" ]; then
        first_device=$device
        $IP route add 169.254.1.1 dev "$device" scope link
        $IP route add default via 169.254.1.1 dev "$device"
        $IP -6 route add default via fe80::1 dev "$device"
    fi
done

echo "init: up after $($B cut -d' ' -f1 /proc/uptime) s"
[ "$disk_records" = 0 ] || /bin/diskd /dev/vda "$disk_records" "$disk_every_ms" &
exec /bin/guestd "$mem_mib" "$dirty_mibps"
