r"""Search for the best values of any configuration keys with Ray Tune.

python jobs/sweep.py --config jobs/configs/animals_kd.yaml --scheduler asha --trials 16 --out runs/sweep \
    --search 'optim.lr=loguniform(1e-4,1e-2)' 'distill.det.weight=choice(0.5,1,2)' -- evaluate.every_steps=250

The same command goes on with a search that was cut short. The best configuration is best.yaml, which train.py takes.
"""

from typing import get_args

from multas_ray.cli import Parser, at_least, run_job


def main() -> None:
    """Parse the command line, search, and print the trials."""
    from multas_ray.config_file import apply_overrides
    from multas_ray.documents import read_yaml
    from multas_ray.stop import GOES_ON, on_stop
    from multas_ray.study.search import METRICS, Scheduler, Sweep

    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration of a run")
    parser.add_argument("--search", required=True, nargs="+", metavar="path=domain(values)", help="what to search")
    parser.add_argument("--trials", type=at_least(1), default=16, help="configurations to try (default 16)")
    parser.add_argument("--scheduler", choices=get_args(Scheduler), default="asha", help="how poor trials are stopped")
    parser.add_argument("--metric", choices=METRICS, default="score", help="what to maximise (default score)")
    parser.add_argument("--parallel", type=at_least(1), help="trials at a time (default: as many as there is room for)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the draws")
    parser.add_argument("--out", default="runs/sweep", help="folder of the trials and of the outcome")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values by dotted path")
    arguments = parser.parse_args()
    tree = apply_overrides(read_yaml(arguments.config), arguments.overrides)
    sweep = Sweep(
        tree,
        arguments.search,
        arguments.out,
        arguments.trials,
        arguments.scheduler,
        arguments.metric,
        arguments.parallel,
        arguments.seed,
    )

    from multas_ray.console import print_rows
    from multas_ray.study.sweep import BEST, ranking, run_sweep

    on_stop(GOES_ON)
    result = run_sweep(sweep)
    print_rows(ranking(result), "Trials, the best first")
    print(f"{sweep.out}/{BEST}\n{sweep.out}/sweep.html")


if __name__ == "__main__":
    run_job(main)
