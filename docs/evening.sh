#!/usr/bin/env bash
# An evening in the life of three nodes, played in five minutes. Writes docs/evening.md: what `ostler events` tells of it
# and what `ostler history` draws. Needs root, dockerd, busybox-static and iproute2.
#
#   cargo build --release && sudo docs/evening.sh target/release/ostler
set -euo pipefail

ostler=$(realpath "${1:?usage: $0 OSTLER}")
page="$(cd "$(dirname "$0")" && pwd)/evening.md"
# Paths of unix sockets are short: 107 bytes.
work=$(mktemp -d /tmp/evening.XXXXXX)
nodes=(host-a host-b host-c)
declare -A agent engine
follower=
began=$SECONDS

say() { printf '%s  %s\n' "$(date +%T)" "$*" >&2; }

stop_all() {
    [ -n "$follower" ] && kill "$follower" 2>/dev/null
    for node in "${nodes[@]}"; do
        [ -n "${agent[$node]:-}" ] && kill "${agent[$node]}" 2>/dev/null
    done
    for node in "${nodes[@]}"; do
        docker -H "unix://$work/$node/docker.sock" ps -aq 2>/dev/null |
            xargs -r docker -H "unix://$work/$node/docker.sock" rm -f >/dev/null 2>&1
        [ -n "${engine[$node]:-}" ] && kill "$(cat "$work/$node/docker.pid" 2>/dev/null)" 2>/dev/null
    done
    wait
    umount -q "$work"/*/data/docker/overlay2/*/merged 2>/dev/null
    rm -rf "$work"
}
trap 'stop_all || true' EXIT

until_true() { # WHAT COMMAND...: waits a minute at most.
    local what=$1
    shift
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    say "gave up waiting for $what"
    tail -n 3 "$work"/*/log >&2
    exit 1
}

# Every node has an engine of its own, in a network of its own.
start_engine() {
    local node=$1
    mkdir -p "$work/$node"
    rm -f "$work/$node/docker.pid"
    echo '{"storage-driver": "vfs"}' >"$work/$node/daemon.json"
    unshare --net sh -c 'ip link set lo up; exec "$@"' sh dockerd --host "unix://$work/$node/docker.sock" \
        --data-root "$work/$node/docker" --exec-root "$work/$node/exec" --pidfile "$work/$node/docker.pid" \
        --config-file "$work/$node/daemon.json" >>"$work/$node/docker.log" 2>&1 &
    engine[$node]=$!
    until_true "the engine of $node" docker -H "unix://$work/$node/docker.sock" version
}

port() { echo "127.0.0.1:$((7700 + 10 * $1))"; }

start_agent() {
    local node=$1
    "$ostler" agent --config "$work/$node/ostler.toml" >>"$work/$node/log" 2>&1 &
    agent[$node]=$!
    until_true "the agent of $node" test -S "$work/$node/ostler.sock"
    until_true "the agent of $node" at "$node" status
}

# A command of root on a node.
at() { OSTLER_SOCKET="$work/$1/ostler.sock" "$ostler" "${@:2}"; }
# A command of Ana, who has an API token, through host-c.
ana() { OSTLER_NODE="http://$(port 3 | sed 's/.$/1/')" OSTLER_TOKEN_FILE="$work/ana" "$ostler" "$@"; }
leader() { at "$1" status -o json | jq -r .cluster.leader.name; }
leads_instead_of() { at "$1" status -o json | jq -e --arg was "$2" '.cluster.leader.name // $was | . != $was'; }
is_lost() { at host-a node ls -o json | jq -e --arg name "$1" '.items[] | select(.name == $name and .state == "unknown")'; }
alive() { at "$1" node ls -o json | jq -e "[.items[] | select(.state == \"alive\")] | length == $2"; }

prepare() {
    local i=0 node
    "$ostler" token generate >"$work/token"
    chmod 600 "$work/token"
    for node in "${nodes[@]}"; do
        i=$((i + 1))
        start_engine "$node"
        tar -C / -c bin/busybox | docker -H "unix://$work/$node/docker.sock" import - desk:1 >/dev/null
        cat >"$work/$node/ostler.toml" <<TOML
node = { name = "$node", data_dir = "$work/$node/data" }
cluster = { name = "lab", token_file = "$work/token", listen = "$(port $i)", seeds = ["$(port 1)", "$(port 2)", "$(port 3)"] }
http = { listen = "$(port $i | sed 's/.$/1/')", socket = "$work/$node/ostler.sock" }
runtime = { docker_host = "unix://$work/$node/docker.sock", port_range = "$((20000 + i * 100))-$((20099 + i * 100))" }
TOML
    done
}

play() {
    say "19:00 the first node, then two more"
    start_agent host-a
    sleep 20
    start_agent host-b
    start_agent host-c
    until_true "three nodes" alive host-a 3
    # As one follows it. What the logs have is the same, but that of host-b is gone with it in the end.
    at host-c events --follow --since 2m --severity notice >"$work/told" 2>&1 &
    follower=$!
    at host-a token api create --role operate --name ana >"$work/ana" 2>/dev/null
    chmod 600 "$work/ana"
    at host-a workspace add desk --image desk:1 --cores 0.5 --memory 256MiB \
        -- /bin/busybox sh -c 'trap "exit 0" TERM; while :; do /bin/busybox sleep 1; done' >/dev/null
    sleep 10

    say "19:30 a class: the house gets full"
    local seats i
    seats=$(at host-a node ls -o json | jq '[.items[].resources.cores | .effective // .physical] | add * 2')
    for i in $(seq "$seats"); do
        ana session create desk --user "student-$i" >/dev/null 2>&1
        sleep 2
    done
    say "20:00 three come late, and are refused"
    for i in 1 2 3; do
        ana session create desk --user "late-$i" >/dev/null 2>&1 && exit 1
        sleep 3
    done
    say "20:10 host-c offers more than it has"
    at host-a node set host-c --cores-override "$(($(nproc) + 2))" >/dev/null
    for i in 1 2 3; do
        ana session create desk --user "late-$i" >/dev/null 2>&1
    done
    sleep 30

    say "21:00 host-b gets new memory: a drain"
    local stopped
    stopped=$(at host-a session ls -o json | jq -r '.items[] | select(.node == "host-b" and .state == "running") | .id')
    # Ends with 1: the stopped sessions remain, and are started again later.
    at host-a node drain host-b --message "new memory" --stop-sessions --wait >/dev/null 2>&1 || true
    sleep 20
    at host-a node undrain host-b >/dev/null
    # shellcheck disable=SC2086
    ana session start $stopped >/dev/null
    sleep 20

    local led other
    led=$(leader host-a)
    other=host-a
    [ "$led" = host-a ] && other=host-c
    say "21:30 $led leads, and is killed"
    kill -9 "${agent[$led]}"
    wait "${agent[$led]}" 2>/dev/null || true
    until_true "another leader" leads_instead_of "$other" "$led"
    sleep 30
    start_agent "$led"
    until_true "three nodes" alive "$other" 3
    sleep 20

    say "22:00 the engine of host-c is restarted"
    kill "$(cat "$work/host-c/docker.pid")"
    wait "${engine[host-c]}" 2>/dev/null || true
    sleep 5
    start_engine host-c
    sleep 20

    say "22:30 host-b burns out, and is removed"
    kill -9 "${agent[host-b]}"
    wait "${agent[host-b]}" 2>/dev/null || true
    until_true "the loss of host-b" is_lost host-b
    sleep 10
    at host-a node rm host-b >/dev/null
    sleep 15
}

fenced() { # A command as it is typed, and what it prints.
    # The directory of this run is not that of a host.
    printf '\n```console\n$ %s\n' "$1"
    sed "s|$work/host-.|/run|g; s/[[:space:]]*$//"
    printf '```\n'
}

write() {
    local session since="$(((SECONDS - began) / 60 + 1))m"
    session=$(at host-c events --since "$since" -o json --kind session_created -- host-c | head -1 | jq -r .target.id)
    cat <<'MD'
# An evening in the life of three nodes

Three nodes join. A class takes every seat, and three who come late are refused, until host-c is told to offer more than it
has. host-b is drained for new memory. The leader is killed, and another node leads at once; the engine of host-c is
restarted; host-b burns out and is removed. `docs/evening.sh` plays the evening in five minutes, with three agents and three
Docker engines, and makes this page of what they tell.

## What happened, and who did it
MD
    fenced "ostler events --follow --severity notice" <"$work/told"
    cat <<'MD'

`(by …)` names the person and the node through which they asked; what has no name, the nodes did by themselves. `-o json`
has the same with every field, and [Events](events.md) lists the kinds. A node that cannot be asked leaves a gap, which is
told; what it tells later is marked as late.

## One session
MD
    at host-c events --since "$since" --target "$session" 2>&1 | fenced "ostler events --since $since --target ${session:0:13}"
    cat <<'MD'

## What it looked like

A terminal has finer bars and colours. `.` (`·` on a terminal) is a time of which this node has no figures.
MD
    local metrics=nodes.alive,sessions.running,cores.allocated,cores.effective
    at host-c history --since "$since" --step 10s --metric "$metrics" 2>&1 |
        fenced "ostler history --since $since --step 10s --metric $metrics"
    metrics=cores.allocated,sessions.running
    at host-c node history host-a --since "$since" --step 10s --metric "$metrics" 2>&1 |
        fenced "ostler node history host-a --since $since --step 10s --metric $metrics"
}

prepare
play
write >"$page"
say "wrote $page"
