#!/bin/sh
# The first process of the guest: makes what an init makes, then runs the demo and the tests as root, and
# again as a user with a control group of its own. Says how it went on the console, and powers off.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root RUST_BACKTRACE=0
mkdir -p /run /tmp /dev/pts /dev/shm
busybox mount -t tmpfs -o mode=755 run /run
busybox mount -t devpts -o ptmxmode=666 devpts /dev/pts
busybox mount -t tmpfs -o mode=1777 shm /dev/shm
busybox mount -t cgroup2 cgroup2 /sys/fs/cgroup
busybox mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
chmod 1777 /tmp
chmod 666 /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
ln -sf /proc/self/fd /dev/fd
# A network that leads nowhere: a step has a way out where its host has.
modprobe -a dummy tun veth fuse loop
chmod 666 /dev/net/tun /dev/fuse
ip link set lo up
ip link add eth0 type dummy
ip address add 198.51.100.2/24 dev eth0
ip link set eth0 up
ip route add default via 198.51.100.1
echo 1 > /proc/sys/net/ipv4/ip_forward
hostname guest
: > /etc/resolv.conf
printf '127.0.0.1 localhost\n' > /etc/hosts

here=$(cat /vm/here)
filters=$(cat /vm/filters)
whom=$(cat /vm/as)
cd "$here" || exit 1
status=0

# Runs a command as root or as the user, and says how it ended.
check() {
    name=$1
    shift
    echo "==> $name: $*"
    if "$@" < /dev/null; then
        echo "==> $name: passed"
    else
        echo "==> $name: FAILED with exit code $?"
        status=1
    fi
}

# The scheduler that weighs block I/O.
echo bfq > /sys/block/vda/queue/scheduler

uname -a
echo "control groups: $(cat /sys/fs/cgroup/cgroup.controllers)"

# Where an init puts processes: below the root group, which has its controllers for those.
mkdir /sys/fs/cgroup/init
echo $$ > /sys/fs/cgroup/init/cgroup.procs
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" > /sys/fs/cgroup/cgroup.subtree_control
done

# The emulators, as an init registers them for everybody: before Linux 6.7 no user namespace has its own.
for machine in aarch64 riscv64; do
    cat "/usr/lib/binfmt.d/qemu-$machine.conf" > /proc/sys/fs/binfmt_misc/register
done

as_root() {
    [ -n "$filters" ] || check "demo as root" demo/run.sh "$here/target/debug/wythe" /tmp/demo
    # shellcheck disable=SC2086
    check "tests as root" /vm/it --test-threads 2 \
        ${filters:-container:: lifecycle:: overlay:: build:: devices:: foreign:: footing:: pending:: security::}
    rm -rf /tmp/demo
}

# A user as systemd has them: subordinate ids, and a group that is delegated.
as_user() {
    useradd --create-home --uid 1000 user 2> /dev/null
    printf 'user:100000:65536\n' | tee /etc/subuid > /etc/subgid
    chmod u+s /usr/bin/newuidmap /usr/bin/newgidmap
    chown -R user: "$here/target"
    chmod -R a+rX "$here"
    group=/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service
    mkdir -p "$group/session"
    for directory in /sys/fs/cgroup/user.slice /sys/fs/cgroup/user.slice/user-1000.slice "$group"; do
        for controller in cpu cpuset io memory pids; do
            echo "+$controller" > "$directory/cgroup.subtree_control" 2> /dev/null
        done
    done
    chown user: "$group" "$group/cgroup.procs" "$group/cgroup.subtree_control" "$group/cgroup.threads" \
        "$group/session" "$group/session/cgroup.procs" "$group/session/cgroup.subtree_control"
    [ -n "$filters" ] || check "demo as a user" in_session demo/run.sh "$here/target/debug/wythe" /tmp/demo-user
    # The tests of containers ask for the spawner itself, which is root's.
    # shellcheck disable=SC2086
    check "tests as a user" in_session /vm/it --test-threads 2 --skip container:: ${filters:-lifecycle:: build::}
}

# Moved by root, as systemd moves a session, into which its user could not move itself.
in_session() {
    sh -c 'echo $$ > "$0"; exec setpriv --reuid 1000 --regid 1000 --init-groups env HOME=/home/user "$@"' \
        "$group/session/cgroup.procs" "$@"
}

for who in $whom; do "as_$who"; done
if [ $status = 0 ]; then echo "test-vm: all passed"; else echo "test-vm: some FAILED"; fi
sync
busybox poweroff -f
