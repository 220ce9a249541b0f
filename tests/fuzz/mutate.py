"""Inputs made wrong: bytes, and trees of JSON or YAML."""

import json
from copy import deepcopy
from random import Random
from typing import Any

INTERESTING = (
    None, True, False, -1, 0, 1, 2**31, 2**63, 10**30, -0.5, 0.1, 1e308, float("nan"), float("inf"), "", " ",
    "0", "1e3", "nan", "x" * 1000, "a\nb", "\x1b[31mred", "\0", "../..", "/dev/zero", "s3://x/y", "~nobody/x", "[/red]",
    "<b>", "é", "日本", "🙂", [], {}, [[]], [None], [0] * 1000, {"x": 1}, {"": None}, [1, "1"],
)  # fmt: skip
"""Values that ought not to be where they are put."""
HUGE = 10**400
DEPTH = 3000


def mutated_bytes(rng: Random, data: bytes, most: int = 16) -> bytes:
    """Bytes with some bits flipped, some lost, some added, some moved, or cut short."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, most))):
        # Headers are worth more than what follows.
        place = rng.randrange(min(len(changed), rng.choice((16, 64, 512, len(changed) or 1))) or 1)
        kind = rng.randrange(7)
        if kind == 0 and changed:
            changed[place] ^= 1 << rng.randrange(8)
        elif kind == 1 and changed:
            changed[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del changed[place : place + rng.choice((1, 2, 4, 16, 200))]
        elif kind == 3:
            changed[place:place] = rng.randbytes(rng.choice((1, 2, 4, 16)))
        elif kind == 4:
            other = rng.randrange(len(changed) or 1)
            changed[place:place] = changed[other : other + rng.choice((4, 16, 64))]
        elif kind == 5 and len(changed) > place + 4:
            changed[place : place + 4] = rng.choice(
                (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f")
            )
        elif kind == 6 and rng.random() < 0.2:
            del changed[place:]
    return bytes(changed)


def mutated_tree(rng: Random, tree: Any, changes: int | None = None) -> Any:
    """A tree of mappings, lists and values with some of its nodes changed, lost, doubled or renamed."""
    tree = deepcopy(tree)
    for _ in range(changes or rng.choice((1, 1, 1, 2, 4))):
        places = list(_places(tree))
        if not places:
            return rng.choice(INTERESTING)
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind < 4:
            parent[key] = deepcopy(rng.choice(INTERESTING)) if rng.random() < 0.95 else _deep(rng)
        elif kind == 4:
            del parent[key]
        elif kind == 5 and isinstance(parent, list):
            parent.insert(key, deepcopy(parent[key]))
        elif kind == 5:
            parent[f"{key}x"] = parent.pop(key)
        elif kind == 6:
            other, place = rng.choice(places)
            if place in (other if isinstance(other, dict) else range(len(other))):
                parent[key] = deepcopy(other[place])
        elif isinstance(parent[key], int | float) and not isinstance(parent[key], bool):
            number = parent[key] if abs(parent[key]) < 1e300 else 7
            parent[key] = rng.choice((-number, number * 1000, str(number), number + 0.5, HUGE))
    return tree


def _places(tree: Any) -> Any:
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def _deep(rng: Random) -> Any:
    """Lists in lists, which encoders and decoders follow by recursion; not deeper than this process can write."""
    tree: Any = 0
    for _ in range(rng.choice((60, 300))):
        tree = [tree] if rng.random() < 0.5 else {"x": tree}
    return tree


def encoded(rng: Random, tree: Any) -> bytes:
    """A tree as JSON, now and then with broken bytes, in another encoding, or nested without end."""
    try:
        text = json.dumps(tree)
    except (ValueError, RecursionError):
        text = "9" * 5000
    if rng.random() < 0.03:
        text = text.replace("1", "[" * DEPTH, 1)
    data = text.encode(rng.choice(("utf-8",) * 8 + ("utf-8-sig", "utf-16")), "surrogatepass")
    return mutated_bytes(rng, data, 4) if rng.random() < 0.2 else data
