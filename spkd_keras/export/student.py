"""Exporting a student: converted, compared, and only then given its name."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from spkd_keras import models
from spkd_keras.distiller import taps
from spkd_keras.export import saved_model_format
from spkd_keras.export.check import NOISE, Check, Reference, judge
from spkd_keras.export.classifier import image_shape_and_classes
from spkd_keras.export.folding import inference_network
from spkd_keras.export.formats import (
    FORMATS,
    INPUT_DTYPES,
    QUANTIZABLE,
    QUANTIZATIONS,
    RESIZES,
    SUFFIXES,
    UNSPECIFIED,
)
from spkd_keras.export.litert_format import litert_bytes
from spkd_keras.export.metadata import Metadata
from spkd_keras.export.onnx_format import onnx_bytes
from spkd_keras.export.packages import needing_export_packages
from spkd_keras.export.placing import Place, digest, is_partial
from spkd_keras.export.runners import open_runner
from spkd_keras.export.serving import NotConvertible, Serving
from spkd_keras.messages import one_line
from spkd_keras.storage import storing

NOISE_IMAGES = 64
LARGEST_DROP = 0.02


class Export(NamedTuple):
    """A file, or a SavedModel's folder, that was written and compared.

    Attributes:
        path: of it.
        format: one of `FORMATS`.
        metadata: that are in it.
        check: how it compares with the student.
        sizes: `bytes`; of a SavedModel also `variables_bytes` and `graph_bytes`.
        sha256: of a file, or of a SavedModel's files in the order of their names.
    """

    path: Path
    format: str
    metadata: Metadata
    check: Check
    sizes: dict[str, int]
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return {
            "file": self.path.name,
            "format": self.format,
            "quantize": self.metadata.quantize,
            "input_dtype": self.metadata.input_dtype,
            "licence": self.metadata.licence,
            **self.sizes,
            "sha256": self.sha256,
            "check": {**self.check._asdict(), "accuracy_drop": self.check.accuracy_drop},
        }


def export_student(
    model: keras.Model,
    path: str | Path,
    format: str,  # noqa: A002  (the word of the command line, and of Keras' own `model.export`)
    *,
    images: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    quantize: str | None = None,
    calibration: np.ndarray | None = None,
    input_dtype: str = "uint8",
    resize: str = "stretch",
    licence: str = UNSPECIFIED,
    largest_drop: float = LARGEST_DROP,
) -> Export:
    """Exports a network for inference, and compares it with the network before the file gets its name.

    The export takes raw pixels `image` in batches of any size, and gives `logits` and `probabilities`. It is float32
    with BatchNormalization folded, and holds nothing but the network. Its metadata are in it, and beside it in
    `<path>.json`. A SavedModel has signatures for uint8 and float32 pixels and one for bytes of pictures.

    Args:
        model: functional or Sequential, of one fixed image size, that gives logits; in any precision. A `Distiller`'s
            `student`, for example.
        path: of the file, ending in `.tflite` or `.onnx`, or of a SavedModel's folder. What is there, or what a link
            there points at, is replaced.
        format: "saved_model", "litert" or "onnx".
        images: to compare on, real test images, shape (n, height, width, channels), uint8. None is noise, which is
            enough in float32 alone.
        labels: of the images, shape (n,); None reports no accuracy.
        class_names: one for each class; None is their numbers.
        quantize: None for float32; "float16" for weights of half the size; "int8" for integer arithmetic. The last two
            are for LiteRT and ONNX.
        calibration: real training images, uint8, from which int8 takes the ranges of activations.
        input_dtype: of the input `image`, "uint8" or "float32"; of a SavedModel, of its default signature.
        resize: how a picture of another size is brought to the input's, "stretch" or "crop", as in `Metadata`.
        licence: of the weights, for the metadata.
        largest_drop: accuracy that float16, int8, or float32 of a network in half precision may lose, default 0.02; of
            the first two without labels, agreement.

    Returns:
        Where it is, how large, and how it compares.

    Raises:
        ValueError: if an argument is not valid, the network cannot be exported, or another process writes there.
        NotConvertible: if the format has not what the network computes with.
        StorageError: if the file cannot be written; what was at the path before is untouched.
        ExportMismatch: if the export's logits or probabilities differ by more than 1e-4 (of logits above 25, 4e-6 of
            the largest, which is float32's own rounding), or it loses too much accuracy; then nothing is left of it,
            and what was at the path before is untouched.
    """
    exporter = Exporter(model, class_names, input_dtype=input_dtype, resize=resize, licence=licence)
    reference = exporter.reference(images, labels)
    return exporter.write(Path(path), format, reference, quantize, calibration, largest_drop)


class Exporter:
    """Exports one network to several files.

    `model`, `class_names`, `input_dtype`, `resize` and `licence` are as for `export_student`, and so is the ValueError.
    """

    def __init__(
        self,
        model: keras.Model,
        class_names: Sequence[str] | None = None,
        *,
        input_dtype: str = "uint8",
        resize: str = "stretch",
        licence: str = UNSPECIFIED,
    ) -> None:
        _check_choice("input_dtype", input_dtype, INPUT_DTYPES)
        _check_choice("resize", resize, RESIZES)
        self.model = model
        self.network = inference_network(model)
        shape, classes = _fixed_shape_and_classes(model)
        if resize == "crop" and (shape[0] != shape[1] or shape[2] != 3):
            raise ValueError(f"`resize` crop is for square colour images. Received: a network for {shape}.")
        names = tuple(map(str, range(classes) if class_names is None else class_names))
        if len(names) != classes:
            raise ValueError(f"`class_names` must have {classes} names, one for each logit. Received: {len(names)}.")
        weights = models.fingerprint(model)
        self.metadata = Metadata(shape, names, input_dtype, resize, None, weights, model.name, licence)

    def reference(self, images: np.ndarray | None, labels: np.ndarray | None, of: str = "given images") -> Reference:
        """Returns what the network says of images to compare on.

        Raises:
            ValueError: if they are not images for this network, or not as many labels.
        """
        if images is None:
            noise = np.random.default_rng(0)
            shape = (NOISE_IMAGES, *self.metadata.image_shape)
            return Reference(self.model, noise.integers(0, 256, shape, dtype=np.uint8), None, NOISE)
        self._check_pixels("images", images)
        if labels is not None and np.shape(labels) != (len(images),):
            raise ValueError(f"`labels` must have the shape ({len(images)},). Received: {np.shape(labels)}.")
        return Reference(self.model, images, labels, of)

    def write(
        self,
        path: Path,
        format: str,  # noqa: A002
        reference: Reference,
        quantize: str | None = None,
        calibration: np.ndarray | None = None,
        largest_drop: float = LARGEST_DROP,
        accepted: Callable[[], None] | None = None,
    ) -> Export:
        """Writes one export; arguments, result and errors as of `export_student`.

        `accepted` is called when the export has passed, before it replaces what is at the path.
        """
        self._check_arguments(path, format, quantize, calibration)
        if quantize is not None and reference.is_noise:
            raise ValueError(
                f"`images` must be real test images for {quantize}: noise does not show what it loses. Received: None."
            )
        metadata = dataclasses.replace(self.metadata, quantize=quantize)
        serving = Serving(self.network, metadata)
        place = Place(path)
        with place.held():
            _write(serving, format, place, calibration)
            check = reference.compare(open_runner(format, place.partial))
            judge(check, quantize, largest_drop, str(path))
            if accepted is not None:
                accepted()
            export = Export(path, format, metadata, check, _sizes(place.partial), digest(place.partial))
            place.give_name({**metadata.as_dict(), **export.as_dict()})
        return export

    def _check_arguments(
        self,
        path: Path,
        format: str,  # noqa: A002
        quantize: str | None,
        calibration: np.ndarray | None,
    ) -> None:
        _check_choice("format", format, FORMATS)
        if quantize is not None:
            _check_choice("quantize", quantize, QUANTIZATIONS)
            if format not in QUANTIZABLE:
                raise ValueError(f"`quantize` is for {' and '.join(QUANTIZABLE)}. Received: format={format!r}.")
        if is_partial(path):
            raise ValueError(f"`path` has a name that is kept for what is not whole. Choose another. Received: {path}.")
        if path.suffix != SUFFIXES[format] and format != "saved_model":
            raise ValueError(f"`path` of {format} must end in {SUFFIXES[format]}. Received: {path}.")
        occupied = path.exists() and path.is_dir() != (format == "saved_model")
        if occupied or (path.is_dir() and any(path.iterdir()) and not (path / "saved_model.pb").exists()):
            raise ValueError(f"`path` exists and is no {format} that could be replaced: {path}. Choose another.")
        if quantize == "int8" and calibration is None:
            raise ValueError("`calibration` must be some real training images for int8. Received: None.")
        if calibration is not None:
            self._check_pixels("calibration", calibration)

    def _check_pixels(self, name: str, pixels: np.ndarray) -> None:
        shape, dtype = np.shape(pixels), getattr(pixels, "dtype", None)
        if len(shape) != 4 or shape[1:] != self.metadata.image_shape or not shape[0] or dtype != np.uint8:
            raise ValueError(
                f"`{name}` must be uint8 images of shape (n, {', '.join(map(str, self.metadata.image_shape))}), "
                f"at least one. Received: {dtype} of shape {shape}."
            )


def _check_choice(name: str, value: str, valid: Sequence[str]) -> None:
    if value not in valid:
        raise ValueError(f"`{name}` must be one of {', '.join(valid)}. Received: {value!r}.")


def _fixed_shape_and_classes(model: keras.Model) -> tuple[tuple[int, int, int], int]:
    (height, width, channels), classes = image_shape_and_classes(model, "An export")
    if height is None or width is None or channels is None:
        raise ValueError(
            "An export takes images of one fixed size, (height, width, channels). "
            f"Received: '{model.name}' for {(height, width, channels)}."
        )
    if taps.probability_layer(model, taps.LOGITS) is not None:
        raise ValueError(f"'{model.name}' ends in a softmax or sigmoid. Leave it out: an export has it beside logits.")
    return (height, width, channels), classes


def _write(serving: Serving, format: str, place: Place, calibration: np.ndarray | None) -> None:  # noqa: A002
    if format == "saved_model":
        with storing(place.path):
            saved_model_format.write_saved_model(serving, place.partial)
        return
    with needing_export_packages(), _told_in_one_line(format):
        content = (litert_bytes if format == "litert" else onnx_bytes)(serving, calibration)
    with storing(place.path):
        place.partial.write_bytes(content)


@contextmanager
def _told_in_one_line(format: str) -> Iterator[None]:  # noqa: A002
    """Turns what a converter says of a network that it cannot convert, often pages, into one line."""
    try:
        yield
    except (ImportError, MemoryError, NotConvertible):
        raise
    except Exception as error:  # each converter has errors of its own
        reason = one_line(error)[:300]
        raise NotConvertible(
            f"{format} cannot hold this network: {reason or type(error).__name__}. Use another format, or other layers."
        ) from error


def _sizes(path: Path) -> dict[str, int]:
    return saved_model_format.sizes(path) if path.is_dir() else {"bytes": path.stat().st_size}
