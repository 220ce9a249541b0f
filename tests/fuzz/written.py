"""What people write by hand: configurations, overrides, studies, search spaces, flags, `dataset.json`."""

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import yaml

from jobs import prepare
from multas_ray.config_file import load_config
from multas_ray.data.schema import read_info
from multas_ray.documents import read_yaml
from multas_ray.study.layout import lay_out, load_study
from multas_ray.study.search import Sweep, parse_search
from tests.fuzz.harness import Case
from tests.fuzz.mutate import INTERESTING, encoded, mutated_bytes, mutated_tree
from tests.support.shared import ROOT

CONFIGS = ROOT / "jobs" / "configs"
GOOD = CONFIGS / "animals_kd.yaml"


def config(folder: Path) -> Callable[[Random], Case]:
    """A configuration's file."""
    trees = [read_yaml(file) for file in sorted(CONFIGS.glob("*.yaml"))]
    trees = [tree for tree in trees if "arms" not in tree]

    def make(rng: Random) -> Case:
        data = _yaml(rng, rng.choice(trees))
        (folder / "config.yaml").write_bytes(data)
        return data, lambda: load_config(folder / "config.yaml").absolute().to_yaml()

    return make


def override(folder: Path) -> Callable[[Random], Case]:
    """Values on the command line."""
    sections = [f"{name}.{key}" for name, section in load_config(GOOD) for key in type(section).model_fields]

    def make(rng: Random) -> Case:
        value = rng.choice(INTERESTING)
        text = f"{rng.choice(sections)}={json.dumps(value) if rng.random() < 0.5 else value}"
        if rng.random() < 0.5:
            text = mutated_bytes(rng, text.encode(errors="replace"), 4).decode("utf-8", "surrogateescape")
        return text.encode(errors="replace"), lambda: load_config(GOOD, [text]).to_yaml()

    return make


def study(folder: Path) -> Callable[[Random], Case]:
    """A study's file."""
    trees = [read_yaml(file) for file in sorted(CONFIGS.glob("*.yaml"))]
    trees = [tree for tree in trees if "arms" in tree]

    def make(rng: Random) -> Case:
        data = _yaml(rng, rng.choice(trees))
        (folder / "study.yaml").write_bytes(data)
        return data, lambda: lay_out(load_study(folder / "study.yaml"))

    return make


def search(folder: Path) -> Callable[[Random], Case]:
    """Search spaces on the command line."""
    good = ["optim.lr=loguniform(1e-4,1e-2)", "distill.det.weight=choice(0.5,1,2)", "train.steps=randint(5, 9)"]

    def make(rng: Random) -> Case:
        text = rng.choice(good)
        if rng.random() < 0.3:
            low, high = rng.choice(INTERESTING), rng.choice(INTERESTING)
            text = f"optim.lr={rng.choice(('choice', 'uniform', 'lograndint'))}({low},{high})"
        text = mutated_bytes(rng, text.encode(errors="replace"), 3).decode("utf-8", "surrogateescape")

        def run() -> None:
            space = parse_search([text])
            Sweep(read_yaml(GOOD), [text], "out", 1).config(
                {path: domain.sample() for path, domain in space.items()}, "run"
            )

        return text.encode(errors="replace"), run

    return make


def dataset_json(folder: Path) -> Callable[[Random], Case]:
    """A data set's description."""
    good = {"name": "x", "schema_version": 2, "det_classes": ["a", "b"], "seg_classes": ["background", "a"],
            "splits": {"train": {"det": 1, "both": 2}}, "source": "", "command": ""}  # fmt: skip

    def make(rng: Random) -> Case:
        data = encoded(rng, mutated_tree(rng, good))
        (folder / "dataset.json").write_bytes(data)
        return data, lambda: read_info(str(folder))

    return make


def flags(folder: Path) -> Callable[[Random], Case]:
    """`prepare`'s command line."""
    good = ["scenes", "--train", "1", "--val", "1", "--size", "32", "--partial", "det=0.5,seg=0.5", "--seed", "1",
            "--out", "out", "--name", "x", "--max-rejected", "0.1", "--overwrite"]  # fmt: skip
    # Those that would make it work for long are of no interest.
    odd = ["", " ", "-1", "0", "1e9", "nan", "inf", "x" * 5000, "a\0b", "~nobody/x", "é", "--", "[]", "0x10", "det=nan",
           "²"]  # fmt: skip

    def make(rng: Random) -> Case:
        words = list(good)
        for _ in range(rng.choice((1, 2, 3))):
            place = rng.randrange(len(words))
            changed = mutated_bytes(rng, words[place].encode(errors="surrogateescape"))
            word = rng.choice(odd) if rng.random() < 0.7 else changed.decode("utf-8", "surrogateescape")
            words[place] = word.replace("9", "1") if word.isdecimal() and len(word) < 9 else word
        shutil.rmtree(folder / "out", ignore_errors=True)
        return json.dumps(words).encode(), lambda: prepare.main(words)

    return make


def _yaml(rng: Random, tree: Any) -> bytes:
    """A tree as YAML, now and then with tags, anchors or broken bytes."""
    changed = mutated_tree(rng, deepcopy(tree))
    try:
        text = yaml.safe_dump(changed, allow_unicode=rng.random() < 0.5)
    except (ValueError, RecursionError, yaml.YAMLError):
        text = "- " * 3000
    if rng.random() < 0.2:
        tags = ("!!timestamp ", "!!bool ", "!!binary ", "!!int ", "!!float ", "!!set ", "!!python/name:os.system ",
                "&a ", "*a ", "<<: ")  # fmt: skip
        text = text.replace(": ", f": {rng.choice(tags)}", rng.choice((1, 2, 9)))
    data = text.encode(errors="surrogatepass")
    return mutated_bytes(rng, data, 4) if rng.random() < 0.4 else data
