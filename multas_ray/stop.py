"""Ctrl-C and SIGTERM end a job within seconds, whatever it is doing."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

SIGNALS = {signal.SIGINT, signal.SIGTERM}
WORDS_S = 0.7
"""How long the words of an answer may take: a bucket that hangs must not keep it back."""
GRACE_S = 5.0
"""How long W&B may take to write what it has."""

STOPPING = "stopping"
GOES_ON = "stopping; the same command goes on from here"
_words: str | Callable[[], str] = STOPPING
_stopping = Event()


def on_stop(words: str | Callable[[], str]) -> None:
    """Say what a signal is answered with from now on."""
    global _words
    _words = words


@contextmanager
def answer_signals() -> Iterator[None]:
    """While the block lasts, SIGINT and SIGTERM are answered with a line, and end the process and all that it started,
    with exit code 130 or 143; a second one ends it at once.

    A thread waits for them. No handler would do: the main thread may sit in Ray's C++, and Ray replaces SIGTERM's
    handler by one that dumps a stack, Ray Train and Tune that of SIGINT. Runs are whole at any moment, so that nothing
    has to be brought to an end.
    """
    on_stop(STOPPING)
    # Threads that are started from now on inherit this.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    over = Event()
    watch = Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        if _stopping.is_set():
            # What fails now does so because its processes are being killed.
            Event().wait()
        over.set()
        assert watch.ident is not None
        signal.pthread_kill(watch.ident, signal.SIGTERM)
        watch.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# Processes inherit it too, and Ray asks its own to end by SIGTERM.
os.register_at_fork(after_in_child=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS))


def _watch(over: Event) -> None:
    first = signal.sigwait(SIGNALS)
    if over.is_set():
        return
    _stopping.set()
    Thread(target=_stop, args=(first,), daemon=True).start()
    second = signal.sigwait(SIGNALS)
    kill(family())
    os._exit(128 + second)


def _stop(signum: int) -> None:
    try:
        _say()
        _endfamily()
    finally:
        os._exit(128 + signum)


def _say() -> None:
    """Print the line, the last one: nothing that falls over from now on reaches the terminal."""
    told: list[str] = []
    asking = Thread(target=lambda: told.append(_words() if callable(_words) else _words), daemon=True)
    asking.start()
    asking.join(WORDS_S)
    assert sys.__stdout__ is not None
    assert sys.__stderr__ is not None
    sys.__stdout__.flush()
    terminal, nowhere = os.dup(sys.__stderr__.fileno()), os.open(os.devnull, os.O_WRONLY)
    for written in (1, 2, sys.__stderr__.fileno()):
        os.dup2(nowhere, written)
    # A progress bar hides the cursor and leaves it within its line.
    restore = "\r\n\x1b[?25h" if os.isatty(terminal) else ""
    os.write(terminal, f"{restore}{told[0] if told else STOPPING}\n".encode())


def _endfamily() -> None:
    """End all that this process has started. W&B's process ends by itself, when it has written what it has."""
    raylets = [process for process in family() if process.name() == "raylet"]
    for raylet in raylets:
        # A raylet that lost a worker would start another, and this process would end with a dump if it lost the raylet.
        with suppress(Exception):
            raylet.suspend()
    end = monotonic() + GRACE_S
    while rest := [process for process in family() if process not in raylets]:
        others = [process for process in rest if process.name() != "wandb-core"]
        kill(others)
        if monotonic() > end:
            break
        sleep(0.05)
    kill(family())


def family() -> list[Any]:
    """Processes that this one started, and those that they did, but for those that have ended."""
    import psutil

    alive = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def kill(processes: Iterable[Any]) -> None:
    """End processes at once."""
    for process in processes:
        with suppress(Exception):
            process.kill()
