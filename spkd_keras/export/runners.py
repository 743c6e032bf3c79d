"""Running a network from its file, whatever the format: pixels in, logits and probabilities out."""

import abc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from spkd_keras.distiller import taps
from spkd_keras.experiment import ExperimentError, Network
from spkd_keras.export import litert_format, saved_model_format
from spkd_keras.export.classifier import image_shape_and_classes
from spkd_keras.export.formats import INPUT_DTYPES
from spkd_keras.export.metadata import OUTPUTS, Metadata
from spkd_keras.export.packages import needing_export_packages
from spkd_keras.export.placing import is_partial, put_back
from spkd_keras.export.serving import read_picture
from spkd_keras.messages import one_line
from spkd_keras.training.build import construct
from spkd_keras.training.environment import intra_op_threads

SMALLEST_PROBABILITY = 1e-30  # of which a logarithm is taken


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether a shape is the one that is wanted, where None is any number."""
    return len(shape) == len(wanted) and all(want in (None, side) for side, want in zip(shape, wanted, strict=True))


def by_side(shape: Sequence[int | None]) -> str:
    """Returns a shape as text, 32x32x3."""
    return "x".join("any" if side is None else str(side) for side in shape)


def _class_names_beside(file: Path) -> tuple[str, ...] | None:
    """Returns the class names that a run wrote beside its student.

    Raises:
        ExperimentError: if its summary cannot be read.
    """
    summary = file.with_name("summary.json")
    if not summary.is_file():
        return None
    try:
        names = json.loads(summary.read_text(encoding="utf-8"))["class_names"]
        return tuple(map(str, names)) if isinstance(names, list) else None
    except (KeyError, TypeError):  # of a run before there were names in it, or not a run's
        return None
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"{summary}, which has the class names of {file.name}, cannot be read ({error}). Move {file.name} "
            "elsewhere to use it without names, or delete the summary, and `spkd run` does that run again."
        ) from error


class Runner(abc.ABC):
    """A network that is loaded from a file.

    Attributes:
        path: of the file or folder.
        metadata: of the file; None for a `.keras` file.
        classes: how many.
        class_names: one for each class, as far as they are known.
        image_shape: (height, width, channels) that it takes; None for a side that may vary.
        input_dtype: of the pixels that it takes.
        takes_both: whether it takes uint8 and float32 pixels as they are.
        threads: that it computes with.
    """

    metadata: Metadata | None = None
    class_names: tuple[str, ...] | None = None
    takes_both = False
    classes: int
    image_shape: tuple[int | None, ...]
    input_dtype: str

    def __init__(self, path: Path) -> None:
        self.path = path
        self.threads = len(os.sched_getaffinity(0))

    def _take(self, metadata: Metadata | None) -> None:
        """Takes what an export says of itself.

        Raises:
            ValueError: if it says nothing, and so is another program's.
        """
        if metadata is None:
            raise ValueError("it has no metadata of an export by `spkd export`")
        self.metadata, self.class_names, self.image_shape = metadata, metadata.class_names, metadata.image_shape
        self.classes, self.input_dtype = len(metadata.class_names), metadata.input_dtype

    @abc.abstractmethod
    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs checked pixels of `input_dtype`."""

    def other_ways(self, pixels: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Runs images in each way that the file has beside the one of `run`.

        Args:
            pixels: shape (n, *image_shape), uint8.

        Yields:
            The pixels that the network is to see in this way, which are other ones where it crops, and its outputs.
        """
        yield from ()

    def predict(self, pixels: np.ndarray, batch_size: int = 32) -> dict[str, np.ndarray]:
        """Classifies images.

        Args:
            pixels: shape (n, *image_shape), values 0..255, uint8 or float32, at least one image.
            batch_size: how many at a time.

        Returns:
            `logits` and `probabilities`, shape (n, classes), float32.

        Raises:
            ExperimentError: if the pixels are not such.
        """
        pixels = self.checked(pixels)
        parts = [self.run(pixels[start : start + batch_size]) for start in range(0, len(pixels), batch_size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS}

    def checked(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the pixels in the dtype that the network takes, or says what is wrong with them."""
        pixels = np.asarray(pixels)
        if pixels.ndim != 4 or not fits(pixels.shape[1:], self.image_shape):
            raise ExperimentError(
                f"{self.path} takes images of {by_side(self.image_shape)}, as an array of shape (n, height, width, "
                f"channels). Received: an array of shape {pixels.shape}."
            )
        if not len(pixels):
            raise ExperimentError(f"{self.path} needs at least one image. Received: an empty batch.")
        if pixels.dtype not in (np.uint8, np.float32):
            raise ExperimentError(f"{self.path} takes uint8 or float32 pixels from 0 to 255. Received: {pixels.dtype}.")
        if self.takes_both:
            return pixels
        if self.input_dtype == "uint8" and pixels.dtype == np.float32:
            whole = np.clip(np.round(pixels), 0, 255)
            if not np.array_equal(whole, pixels):
                raise ExperimentError(
                    f"{self.path} takes uint8 pixels, whole numbers from 0 to 255. Received: others, from "
                    f"{pixels.min():g} to {pixels.max():g}. Export it for float32 pixels instead."
                )
        return pixels.astype(self.input_dtype)


class KerasRunner(Runner):
    """A `.keras` file, or the folder of a run with its `student.keras`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        file = path / "student.keras" if path.is_dir() else path
        self.network = construct(Network(path=str(file)), str(path))
        self.image_shape, self.classes = image_shape_and_classes(self.network, f"{path}: a classifier of images")
        self.gives_probabilities = taps.probability_layer(self.network, taps.LOGITS) is not None
        self.input_dtype = "float32"
        self.threads = intra_op_threads()
        names = _class_names_beside(file)
        self.class_names = names if names and len(names) == self.classes else None

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the network as `model.predict` does, without what that prints."""
        output = np.asarray(self.network.predict_on_batch(pixels), "float32")
        if self.gives_probabilities:
            return {"logits": np.log(np.maximum(output, SMALLEST_PROBABILITY)), "probabilities": output}
        return {"logits": output, "probabilities": np.asarray(keras.ops.softmax(output))}


class SavedModelRunner(Runner):
    """A SavedModel, by its signatures for uint8 and for float32 pixels."""

    takes_both = True

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._take(saved_model_format.read_metadata(path))
        self.loaded = tf.saved_model.load(str(path))
        self.signatures = {dtype: self.loaded.signatures[f"serving_{dtype}"] for dtype in INPUT_DTYPES}
        self.threads = intra_op_threads()

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Calls the signature for the pixels' dtype."""
        return _as_numpy(self.signatures[pixels.dtype.name](image=tf.constant(pixels)))

    def other_ways(self, pixels: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """Calls the default signature, the one for float32, and the one for files, with pixels as PNG."""
        all_of_them = self.loaded.signatures
        as_float32 = tf.constant(pixels.astype("float32"))
        yield pixels, _as_numpy(all_of_them["serving_default"](image=tf.constant(pixels.astype(self.input_dtype))))
        yield pixels, _as_numpy(all_of_them["serving_float32"](image=as_float32))
        if self.metadata is not None and "serving_bytes" in all_of_them:
            files = [tf.io.encode_png(image) for image in pixels]
            shape, resize = self.metadata.image_shape, self.metadata.resize
            seen = pixels if resize == "stretch" else np.stack([read_picture(file, shape, resize) for file in files])
            yield seen, _as_numpy(all_of_them["serving_bytes"](image_bytes=tf.stack(files)))


class LiteRTRunner(Runner):
    """A LiteRT file, by its signature."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        content = path.read_bytes()
        with needing_export_packages():
            self._take(Metadata.from_texts(litert_format.read_texts(content)))
            self.signature = litert_format.interpreter(content, self.threads).get_signature_runner()

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Calls the signature."""
        return dict(self.signature(image=pixels))


class OnnxRunner(Runner):
    """An ONNX file, in onnxruntime on the CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with needing_export_packages():
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._take(Metadata.from_texts(self.session.get_modelmeta().custom_metadata_map))

    def run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Runs the session."""
        return dict(zip(OUTPUTS, self.session.run(list(OUTPUTS), {"image": pixels}), strict=True))


def _as_numpy(outputs: dict[str, tf.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in outputs.items()}


RUNNERS: dict[str, Callable[[Path], Runner]] = {
    "keras": KerasRunner,
    "saved_model": SavedModelRunner,
    "litert": LiteRTRunner,
    "onnx": OnnxRunner,
}
SUFFIXES = {".keras": "keras", ".tflite": "litert", ".onnx": "onnx"}


def load_runner(path: str | Path) -> Runner:
    """Loads a `.keras`, `.tflite` or `.onnx` file, a SavedModel's folder, or a run's folder.

    Raises:
        ExperimentError: if it is none of them, not whole, or damaged.
    """
    path = Path(path)
    put_back(path)
    if not path.exists():
        raise ExperimentError(f"The model does not exist: {path}.")
    if is_partial(path):
        raise ExperimentError(f"{path} is not whole: it is being written, or a kill left it. Export or train it again.")
    kind = SUFFIXES.get(path.suffix)
    if path.is_dir():
        is_saved_model, is_run = (path / "saved_model.pb").is_file(), (path / "student.keras").is_file()
        kind = "saved_model" if is_saved_model else "keras" if is_run else None
    if kind is None:
        raise ExperimentError(
            f"A model is a {', '.join(SUFFIXES)} file, a SavedModel's folder or a run's folder. Received: {path}."
        )
    return open_runner(kind, path)


def open_runner(kind: str, path: Path) -> Runner:
    """Loads a file, or a SavedModel's folder, of a known format, whatever its name.

    Args:
        kind: one of `FORMATS`, or "keras".
        path: of it.

    Raises:
        ExperimentError: if it is damaged.
    """
    try:
        return RUNNERS[kind](path)
    except ExperimentError:
        raise
    except Exception as error:  # whatever the loaders make of a damaged file
        reason = one_line(error)[:200]
        raise ExperimentError(f"{path} cannot be loaded: {reason or type(error).__name__}") from error
