"""What an export can be: the words that commands and functions take. Imports no TensorFlow."""

FORMATS = ("saved_model", "litert", "onnx")
QUANTIZATIONS = ("float16", "int8")
QUANTIZABLE = ("litert", "onnx")
SUFFIXES = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
INPUT_DTYPES = ("uint8", "float32")
RESIZES = ("crop", "stretch")
UNSPECIFIED = "unspecified"  # licence


def file_name(format: str, precision: str | None = None) -> str:  # noqa: A002  (the word of the command line)
    """Returns the name that an export has in a folder of exports.

    Args:
        format: one of `FORMATS`.
        precision: one of `QUANTIZATIONS`; None for float32.
    """
    if format == "saved_model":
        return format
    return ("student" if precision is None else f"student-{precision}") + SUFFIXES[format]
