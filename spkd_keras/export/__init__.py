"""The student leaves: SavedModel, LiteRT and ONNX, each compared with the student before it gets its name."""

from spkd_keras.export.check import Check, ExportMismatch
from spkd_keras.export.folding import inference_network
from spkd_keras.export.metadata import FORMATS, Metadata
from spkd_keras.export.runners import Runner, load_runner
from spkd_keras.export.student import Export, Exporter, export_student

__all__ = [
    "FORMATS",
    "Check",
    "Export",
    "ExportMismatch",
    "Exporter",
    "Metadata",
    "Runner",
    "export_student",
    "inference_network",
    "load_runner",
]
