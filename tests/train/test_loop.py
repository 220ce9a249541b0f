import numpy as np
import pytest

from multas_ray.data.batch import TrainBatch
from multas_ray.train.loop import check_position, checkpoint_due, first_step
from tests.support.batches import bare_batch


def batch(step: int, rank: int = 0) -> TrainBatch:
    return bare_batch(np.zeros((1, 3, 32, 32), np.uint8), step, rank)


def test_the_stream_decides_where_a_run_goes_on():
    batches, start = first_step(iter([batch(7), batch(8)]), total=9)
    assert start == 7
    assert [each.part.step for each in batches] == [7, 8]
    batches, start = first_step(iter([]), total=9)
    assert (list(batches), start) == ([], 9)


@pytest.mark.parametrize("wrong", [batch(4), batch(3, rank=1)])
def test_a_batch_of_another_step_or_worker_stops_the_run(wrong):
    check_position(batch(3), 3, 0)
    with pytest.raises(RuntimeError, match="rank 0 at step 3 got"):
        check_position(wrong, 3, 0)


def test_a_checkpoint_at_every_epoch_s_end_and_every_so_many_steps():
    assert [step for step in range(1, 301) if checkpoint_due(step, 82.5, None)] == [83, 165, 248]
    assert [step for step in range(1, 11) if checkpoint_due(step, 100, 4)] == [4, 8]
    assert [step for step in range(1, 160) if checkpoint_due(step, 2.5, None)] == [50, 100, 150], "epochs of few steps"
