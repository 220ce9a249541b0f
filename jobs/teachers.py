"""Check the teachers of a run, and manage the pools of teachers that runs of a Ray cluster share.

python jobs/teachers.py check --config jobs/configs/animals_kd.yaml --out runs/check
python jobs/teachers.py start --config jobs/configs/animals_kd.yaml teachers.pool=animals teachers.replicas=4
python jobs/teachers.py status
python jobs/teachers.py stop animals
"""

import argparse

from rich.table import Table

from multas_ray.cli import Parser, run_job
from multas_ray.errors import UserError
from multas_ray.terminal import terminal


def main() -> None:
    """Parse the command line, and run its command."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    configured = Parser(add_help=False)
    configured.add_argument("--config", required=True, metavar="FILE", help="YAML configuration of the runs to come")
    configured.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values by dotted path")
    sub = commands.add_parser(
        "check", parents=[configured], help="score each teacher on the validation split, and fit its temperature"
    )
    sub.add_argument("--out", metavar="FOLDER", help="folder of teachers.json (default: none is written)")
    sub.add_argument(
        "--views",
        choices=["original"],
        help="show each the images at its own best size, as precompute.py does (default: at the student's)",
    )
    sub.set_defaults(run=check)
    sub = commands.add_parser("start", parents=[configured], help="start a pool, or the replicas that it lacks")
    sub.set_defaults(run=start)
    sub = commands.add_parser("status", help="every replica of every pool")
    sub.set_defaults(run=status)
    sub = commands.add_parser("stop", help="end a pool")
    sub.add_argument("name", help="name of the pool")
    sub.set_defaults(run=stop)
    arguments = parser.parse_args()
    arguments.run(arguments)


def check(arguments: argparse.Namespace) -> None:
    """Print what each teacher is worth on the validation split, by class, and write it as JSON."""
    from multas_ray.config_file import load_config

    config = load_config(arguments.config, arguments.overrides)

    import json
    from dataclasses import asdict

    from multas_ray.console import print_rows
    from multas_ray.report.tables import teacher_table
    from multas_ray.storage import StoragePath
    from multas_ray.teacher.check import check_teachers

    checked = check_teachers(config, arguments.views == "original")
    for task in dict.fromkeys(each.task for each in checked):
        of_task = [each for each in checked if each.task == task]
        print_rows(teacher_table(of_task), f"teachers.{task} on the validation split, in percent")
        for number, each in enumerate(of_task, start=1):
            fits = "says nothing" if each.temperature is None else f"temperature: {each.temperature:.2f} fits best"
            pace = f"{each.images / max(each.seconds, 1e-9):.1f} images/s"
            terminal().print(
                f"{number}. {each.source}: {each.images} images of {each.size} pixels, {pace}; {fits}", soft_wrap=True
            )
    if arguments.out:
        file = StoragePath(arguments.out) / "teachers.json"
        file.write_text(json.dumps([asdict(each) for each in checked], indent=1) + "\n")
        print(file)


def connect() -> None:
    """Connect to the cluster. A Ray started by this job would end with it, and its pools too.

    Raises:
        UserError: there is no cluster.
    """
    from multas_ray.ray_setup import on_cluster, start_ray

    if not on_cluster():
        raise UserError("RAY_ADDRESS: not set; shared pools live in a cluster (ray start --head, or ray job submit)")
    start_ray()


def start(arguments: argparse.Namespace) -> None:
    """Start a pool, and wait until every replica has loaded its teacher."""
    from multas_ray.config_file import load_config

    config = load_config(arguments.config, arguments.overrides)
    if config.teachers.pool is None:
        raise UserError("teachers.pool: not set; a shared pool needs a name")

    from multas_ray.data.sources import read_sources
    from multas_ray.placement import Ask, check_placement
    from multas_ray.resolve import resolve_precision
    from multas_ray.teacher.pool import start_pool
    from multas_ray.teacher.specs import require_teacher_specs, require_teachers

    require_teachers(config)
    connect()
    config = resolve_precision(config)
    specs = require_teacher_specs(config, read_sources(config.data).info)
    check_placement([Ask("teachers.resources", len(specs) * config.teachers.replicas, config.teachers.resources)])
    start_pool(config.teachers, specs)
    show(config.teachers.pool)


def status(arguments: argparse.Namespace) -> None:
    """Print the replicas of all pools."""
    connect()
    show()


def stop(arguments: argparse.Namespace) -> None:
    """End a pool."""
    from multas_ray.teacher.pool import stop_pool

    connect()
    ended = stop_pool(arguments.name)
    if not ended:
        raise UserError(f"no pool '{arguments.name}' here; there are {', '.join(sorted(names())) or 'none'}")
    print(f"pool {arguments.name}: {ended} replicas ended")


def names() -> set[str]:
    """Return the names of the cluster's pools."""
    from multas_ray.teacher.pool import pool_status

    return {row["pool"] for row in pool_status()}


def show(pool: str | None = None) -> None:
    """Print the replicas of one pool, or of all."""
    from multas_ray.teacher.pool import pool_status

    columns = ("pool", "task", "replica", "state", "restarts", "queue", "images", "images_per_s", "latency_s")
    table = Table(*columns)
    for row in pool_status():
        if pool in (None, row["pool"]):
            cells = (row.get(name, "-") for name in columns)
            table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells))
    terminal().print(table if table.row_count else "no shared pool in this cluster")


if __name__ == "__main__":
    run_job(main)
