"""The packages that exports need and nothing else does."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

from spkd_keras.experiment import ExperimentError
from spkd_keras.messages import one_line


@contextmanager
def needing_export_packages() -> Iterator[None]:
    """Says how to install what only an export needs, where it is missing or does not work."""
    try:
        yield
    except ImportError as error:
        name = error.name or "a package"
        if isinstance(error, ModuleNotFoundError) and "." not in name:
            raise ExperimentError(
                f"{name} is not installed. For exports: pip install '.[export]' in the folder of spkd_keras."
            ) from error
        # It is there, but a library that it loads, or a part of another version of what it imports, is not.
        raise ExperimentError(
            f"{name.partition('.')[0]} is installed and cannot be imported ({one_line(error)}). Install "
            f"it again: pip install --force-reinstall {name.partition('.')[0]}."
        ) from error


def check_export_packages(format: str) -> None:  # noqa: A002  (the word of the command line)
    """Checks that the packages that a format needs are there: of LiteRT, TensorFlow has what is missing.

    Raises:
        ExperimentError: if not.
    """
    with needing_export_packages():
        for name in ("onnx", "tf2onnx", "onnxruntime") if format == "onnx" else ():
            importlib.import_module(name)
