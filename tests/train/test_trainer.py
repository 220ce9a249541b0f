"""The whole training step: many workers train as one, and steps that must change nothing."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from multas_ray.config import Config
from multas_ray.data.batch import TrainBatch, distilled_rows
from multas_ray.errors import UserError
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.tasks.detection.output import DetectionOutput
from multas_ray.teacher.teacher import Answer, digests
from multas_ray.train.trainer import StepOutcome, Trainer
from tests.support.batches import CLASSES, DET, EVERY_LOSS, SEG, SIZE, batch_of, config_of, made_for, share

CPU = torch.device("cpu")
MASKS = [
    # Over four workers of four: one without masks, one without boxes, one without distilled rows, one without anything.
    ["det"] * 4 + ["seg"] * 4 + ["both"] * 4 + ["none"] * 4,
    # Batches without a task.
    ["det", "none"] * 8,
    ["seg"] * 12 + ["none"] * 4,
    ["both"] * 16,
    # All boxes with one worker, all masks with another.
    ["none"] * 8 + ["det"] * 4 + ["seg"] * 4,
]
"""Task masks of the batches of five steps."""
SGD = {"name": "sgd", "lr": 0.002, "warmup_steps": 2, "clip_norm": 1.0, "ema_decay": 0.9, "ema_warmup": 2}
PAPER, PAPER_FROZEN = EVERY_LOSS, EVERY_LOSS | {"model": EVERY_LOSS["model"] | {"norm": "frozen"}}
ADAMW = SGD | {"name": "adamw", "lr": 1e-4}


def confident_soft_of(batch: TrainBatch, config: Config, step: int) -> dict[str, Answer]:
    """Soft targets of a teacher that is sure of itself, of each row on its own. An untrained one would say what an
    untrained student says, up to differences that float32 cannot tell."""
    count = len(anchors(SIZE, SIZE))
    shapes = {"cls": (count, len(DET)), "box": (count, 4), "seg": (len(SEG), 16, 16)}
    if config.model.adapter is not None:
        shapes["feature"] = (count // 6, config.model.adapter)

    def of(name: str, rows: np.ndarray) -> np.ndarray:
        return np.stack([drawn(shapes[name], name, step, batch.ids[row].encode()) for row in rows])

    soft = {}
    for task, rows in distilled_rows(batch).items():
        names = [name for name in DetectionOutput._fields if name in shapes]
        dense = DetectionOutput(*(of(name, rows) for name in names)) if task == "det" else of("seg", rows)
        soft[task] = Answer(digests(batch.images[rows]), dense=dense)
    return soft


def drawn(shape: tuple[int, ...], *key: object) -> np.ndarray:
    """Normal numbers, the same for the same key."""
    random = np.random.default_rng(list(repr(key).encode()))
    return random.normal(0, 2, shape).astype(np.float16)


def in_training(network: nn.Module) -> nn.Module:
    """The network with biases that are not zero. Those of a new one would after some steps be the sum of its updates,
    of which float32 knows three digits: one ReLU in a million that falls on the other side is a thousandth of the
    gradient's norm."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, dtype=torch.float64).to(parameter.dtype)
    return network


def train(config: Config, dtype: torch.dtype, rank: int = 0, workers: int = 1) -> Trainer:
    """Five steps on a worker's consecutive rows of each batch."""
    torch.set_default_dtype(dtype)
    wrap = DistributedDataParallel if workers > 1 else lambda network: network
    trainer = Trainer(config, CLASSES, CPU, wrap=lambda network: wrap(in_training(network).to(dtype)))
    for step, masks in enumerate(MASKS):
        rows = list(range(16))[rank * 16 // workers : (rank + 1) * 16 // workers]
        batch = made_for(share(batch_of(masks, seed=step), rows), config)
        outcome = trainer.step(batch, confident_soft_of(batch, config, step), step, workers)
        assert outcome.status == "taken"
    return trainer


def _worker(rank: int, workers: int, folder: str, config: Config, dtype: torch.dtype) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=workers)
    trainer = train(config, dtype, rank, workers)
    if rank == workers - 1:
        torch.save(trainer.state(), f"{folder}/state.pt")
    dist.destroy_process_group()


@pytest.fixture
def default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.heavy
@pytest.mark.parametrize("workers", [pytest.param(2, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize(
    ("optim", "dtype", "sections"),
    [
        (SGD, torch.float32, {}),
        (ADAMW, torch.float64, {}),
        pytest.param(SGD, torch.float32, PAPER, marks=pytest.mark.slow),
        pytest.param(ADAMW, torch.float64, PAPER_FROZEN, marks=pytest.mark.slow),
    ],
    ids=["sgd", "adamw", "sgd, the paper's network and losses", "adamw, the paper's, frozen norm"],
)
def test_many_workers_train_as_one(workers, optim, dtype, sections, tmp_path: Path, default_dtype):
    settings = {"run": "-", "steps": len(MASKS), "batch_size": 16}
    config = config_of(**sections, optim=optim, train=settings)
    one = train(config, dtype).state()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(_worker, (workers, str(tmp_path), config, dtype), nprocs=workers)
    many = torch.load(tmp_path / "state.pt", weights_only=True)
    for part in ("model", "ema"):
        for name, value in one[part].items():
            error = (many[part][name] - value).norm() / value.norm().clamp(min=1e-12)
            assert error <= 1e-5, f"{part} {name}: {error:.2e}"


def bad_step(trainer: Trainer, config: Config, masks: list[str], rows: list[int], workers: int) -> StepOutcome:
    """A step whose soft targets of image 0 are NaN."""
    batch = made_for(share(batch_of(masks), rows), config)
    soft = confident_soft_of(batch, config, 0)
    if batch.ids[0] == "image 0":
        soft["seg"].dense[0] = np.nan
    return trainer.step(batch, soft, 0, workers)


def _bad_worker(rank: int, folder: str, config: Config) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=2)
    trainer = Trainer(config, CLASSES, CPU, wrap=DistributedDataParallel)
    before = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    outcome = bad_step(trainer, config, ["det", "none", "det", "none"], [2 * rank, 2 * rank + 1], 2)
    same = all(torch.equal(value, before[name]) for name, value in trainer.network.state_dict().items())
    own = rank * 2
    after = trainer.step(*_step(config, ["both", "det", "seg", "none"], [own, own + 1]), 1, 2)
    torch.save((outcome.status, outcome.finite, same, trainer.bad_steps, after.status), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _step(config: Config, masks: list[str], rows: list[int]) -> tuple:
    batch = made_for(share(batch_of(masks, seed=7), rows), config)
    return batch, confident_soft_of(batch, config, 7)


@pytest.mark.heavy
def test_a_loss_that_is_nan_with_one_worker_is_a_step_of_none(tmp_path):
    config = config_of(train={"run": "-", "steps": 5, "batch_size": 4})
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(_bad_worker, (str(tmp_path), config), nprocs=2)
    status, finite, same, bad, after = zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True)
    assert (status, same, bad) == (("bad", "bad"), (True, True), (1, 1)), "no worker changes anything"
    assert finite == (False, True), "and it is known whose loss it was"
    assert after == ("taken", "taken"), "the next step is one again"


def test_a_bad_step_leaves_optimiser_average_and_batch_statistics_usable():
    config = config_of(
        model={"backbone": "resnet18", "pretrained": False, "width": 16, "norm": "batch"},
        train={"run": "-", "steps": 9, "batch_size": 4},
        optim=ADAMW,
    )
    trainer = Trainer(config, CLASSES, CPU)
    good = _step(config, ["both", "det", "seg", "none"], [0, 1, 2, 3])
    assert trainer.step(*good, 0, 1).status == "taken"
    before = {name: value.clone() for name, value in trainer.ema.model.state_dict().items()}
    weights = {name: value.clone() for name, value in trainer.network.named_parameters()}
    with torch.no_grad():
        # Not a number in the loss, and in the batch statistics.
        trainer.network.mean.fill_(torch.nan)
    assert trainer.step(*good, 1, 1).status == "bad"
    trainer.network.mean.fill_(120)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in trainer.ema.model.state_dict().items())
    assert all(value.isfinite().all() for value in trainer.network.buffers())
    assert trainer.step(*good, 2, 1).status == "taken"
    assert trainer.bad_steps == 1


def test_a_gradient_that_overflows_is_a_bad_step_too():
    config = config_of(train={"run": "-", "steps": 9, "batch_size": 4})
    trainer = Trainer(config, CLASSES, CPU)
    parameter = trainer.network.neck.get_parameter(next(name for name, _ in trainer.network.neck.named_parameters()))
    parameter.register_hook(lambda grad: grad * float("inf"))
    outcome = trainer.step(*_step(config, ["both", "det", "seg", "none"], [0, 1, 2, 3]), 0, 1)
    assert (outcome.status, outcome.finite) == ("bad", True)


def test_a_state_comes_back_and_what_is_none_is_refused():
    config = config_of(optim=ADAMW)
    state = train(config, torch.float32).state()
    fresh = Trainer(config, CLASSES, CPU)
    fresh.load(state, "x")
    found = fresh.state()
    for part in ("model", "ema", "bad_steps"):
        torch.testing.assert_close(found[part], state[part], rtol=0, atol=0)
    torch.testing.assert_close(found["optimizer"]["state"], state["optimizer"]["state"], rtol=0, atol=0)
    weights = state["model"] | {"det_head.cls.bias": state["model"]["det_head.cls.bias"] / 0}
    for changes, words in (
        ({"model": weights}, "x: 'det_head.cls.bias' has values that are not finite"),
        ({"ema": weights}, "x: 'det_head.cls.bias' has values that are not finite"),
        ({"ema": [1]}, "x: holds no tensors by name"),
        ({"optimizer": {}}, "x: holds no state of an optimiser"),
        ({"scaler": {"scale": 1.0}}, "x: its loss scale is none"),
        ({"bad_steps": "no"}, "x: bad_steps is no number: 'no'"),
    ):
        with pytest.raises(UserError, match=words):
            fresh.load(state | changes, "x")
    with pytest.raises(UserError, match="x: not a run's state: lacks ema, optimizer"):
        fresh.load({"model": {}, "scaler": {}, "bad_steps": 0}, "x")
