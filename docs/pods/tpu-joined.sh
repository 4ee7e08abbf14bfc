#!/bin/bash
# Runs on your computer. All hosts of a TPU slice join, and hold one model together; jax finds them by the
# metadata of the VMs. MODEL, DATA and OUTPUT are paths on the hosts; only worker 0 writes OUTPUT.
set -eu

: "${TPU_NAME:?the name of the slice}" "${ZONE:?its zone}"
MODEL=${MODEL:-/shared/vip-llava-13b}
DATA=${DATA:-/shared/questions.jsonl}
OUTPUT=${OUTPUT:-/shared/answers.jsonl}
MESH=${MESH:-auto}

command=(vipllava eval --model "$MODEL" --data "$DATA" --output "$OUTPUT" --mesh "$MESH" --distributed on)
# clouds often open port 8476 between the hosts, while jax takes 8482
remote="JAX_COORDINATOR_PORT=${JAX_COORDINATOR_PORT:-8476} $(printf '%q ' "${command[@]}")"
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$remote"
