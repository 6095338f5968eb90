#!/bin/bash
# A training on two machines of a SLURM cluster, of four GPUs each: sbatch slurm.sh
# The folder that it is submitted from, .venv and models/base in it, is on a file system that all machines share.
#SBATCH --job-name=regrasp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
# shellcheck source=/dev/null
source .venv/bin/activate

# Only what knows the token takes part in this job's cluster; srun hands both variables on.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${machines[0]}
head_ip=$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000))  # of this job alone, where several share a machine

# --block keeps each step alive, so that SLURM ends Ray with the job.
srun --nodes=1 --ntasks=1 -w "$head" --overlap \
    ray start --head --node-ip-address="$head_ip" --port="$port" --include-dashboard=false --block &
for machine in "${machines[@]:1}"; do
    srun --nodes=1 --ntasks=1 -w "$machine" --overlap ray start --address="$head_ip:$port" --block &
done
ray_nodes() { python -c "import ray; ray.init('$head_ip:$port', log_to_driver=False); print(len(ray.nodes()))"; }
until [ "$(ray_nodes 2>/dev/null)" = "$SLURM_JOB_NUM_NODES" ]; do sleep 2; done

regrasp train --config_name pick_cube_ppo_groot --model_path models/base \
    cluster.address="$head_ip:$port" cluster.num_nodes="$SLURM_JOB_NUM_NODES" \
    'cluster.component_placement={actor\,env\,rollout:all}'
