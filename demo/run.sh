#!/bin/sh
# Builds demo/Dockerfile twice and shows that the second build ran nothing and gave the same bytes:
#
#     demo/run.sh WYTHE DIR
#
# Everything it makes is in DIR; there is no network.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 WYTHE DIR" >&2; exit 2; }
wythe=$1
dir=$2
demo=$(dirname "$0")
case $wythe in
    /*) ;;
    *) wythe=$PWD/$wythe ;;
esac

fail() { echo "demo: $*" >&2; exit 1; }

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
rm -rf "$dir/store" "$dir/image.tar" "$dir/again.tar"

echo "==> a base image, made of busybox"
"$demo/base.sh" "$dir/base"

# Shows a build, keeps what it said, and has its exit code.
build() {
    echo "==> wythe build $demo ($1)"
    status=0
    "$wythe" --root "$dir/store" build --progress plain --build-context "busybox=oci-layout://$dir/base" \
        -t demo -o "type=oci,dest=$dir/$1.tar" "$demo" > "$dir/$1.log" 2>&1 || status=$?
    cat "$dir/$1.log"
    [ $status -eq 0 ] || fail "the build ended with exit code $status"
}

build image
build again

# A step that ran ends with DONE; only FROM may, its base is looked at each time, and the writing of the file.
if ran=$(awk '/^#[0-9]+ \[/ { title[$1] = $0 } $2 == "DONE" && title[$1] !~ /\] FROM|\[export\]/ { print title[$1]; n++ } END { exit n == 0 }' \
    "$dir/again.log"); then
    fail "these steps of the second build were not cached: $ran"
fi
grep -q ' CACHED$' "$dir/again.log" || fail "the second build tells of no cached step"
cmp "$dir/image.tar" "$dir/again.tar" || fail "the two images differ"

echo "==> both builds gave the same $(wc -c < "$dir/image.tar") bytes: $dir/image.tar"
if command -v skopeo > /dev/null; then
    echo "==> skopeo inspect"
    skopeo inspect --config "oci-archive:$dir/image.tar"
fi
