"""Train the teachers of networks.py on Pascal VOC's animals, each on the half that is annotated for its task.

python -m docs.results.foreign.train --voc VOC2012 --task det
python -m docs.results.foreign.train --voc VOC2012 --task seg
"""

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from docs.results.foreign.networks import CLASSES, FOLDER, SIZE, lraspp, normalised, retinanet
from multas_ray.config import AugmentConfig
from multas_ray.data.image import EncodedImage
from multas_ray.data.pillow import upright_size
from multas_ray.data.transforms import Augment
from multas_ray.formats.voc import Options, read
from multas_ray.model.precision import has_bfloat16

BATCH = 16
STEPS = 1500
LISTS = {"det": "MXEdet/train", "seg": "MXEseg/train"}


class Animals(Dataset[dict[str, Any]]):
    """Augmented images of one task, BATCH for each of STEPS."""

    def __init__(self, voc: Path, task: str) -> None:
        """List the images."""
        options = Options.model_validate({"root": voc, task: LISTS[task], "classes": CLASSES})
        self.split = read(options).splits["train"]
        self.augment = Augment(AugmentConfig())

    def __len__(self) -> int:
        """Return the number of images of a training."""
        return BATCH * STEPS

    def __getitem__(self, number: int) -> dict[str, Any]:
        """Return the augmented image of a place in the training."""
        items = self.split.items
        epoch, place = divmod(number, len(items))
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(epoch))
        row = self.split.read(items[int(order[place])])
        height, width, _ = upright_size(row.image)
        boxes = {"boxes": row.boxes, "labels": row.labels.astype(np.int64), "difficult": row.difficult}
        sample = {"image": EncodedImage(row.image, height, width)} | (boxes if row.has_det else {"mask": row.mask})
        return self.augment(sample, SIZE, seed=number)


def main() -> None:
    """Train one network, and write its weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", required=True, type=Path, metavar="FOLDER", help="VOC2012 of the VOCdevkit")
    parser.add_argument("--task", required=True, choices=list(LISTS))
    arguments = parser.parse_args()
    torch.manual_seed(0)
    network = retinanet(pretrained=True) if arguments.task == "det" else lraspp(pretrained=True)
    loss = detection_loss if arguments.task == "det" else segmentation_loss
    FOLDER.mkdir(parents=True, exist_ok=True)
    train(network, loss, Animals(arguments.voc, arguments.task), FOLDER / f"{arguments.task}.pt")
    safetensors.torch.save_file(network.state_dict(), FOLDER / f"{arguments.task}.safetensors")


def train(network: nn.Module, loss: Any, images: Animals, state: Path) -> None:
    """Train by AdamW, resumed from a file of its state where there is one."""
    decayed = [each for each in network.parameters() if each.ndim > 1]
    others = [each for each in network.parameters() if each.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0}], weight_decay=0.05)
    done = 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        done = saved["step"]
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
    network.train()
    batches = DataLoader(Subset(images, range(done * BATCH, len(images))), BATCH, collate_fn=list)
    for step, batch in enumerate(batches, start=done + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16(torch.device("cpu"))):
            value = loss(network, batch)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10)
        optimizer.step()
        if step % 25 == 0:
            print(f"{time.strftime('%H:%M:%S')} step {step}/{STEPS}, loss {value.item():.3f}", flush=True)
            whole = {"step": step, "network": network.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(whole, state.with_suffix(".part"))
            state.with_suffix(".part").replace(state)


def rate(step: int) -> float:
    """Compute the learning rate of a step: a warm-up of 100, and a cosine to 0."""
    return 5e-4 * min(1, step / 100) * (1 + math.cos(math.pi * step / STEPS)) / 2


def detection_loss(network: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    """Compute RetinaNet's loss."""
    images = [each["image"].float() / 255 for each in batch]
    targets = [{name: torch.as_tensor(each[name]) for name in ("boxes", "labels")} for each in batch]
    return sum(network(images, targets).values())


def segmentation_loss(network: nn.Module, batch: list[dict[str, Any]]) -> Tensor:
    """Compute the pixels' cross-entropy."""
    images = torch.stack([torch.as_tensor(each["image"]) for each in batch])
    masks = torch.stack([torch.as_tensor(each["mask"]) for each in batch]).long()
    return F.cross_entropy(network(normalised(images, network))["out"], masks, ignore_index=255)


if __name__ == "__main__":
    main()
