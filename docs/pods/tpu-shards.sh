#!/bin/bash
# Runs on your computer. Each host of a TPU slice answers its part of the questions, independently of the others.
# The variables make the four chips of a host a separate TPU: without them, they wait for the other hosts.
# MODEL, DATA and OUTPUT are paths on the hosts.
set -eu

: "${TPU_NAME:?the name of the slice}" "${ZONE:?its zone}" "${HOSTS:?the number of its hosts}"
MODEL=${MODEL:-/shared/vip-llava-7b}
DATA=${DATA:-/shared/questions.jsonl}
OUTPUT=${OUTPUT:-/shared/answers.jsonl}

alone='TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost TPU_WORKER_ID=0'
alone+=' TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1'
worker='http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number'
index="\$(curl -sf -H 'Metadata-Flavor: Google' $worker)"
command=(vipllava eval --model "$MODEL" --data "$DATA" --output "$OUTPUT")
remote="$alone $(printf '%q ' "${command[@]}") --shard $index/$HOSTS"
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$remote"
