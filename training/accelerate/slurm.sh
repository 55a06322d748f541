#!/usr/bin/env bash
# Several machines with 8 GPUs each, through SLURM:  sbatch --nodes 4 training/accelerate/slurm.sh DATA --config RECIPE ...
# The output folder must be on a disk that all machines see. After a failed process all are started again, up to three
# times, and resume from the newest checkpoint; after the time limit, submit the same command again.
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
set -euo pipefail
FIRST="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
export ACCELERATE_MIXED_PRECISION=bf16 OMP_NUM_THREADS=4
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else restarted processes find the addresses of the dead ones
srun torchrun --nnodes "$SLURM_NNODES" --nproc_per_node 8 --max-restarts 3 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$FIRST:29500" \
    -m mpformer_hf.training --checkpointing_steps 1000 --resume_from_checkpoint latest "$@"
