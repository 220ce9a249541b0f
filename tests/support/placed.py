"""Train as configured, and write down on which nodes the actors ran: `python -m tests.support.placed CONFIG OUT`."""

import json
import re
import sys
import threading
from collections import defaultdict
from pathlib import Path
from time import sleep

import ray
from ray.util.state import list_actors

from multas_ray.config_file import load_config
from multas_ray.train.run import train

KINDS = ("TeacherActor", "ChunkMaker", "RayTrainWorker")


def main() -> None:
    seen: dict[str, set[str]] = defaultdict(set)

    def look() -> None:
        while True:
            if ray.is_initialized():
                for actor in list_actors(ray.get_runtime_context().gcs_address, limit=1000):
                    kind = next((kind for kind in KINDS if re.search(kind, f"{actor.class_name} {actor.name}")), None)
                    if kind is not None and actor.node_id:
                        seen[kind].add(actor.node_id)
            sleep(0.5)

    threading.Thread(target=look, daemon=True).start()
    train(load_config(sys.argv[1]))
    Path(sys.argv[2]).write_text(json.dumps({kind: sorted(nodes) for kind, nodes in seen.items()}))


if __name__ == "__main__":
    main()
