#!/bin/bash
# A TPU VM of one host, from your own machine, in a checkout:
#
#     examples/cluster/tpu_vm.sh my-tpu us-west4-a crafter --seed 0
#
# Makes the VM if it does not exist, copies the checkout, trains, and copies the run back. The same
# command continues the run, also on a new VM: it copies runs/ there first.
set -euo pipefail
name=$1 zone=$2
shift 2
tpu() { gcloud compute tpus tpu-vm "$1" --zone="$zone" "${@:2}"; }

tpu describe "$name" > /dev/null 2>&1 ||
    tpu create "$name" --accelerator-type=v5litepod-4 --version=v2-alpha-tpuv5-lite
mkdir -p runs
tar --exclude=./.git -czf - . | tpu ssh "$name" --command='mkdir -p emerald && tar -xzf - -C emerald'
tpu ssh "$name" --command='cd emerald &&
    sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv &&
    python3.11 -m venv .venv && .venv/bin/pip install -q -e ".[tpu]"'

# With a terminal (-t), so that Ctrl-C reaches the run: it saves and ends with 75.
settings=$(printf '%q ' "$@")
code=0
tpu ssh "$name" --command="cd emerald && .venv/bin/python -m emerald_jax train $settings" -- -t ||
    code=$?
tpu ssh "$name" --command='tar -czf - -C emerald runs' | tar -xzf -
exit "$code"
