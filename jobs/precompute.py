"""Fill a store of soft targets: the teachers' answers for some augmentations of every training row that is distilled.

python jobs/precompute.py --config jobs/configs/animals_kd.yaml --views 8 teachers.store=runs/animals/targets
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

import rich.progress
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from multas_ray.config_file import load_config
from multas_ray.errors import UserError
from multas_ray.job import Parser, run_job
from multas_ray.teacher.precompute import Progress, precompute
from multas_ray.train.console import PLAIN_EVERY_S


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration of the run to come")
    parser.add_argument("--views", type=int, default=8, metavar="K", help="augmentations of each row (default 8)")
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values by dotted path")
    arguments = parser.parse_intermixed_args()
    if arguments.views < 1:
        raise UserError(f"--views: {arguments.views}; at least 1 is needed")
    config = load_config(arguments.config, arguments.overrides)
    with progress() as tell:
        done = precompute(config, arguments.views, tell)
    images, rate = done["images"], done["images"] / max(done["seconds"], 1e-3)
    print(
        f"{config.teachers.store}: {done['files']} files written, {images} images ({done['kb_per_image']:.1f} kB each, "
        f"{rate:.1f} a second); {done['views']} views a row"
    )


@contextmanager
def progress() -> Iterator[Progress]:
    """A bar on a terminal, now and then a line elsewhere."""
    columns = (TextColumn("files"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with rich.progress.Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task("files", total=None)
        said = monotonic()

        def tell(written: int, total: int) -> None:
            nonlocal said
            bars.update(bar, completed=written, total=total)
            if bars.disable and monotonic() - said > PLAIN_EVERY_S:
                print(f"{written} of {total} files", file=sys.stderr, flush=True)
                said = monotonic()

        yield tell


if __name__ == "__main__":
    run_job(main)
