#!/bin/busybox sh
# First process in the VM: this machine's / read-only, memory over it for what is written, and on to the job.
b=/bin/busybox
fail() { echo "init: $*"; exec $b sleep 1; } # its end is a panic, and that is the end of the VM
$b mount -t proc proc /proc || fail "no /proc"
for module in /modules/*; do
	$b insmod "$module" || fail "$module cannot be loaded"
done
$b mount -t virtiofs -o ro host /host || fail "this kernel mounts no virtiofs"
$b mount -t tmpfs -o mode=755 memory /memory || fail "no tmpfs"
$b mkdir /memory/data /memory/work
$b mount -t overlay -o lowerdir=/host,upperdir=/memory/data,workdir=/memory/work root /root || fail "no overlay"
for word in $($b cat /proc/cmdline); do
	case $word in job=*) job=${word#job=} ;; esac
done
$b umount /proc
exec $b switch_root /root /bin/bash "$job"
