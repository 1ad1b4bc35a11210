#!/bin/bash
# One sweep on several nodes of a Slurm cluster: sbatch docs/clusters/slurm_sweep.sh
# Change the four lines below and the sbatch lines; everything else stays.
#SBATCH --job-name=vmae-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@300
set -euo pipefail

VENV=$HOME/vmae/.venv                       # on storage that every node sees
RUNS=/shared/$USER/runs                     # likewise: checkpoints, results
export MLFLOW_TRACKING_URI=http://tracking.example:5000
WORK=(sweep masking_ratio --data /shared/k400/train.csv --val /shared/k400/val.csv --seeds 3)

source "$VENV/bin/activate"
export RAY_AUTH_MODE=disabled               # nodes of one job; see docs/clusters.md for tokens
export RAY_USAGE_STATS_ENABLED=0
PORT=$((20000 + SLURM_JOB_ID % 10000))
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
HEAD_IP=$(srun --nodes=1 --ntasks=1 -w "$HEAD" hostname --ip-address | awk '{print $1}')
CORES=$SLURM_CPUS_PER_TASK
GPUS=${SLURM_GPUS_ON_NODE:-0}

srun --nodes=1 --ntasks=1 --overlap -w "$HEAD" \
    ray start --head --node-ip-address="$HEAD_IP" --port="$PORT" --num-cpus="$CORES" --num-gpus="$GPUS" --block &
for _ in $(seq 60); do (echo > "/dev/tcp/$HEAD_IP/$PORT") 2> /dev/null && break; sleep 2; done
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --overlap --exclude="$HEAD" \
        ray start --address="$HEAD_IP:$PORT" --num-cpus="$CORES" --num-gpus="$GPUS" --block &
fi

# Run the job again after its time limit: what is finished is not run again.
NAME=slurm-sweep
ARGS=("${WORK[@]}" --run-name "$NAME")
[ -e "$RUNS/sweeps/$NAME/plan.json" ] && ARGS=(sweep --resume "$NAME")
# Slurm's signal comes to this script: hand it on, so that the sweep ends cleanly. (Without job control bash
# starts background commands deaf to SIGINT.)
set -m
vmae "${ARGS[@]}" --runs-dir "$RUNS" --address "$HEAD_IP:$PORT" &
SWEEP=$!
trap 'kill -INT $SWEEP' INT
wait $SWEEP || wait $SWEEP
