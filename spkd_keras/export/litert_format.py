"""LiteRT (the former TF Lite): writing a file, its metadata, and the interpreter, wherever that comes from."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from spkd_keras.export.serving import Serving

IDENTIFIER = b"TFL3"  # of the file format


def litert_bytes(serving: Serving, calibration: np.ndarray | None) -> bytes:
    """Converts the serving function, and puts the metadata into the file.

    With int8, weights have one scale for each output channel, and activations the range that they take on the
    calibration images; input and outputs stay uint8 or float32 and float32.

    Args:
        serving: what is written.
        calibration: real training images, uint8, for int8.
    """
    converter = tf.lite.TFLiteConverter.from_concrete_functions([serving.function], serving.module)
    quantize = serving.metadata.quantize
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8" and calibration is not None:
        pixels = calibration.astype(serving.metadata.input_dtype)
        converter.representative_dataset = lambda: ({"image": image[None]} for image in pixels)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    with _without_deprecation():  # the converter calibrates with tf.lite's interpreter
        content = bytes(converter.convert())
    return _with_texts(content, serving.metadata.as_texts(), shorten=quantize == "int8")


def _schema() -> Any:
    """Returns the code that Google generates from the file format's schema; LiteRT's package and TensorFlow have it."""
    try:
        from ai_edge_litert import schema_py_generated
    except ModuleNotFoundError:
        from tensorflow.lite.python import schema_py_generated
    return schema_py_generated


def _with_texts(content: bytes, texts: dict[str, str], shorten: bool) -> bytes:
    """Adds named texts to the metadata of a LiteRT file, in the way in which the converter adds its own.

    Inputs and outputs get the names that they have in the signature, for interpreters that know no signatures. With
    `shorten` the other tensors are numbered: beside 8-bit weights, their long names are a good part of a file.
    """
    import flatbuffers

    schema = _schema()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    model.metadata = list(model.metadata or [])
    for name, text in texts.items():
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(text.encode(), np.uint8)
        entry = schema.MetadataT()
        entry.name, entry.buffer = name.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata.append(entry)
    for index, tensor in enumerate(model.subgraphs[0].tensors if shorten else ()):
        tensor.name = f"t{index}".encode()
    (signature,) = model.signatureDefs
    for named in [*signature.inputs, *signature.outputs]:
        model.subgraphs[0].tensors[named.tensorIndex].name = named.name
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), IDENTIFIER)
    return bytes(builder.Output())


def read_texts(content: bytes) -> dict[str, str]:
    """Returns the metadata of a LiteRT file that are texts, by their names."""
    model = _schema().Model.GetRootAs(content, 0)
    texts = {}
    for index in range(model.MetadataLength()):
        entry = model.Metadata(index)
        data = model.Buffers(entry.Buffer()).DataAsNumpy()
        try:
            texts[entry.Name().decode()] = bytes(data).decode() if isinstance(data, np.ndarray) else ""
        except UnicodeDecodeError:  # what other programs put there may be of any kind
            continue
    return texts


def interpreter(content: bytes, threads: int) -> Any:
    """Returns an interpreter of a LiteRT file: of `ai-edge-litert`, or where that is missing TensorFlow's old one."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ModuleNotFoundError:
        Interpreter = tf.lite.Interpreter  # noqa: N806
    with _without_deprecation():
        return Interpreter(model_content=content, num_threads=threads)


@contextmanager
def _without_deprecation() -> Iterator[None]:
    """Holds back that `tf.lite.Interpreter` (TensorFlow 2.20 and 2.21) is to be replaced by ai-edge-litert."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated", UserWarning)
        yield
