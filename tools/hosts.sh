#!/usr/bin/env bash
# Two hosts on one machine, for measuring what crosses between them: network namespaces joined by a link of RATE, each
# with a host name of its own. Needs root, iproute2 and Open MPI.
#     tools/hosts.sh up 400mbit        makes node0 and node1
#     tools/hosts.sh run N COMMAND...  N ranks, half of them on each
#     tools/hosts.sh down
set -eu
case ${1:-} in
up)
    for i in 0 1; do
        ip netns add node$i
        ip -n node$i link set lo up
        mkdir -p /etc/netns/node$i
        printf '127.0.0.1 localhost\n10.77.0.1 node0\n10.77.0.2 node1\n' > /etc/netns/node$i/hosts
    done
    ip link add veth0 netns node0 type veth peer name veth1 netns node1
    for i in 0 1; do
        ip -n node$i addr add 10.77.0.$((i + 1))/24 dev veth$i
        ip -n node$i link set veth$i up
        [ "${2:-}" = "" ] || ip netns exec node$i tc qdisc add dev veth$i root tbf rate "$2" burst 256kb latency 50ms
    done
    ;;
run)
    ranks=$2
    shift 2
    agent=$(mktemp)
    trap 'rm -f "$agent"' EXIT
    # What Open MPI takes for ssh: `agent HOST COMMAND`.
    printf '#!/bin/sh\nhost=$1; shift\nexec ip netns exec $host unshare --uts sh -c "hostname $host; $*"\n' > "$agent"
    chmod +x "$agent"
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    ip netns exec node0 unshare --uts sh -c 'hostname node0; exec "$@"' - mpirun.openmpi -n "$ranks" \
        --host node0:$((ranks / 2)),node1:$((ranks / 2)) --mca plm_rsh_agent "$agent" --oversubscribe --bind-to none \
        --mca mpi_yield_when_idle 1 --mca btl_tcp_if_include 10.77.0.0/24 --mca oob_tcp_if_include 10.77.0.0/24 "$@"
    ;;
down)
    for i in 0 1; do
        ip netns del node$i 2> /dev/null || true
        rm -rf /etc/netns/node$i
    done
    ;;
*) sed -n '2,/^set/p' "$0" | grep '^#' | cut -c3- >&2 && exit 2 ;;
esac
