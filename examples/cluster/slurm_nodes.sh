#!/bin/bash
# SLURM: one run on all GPUs of several nodes, with one task per GPU.
#
#     sbatch examples/cluster/slurm_nodes.sh crafter --replay.batch 32
#
# All tasks save three minutes before the time limit, and the job goes back into the queue.
#SBATCH --job-name=emerald
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

trap : TERM # it is for the tasks
srun python -m emerald_jax train "${@:-crafter}"
code=$?

# 75: stopped and saved. SLURM no longer calls a job RUNNING that was cancelled, or that it has put
# back into the queue itself.
if ((code == 75)) && scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
