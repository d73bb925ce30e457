#!/usr/bin/env bash
# Builds four real projects with wythe and with buildah, checks that each image does its job, and prints
# how long each build took:
#
#     benches/projects/run.sh WYTHE DIR [PROJECT...]
#
# Needs the network of package managers, and buildah, podman, skopeo, docker-registry, mmdebstrap. Everything it
# makes is in DIR but buildah's and podman's own images, which are in a storage there, too. To be run as
# root, or as a user with subordinate ids once the bases are there (DIR/registry).
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: $0 WYTHE DIR [PROJECT...]" >&2; exit 2; }
wythe=$(realpath "$1")
mkdir -p "$2"
dir=$(realpath "$2")
shift 2
projects=("${@:-daemons python node rust}")
read -ra projects <<< "${projects[*]}"
here=$(dirname "$(realpath "$0")")
port=${PORT:-5999}
registry=localhost:$port

fail() { echo "projects: $*" >&2; exit 1; }
for program in buildah podman skopeo docker-registry mmdebstrap curl; do
    command -v $program > /dev/null || fail "$program is missing: apt-get install $program"
done

# ---- a registry with the bases

cat > "$dir/registry.yml" << END
version: 0.1
storage: {filesystem: {rootdirectory: $dir/registry}}
http: {addr: 127.0.0.1:$port}
END
docker-registry serve "$dir/registry.yml" > "$dir/registry.log" 2>&1 &
trap 'kill %1' EXIT
until curl -sf "http://$registry/v2/" > "$dir/ping"; do sleep 0.1; done

if [ ! -e "$dir/registry/bases" ]; then
    mkdir -p "$dir/rootfs" "$dir/registry"
    # Of the host's own, whose keys it has.
    suite=$(. /etc/os-release; echo "${VERSION_CODENAME:-stable}")
    # Behind a proxy with an authority of its own, builds need it, too.
    mmdebstrap --quiet --variant=minbase --include=ca-certificates \
        --customize-hook='! ls /usr/local/share/ca-certificates/*.crt || cp /usr/local/share/ca-certificates/*.crt "$1/usr/local/share/ca-certificates/"' \
        --customize-hook='chroot "$1" update-ca-certificates' "$suite" "$dir/rootfs/debian.tar"
    for base in debian python node rust; do
        "$wythe" --root "$dir/bases" build --progress plain -f "$here/bases/Dockerfile" --target $base \
            -t "$registry/$base" --push "$dir/rootfs"
    done
    touch "$dir/registry/bases"
fi

# ---- builds

seconds() { # LOG COMMAND...: runs it and prints the seconds it took
    local log=$1 begun=$EPOCHREALTIME
    shift
    "$@" > "$log" 2>&1 || { tail -n 20 "$log" >&2; fail "failed: $*"; }
    local ended=$EPOCHREALTIME
    awk "BEGIN { printf \"%.3f\", $ended - $begun }"
}

storage=(--root "$dir/buildah" --runroot "$dir/buildah-run" --storage-driver overlay)
build_with_wythe() {
    "$wythe" --root "$dir/store" build --progress plain --build-arg "REGISTRY=$registry" -t "$registry/$1-wythe" "$2"
}
build_with_buildah() {
    buildah "${storage[@]}" build --layers --network host --tls-verify=false --build-arg "REGISTRY=$registry" \
        -t "$registry/$1-buildah" "$2"
}
forget() {
    # What a package manager may keep open of a cache is gone with its process.
    chmod -R u+w "$dir/store" 2> /dev/null || true
    rm -rf "$dir/store"
    buildah "${storage[@]}" rmi --all --force > "$dir/rmi.log" 2>&1 || true
    rm -rf "$dir/buildah" "$dir/buildah-run" /var/tmp/buildah-cache* 2> /dev/null || buildah unshare rm -rf "$dir/buildah"
}

# ---- what each is for

expect() { # WORD COMMAND...: whether the command comes to say it within ten seconds
    local word=$1
    shift
    for _ in $(seq 100); do
        case $("$@" 2> /dev/null || true) in
            *"$word"*) return 0 ;;
        esac
        sleep 0.1
    done
    fail "no \`$word\` from: $*"
}
# Limits that need no privilege: what podman asks for by itself takes CAP_SYS_RESOURCE.
run=(podman "${storage[@]}" --cgroup-manager cgroupfs run --rm --ulimit nofile=1024:1024 --ulimit nproc=4096:4096
    --network host --cap-add NET_RAW --tls-verify=false)
check() { # PROJECT: pulls the image that was pushed, runs it, and looks at its work
    local container="wythe-$1-$$"
    local image="$registry/$1-wythe"
    "$wythe" --root "$dir/store" push --insecure-registry "$registry" "$image" > "$dir/$1-push.log" 2>&1 || { cat "$dir/$1-push.log" >&2; return 1; }
    "${run[@]}" --name "$container" "$image" > "$dir/$1-run.log" 2>&1 &
    case $1 in
        daemons)
            expect PONG redis-ping
            "${run[@]}" --entrypoint '' "$image" sh -c 'set -e; id -un; stat -c "%A %U %G %n" /usr/bin/sudo /usr/bin/ssh-agent /srv/data; ping -c 1 -q 127.0.0.1'
            ;;
        *) expect 285 curl -sf http://localhost:8000/ ;;
    esac
    podman "${storage[@]}" --cgroup-manager cgroupfs rm --force --time 1 "$container" > "$dir/$1-rm.log" 2>&1
    wait $! || true
}
redis-ping() { printf 'PING\r\n' | timeout 1 bash -c 'exec 3<> /dev/tcp/127.0.0.1/6379; cat >&3; head -n 1 <&3'; }

change() { # PROJECT CONTEXT: one line of its sources
    case $1 in
        daemons) echo "# changed" >> "$2/redis.conf" ;;
        python) echo "# changed" >> "$2/service.py" ;;
        node) echo "// changed" >> "$2/service.js" ;;
        rust) echo "// changed" >> "$2/src/main.rs" ;;
    esac
}

table=()
for project in "${projects[@]}"; do
    forget
    rm -rf "$dir/context"
    cp -r "$here/$project" "$dir/context"
    declare -A took=()
    for tool in wythe buildah; do
        took[cold-$tool]=$(seconds "$dir/$project-cold-$tool.log" build_with_$tool $project "$dir/context")
    done
    check "$project"
    for tool in wythe buildah; do
        took[same-$tool]=$(seconds "$dir/$project-same-$tool.log" build_with_$tool $project "$dir/context")
    done
    change $project "$dir/context"
    for tool in wythe buildah; do
        took[changed-$tool]=$(seconds "$dir/$project-changed-$tool.log" build_with_$tool $project "$dir/context")
    done
    for state in cold same changed; do
        table+=("$(printf '| %-7s | %-7s | %8s s | %8s s | %6.1f |' $project $state \
            "${took[$state-wythe]}" "${took[$state-buildah]}" \
            "$(awk "BEGIN { print ${took[$state-buildah]} / ${took[$state-wythe]} }")")")
    done
done

printf '| %-7s | %-7s | %10s | %10s | %6s |\n' project build wythe buildah ratio
printf '| %-7s | %-7s | %10s | %10s | %6s |\n' --- --- ---: ---: ---:
printf '%s\n' "${table[@]}"
