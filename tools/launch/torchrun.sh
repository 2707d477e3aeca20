#!/usr/bin/env bash
# Start the ranks of this node; run the same line on every node, with its own NODE:
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 tools/launch/torchrun.sh configs/alfworld/qwen2.5-7b-2nodes.yaml --resume auto
#
# NODES             nodes of the run                                        (1)
# NODE              this node, from 0; rank 0 and the engine live on 0      (0)
# HEAD              address of node 0, as the others reach it               (127.0.0.1)
# PORT              free TCP port of node 0                                 (29500)
# PROCESSES         ranks on each node                                      (its visible GPUs, or 1)
# INTERFACE         network interface that reaches the other nodes          (for gloo that of the route to HEAD)
# SHUTDOWN_TIMEOUT  seconds that ranks have after SIGTERM to end an update and to save before they are killed (840)
# PYTHON            interpreter                                             (.venv's, or python)
# MODULE            what to run                                             (gigpo_mega.train)
#
# Code, configuration, model.path and output have the same paths on every node; output is on a shared disk.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

refuse() {
    echo "error: $*" >&2
    exit 2
}

nodes=${NODES:-1} node=${NODE:-0} head=${HEAD:-127.0.0.1} port=${PORT:-29500} patience=${SHUTDOWN_TIMEOUT:-840}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python)}
# The GPUs that this job was given, by index or UUID, up to a -1; without a list, all of the machine.
if [[ -n ${CUDA_VISIBLE_DEVICES+given} ]]; then
    gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | sed '/^ *-/,$d' | grep -c '[^[:space:]]' || true)
else
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
fi
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}

for setting in "NODES $nodes" "NODE $node" "PORT $port" "PROCESSES $processes" "SHUTDOWN_TIMEOUT $patience"; do
    [[ $setting =~ ^[A-Z_]+\ (0|[1-9][0-9]{0,5})$ ]] || refuse "$setting is no whole number"
done
((node < nodes)) || refuse "NODE $node is not below NODES $nodes; nodes count from 0"
((processes > 0)) || refuse "PROCESSES 0: give at least one rank"
((port > 0 && port < 65536)) || refuse "PORT $port is not in 1..65535"

# NCCL and gloo connect over TCP before they use anything faster. Left alone, gloo takes the interface that the host
# name resolves to, often the loopback 127.0.1.1, and NCCL may take the bridge of a container.
if [[ -n ${INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi
interface=${GLOO_SOCKET_IFNAME:-}
if ((nodes > 1)) && [[ -z $interface || $interface == lo ]]; then
    address=$(getent ahostsv4 "$head" || getent ahosts "$head") || refuse "HEAD $head is not known on this node"
    address=${address%%[[:space:]]*}
    if [[ $address != 127.* && $address != ::1 ]]; then
        [[ -z $interface ]] || refuse "INTERFACE lo reaches only this node, not HEAD $head; leave it out"
        command -v ip >/dev/null || refuse "ip (iproute2) is not installed, which finds the way to HEAD; set INTERFACE"
        route=$(ip -o route get "$address" 2>&1) || refuse "HEAD $head is not reached: $route"
        interface=$(sed -n 's/.* dev \([^ ]*\).*/\1/p' <<<"$route")
        # The way to an address of this node itself is lo, whatever interface has the address.
        [[ $interface != lo ]] ||
            interface=$(ip -o address show to "$address" | sed -n '1s/^[0-9]*: *\([^ ]*\).*/\1/p')
    fi
    [[ -n $interface ]] || refuse "HEAD $head is $address here, which no other of the $nodes nodes reaches: give node" \
        "0's address in their network (or INTERFACE=lo for several nodes on this machine)"
    export GLOO_SOCKET_IFNAME=$interface
fi

# Only why a connection failed; INFO shows which transport (NVLink, InfiniBand, sockets) each pair uses.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# One hardware queue, so that kernels run in the order in which megatron-core launches them: tensor, sequence and
# context parallelism launch communication before the computation that hides it (GPUs before Blackwell).
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

# The ranks of a node share its cores. An optimizer on the CPU (parallel.offload_optimizer) needs more threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Not set: PYTORCH_CUDA_ALLOC_CONF=expandable_segments. Weights reach the engine as CUDA IPC handles, which such
# memory does not support.

# Ranks are fixed: rank 0 is on HEAD, and so are the server of the engine and its log. Nothing restarts by itself: a
# rank that ends also ends the run, and --resume continues from the newest complete checkpoint. The same time-out holds
# for ranks that wait for one that has failed; torchrun's own 30 seconds would kill a run in the middle of a checkpoint.
exec "$python" -m torch.distributed.run \
    --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$processes" \
    --master-addr "$head" --master-port "$port" --max-restarts 0 --shutdown-timeout "$patience" \
    -m "${MODULE:-gigpo_mega.train}" "$@"
