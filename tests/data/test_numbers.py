"""The source of a training stream's chunk numbers."""

from itertools import islice

from multas_ray.data.numbers import Numbers


def test_one_task_lists_all_numbers_as_they_are_asked_for() -> None:
    (task,) = Numbers(10**12).get_read_tasks(parallelism=8)
    assert [block.to_pydict() for block in islice(task(), 3)] == [{"id": [0]}, {"id": [1]}, {"id": [2]}]
    assert (task.metadata.num_rows, task.metadata.size_bytes) == (10**12, 8 * 10**12)
    assert next(task()).schema == task.schema


def test_the_last_number_is_one_less_than_their_count() -> None:
    (task,) = Numbers(3).get_read_tasks(1)
    assert [block["id"].to_pylist() for block in task()] == [[0], [1], [2]]
    assert Numbers(0).get_read_tasks(1) == []
