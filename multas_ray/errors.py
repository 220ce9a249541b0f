"""Exceptions whose message is one line for a human."""


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
