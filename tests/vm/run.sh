#!/usr/bin/env bash
# Boots Debian 12's cloud kernel (6.1: no `lowerdir+`, no overlay on descriptors, control groups of
# version 2) under qemu, and in it builds the demo and runs the tests of containers, as root and as a
# user:
#
#     tests/vm/run.sh [FILTER...]      filters are those of `cargo test`; with one, no demo is built
#
# VM_AS=root or VM_AS=user runs that half alone.
#
# Kernel, qemu where there is none, and the guest's root are Debian's packages: downloaded, unpacked below
# target/vm and never installed. Without hardware that helps, the processor is emulated: it takes a quarter
# of an hour. Fails when a test fails, or when the guest ends without saying how they went.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD
vm=$here/target/vm
mkdir -p "$vm"

fail() { echo "test-vm: $*" >&2; exit 1; }
for program in apt-get dpkg-deb mmdebstrap mke2fs gzip; do
    command -v "$program" > /dev/null || fail "there is no \`$program\`: it takes Debian, mmdebstrap and e2fsprogs"
done
[ "$(uname -m)" = x86_64 ] || fail "the guest is for amd64, this machine is not"
[ "$(id -u)" = 0 ] || fail "the guest's root needs root to be made"

# Downloads packages and unpacks them into a directory, once.
unpack() {
    local directory=$1
    shift
    [ -e "$directory/.whole" ] && return
    echo "==> packages: $*"
    rm -rf "$directory" "$vm/packages"
    mkdir -p "$vm/packages" "$directory"
    (cd "$vm/packages" && apt-get download "$@" 2>&1 | grep -v '^W:' || true)
    for package in "$vm"/packages/*.deb; do dpkg-deb -x "$package" "$directory"; done
    rm -rf "$vm/packages"
    touch "$directory/.whole"
}

kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-6\.1\.[^ ]*-cloud-amd64\)$/\1/p')
[ -n "$kernel" ] || fail "apt knows no cloud kernel 6.1: it takes the packages of Debian 12"
unpack "$vm/$kernel" "$kernel"
modules=$(echo "$vm/$kernel"/lib/modules/*/kernel)
qemu=$(command -v qemu-system-x86_64 || true)
if [ -z "$qemu" ]; then
    # shellcheck disable=SC2046 # a list of names
    unpack "$vm/qemu" $(apt-get install --simulate --no-install-recommends qemu-system-x86 | awk '/^Inst/ { print $2 }')
    qemu="$vm/qemu/usr/bin/qemu-system-x86_64 -L $vm/qemu/usr/share/seabios -L $vm/qemu/usr/share/qemu"
    export LD_LIBRARY_PATH=$vm/qemu/usr/lib/x86_64-linux-gnu:$vm/qemu/lib/x86_64-linux-gnu
    export QEMU_MODULE_DIR=$vm/qemu/usr/lib/x86_64-linux-gnu/qemu
fi
if [ ! -e "$vm/root.tar" ]; then
    echo "==> the guest's root"
    # Of the emulators for steps of other machines those that tests use.
    mmdebstrap --quiet --format=tar --variant=essential \
        --dpkgopt='path-exclude=/usr/bin/qemu-*' \
        --dpkgopt='path-include=/usr/bin/qemu-aarch64-static' --dpkgopt='path-include=/usr/bin/qemu-riscv64-static' \
        --include=busybox-static,uidmap,libcap2-bin,attr,kmod,passwd,mount,iproute2,nftables,passt,slirp4netns \
        --include=fuse-overlayfs,e2fsprogs,git,openssl,procps,zstd,qemu-user-static \
        bookworm "$vm/root.tar.part"
    mv "$vm/root.tar.part" "$vm/root.tar"
fi

echo "==> the program and its tests"
cargo build --bin wythe
tests=$(cargo test --test it --no-run --message-format=json 2> /dev/null |
    sed -n 's/.*"kind":\["test"\].*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)
[ -x "$tests" ] || fail "cannot find the test binary"

# The guest's disk: its root, and what tests look for where it was when they were compiled.
echo "==> a disk for the guest"
root=$vm/root
rm -rf "$root"
mkdir -p "$root"
tar -xf "$vm/root.tar" -C "$root" --exclude='./dev/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/locale/*'
cp -r "$vm/$kernel/lib/modules" "$root/usr/lib/"
chroot "$root" depmod "$(ls "$root/usr/lib/modules")"
mkdir -p "$root$here/target/tmp" "$root$here/target/debug" "$root/vm"
git ls-files -z | tar -c --null -T - | tar -x -C "$root$here"
objcopy --strip-debug target/debug/wythe "$root$here/target/debug/wythe"
objcopy --strip-debug "$tests" "$root/vm/it"
cp -L /bin/busybox "$root/bin/busybox"
for file in "$tests" target/debug/wythe; do
    ldd "$file" | awk '/=> \// { print $3 }' | while read -r library; do
        [ -e "$root$library" ] || cp -L --parents "$library" "$root"
    done
done
cp tests/vm/guest.sh "$root/vm/guest.sh"
printf '%s\n' "$here" > "$root/vm/here"
printf '%s\n' "$@" > "$root/vm/filters"
printf '%s\n' "${VM_AS:-root user}" > "$root/vm/as"
rm -f "$vm/disk"
mke2fs -q -t ext4 -O ^has_journal -d "$root" "$vm/disk" 3G
rm -rf "$root"

# What mounts the disk: modules in the order in which they need each other.
initial=$vm/initial
rm -rf "$initial"
mkdir -p "$initial/bin" "$initial/modules"
cp -L /bin/busybox "$initial/bin/"
for module in drivers/virtio/virtio_ring.ko drivers/virtio/virtio.ko drivers/virtio/virtio_pci_modern_dev.ko \
    drivers/virtio/virtio_pci_legacy_dev.ko drivers/virtio/virtio_pci.ko drivers/block/virtio_blk.ko \
    block/bfq.ko fs/overlayfs/overlay.ko fs/binfmt_misc.ko; do
    cp "$modules/$module" "$initial/modules/"
    basename "$module" >> "$initial/modules/order"
done
cat > "$initial/init" << 'INIT'
#!/bin/busybox sh
PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
while read -r module; do
    /bin/busybox insmod "/modules/$module" || echo "no module $module"
done < /modules/order
/bin/busybox mount -o noatime /dev/vda /root || /bin/busybox poweroff -f
for directory in proc sys dev; do /bin/busybox mount -o move "/$directory" "/root/$directory"; done
exec /bin/busybox switch_root /root /bin/sh /vm/guest.sh
INIT
chmod +x "$initial/init"
(cd "$initial" && find . | /bin/busybox cpio -o -H newc 2> /dev/null | gzip -1 > "$vm/initial.gz")
rm -rf "$initial"

# A processor without these extensions may have /dev/kvm, and guests that hang.
accelerator="tcg -cpu max"
if grep -qwE 'vmx|svm' /proc/cpuinfo && [ -w /dev/kvm ]; then accelerator="kvm -cpu host"; fi
echo "==> $kernel, $accelerator"
# shellcheck disable=SC2086 # words
timeout --foreground "${VM_TIMEOUT:-3600}" $qemu -accel $accelerator -smp 2 -m 2048 -nodefaults -no-reboot -display none \
    -serial stdio -kernel "$vm/$kernel"/boot/vmlinuz-* -initrd "$vm/initial.gz" \
    -drive "file=$vm/disk,format=raw,if=virtio,cache=unsafe" \
    -append "console=ttyS0 quiet panic=-1 systemd.unified_cgroup_hierarchy=1" < /dev/null | tee "$vm/log"
rm -f "$vm/disk"
grep -q '^test-vm: all passed' "$vm/log" || fail "see $vm/log"
