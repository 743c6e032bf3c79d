"""The student leaves: SavedModel, LiteRT and ONNX, each compared with the student before it gets its name.

The names are loaded when they are first used, so that what the command line needs to know of formats does not import
TensorFlow.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spkd_keras.export.check import Check, ExportMismatch
    from spkd_keras.export.folding import inference_network
    from spkd_keras.export.formats import FORMATS
    from spkd_keras.export.metadata import Metadata
    from spkd_keras.export.runners import Runner, load_runner
    from spkd_keras.export.serving import NotConvertible
    from spkd_keras.export.student import Export, Exporter, export_student

_PLACES = {
    "FORMATS": "formats",
    "Check": "check",
    "Export": "student",
    "ExportMismatch": "check",
    "Exporter": "student",
    "Metadata": "metadata",
    "NotConvertible": "serving",
    "Runner": "runners",
    "export_student": "student",
    "inference_network": "folding",
    "load_runner": "runners",
}
__all__ = [
    "FORMATS",
    "Check",
    "Export",
    "ExportMismatch",
    "Exporter",
    "Metadata",
    "NotConvertible",
    "Runner",
    "export_student",
    "inference_network",
    "load_runner",
]


def __getattr__(name: str) -> object:
    if name in _PLACES:
        return getattr(importlib.import_module(f"spkd_keras.export.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'spkd_keras.export' has no attribute {name!r}. Available: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return list(__all__)
