"""Write a trained network on its own: safetensors, its description, and an ONNX graph checked against PyTorch.

python jobs/export.py --checkpoint runs/animals/kd --out exports/animals
"""

from multas_ray.cli import Parser, run_job
from multas_ray.terminal import terminal


def main() -> None:
    """Parse the command line, export, and print a summary."""
    parser = Parser(description=__doc__)
    parser.add_argument("--checkpoint", required=True, help="run folder (its best checkpoint) or checkpoint folder")
    parser.add_argument("--out", required=True, help="folder of the export: a path or a URI")
    parser.add_argument("--no-onnx", action="store_true", help="safetensors and description only")
    arguments = parser.parse_args()

    from multas_ray.deploy.export import export
    from multas_ray.storage import StoragePath

    summary = export(arguments.checkpoint, arguments.out, onnx=not arguments.no_onnx)
    side = summary["size"]
    news = f"{summary['parameters'] / 1e6:.2f} million parameters, for images of {side} x {side} pixels"
    if "difference" in summary:
        news += f"; ONNX differs from PyTorch by {summary['difference']:.1e} at most"
    terminal().print(f"{StoragePath(arguments.out)}: {news}", soft_wrap=True)


if __name__ == "__main__":
    run_job(main)
