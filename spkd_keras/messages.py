"""Errors of other libraries in a message of ours, which is one line."""


def one_line(error: BaseException) -> str:
    """Returns an error's text without its line breaks."""
    return " ".join(str(error).split())


def named(error: BaseException) -> str:
    """Returns the kind of an error and its text, as Python would print it, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"
