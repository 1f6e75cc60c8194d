#!/bin/busybox sh
# PID 1 of the kernel guest, first half: this machine's root over virtiofs, writes kept in memory.
#
# /parameters/modules   lib/modules of the unpacked kernel, a path of the machine
# /parameters/shared    paths of the machine, one a line, that must be there wherever they lie
# /parameters/begin     the second half, run inside
B=/bin/busybox
$B mkdir -p /proc /sys /dev /machine /kept /root
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs devtmpfs /dev

give_up() {
    echo "kernel guest: $*"
    $B poweroff -f
}

while read -r module; do
    $B insmod "/modules/$module" || give_up "the kernel refuses $module"
done < /modules/order
$B mount -t virtiofs machine /machine -o ro || give_up "the machine's root cannot be mounted"
$B mount -t tmpfs kept /kept

# overlay FOLDER PLACE: the machine's folder, with what is written to it kept in memory.
layers=0
overlay() {
    layers=$((layers + 1))
    $B mkdir -p "/kept/$layers/upper" "/kept/$layers/work" "$2"
    $B mount -t overlay "layer$layers" "$2" \
        -o "lowerdir=$1,upperdir=/kept/$layers/upper,workdir=/kept/$layers/work"
}

overlay /machine /root || give_up "no overlay over the machine's root"
$B mount -t tmpfs tmp /root/tmp
$B chmod 1777 /root/tmp
$B mount -t tmpfs run /root/run
for folder in proc sys dev; do $B mount --move "/$folder" "/root/$folder"; done
$B mkdir -p /root/dev/pts /root/dev/shm
$B mount -t devpts pts /root/dev/pts
$B mount -t tmpfs shm /root/dev/shm
$B mkdir -p /root/lib/modules
$B mount --bind "/machine$($B cat /parameters/modules)" /root/lib/modules \
    || give_up "the kernel's modules are not in the machine's root"
# What these mounts hide (a clone under /tmp, a Python under /run) is laid over them again.
while read -r path; do
    [ -e "/root$path" ] || overlay "/machine$path" "/root$path" || give_up "no overlay over $path"
done < /parameters/shared
$B mkdir -p /root/run/kernel-guest/out
$B mount -t virtiofs out /root/run/kernel-guest/out || give_up "no place for results"
$B cp /parameters/begin /parameters/command /bin/busybox /root/run/kernel-guest/
exec $B chroot /root /bin/sh /run/kernel-guest/begin
