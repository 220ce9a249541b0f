"""Ctrl-C and SIGTERM end a job within seconds, whatever it is doing."""

import atexit
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

SIGNALS = {signal.SIGINT, signal.SIGTERM}
WORDS_S = 1.0
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
        # Ray ends its processes when Python ends, which takes a second or two.
        atexit.register(signal.pthread_sigmask, signal.SIG_BLOCK, SIGNALS)


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
        terminal = _leave_terminal()
        raylets = [process for process in family() if _is_named(process, "raylet")]
        for raylet in raylets:
            # It would replace what is killed, and this process would dump its stacks if it saw the raylet end.
            with suppress(Exception):
                raylet.suspend()
        end = monotonic() + GRACE_S
        _kill_most(raylets)
        restore = "\r\n\x1b[?25h" if os.isatty(terminal) else ""
        os.write(terminal, f"{restore}{_answer()}\n".encode())
        while _kill_most(raylets) and monotonic() < end:
            sleep(0.05)
        kill(family())
    finally:
        os._exit(128 + signum)


def _leave_terminal() -> int:
    """A file descriptor of standard error, which nothing that falls over from now on writes to."""
    assert sys.__stdout__ is not None
    assert sys.__stderr__ is not None
    with suppress(OSError):
        sys.__stdout__.flush()
    terminal, nowhere = os.dup(sys.__stderr__.fileno()), os.open(os.devnull, os.O_WRONLY)
    for written in (1, 2, sys.__stderr__.fileno()):
        os.dup2(nowhere, written)
    return terminal


def _answer() -> str:
    told: list[str] = []
    asking = Thread(target=lambda: told.append(_words() if callable(_words) else _words), daemon=True)
    asking.start()
    asking.join(WORDS_S)
    return told[0] if told else STOPPING


def _kill_most(raylets: list[Any]) -> bool:
    """Kill what this process has started but for raylets, and for W&B's process, which ends by itself when it has
    written what it has. Whether any was left."""
    rest = [process for process in family() if process not in raylets]
    kill(process for process in rest if not _is_named(process, "wandb-core"))
    return bool(rest)


def _is_named(process: Any, name: str) -> bool:
    with suppress(Exception):
        return bool(process.name() == name)
    return False


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
