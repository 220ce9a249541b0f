"""Exceptions whose message is one line for a human, and the one that lies behind what Ray raises."""


class UserError(Exception):
    """Unusable arguments, configuration or data.

    Its message is one line for a human: it names the file, key or row, what was found and what is allowed.
    A job that meets it ends with exit code 2 and that line.
    """


class RunError(Exception):
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
