#!/bin/bash
# One sweep on several nodes of a Slurm cluster: sbatch docs/clusters/slurm_sweep.sh
# Change the five lines below and the sbatch lines; everything else stays.
#SBATCH --job-name=vmae-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:INT@300
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

VENV=$HOME/vmae/.venv                       # on storage that every node sees
RUNS=/shared/$USER/runs                     # likewise: checkpoints, results
NAME=masking-ratio-1                        # the same name goes on with the sweep, another starts another
export MLFLOW_TRACKING_URI=http://tracking.example:5000
WORK=(sweep masking_ratio --data /shared/k400/train.csv --val /shared/k400/val.csv --seeds 3 --cpus 8 --gpus 1)

source "$VENV/bin/activate"
# Other users reach these nodes: Ray takes work only from who has this job's token.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_USAGE_STATS_ENABLED=0
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # since Slurm 22.05 srun does not take it over from sbatch
PORT=$((20000 + SLURM_JOB_ID % 10000))
# This script runs on the job's first node. Its own name may be a loopback address there (127.0.1.1 on Debian).
HEAD_IP=$(echo "$(hostname --ip-address) $(hostname --all-ip-addresses)" |
    awk '{for (i = 1; i <= NF; i++) if ($i !~ /^127\.|:/) {print $i; exit}}')
TEMP=/tmp/ray-$SLURM_JOB_ID                 # Ray's sockets and logs, on each node
mkdir -p "$RUNS"

# One step a node: a node that is lost takes only its own with it.
on() { srun --export=ALL --nodes=1 --ntasks=1 --overlap --no-kill --quiet -w "$@"; }
RAY=(ray start --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --object-store-memory=1000000000 --temp-dir="$TEMP" --min-worker-port=0 --max-worker-port=0
    --disable-usage-stats --block)
# When a node is lost the job goes on (--no-kill), even the first, on which nothing is left that could end it:
# a worker whose Ray has ended waits for that, and has Slurm queue the job again.
WORKER='"$@"
    until sinfo --noheader --nodes="$0" --format=%T | grep -q ^down; do sleep 20; done
    scontrol requeue "$SLURM_JOB_ID"'
HOSTS=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
for HOST in $HOSTS; do
    if [ "$HOST" = "$SLURMD_NODENAME" ]; then
        START=("${RAY[@]}" --head --node-ip-address="$HEAD_IP" --port="$PORT"
            --ray-client-server-port=$((PORT + 10000)) --include-dashboard=false)
    else
        START=(bash -c "$WORKER" "$SLURMD_NODENAME" "${RAY[@]}" --address="$HEAD_IP:$PORT")
    fi
    on "$HOST" "${START[@]}" &>> "$RUNS/ray-$SLURM_JOB_ID-$HOST.log" &
done
vmae cluster check --address "$HEAD_IP:$PORT" --nodes "$SLURM_NNODES" --wait 300 ||
    { tail -n 5 "$RUNS/ray-$SLURM_JOB_ID"-*.log; exit 1; }

# The job again after its time limit: what is finished is not run again.
ARGS=("${WORK[@]}" --run-name "$NAME")
[ -e "$RUNS/sweeps/$NAME/plan.json" ] && ARGS=(sweep --resume "$NAME")
# Slurm's signal comes to this script: hand it on, so that the sweep ends cleanly. (Without job control bash
# starts background commands deaf to SIGINT.)
set -m
vmae "${ARGS[@]}" --runs-dir "$RUNS" --address "$HEAD_IP:$PORT" &
SWEEP=$!
trap 'kill -INT $SWEEP' INT
wait $SWEEP || wait $SWEEP
