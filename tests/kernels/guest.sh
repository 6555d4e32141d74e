# shellcheck shell=bash
# The job in the VM, with ROOT, MODULES, RELEASE, REPORT, PATIENCE and COMMAND set: what an init would do for tests, then the command.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 CI=yes
export MAY_LOAD_MODULES=yes
export PATIENCE # an emulated CPU is that much slower
mount -t proc proc /proc
mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
echo "$STARTED"
mkdir -p /dev/pts /dev/shm "/lib/modules/$RELEASE"
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t sysfs sys /sys
mount -t bpf bpf /sys/fs/bpf
mount --bind "$MODULES" "/lib/modules/$RELEASE"
mount --make-rshared /
ip link set lo up
cd "$ROOT" && "${COMMAND[@]}"
echo "exit code $?"
stty -F /dev/ttyS1 raw
[ ! -f "$REPORT" ] || cat "$REPORT" >/dev/ttyS1
echo o >/proc/sysrq-trigger
sleep 60
