#!/bin/sh
# The first process of a machine (see machine.py): in namespaces of its own, over the host's files, without its
# sources and compilers. Everything that is written goes to memory and is gone with the machine.
#   machine.sh FOLDER SOURCES PACKAGE
set -eu
folder=$1 sources=$2 package=$3
root=$folder/root

mount --make-rprivate /
mount -t tmpfs tmpfs "$folder"
mkdir "$folder/upper" "$folder/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$folder/upper,workdir=$folder/work" "$root"
cp "$package" "$root/evenkeel.deb"

# What a production host would not have, or must not be used here: this repository, compilers, other Pythons' packages.
mount -t tmpfs tmpfs "$root$sources"
for hidden in /tmp /root /home /opt /usr/local /etc/systemd/system; do
	[ ! -d "$root$hidden" ] || mount -t tmpfs -o mode=755 tmpfs "$root$hidden"
done
chmod 1777 "$root/tmp"
rm -rf "$root/var/lib/evenkeel" "$root/etc/evenkeel" # of the overlay; mounted over, nothing could be purged
rm -f "$root"/usr/bin/clang* "$root"/usr/bin/gcc* "$root"/usr/bin/cc "$root"/usr/bin/llc* "$root"/usr/sbin/policy-rc.d

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf -o mode=0700 bpf "$root/sys/fs/bpf" # as systemd does
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
	: >"$root/dev/$device"
	mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/shm" "$root/dev/pts"
mount -t devpts -o ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
ln -s /proc/self/fd "$root/dev/fd"

# The kernel is everybody's: nobody here loads modules, sets the clock or the host's variables.
for unit in systemd-sysctl systemd-modules-load systemd-remount-fs systemd-timesyncd systemd-udevd systemd-random-seed; do
	ln -s /dev/null "$root/etc/systemd/system/$unit.service"
done

chroot "$root" dpkg --install /evenkeel.deb >"$folder/installed" 2>&1 || { cat "$folder/installed" >&2; exit 1; }
cd "$root"
mkdir host
pivot_root . host # not only chroot: systemd makes mount namespaces for its services
umount -l host
exec env -i container=evenkeel-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
	/lib/systemd/systemd --system --unit=multi-user.target --log-target=journal
