"""Compare configurations over seeds: does joint learning help, and by how much?

python jobs/study.py --config jobs/configs/animals_study.yaml
python jobs/study.py --config jobs/configs/animals_study.yaml --arms det seg mtl kd full

Finished trials are not run again; interrupted ones are resumed.
"""

from multas_ray.cli import Parser, run_job


def main() -> None:
    """Run a study, and write what it found."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the study")
    parser.add_argument("--arms", nargs="+", metavar="NAME", help="only these arms, and what they need")
    arguments = parser.parse_args()

    from multas_ray.errors import RunError
    from multas_ray.stop import GOES_ON, on_stop
    from multas_ray.study.layout import lay_out, load_study

    study = load_study(arguments.config)

    from multas_ray.console import print_rows
    from multas_ray.study.disagreements import disagreements
    from multas_ray.study.results import read_results
    from multas_ray.study.summary import summary_tables, write_summary
    from multas_ray.study.trials import run_study

    on_stop(GOES_ON)
    failure: RunError | None = None
    try:
        results = run_study(study, arguments.arms)
    except RunError as error:
        # The results of the other trials are shown all the same.
        failure, results = error, read_results(study, lay_out(study))
        if not results:
            raise
    present = [arm for arm in study.arms if any(result.arm == arm for result in results.values())]
    picture = disagreements(study, lay_out(study), present)
    page = write_summary(study, results, {"Images on which the arms disagree most": picture} if picture else {})
    for heading, rows in summary_tables(study, results).items():
        print_rows(rows, heading)
    print(f"{study.results}/study.md\n{page}")
    if failure is not None:
        raise failure


if __name__ == "__main__":
    run_job(main)
