"""Runs a kind's inputs in a process with limits on memory and time, and says what became of each."""

import contextlib
import io
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space that a process may take beyond what it has when its imports are done."""
RESIDENT = 1 << 30
"""Bytes by which one input may let it grow."""
SECONDS = 30
"""Of an input; these machines are slow at times."""

Case = tuple[bytes, Callable[[], object]]
"""An input as it is shown, and what is done with it."""
Kind = Callable[[Path], Callable[[Random], Case]]
"""Given a folder to work in, makes cases."""


@dataclass
class Fault:
    """One way in which inputs went wrong."""

    error: str
    number: int
    """Of the smallest such input."""
    shown: bytes
    count: int = 1


@dataclass
class Outcome:
    """What became of a kind's inputs."""

    inputs: int = 0
    right: int = 0
    refused: int = 0
    faults: dict[str, Fault] = field(default_factory=dict)
    """By what went wrong."""

    def add_fault(self, error: str, number: int, shown: bytes) -> None:
        """Count a fault, and keep the smallest of its inputs."""
        fault = self.faults.setdefault(error, Fault(error, number, shown, 0))
        fault.count += 1
        if len(shown) < len(fault.shown):
            fault.number, fault.shown = number, shown


def run_kind(name: str, seed: int, inputs: int) -> Outcome:
    """Run a kind's inputs; one that ends its process, or does not end, is a fault too."""
    outcome = Outcome()
    while outcome.inputs < inputs:
        _run_process(name, seed, outcome, inputs)
    return outcome


def _run_process(name: str, seed: int, outcome: Outcome, inputs: int) -> None:
    """Run inputs from the first that has not been run, in a process of their own, until it ends."""
    command = [sys.executable, "-m", "tests.fuzz", "--worker", name, str(seed), str(outcome.inputs), str(inputs)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        assert process.stdout
        shown, told = b"", False
        # The first answer waits for the imports.
        while select.select([process.stdout], [], [], SECONDS if told else 120)[0]:
            line = process.stdout.readline()
            if not line:
                break
            told, found = True, json.loads(line)
            if "begin" in found:
                shown = bytes.fromhex(found["begin"])
                continue
            outcome.inputs += 1
            if found["outcome"] == "fault":
                outcome.add_fault(found["error"], found["number"], shown)
            else:
                setattr(outcome, found["outcome"], getattr(outcome, found["outcome"]) + 1)
        else:
            process.kill()
        code = process.wait()
        if not told:
            errors.seek(0)
            raise RuntimeError(f"{name}: cannot begin: {errors.read().decode(errors='replace')[-2000:]}")
        if code and outcome.inputs < inputs:
            reason = f"no end within {SECONDS} s" if code == -9 else f"the process ended with {code}"
            outcome.add_fault(reason, outcome.inputs, shown)
            outcome.inputs += 1


def work(kind: Kind, name: str, seed: int, first: int, end: int) -> None:
    """Be the process: run inputs, and tell of each when it begins and when it ends."""
    answers = os.fdopen(os.dup(1), "w")
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:  # noqa: PTH123
        os.dup2(nowhere.fileno(), 1)
        os.chdir(folder)
        make = kind(Path(folder))
        mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
        for number in range(first, end):
            shown, run = make(Random(f"{name}/{seed}/{number}"))
            print(json.dumps({"begin": shown.hex()}), file=answers, flush=True)
            print(json.dumps({"number": number} | judged(run)), file=answers, flush=True)


def judged(run: Callable[[], object]) -> dict[str, Any]:
    """What became of an input."""
    from multas_ray.data.reject import Reject
    from multas_ray.errors import RunError, UserError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run()
        outcome: dict[str, Any] = {"outcome": "right"}
    except (UserError, RunError, Reject) as error:
        text = str(error)
        outcome = {"outcome": "refused"}
        if not text.isprintable() or len(text) > 3000:
            outcome = {"outcome": "fault", "error": f"a message that is no line: {text[:80]!r}"}
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "multas_ray" in frame.filename]
        where = own[-1] if own else place
        name = Path(where.filename).name
        outcome = {"outcome": "fault", "error": f"{type(error).__name__} at {name}:{where.lineno} ({where.name})"}
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > RESIDENT:
        outcome = {"outcome": "fault", "error": f"more than {RESIDENT >> 30} GiB of memory"}
    return outcome
