#!/bin/bash
# A Ray cluster for one job on Slurm's nodes: `sbatch cluster/slurm.sh train.run=$HOME/runs/kd ...`
# The arguments are those of jobs/train.py after --config; the job goes on where it was when it is submitted again.
#
#SBATCH --job-name=multas-ray
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR}"
source .venv/bin/activate

config=${CONFIG:-jobs/configs/animals_kd.yaml}
port=$((20000 + SLURM_JOB_ID % 10000))
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST}")
head=$(srun --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" hostname --ip-address | awk '{print $1}')

# The cluster's network sees Ray's ports: whoever has no token cannot connect. The file is the user's own.
export RAY_AUTH_MODE=token
token=$(mktemp "${HOME}/.ray-token-XXXXXX")
trap 'rm -f "${token}"' EXIT
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "${token}"
export RAY_AUTH_TOKEN_PATH=${token}

# The first node has the head and the data tasks beside a student; the last one teaches.
for index in "${!nodes[@]}"; do
    role=student resources='{}' address="--address=${head}:${port}"
    if [[ ${index} -eq 0 ]]; then
        address="--head --node-ip-address=${head} --port=${port} --dashboard-host=127.0.0.1"
        # Ray's default range of workers' ports begins below ours.
        address+=" --min-worker-port=30001 --max-worker-port=39999"
    elif [[ ${index} -eq $((${#nodes[@]} - 1)) ]]; then
        role=teacher resources='{"teacher_node": 1}'
    fi
    # shellcheck disable=SC2086  # several words on purpose
    srun --nodes=1 --ntasks=1 --nodelist="${nodes[${index}]}" \
        ray start ${address} --num-cpus="${SLURM_CPUS_PER_TASK}" --labels="role=${role}" \
        --resources="${resources}" --block &
    [[ ${index} -eq 0 ]] && sleep 20
done
sleep 20

export RAY_ADDRESS=${head}:${port}
students=$((${#nodes[@]} - 1))
python jobs/train.py --config "${config}" \
    "train.workers=${students}" 'train.resources={cpu: 4, gpu: 1, labels: {role: student}}' \
    'teachers.resources={cpu: 1, gpu: 0.5, custom: {teacher_node: 0.5}}' \
    "$@"
