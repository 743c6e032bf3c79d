"""Errors as a part of a message, which is one line."""


def one_line(error: BaseException) -> str:
    """Returns an error's text without its line breaks and indents."""
    return " ".join(str(error).split())


def named(error: BaseException) -> str:
    """Returns the class name of an error and its text, in one line."""
    return f"{type(error).__name__}: {one_line(error)}"
