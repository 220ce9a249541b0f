"""Signals: Ctrl-C and SIGTERM end a job within seconds, whatever it is doing."""

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
MESSAGE_S = 1.0
"""Seconds in which the message must be there: a bucket that hangs must not delay it further."""
GRACE_S = 5.0
"""Seconds that W&B has to write its files."""

STOPPING = "stopping"
GOES_ON = "stopping; the same command goes on from here"
_message: str | Callable[[], str] = STOPPING
_stopping = Event()


def on_stop(message: str | Callable[[], str]) -> None:
    """Set the line that answers a signal from now on, or the function that makes it."""
    global _message
    _message = message


@contextmanager
def answer_signals() -> Iterator[None]:
    """Answer SIGINT and SIGTERM inside the block: print a line and end the process and all that it started.

    The exit code is 130 or 143; a second signal ends the process at once.

    A thread waits for signals. Handlers would not do: the main thread may sit in Ray's C++, Ray replaces SIGTERM's
    handler by one that dumps a stack, and Ray Train and Tune replace SIGINT's. Runs are whole at any moment, so that
    nothing has to be finished first.
    """
    on_stop(STOPPING)
    # Threads that are started from now on inherit this.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    over = Event()
    watch = Thread(target=_watch, args=(over,), daemon=True)
    watch.start()
    try:
        yield
    finally:
        if _stopping.is_set():
            # Any error now comes from the processes being killed.
            Event().wait()
        over.set()
        assert watch.ident is not None
        signal.pthread_kill(watch.ident, signal.SIGTERM)
        watch.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
        os.write(terminal, f"{restore}{_line()}\n".encode())
        while _kill_most(raylets) and monotonic() < end:
            sleep(0.05)
        kill(family())
    finally:
        os._exit(128 + signum)


def _leave_terminal() -> int:
    """Return a new file descriptor of standard error, and send all other output of failing code to nowhere."""
    assert sys.__stdout__ is not None
    assert sys.__stderr__ is not None
    with suppress(OSError):
        sys.__stdout__.flush()
    terminal, nowhere = os.dup(sys.__stderr__.fileno()), os.open(os.devnull, os.O_WRONLY)
    for written in (1, 2, sys.__stderr__.fileno()):
        os.dup2(nowhere, written)
    return terminal


def _line() -> str:
    lines: list[str] = []
    maker = Thread(target=lambda: lines.append(_message() if callable(_message) else _message), daemon=True)
    maker.start()
    maker.join(MESSAGE_S)
    return lines[0] if lines else STOPPING


def _kill_most(raylets: list[Any]) -> bool:
    """Kill the processes that this one started, except raylets and W&B's, which ends itself when its files are written.

    Returns:
        Whether any process except raylets was left.
    """
    rest = [process for process in family() if process not in raylets]
    kill(process for process in rest if not _is_named(process, "wandb-core"))
    return bool(rest)


def _is_named(process: Any, name: str) -> bool:
    with suppress(Exception):
        return bool(process.name() == name)
    return False


def family() -> list[Any]:
    """List the living processes that this one started, directly or not."""
    import psutil

    alive = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def kill(processes: Iterable[Any]) -> None:
    """Kill processes, and ignore those that have ended."""
    for process in processes:
        with suppress(Exception):
            process.kill()
