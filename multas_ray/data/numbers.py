"""Ray Data source of numbers, which are listed only as they are consumed."""

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
from ray.data import DataContext, Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

SCHEMA = pa.schema([("id", pa.int64())])


class Numbers(Datasource):
    """Numbers from 0 to count - 1, each a block of its own.

    One read task lists them as they are consumed, so that nothing grows with their count.
    """

    def __init__(self, count: int) -> None:
        """Hold the count; nothing is listed yet."""
        super().__init__()
        self.count = count

    def estimate_inmemory_data_size(self) -> int:
        """Return the size of all numbers in bytes."""
        return 8 * self.count

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: DataContext | None = None
    ) -> list[ReadTask]:
        """Return one read task, whatever the parallelism; none if there are no numbers."""
        size = self.estimate_inmemory_data_size()
        metadata = BlockMetadata(num_rows=self.count, size_bytes=size, input_files=None, exec_stats=None)
        tasks = [ReadTask(partial(number_blocks, self.count), metadata, SCHEMA, per_task_row_limit)]
        return tasks if self.count else []


def number_blocks(count: int) -> Iterator[pa.Table]:
    """Yield the numbers below `count`, each a table of one row with the column `id`."""
    for number in range(count):
        yield pa.table({"id": [number]}, schema=SCHEMA)
