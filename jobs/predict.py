"""Boxes and masks for images: COCO JSON, label PNGs and overlays.

python jobs/predict.py --checkpoint runs/animals/kd --images 'photos/*.jpg' --out runs/predict
"""

from multas_ray.cli import Parser, at_least, run_job
from multas_ray.terminal import terminal


def main() -> None:
    """Parse the command line, predict, and print a summary."""
    from multas_ray.deploy.workers import Workers, add_worker_flags
    from multas_ray.storage import StoragePath

    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="run folder (its best checkpoint), checkpoint or export")
    parser.add_argument(
        "--images", required=True, help="folder, glob, Parquet (columns image_id and image) or data set folder"
    )
    parser.add_argument("--split", default="val", help="split of a data set (default: %(default)s)")
    parser.add_argument("--out", required=True, help="output folder: a path or a URI")
    parser.add_argument("--batch-size", type=at_least(1), default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--score", type=float, help="least score of a detection (default: all; in overlays, 0.3)")
    parser.add_argument("--no-overlays", action="store_true", help="write no pictures for people to look at")
    parser.add_argument("--follow-links", action="store_true", help="read files to which links lead out of the folder")
    add_worker_flags(parser)
    arguments = parser.parse_args()

    from multas_ray.console import count_up
    from multas_ray.deploy.predict import REJECTED, predict_images

    with count_up("images") as progress:
        counts = predict_images(
            arguments.checkpoint,
            arguments.images,
            arguments.out,
            split=arguments.split,
            workers=Workers(arguments.workers, arguments.gpus, arguments.threads),
            batch_size=arguments.batch_size,
            overlays=not arguments.no_overlays,
            score=arguments.score,
            follow_links=arguments.follow_links,
            progress=progress,
        )
    news = f"{counts['images']} images, {counts['detections']} detections"
    if counts["rejected"]:
        news += f"; {counts['rejected']} images cannot be decoded, see {REJECTED}"
    terminal().print(f"{StoragePath(arguments.out)}: {news}", soft_wrap=True)


if __name__ == "__main__":
    run_job(main)
