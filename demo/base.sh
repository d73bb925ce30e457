#!/bin/sh
# Makes a base image out of a static busybox, as an OCI layout, without any network:
#
#     demo/base.sh DIR [BUSYBOX]
#
# Needs GNU tar, gzip and sha256sum. The same busybox always gives the same bytes.
set -eu
umask 022
export LC_ALL=C

[ $# -ge 1 ] || { echo "usage: $0 DIR [BUSYBOX]" >&2; exit 2; }
dir=$1
busybox=${2:-/bin/busybox}
[ -x "$busybox" ] || { echo "$0: no $busybox: install busybox-static" >&2; exit 1; }

case $(uname -m) in
    x86_64) architecture=amd64 ;;
    aarch64) architecture=arm64 ;;
    armv7*) architecture=arm ;;
    riscv64) architecture=riscv64 ;;
    ppc64le) architecture=ppc64le ;;
    s390x) architecture=s390x ;;
    *) echo "$0: unknown machine $(uname -m)" >&2; exit 1 ;;
esac

mkdir -p "$(dirname "$dir")"
work=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

# The root: busybox, links for its applets where it says they belong, and a few users.
root=$work/root
for name in bin dev etc home lib proc root run sbin sys tmp usr/bin usr/sbin var/tmp; do
    mkdir -p "$root/$name"
done
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list-full); do
    [ "$applet" = bin/busybox ] || ln -s /bin/busybox "$root/$applet"
done
cat > "$root/etc/passwd" <<END
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
END
cat > "$root/etc/group" <<END
root:x:0:
daemon:x:1:
bin:x:2:
adm:x:4:
wheel:x:10:root
www-data:x:33:
users:x:100:
nobody:x:65534:
nogroup:x:65533:
END
cat > "$root/etc/shadow" <<END
root:*:::::::
daemon:*:::::::
nobody:*:::::::
END
echo busybox > "$root/etc/hostname"
echo "hosts: files dns" > "$root/etc/nsswitch.conf"
chmod 755 "$root/bin/busybox"
chmod 640 "$root/etc/shadow"
chmod 700 "$root/root"
chmod 1777 "$root/tmp" "$root/var/tmp"

layout=$work/layout
mkdir -p "$layout/blobs/sha256"

digest() { sha256sum "$1" | cut -d ' ' -f 1; }
bytes() { wc -c < "$1" | tr -d ' '; }
# Moves a file into the layout, under its digest.
blob() {
    blob_digest=$(digest "$1")
    blob_bytes=$(bytes "$1")
    mv "$1" "$layout/blobs/sha256/$blob_digest"
}

(cd "$root" && tar -cf "$work/layer.tar" --format=ustar -b 1 --sort=name --numeric-owner --owner=0 --group=0 \
    --mtime=@1700000000 -- *)
diff_id=$(digest "$work/layer.tar")
gzip -n -6 "$work/layer.tar"
blob "$work/layer.tar.gz"
layer_digest=$blob_digest layer_bytes=$blob_bytes

cat > "$work/config" <<END
{"architecture":"$architecture","os":"linux","created":"2023-11-14T22:13:20Z",
"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["sh"]},
"rootfs":{"type":"layers","diff_ids":["sha256:$diff_id"]},
"history":[{"created":"2023-11-14T22:13:20Z","created_by":"busybox","comment":"demo/base.sh"}]}
END
blob "$work/config"
config_digest=$blob_digest config_bytes=$blob_bytes

cat > "$work/manifest" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:$config_digest","size":$config_bytes},
"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:$layer_digest","size":$layer_bytes}]}
END
blob "$work/manifest"

cat > "$layout/index.json" <<END
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",
"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:$blob_digest","size":$blob_bytes,
"platform":{"architecture":"$architecture","os":"linux"},"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}
END
echo '{"imageLayoutVersion":"1.0.0"}' > "$layout/oci-layout"

rm -rf "$dir"
mv "$layout" "$dir"
