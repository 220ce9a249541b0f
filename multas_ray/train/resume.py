"""Where a run resumes. Free of PyTorch: the process that asks has no other use for it, and importing takes seconds."""

from multas_ray.checkpoint.folder import newest_checkpoint, read_meta
from multas_ray.storage import StoragePath
from multas_ray.train.tracking import log_error


def start_step(run: StoragePath) -> int:
    """The step that a run goes on from: that of its newest whole checkpoint, else 0. A broken newer one is put on
    record. The one place where this is decided: the workers go by the stream's first batch."""
    newest, broken = newest_checkpoint(run)
    for line in broken:
        log_error(run, line)
    return 0 if newest is None else read_meta(newest).step
