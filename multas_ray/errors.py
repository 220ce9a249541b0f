"""Exceptions whose message is one line for a person, and the root cause of exceptions that Ray wraps."""

LONGEST_LINE, LONGEST_VALUE = 1000, 120
"""Largest number of characters of a message, and of a value quoted in it: the middle of a longer one is left out."""


def one_line(text: object, longest: int = LONGEST_LINE) -> str:
    """Make text one line that any terminal, log and JSON file can show.

    Characters that are not printable (line ends, control characters, halves of surrogate pairs) are escaped; of a text
    of more than `longest` characters the middle is left out.
    """
    whole = str(text)
    if len(whole) > longest:
        half = longest // 2 - 2
        whole = f"{whole[:half]} … {whole[-half:]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in whole)


def quoted(value: object) -> str:
    """Quote a value for a message: Python's notation in about 120 characters at most."""
    try:
        return one_line(repr(value), LONGEST_VALUE)
    except (RecursionError, ValueError):  # lists in lists in lists; a number of thousands of digits
        return f"a {type(value).__name__}"


class _OneLine(Exception):
    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(message))


class UserError(_OneLine):
    """Unusable arguments, configuration or data.

    The message is one line for a person: it names the file, key or row, the value and what is allowed. The job ends
    with exit code 2 and that line.
    """


class RunError(_OneLine):
    """Failure of a job that no restart can repair.

    The message is one line for a person: what happened and where. The job ends with exit code 1 and that line.
    """


WRAPPED = ("cause", "controller_failure", "health_check_failure", "__cause__")
"""Attributes in which Ray keeps the exception that it wrapped."""


def root_cause(error: BaseException) -> BaseException:
    """Unwrap the exception that a worker raised from the exceptions that Ray wrapped around it."""
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
    """Return the first line of an exception's message that is not empty."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0].strip() if lines else "no message"
