#!/bin/sh
# Makes the files of Debian 13, whose Docker (26.1) hands devices over by CDI, for the tests of GPUs. Needs root,
# debootstrap and the network; does nothing where they are there already.
set -eu
root="${XDG_CACHE_HOME:-$HOME/.cache}/ostler-ci/debian-13"
[ -x "$root/usr/sbin/dockerd" ] && exit 0
mkdir -p "$(dirname "$root")"
# A mirror may fail once.
for _ in 1 2 3; do
    rm -rf "$root.new"
    if debootstrap --variant=minbase --include=docker.io,iptables trixie "$root.new" >"$root.log" 2>&1; then
        mv "$root.new" "$root"
        exit 0
    fi
done
tail -n 5 "$root.log" >&2
exit 1
