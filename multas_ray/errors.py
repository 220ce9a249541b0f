"""The one exception that means "what you gave cannot be used"."""


class UserError(Exception):
    """Unusable arguments, configuration or data.

    Its message is one line for a human: it names the file, key or row, what was found and what is allowed.
    A job that meets it ends with exit code 2 and that line.
    """
