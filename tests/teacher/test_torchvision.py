"""torchvision's networks as teachers: small ones of random weights, from files."""

import pytest
import safetensors.torch
import torch
import torchvision

from multas_ray.config import TeacherConfig
from multas_ray.errors import UserError
from multas_ray.teacher.torchvision import open_model
from tests.support.teachers import images

NAMES = ["__background__", "cat", "dog"]
NETWORKS = {"det": "ssdlite320_mobilenet_v3_large", "seg": "lraspp_mobilenet_v3_large"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file of weights of a network for each task."""
    torch.manual_seed(0)
    found = {}
    for task, name in NETWORKS.items():
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3)
        found[task] = tmp_path_factory.mktemp("weights") / f"{task}.safetensors"
        safetensors.torch.save_file(network.state_dict(), found[task])
    return found


def settings_of(task, file, **settings) -> TeacherConfig:
    return TeacherConfig(source=f"torchvision:{NETWORKS[task]}:{file}", names=NAMES, **settings)


def test_a_detector_answers_with_its_boxes_in_fractions(files):
    model = open_model(settings_of("det", files["det"]), "det", "cpu")
    batch = torch.tensor(images(2))
    with torch.inference_mode():
        found = model(batch)
        raw = model.network([image / 255 for image in batch])
    assert found.boxes.shape == (2, 100, 4)
    for row in range(2):
        count = len(raw[row]["scores"])
        torch.testing.assert_close(found.boxes[row, :count], raw[row]["boxes"] / 64)
        best, labels = found.probabilities[row, :count].max(dim=1)
        torch.testing.assert_close(best, raw[row]["scores"])
        torch.testing.assert_close(labels, raw[row]["labels"])
    # Random weights are not sure of anything, and what they are not sure of is there too.
    assert 0.02 < found.probabilities.max(dim=2).values.min() < 0.5


def test_a_segmentation_network_answers_with_distributions(files):
    model = open_model(settings_of("seg", files["seg"], size=96), "seg", "cpu")
    with torch.inference_mode():
        p = model(torch.tensor(images(2)))
    assert p.shape[:2] == (2, 3)
    assert p.shape[2] == 96
    torch.testing.assert_close(p.sum(dim=1), torch.ones_like(p[:, 0]))
    assert model.names == NAMES
    # The same weights, the same digest, whatever file they come from.
    other = files["seg"].with_suffix(".pth")
    torch.save(model.network.state_dict(), other)
    assert open_model(settings_of("seg", other), "seg", "cpu").digest == model.digest


@pytest.mark.parametrize(
    ("source", "names", "words"),
    [
        ("torchvision:resnet50", None, "torchvision has no network 'resnet50' for seg; it has deeplabv3"),
        ("torchvision:lraspp_mobilenet_v3_large:MINE", None, "no file and no weights 'MINE'; there are COCO_WITH_VOC"),
        ("torchvision:lraspp_mobilenet_v3_large:FILE", None, "a file of weights has no names"),
        ("torchvision:lraspp_mobilenet_v3_large:FILE", ["a", "b"], "no weights of lraspp.* with 2 classes"),
        ("torchvision:fcn_resnet50:FILE", NAMES, "no weights of fcn_resnet50 with 3 classes"),
    ],
)
def test_what_cannot_be_opened_is_one_line(files, source, names, words):
    source = source.replace("FILE", str(files["seg"]))
    with pytest.raises(UserError, match=words):
        open_model(TeacherConfig(source=source, names=names), "seg", "cpu")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(UserError, match="no weights of"):
        open_model(settings_of("seg", tmp_path / "bomb.pth"), "seg", "cpu")
    assert not (tmp_path / "ran").exists()


def test_a_file_with_a_head_that_only_helps_to_train_is_read(tmp_path):
    name = "fcn_resnet50"
    whole = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=3, aux_loss=True)
    file = tmp_path / "fcn.pth"
    torch.save(whole.state_dict(), file)
    model = open_model(TeacherConfig(source=f"torchvision:{name}:{file}", names=NAMES), "seg", "cpu")
    torch.testing.assert_close(model.network.classifier.state_dict(), whole.classifier.state_dict())
    with pytest.raises(UserError, match=r"no weights of fcn_resnet50 with 2 classes \(size mismatch for classifier"):
        open_model(TeacherConfig(source=f"torchvision:{name}:{file}", names=["cat", "dog"]), "seg", "cpu")
