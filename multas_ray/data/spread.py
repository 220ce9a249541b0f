"""Chunks of items, written one after another in this process, or side by side by tasks on Ray."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from multas_ray.data.shard import Record, Work, write_chunk
from multas_ray.errors import RunError, first_line, root_cause

RETRIES = 3
"""Number of times that a chunk is tried again whose process ended."""


@dataclass(frozen=True)
class Chunk:
    """Chunk to write."""

    work: Work
    number: int
    every_item: Sequence[Any]
    """Items of the whole split."""
    taken: frozenset[str] = frozenset()
    """See `write_chunk`."""

    @property
    def items(self) -> list[Any]:
        """Items of the chunk."""
        return self.work.layout.items(self.every_item, self.number)

    def __str__(self) -> str:
        """Return the name of the chunk in messages."""
        first = self.number * self.work.layout.chunk
        return f"{self.work.split}: items {first} to {first + len(self.items) - 1}"


def write_chunks(
    chunks: Sequence[Chunk],
    workers: int,
    done: Callable[[Chunk, Record], None],
    advance: Callable[[str, int], None],
) -> None:
    """Write chunks, at most `workers` at a time.

    Args:
        chunks: chunks to write, in the order in which they are begun.
        workers: number of tasks at a time; one works in this process, without Ray.
        done: called with each chunk and its record, in the order in which they are finished.
        advance: called with the name of a split and the number of its items that were read since the last call.

    Raises:
        RunError: a chunk cannot be written; names it, or its item.
        UserError: the cluster has no room for a task.
    """
    if min(workers, len(chunks)) > 1:
        _on_ray(chunks, workers, done, advance)
        return
    for chunk in chunks:
        work = chunk.work
        done(chunk, write_chunk(work, chunk.number, chunk.items, chunk.taken, partial(advance, work.split, 1)))


def _on_ray(
    chunks: Sequence[Chunk],
    workers: int,
    done: Callable[[Chunk, Record], None],
    advance: Callable[[str, int], None],
) -> None:
    # Imported here: one worker does without, and Ray takes seconds.
    import ray

    from multas_ray.config import Resources
    from multas_ray.placement import Ask, check_placement
    from multas_ray.ray_setup import start_ray

    start_ray(workers)
    check_placement([Ask("--workers", 1, Resources(cpu=1))])
    task = ray.remote(num_cpus=1, max_retries=RETRIES)(write_chunk)
    works = {work.split: ray.put(work) for work in {chunk.work.split: chunk.work for chunk in chunks}.values()}
    pending: dict[Any, Chunk] = {}
    waiting = iter(chunks)

    def submit() -> None:
        chunk = next(waiting, None)
        if chunk is not None:
            pending[task.remote(works[chunk.work.split], chunk.number, chunk.items, chunk.taken)] = chunk

    for _ in range(workers):
        submit()
    try:
        while pending:
            [finished], _ = ray.wait(list(pending), num_returns=1)
            chunk = pending.pop(finished)
            submit()
            done(chunk, _record(chunk, finished))
            advance(chunk.work.split, len(chunk.items))
    finally:
        # After an error, nobody waits for the others.
        for reference in pending:
            ray.cancel(reference, force=True)


def _record(chunk: Chunk, reference: Any) -> Record:
    """Take the result of a task.

    Raises:
        RunError: its process ended each time; or as `write_chunk`.
    """
    import ray

    try:
        record: Record = ray.get(reference)
        return record
    except ray.exceptions.RayError as error:
        cause = root_cause(error)
        if not isinstance(cause, ray.exceptions.RayError):
            raise cause from None
        raise RunError(
            f"{chunk}: the process that read them ended, {RETRIES + 1} times ({first_line(error)}); "
            "does one of these images take too much memory?"
        ) from None
