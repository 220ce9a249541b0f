"""A toy of each thing that can be added, from outside the package (docs/develop/architecture.md)."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from multas_ray import teacher
from multas_ray.data.batch import mapped
from multas_ray.data.schema import DatasetInfo
from multas_ray.errors import UserError
from multas_ray.model import backbones
from multas_ray.model.backbones import Backbone
from multas_ray.model.network import MultiTaskNet
from multas_ray.tasks.detection.anchored import anchored
from multas_ray.tasks.detection.anchors import anchors
from multas_ray.teacher.feed import InlineTeachers, with_soft_targets
from multas_ray.teacher.specs import teacher_specs
from multas_ray.teacher.teacher import Description, to_answer
from multas_ray.train.trainer import Trainer
from tests.support.batches import CLASSES, SIZE, batch_of, config_of, made_for


def test_a_backbone(monkeypatch):
    def strided(name, settings):
        stages = [nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 12, 2, 2), nn.Conv2d(12, 16, 2, 2)]
        return Backbone(stages, (8, 12, 16))

    monkeypatch.setitem(backbones.FAMILIES, "toy/", strided)
    config = config_of(model={"backbone": "toy/strided", "pretrained": False, "width": 16}, teachers={})
    trainer = Trainer(config, CLASSES, torch.device("cpu"))
    assert trainer.step(made_for(batch_of(["both", "det"]), config), {}, 0, 1).status == "taken"
    with pytest.raises(UserError, match=r"model\.backbone: .*'other'.*resnet18.*toy/"):
        MultiTaskNet(config.model.model_copy(update={"backbone": "other"}), CLASSES)


def test_a_teacher_with_boxes_of_its_own(monkeypatch):
    """A detector that answers with a box and class probabilities, and no anchors."""

    def describe(settings, task, terms):
        return Description(settings.source, digest="1")

    def load(spec, device):
        grid = anchors(SIZE, SIZE, spec.terms.anchor_base, device, spec.terms.levels)

        def answer(images: np.ndarray):
            boxes = torch.tensor([0.1, 0.1, 0.5, 0.6]).expand(len(images), 1, 4)
            probabilities = torch.tensor([0.9, 0.0, 0.1]).expand(len(images), 1, 3)
            return to_answer(spec, images, mapped(anchored(boxes, probabilities, grid), torch.Tensor.half))

        return answer

    monkeypatch.setitem(teacher.LOADERS, "toy", SimpleNamespace(describe=describe, load=load))
    config = config_of(teachers={"det": {"checkpoint": "toy:box"}})
    info = DatasetInfo(name="memory", det_classes=CLASSES["det"], seg_classes=CLASSES["seg"])
    specs = teacher_specs(config, info)
    assert specs["det"].description.source == "toy:box"
    teachers = InlineTeachers({task: spec.load("cpu") for task, spec in specs.items()})
    [fed] = with_soft_targets([made_for(batch_of(["seg", "both", "none"]), config)], teachers, 0)
    trainer = Trainer(config, CLASSES, torch.device("cpu"))
    outcome = trainer.step(fed.batch, fed.soft, 0, 1)
    assert outcome.status == "taken"
    assert outcome.shares["kd_det_guided_cls"] > 0
