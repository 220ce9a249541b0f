"""The loss of a step, on one process and on real distributed ones."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.parallel import DistributedDataParallel

from multas_ray.config import Config, Task
from multas_ray.data.batch import TrainBatch, distilled_rows, mapped
from multas_ray.errors import UserError
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks import PARTS
from multas_ray.train.step import loss_terms, named_losses, term_weights, total_loss
from tests.support.batches import CLASSES, EVERY_LOSS, SIZE, batch_of, config_of, made_for, share, with_unlabelled

CPU = torch.device("cpu")


def soft_of(batch: TrainBatch, config: Config) -> dict[str, Any]:
    """Soft targets for a batch's distilled rows, a function of each row's pixels."""
    torch.manual_seed(9)
    teacher = MultiTaskNet(config.model, CLASSES).eval()
    with torch.no_grad():
        outputs = teacher(torch.tensor(batch.images), features=config.model.adapter is not None)
    soft = {}
    for task, rows in distilled_rows(batch).items():
        answer = PARTS[task].network.answer(outputs[task], (SIZE, SIZE))
        soft[task] = mapped(answer, lambda values: values[rows].float())  # noqa: B023
    return soft


def gradients(
    config: Config,
    batch: TrainBatch,
    workers: int = 1,
    wrap: Callable[[MultiTaskNet], Any] = lambda model: model,
    known: Mapping[Task, np.ndarray] | None = None,
) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = MultiTaskNet(config.model, CLASSES)
    model = wrap(network)
    batch = made_for(batch, config, known)
    terms = loss_terms(model, batch, soft_of(batch, config), config, CPU)
    total, shares, bad = total_loss(terms, term_weights(config), workers)
    total.backward()
    assert shares.keys() == terms.keys()
    assert all(torch.isfinite(value) for value in shares.values())
    assert bad == 0
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def test_an_answer_of_another_shape_names_its_teacher() -> None:
    config = config_of()
    batch = made_for(batch_of(["det", "seg"]), config)
    network = MultiTaskNet(config.model, CLASSES)
    soft = soft_of(batch, config)
    broken = {"det": soft["det"]._replace(box=soft["det"].box[..., :-1]), "seg": soft["seg"][..., :-1]}
    for name, task in (("'box' ", "det"), ("", "seg")):
        with pytest.raises(UserError, match=rf"teachers\.{task}\.source .*: its answer {name}has the shape"):
            loss_terms(network, batch, soft | {task: broken[task]}, config, CPU)


def test_rows_to_distil_without_an_answer_are_an_error():
    config = config_of()
    batch = made_for(batch_of(["det", "seg"]), config)
    soft = soft_of(batch, config)
    with pytest.raises(KeyError, match="seg"):
        loss_terms(MultiTaskNet(config.model, CLASSES), batch, {"det": soft["det"]}, config, CPU)


def _worker(
    rank: int,
    folder: str,
    batch: TrainBatch,
    owners: list[int],
    config: Config,
    known: Mapping[Task, np.ndarray] | None,
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=max(owners) + 1)
    part = share(batch, [row for row, owner in enumerate(owners) if owner == rank])
    grads = gradients(config, part, max(owners) + 1, DistributedDataParallel, known)
    if rank == 0:
        torch.save(grads, f"{folder}/grads.pt")
    dist.destroy_process_group()


@pytest.mark.heavy
@pytest.mark.parametrize("sections", [{}, EVERY_LOSS], ids=["default", "every loss"])
@pytest.mark.parametrize(
    ("masks", "owners"),
    [
        (["det", "both", "det", "seg", "seg", "none"], [0, 0, 0, 1, 1, 1]),
        (["det", "det", "none", "det", "none", "none"], [0, 0, 0, 0, 1, 1]),
        (["seg", "both", "none", "det", "seg", "both"], [0, 1, 1, 1, 1, 1]),
    ],
    ids=["a rank without boxes, one with few masks", "no mask in the whole batch", "uneven shares"],
)
def test_two_processes_have_the_gradients_of_one(masks, owners, sections, tmp_path: Path):
    config = config_of(**sections)
    _check_two_processes(config, batch_of(masks), owners, tmp_path)


def _check_two_processes(
    config: Config,
    batch: TrainBatch,
    owners: list[int],
    folder: Path,
    known: Mapping[Task, np.ndarray] | None = None,
) -> None:
    """Two processes, each with its rows of a batch, have the gradients of one with all rows."""
    expected = gradients(config, batch, known=known)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    mp.spawn(_worker, (str(folder), batch, owners, config, known), nprocs=2)
    found = torch.load(folder / "grads.pt", weights_only=True)
    scale = max(grad.norm() for grad in expected.values())
    for name, grad in expected.items():
        error = (found[name] - grad).norm() / grad.norm().clamp(min=1e-4 * scale)
        assert error <= 1e-5, f"{name}: {error:.2e}"


NONE_OF_ONE_RANK: dict[Task, dict[int, list[int]]] = {
    "det": {0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]},
    "seg": {3: [1, 3], 4: [1, 2, 3]},
}
"""A rank on which nobody looked for any class of objects; the other's masks know little more than background."""
OTHERS_OF_EACH_RANK: dict[Task, dict[int, list[int]]] = {
    "det": {0: [0], 1: [1, 2], 3: [2]},
    "seg": {1: [2], 4: [0, 1], 5: [0]},
}
"""Other classes in every row, background among them, and rows of which all is known beside them."""
SOME_KNOWN: Mapping[Task, np.ndarray] = {
    "det": np.array([True, False, True]),
    "seg": np.array([True, False, True, False]),
}
"""Teachers that know some of the classes."""


@pytest.mark.heavy
@pytest.mark.parametrize("sections", [{}, EVERY_LOSS], ids=["default", "every loss"])
@pytest.mark.parametrize(
    ("masks", "owners", "unlabelled", "known"),
    [
        (["det", "both", "det", "seg", "seg", "none"], [0, 0, 0, 1, 1, 1], NONE_OF_ONE_RANK, None),
        (["det", "both", "none", "det", "seg", "both"], [0, 1, 1, 1, 0, 1], OTHERS_OF_EACH_RANK, SOME_KNOWN),
    ],
    ids=["a rank without a labelled class", "other classes in every row"],
)
def test_two_processes_have_the_gradients_of_one_whatever_nobody_looked_for(
    masks: list[str],
    owners: list[int],
    unlabelled: dict[Task, dict[int, list[int]]],
    known: Mapping[Task, np.ndarray] | None,
    sections: dict[str, Any],
    tmp_path: Path,
) -> None:
    batch = with_unlabelled(batch_of(masks), unlabelled)
    config = config_of(**sections)
    plain, masked = gradients(config, batch_of(masks)), gradients(config, batch, known=known)
    assert any((plain[name] != masked[name]).any() for name in plain), "the masks change nothing"
    _check_two_processes(config, batch, owners, tmp_path, known)


@cache
def random_network() -> tuple[Config, MultiTaskNet]:
    """A network without teachers, made once for all examples of the test below."""
    config = config_of(teachers={})
    torch.manual_seed(0)
    return config, MultiTaskNet(config.model, CLASSES)


@given(
    masks=st.lists(st.sampled_from(["det", "seg", "both"]), min_size=1, max_size=3),
    place=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_an_unannotated_row_adds_no_supervised_loss(masks, place, seed):
    config, network = random_network()
    place = min(place, len(masks))
    batch = batch_of([*masks[:place], "none", *masks[place:]], seed)
    rows = [row for row in range(len(masks) + 1) if row != place]
    with torch.no_grad():
        whole = loss_terms(network, made_for(batch, config), {}, config, CPU)
        annotated = loss_terms(network, made_for(share(batch, rows), config), {}, config, CPU)
    assert annotated
    for name, term in annotated.items():
        torch.testing.assert_close(whole[name].sum, term.sum, rtol=1e-5, atol=1e-6)
        assert whole[name].count == term.count


def test_a_task_without_rows_leaves_its_head_and_loss_at_zero():
    config = config_of(teachers={})
    grads = gradients(config, batch_of(["det", "det", "none"]))
    untaught = [grad for name, grad in grads.items() if name.startswith("seg_head")]
    assert untaught
    assert not any(grad.any() for grad in untaught)
    assert any(grad.abs().max() > 0 for name, grad in grads.items() if name.startswith("det_head"))


@pytest.mark.parametrize(
    ("on", "expected"), [("missing", [1, 3]), ("annotated", [0, 2]), ("all", [0, 1, 2, 3])], ids=str
)
def test_which_rows_are_distilled(on, expected):
    config = config_of(distill={"det": {"on": on}, "seg": {"weight": 0}})
    distil = made_for(batch_of(["det", "seg", "both", "none"]), config).distil
    assert distil.keys() == {"det"}, "a task of weight 0 is not distilled"
    assert distil["det"].rows.tolist() == expected
    assert distil["det"].values.classes.all()


def test_nothing_is_distilled_before_its_start():
    config = config_of(distill={"start": 0.25}, train={"run": "-", "steps": 40, "batch_size": 6})
    for step, count in ((0, 0), (9, 0), (10, 2)):
        distil = made_for(batch_of(["det", "seg", "none"], step=step), config).distil
        assert {task: len(some.rows) for task, some in distil.items()} == {"det": count, "seg": count}


def test_weak_annotations_teach_the_heads_of_rows_without_their_own():
    weak = config_of(teachers={}, loss={"weak_det": 0.5, "weak_seg": 2.0})
    for masks, head in ((["det", "det"], "seg_head"), (["seg", "seg"], "det_head")):
        for config, taught in ((weak, True), (config_of(teachers={}), False)):
            grads = gradients(config, batch_of(masks))
            assert any(grad.abs().max() > 0 for name, grad in grads.items() if name.startswith(head)) == taught
    # Rows that have both annotations need no weak one.
    batch = batch_of(["both", "none"])
    network = MultiTaskNet(weak.model, CLASSES)
    terms = loss_terms(network, made_for(batch, weak), {}, weak, CPU)
    assert [terms[name].sum.item() for name in ("weak_det_box", "weak_det_cls", "weak_seg")] == [0.0, 0.0, 0.0]
    # Weights count within those of the tasks.
    weights = term_weights(config_of(teachers={}, loss={"det": 2.0, "weak_det": 0.5, "seg": 3.0, "weak_seg": 2.0}))
    losses = named_losses({"weak_det_box": 1.0, "weak_det_cls": 2.0, "weak_seg": 1.0}, weights)
    assert losses == {"loss/total": 9.0, "loss/weak_det": 3.0, "loss/weak_seg": 1.0}


def test_published_losses_add_up():
    weights = term_weights(config_of(loss={"seg": 2.0}, distill={"det": {"weight": 0.5}}))
    losses = named_losses({"det_box": 1.0, "seg": 3.0, "kd_det_soft_box": 0.5, "kd_det_soft_cls": 1.5}, weights)
    assert losses == {"loss/total": 8.0, "loss/det_box": 1.0, "loss/seg": 3.0, "loss/kd_det": 2.0}
