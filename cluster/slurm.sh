#!/bin/bash
# A Ray cluster for one training on Slurm's nodes: the first has the head and, as all but the last, a student; the last
# one teaches. What follows the script goes to jobs/train.py. Submitted again, the training goes on where it was.
#
#   sbatch cluster/slurm.sh train.run="$HOME/runs/kd"
#   CONFIG=my.yaml sbatch --nodes=5 --time=12:00:00 cluster/slurm.sh train.run="$HOME/runs/mine"
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
# shellcheck source=/dev/null
source .venv/bin/activate

fail() {
    echo "error: $1" >&2
    exit 1
}
mapfile -t nodes < <(scontrol show hostnames "${SLURM_JOB_NODELIST}")
students=$((${#nodes[@]} - 1))
((students > 0)) || fail "--nodes=1: at least 2 are needed, one of which teaches"

# Whoever reaches Ray's ports without the token of this job is refused.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN_PATH=$(mktemp "${HOME}/.ray-token-XXXXXX")
export RAY_AUTH_TOKEN_PATH
trap 'rm -f "${RAY_AUTH_TOKEN_PATH}"' EXIT
python -c 'import secrets; print(secrets.token_hex(32), end="")' > "${RAY_AUTH_TOKEN_PATH}"

# on NODE COMMAND...: a job step there. Steps do not inherit the number of CPUs.
on() {
    srun --nodes=1 --ntasks=1 --cpus-per-task="${SLURM_CPUS_PER_TASK}" --nodelist="$1" "${@:2}"
}
join() {
    on "$1" ray start --address="${RAY_ADDRESS}" --num-cpus="${SLURM_CPUS_PER_TASK}" --block "${@:2}" &
}

address=$(on "${nodes[0]}" hostname -I | awk '{print $1}')
# A job's own port, below the range that Ray's workers are given here: two jobs may share a node.
port=$((20000 + SLURM_JOB_ID % 10000))
on "${nodes[0]}" ray start --head --node-ip-address="${address}" --port="${port}" \
    --min-worker-port=30001 --max-worker-port=39999 --dashboard-host=127.0.0.1 --dashboard-port=0 \
    --num-cpus="${SLURM_CPUS_PER_TASK}" --labels=role=student --block &
export RAY_ADDRESS=${address}:${port}
timeout 300 bash -c 'until ray status &> /dev/null; do sleep 2; done' || fail "Ray did not start on ${nodes[0]}"
for node in "${nodes[@]:1:students-1}"; do
    join "${node}" --labels=role=student
done
join "${nodes[-1]}" --labels=role=teacher --resources='{"teacher_node": 1}'
timeout 300 python - "${#nodes[@]}" << 'PYTHON' || fail "Ray did not start on all of ${nodes[*]}"
import sys, time, ray

ray.init(log_to_driver=False)
while len([node for node in ray.nodes() if node["Alive"]]) < int(sys.argv[1]):
    time.sleep(1)
PYTHON

# Of a configuration of one's own only where things run is set; that of the animals was made for one worker.
settings=("train.workers=${students}" 'train.resources={cpu: 4, gpu: 1, labels: {role: student}}'
    'teachers.resources={cpu: 1, gpu: 0.5, custom: {teacher_node: 0.5}}')
[[ -n ${CONFIG:-} ]] || settings+=(model.norm=sync)
python jobs/train.py --config "${CONFIG:-jobs/configs/animals_kd.yaml}" "${settings[@]}" "$@"
