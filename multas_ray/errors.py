"""Exceptions whose message is one line for a human, and the one that lies behind what Ray raises."""

LONGEST_LINE, LONGEST_VALUE = 1000, 120
"""Characters of a message, and of a value that it quotes: the middle of a longer one is left out."""


def one_line(text: object, longest: int = LONGEST_LINE) -> str:
    """Text as one line that any terminal, log and JSON file shows: what is not printable is escaped (line ends, control
    characters, halves of surrogate pairs), and the middle of a longer one left out."""
    whole = str(text)
    if len(whole) > longest:
        half = longest // 2 - 2
        whole = f"{whole[:half]} … {whole[-half:]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in whole)


def quoted(value: object) -> str:
    """A value that somebody gave, as a message shows it: Python's own notation in at most some 120 characters."""
    try:
        return one_line(repr(value), LONGEST_VALUE)
    except (RecursionError, ValueError):  # lists in lists in lists; a number of thousands of digits
        return f"a {type(value).__name__}"


class _OneLine(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class UserError(_OneLine):
    """Unusable arguments, configuration or data.

    Its message is one line for a human: it names the file, key or row, what was found and what is allowed.
    A job that meets it ends with exit code 2 and that line.
    """


class RunError(_OneLine):
    """A job that cannot go on, and that no restart would help.

    Its message is one line for a human: what happened and where. A job that meets it ends with exit code 1 and that
    line.
    """


WRAPPED = ("cause", "controller_failure", "health_check_failure", "__cause__")
"""Attributes in which Ray keeps the exception that it wrapped."""


def root_cause(error: BaseException) -> BaseException:
    """The exception that a worker raised, behind what Ray wrapped around it."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        failures = getattr(error, "worker_failures", None)
        inner = (
            next(iter(failures.values()), None)
            if failures
            else next((getattr(error, name, None) for name in WRAPPED if getattr(error, name, None)), None)
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    return error


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else "no message"
