#!/bin/bash
# SLURM: one task per seed, with one GPU each.
#
#     sbatch --array=0-4 examples/cluster/slurm_array.sh crafter --train-ratio 32
#
# A task saves three minutes before its time limit and goes back into the queue.
#SBATCH --job-name=emerald
#SBATCH --array=0-4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

python -m emerald_jax train "${@:-crafter}" --seed "$SLURM_ARRAY_TASK_ID" &
run=$!
trap 'signalled=yes; kill -TERM "$run"' TERM

signalled=yes
while [[ $signalled ]]; do # the signal ends `wait`, but not yet the run
    signalled=
    wait "$run"
    code=$?
done

# 75: stopped and saved. SLURM no longer calls a task RUNNING that was cancelled, or that it has
# put back into the queue itself.
task=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if ((code == 75)) && scontrol show job "$task" | grep -q JobState=RUNNING; then
    scontrol requeue "$task"
fi
exit "$code"
