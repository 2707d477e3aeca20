#!/usr/bin/env bash
# Start this node's ranks of a run; the same line on every node, with its own NODE:
#
#   NODES=2 NODE=0 HEAD=10.0.0.1 tools/launch/torchrun.sh configs/alfworld/qwen2.5-7b-2nodes.yaml --resume
#
# NODES      nodes of the run                                   (1)
# NODE       this node, from 0; rank 0 and the engine live on 0 (0)
# HEAD       address of node 0, as the others reach it          (127.0.0.1)
# PORT       free TCP port of node 0                            (29500)
# PROCESSES  ranks on each node                                 (its GPUs, or 1)
# INTERFACE  network interface that reaches the other nodes     (left to NCCL and gloo)
# PYTHON     interpreter                                        (.venv's, or python)
# MODULE     what to run                                        (gigpo_mega.train)
#
# Code, configuration, model.path and output must lie at the same place on every node, output on a disk they share.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

nodes=${NODES:-1} node=${NODE:-0} head=${HEAD:-127.0.0.1} port=${PORT:-29500}
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python)}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l || true)
processes=${PROCESSES:-$((gpus > 0 ? gpus : 1))}

if ((node >= nodes)); then
    echo "error: NODE $node is not below NODES $nodes; nodes count from 0" >&2
    exit 2
fi

# NCCL and gloo each find one another by a TCP connection before anything fast is used. Left alone, gloo takes the
# interface that the host's own name resolves to, often 127.0.1.1, and NCCL may take a container's bridge.
if [[ -n ${INTERFACE:-} ]]; then
    export NCCL_SOCKET_IFNAME=$INTERFACE GLOO_SOCKET_IFNAME=$INTERFACE
fi

# Why a connection failed, and no more; INFO shows which transport (NVLink, InfiniBand, sockets) each pair uses.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}

# One hardware queue, so that kernels run in the order in which megatron-core launches them: tensor, sequence and
# context parallelism put communication before the computation that is to hide it (GPUs before Blackwell).
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}

# Ranks of a node share its cores. An optimizer that runs on them (parallel.offload_optimizer) wants more threads.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# Not set: PYTORCH_CUDA_ALLOC_CONF=expandable_segments. Weights reach the engine as CUDA IPC handles, which such
# memory has none of.

# Ranks are given, not negotiated: rank 0 is on HEAD, where the engine's server and its log are looked for. Nothing
# restarts by itself: a rank that ends ends the run, and --resume goes on from the newest whole checkpoint.
exec "$python" -m torch.distributed.run \
    --nnodes "$nodes" --node-rank "$node" --nproc-per-node "$processes" \
    --master-addr "$head" --master-port "$port" --max-restarts 0 \
    -m "${MODULE:-gigpo_mega.train}" "$@"
