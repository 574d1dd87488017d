#!/bin/sh
# One run on several machines. Start this on each of them, with the same arguments:
#
#     NODES=2 FIRST_NODE=node01 NODE=0 sh experiments/cluster/torchrun.sh --config recipe.yaml   # NODE=1 on the second
#
# run.engine.devices is the number of GPUs of a machine. The run folder and the data lie where all machines see them.
set -eu
GPUS="${GPUS:-8}"
exec torchrun --nnodes "$NODES" --node-rank "$NODE" --nproc-per-node "$GPUS" \
    --master-addr "$FIRST_NODE" --master-port "${PORT:-29500}" --max-restarts 0 \
    --no-python arlow fit "$@" --run.engine.nodes "$NODES" --run.engine.devices "$GPUS"
