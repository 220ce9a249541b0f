"""Score a checkpoint on a split of a data set: a table by class, and the images with the worst predictions.

python jobs/evaluate.py --checkpoint runs/animals/kd --data data/animals --split val --out runs/evaluate/kd
"""

from typing import get_args

from multas_ray.cli import Parser, at_least, run_job
from multas_ray.terminal import terminal


def main() -> None:
    """Parse the command line, score the checkpoint, and print the tables."""
    from multas_ray.config import Protocol
    from multas_ray.deploy.workers import Workers, add_worker_flags
    from multas_ray.storage import StoragePath

    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="run folder (its best checkpoint), checkpoint or export")
    parser.add_argument("--data", required=True, help="data set folder: a path or a URI")
    parser.add_argument("--split", default="val", help="split to score on (default: %(default)s)")
    parser.add_argument("--out", required=True, help="folder of result.json and report.html: a path or a URI")
    parser.add_argument(
        "--protocol", choices=get_args(Protocol), help="definition of average precision (default: the run's)"
    )
    parser.add_argument("--worst", type=at_least(0), default=8, help="images in the gallery (default: %(default)s)")
    add_worker_flags(parser)
    arguments = parser.parse_args()

    from multas_ray.console import count_up, print_rows
    from multas_ray.deploy.evaluate import REPORT, score_checkpoint
    from multas_ray.report.tables import class_table, metric_table

    with count_up("images") as progress:
        result = score_checkpoint(
            arguments.checkpoint,
            arguments.data,
            arguments.split,
            arguments.out,
            protocol=arguments.protocol,
            workers=Workers(arguments.workers, arguments.gpus, arguments.threads),
            worst=arguments.worst,
            progress=progress,
        )
    print(f"{result['images']} images of {arguments.data}, split {result['split']}, protocol {result['protocol']}")
    columns = {result["split"]: result["metrics"]}
    print_rows(metric_table(columns), "all classes")
    print_rows(class_table(columns), "by class")
    if result["rejected"]:
        terminal().print(f"{len(result['rejected'])} images cannot be decoded, see result.json")
    print(StoragePath(arguments.out) / REPORT)


if __name__ == "__main__":
    run_job(main)
