"""Train a network: single-task (a teacher), multi-task, or distilled. The configuration decides.

python jobs/train.py --config jobs/configs/animals_mtl.yaml optim.lr=0.0005 train.run=runs/other
"""

from multas_ray.cli import Parser, run_job


def main() -> None:
    """Parse the command line, train, and print the results."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration of the run")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values by dotted path")
    arguments = parser.parse_intermixed_args()

    from multas_ray.config_file import load_config
    from multas_ray.storage import StoragePath

    config = load_config(arguments.config, arguments.overrides)

    from multas_ray.console import follow, print_results, stopping
    from multas_ray.run_folder import REPORT
    from multas_ray.stop import on_stop
    from multas_ray.train.run import train

    on_stop(lambda: stopping(config))
    with follow([config]):
        result = train(config)
    run = StoragePath(config.train.run)
    print_results({run.name: result})
    print(run / REPORT)


if __name__ == "__main__":
    run_job(main)
