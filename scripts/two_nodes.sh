#!/bin/bash
# Rehearses two machines on one: two torchruns, each in a network of its own, joined by a virtual cable.
#   scripts/two_nodes.sh dataset=digits trainer.max_epochs=5
# Needs Linux with iproute2, and namespaces that users may make (or root).
set -eu
if [ "${1:-}" != --inside ]; then
    exec unshare --user --map-root-user --net "$0" --inside "$@"
fi
shift
unshare --net sleep infinity &  # keeps the second node's network; this shell has the first one's
other=$!
trap 'kill $other' EXIT
until [ "$(readlink /proc/$other/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do sleep 0.1; done
on_second() { nsenter --net=/proc/$other/ns/net "$@"; }

ip link add cable type veth peer name cable netns "$other"
ip addr add 10.77.0.1/24 dev cable && ip link set cable up && ip link set lo up
on_second ip addr add 10.77.0.2/24 dev cable && on_second ip link set cable up && on_second ip link set lo up

export GLOO_SOCKET_IFNAME=cable
agent="python -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --rdzv-id nodes --rdzv-backend c10d"
agent="$agent --rdzv-endpoint 10.77.0.1:29500"
train="-m vaelab train accelerator=multinode trainer.accelerator=cpu trainer.devices=1"
on_second $agent --local-addr 10.77.0.2 --rdzv-conf is_host=0 $train "$@" &
second=$!
$agent --local-addr 10.77.0.1 --rdzv-conf is_host=1 $train "$@"
wait $second
