"""Run malformed inputs of every kind through the public entry points; a line a kind, exit code 1 on a fault.

python -m tests.fuzz --inputs 10000 --seed 0
python -m tests.fuzz --only coco:17        one input, with its traceback
"""

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from tests.fuzz.harness import Outcome, run_kind, work
from tests.fuzz.kinds import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000, help="of all kinds together (default 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--only", metavar="KIND:NUMBER", help="run one input in this process")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        name, seed, first, end = arguments.worker
        work(KINDS[name], name, int(seed), int(first), int(end))
        return 0
    if arguments.only:
        name, _, number = arguments.only.partition(":")
        with tempfile.TemporaryDirectory() as folder:
            shown, run = KINDS[name](Path(folder))(Random(f"{name}/{arguments.seed}/{number}"))
            print(shown)
            print(run())
        return 0
    each = -(-arguments.inputs // len(arguments.kinds))
    with ThreadPoolExecutor(2) as threads:
        outcomes = threads.map(lambda name: run_kind(name, arguments.seed, each), arguments.kinds)
        return show(dict(zip(arguments.kinds, outcomes, strict=True)), arguments.seed)


def show(outcomes: dict[str, Outcome], seed: int) -> int:
    """Print what became of the inputs; 1 if any was a fault."""
    print(f"{'kind':<14}{'inputs':>8}{'right':>8}{'refused':>9}{'faults':>8}")
    for name, outcome in outcomes.items():
        faults = sum(fault.count for fault in outcome.faults.values())
        print(f"{name:<14}{outcome.inputs:>8}{outcome.right:>8}{outcome.refused:>9}{faults:>8}", flush=True)
    for name, outcome in outcomes.items():
        for fault in outcome.faults.values():
            print(f"\n{name}: {fault.count} x {fault.error}; the smallest: --seed {seed} --only {name}:{fault.number}")
            print(f"    {fault.shown[:300]!r}")
    idle = [
        name for name, outcome in outcomes.items() if outcome.inputs >= 200 and not (outcome.right and outcome.refused)
    ]
    for name in idle:
        print(f"\n{name}: all inputs ended alike: this kind tests nothing")
    return int(bool(idle) or any(outcome.faults for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
