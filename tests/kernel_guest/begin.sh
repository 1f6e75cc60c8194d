# PID 1 of the kernel guest, second half: inside the machine's own file system.  Runs the command
# and leaves its exit status in out/status, which says that it ended at all.
P=/run/kernel-guest    # not the first in PATH: the machine's own programs are wanted
B=$P/busybox
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# Modules come by themselves when they are asked for, by the kernel's own call; kmod need not be
# installed on the machine.
printf '#!%s sh\nexec %s modprobe "$@"\n' "$B" "$B" > $P/modprobe
chmod +x $P/modprobe
echo $P/modprobe > /proc/sys/kernel/modprobe
$B modprobe tun         # its device must be there before it is opened
echo 1 > /proc/sys/vm/panic_on_oom
echo 1 > /proc/sys/kernel/panic_on_oops
$B hostname kernel-guest
$B ip link set lo up
echo "kernel guest: Linux $($B uname -r), up after $($B cut -d ' ' -f 1 /proc/uptime) s"
/bin/sh $P/command </dev/null
echo $? > $P/out/status.new
mv $P/out/status.new $P/out/status
sync
$B poweroff -f
