"""Fill a store of soft targets: the teachers' answers for each training row that is distilled.

python jobs/precompute.py --config jobs/configs/animals_kd.yaml --views 8 teachers.store=runs/animals/targets
python jobs/precompute.py --config jobs/configs/animals_kd.yaml --views original teachers.store=runs/animals/originals

With a number, they answer for so many augmentations of each image, as the student will see it. With `original`, they
answer once for the whole image at their own best size, and what they found is augmented with the image.
"""

from typing import Literal

from multas_ray.cli import Parser, at_least, run_job


def main() -> None:
    """Parse the command line, fill the store, and print a summary."""
    parser = Parser(description=__doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML configuration of the run to come")
    parser.add_argument(
        "--views", type=views, default=8, metavar="K", help="augmentations of each row (default 8), or `original`"
    )
    parser.add_argument("overrides", nargs="*", metavar="path=value", help="configuration values by dotted path")
    arguments = parser.parse_intermixed_args()

    from multas_ray.config_file import load_config
    from multas_ray.stop import GOES_ON, on_stop

    config = load_config(arguments.config, arguments.overrides)

    from multas_ray.console import count_up
    from multas_ray.teacher.precompute import precompute

    on_stop(GOES_ON)
    with count_up("files") as advance:
        done = precompute(config, arguments.views, advance)
    images, rate = done["images"], done["images"] / max(done["seconds"], 1e-3)
    print(
        f"{config.teachers.store}: {done['files']} files written, {images} images ({done['kb_per_image']:.1f} kB each, "
        f"{rate:.1f} a second); {done['views']} view{'s' * (done['views'] not in (1, 'original'))} a row"
    )


def views(text: str) -> int | Literal["original"]:
    """A number of augmentations, or `original`."""
    return "original" if text == "original" else at_least(1)(text)


if __name__ == "__main__":
    run_job(main)
