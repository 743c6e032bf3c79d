"""ONNX: converting the serving function, by tf2onnx, and storing weights in less, by onnxruntime."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from spkd_keras.export.metadata import OUTPUTS
from spkd_keras.export.serving import NotConvertible, Serving

OPSET = 18  # what tf2onnx 1.17 knows
XLA = "_XlaMustCompile"
SMALLEST_HALVED = 64  # elements; a smaller constant gains less than the node that casts it takes


def onnx_bytes(serving: Serving, calibration: np.ndarray | None) -> bytes:
    """Converts the serving function, and puts the metadata into the file.

    With float16, weights are stored in half precision and computed with in float32, which every runtime can do. With
    int8, weights have one scale for each output channel and activations the range that they take on the calibration
    images (pairs of QuantizeLinear and DequantizeLinear, which runtimes turn into integer kernels).

    Args:
        serving: what is written.
        calibration: real training images, uint8, for int8.

    Raises:
        NotConvertible: if the network has an operation that tf2onnx cannot convert.
    """
    import onnx
    import tf2onnx

    metadata = serving.metadata
    with _quiet("tf2onnx", logging.CRITICAL):  # it logs what it cannot convert, and goes on
        model, _ = tf2onnx.convert.from_function(
            _with_constants(serving),
            input_signature=[serving.pixel_spec],
            opset=OPSET,
            custom_op_handlers={"Erfc": (_one_less_erf, [])},
        )
    _check_operations(model.graph)
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    if metadata.quantize == "float16":
        _halve(model)
    if metadata.quantize == "int8" and calibration is not None:
        model = _quantized(model, calibration.astype(metadata.input_dtype))
        _shorten(model.graph)
    model.graph.name = metadata.name
    onnx.helper.set_model_props(model, metadata.as_texts())
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _with_constants(serving: Serving) -> Any:
    """Returns the function with its weights, and what else it captured, as constants.

    tf2onnx (1.17) freezes captured tensors that are no variables, such as the mean of a Normalization, and then still
    looks for them among the inputs.
    """
    frozen = convert_variables_to_constants_v2(serving.function, lower_control_flow=False, aggressive_inlining=True)
    graph = frozen.graph.as_graph_def()
    # Keras (3.15) has XLA compile grouped convolutions, and what XLA must compile is not laid open to be converted.
    for node in [*graph.node, *graph.library.function]:
        node.attr.pop(XLA, None)
    for function in graph.library.function:
        for node in function.node_def:
            node.attr.pop(XLA, None)
    names = [[tensor.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs)]

    def classify(image: Any) -> dict[str, Any]:
        outputs = tf.graph_util.import_graph_def(graph, {names[0][0]: image}, names[1], name="")
        return dict(zip(OUTPUTS, outputs, strict=True))

    return tf.function(classify)


def _one_less_erf(graph: Any, node: Any, name: str, _: Any) -> None:
    """Converts Erfc, of which the exact GELU is made, to 1 - Erf; tf2onnx (1.17) does not know it."""
    dtype = graph.get_dtype(node.input[0])
    one = graph.make_const(f"{name}_one", np.ones((), "float32"))
    erf = graph.make_node("Erf", list(node.input), name=f"{name}_erf", dtypes=[dtype])
    node.type = "Sub"
    graph.replace_inputs(node, [one.output[0], erf.output[0]])


def _check_operations(graph: Any) -> None:
    """Checks that all of a graph was converted.

    Raises:
        NotConvertible: if an operation is not one of ONNX.
    """
    import onnx

    left = sorted({node.op_type for node in graph.node if not onnx.defs.has(node.op_type, OPSET, node.domain)})
    if left:
        raise NotConvertible(
            f"ONNX cannot hold this network: tf2onnx has no conversion of {', '.join(left)}. Use another layer or "
            "activation, or another format."
        )


def _halve(model: Any) -> None:
    """Stores the large constants in float16, each with a node that casts it back."""
    from onnx import TensorProto, helper, numpy_helper

    for constant in list(model.graph.initializer):
        if constant.data_type == TensorProto.FLOAT and np.prod(constant.dims) >= SMALLEST_HALVED:
            half = numpy_helper.from_array(
                numpy_helper.to_array(constant).astype(np.float16), f"{constant.name}_float16"
            )
            model.graph.initializer.remove(constant)
            model.graph.initializer.append(half)
            model.graph.node.insert(0, helper.make_node("Cast", [half.name], [constant.name], to=TensorProto.FLOAT))


def _quantized(model: Any, pixels: np.ndarray) -> Any:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        """Gives the calibration images one by one."""

        def __init__(self) -> None:
            self.images: Iterator[np.ndarray] = iter(pixels)

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Returns the next one, or None."""
            image = next(self.images, None)
            return None if image is None else {"image": image[None]}

    with tempfile.TemporaryDirectory() as folder, _quiet(None):
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        # On x86 processors without VNNI, onnxruntime (1.32) adds pairs of 8-bit products in 16 bits, which overflow
        # without an error. Weights of 7 bits cannot, so that every machine computes the same.
        quantize_static(source, target, Reader(), per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        return onnx.load(target)


def _shorten(graph: Any) -> None:
    """Numbers the inner tensors: beside 8-bit weights, the long names of all that quantises would be a third of a file.

    What onnxruntime noted of their shapes goes too: runtimes work it out again.
    """
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # an inner graph may use the names
    kept = {value.name for value in [*graph.input, *graph.output]}
    short = {name: name for name in [*kept, ""]}

    def shortened(name: str) -> str:
        return short.setdefault(name, f"t{len(short)}")

    for constant in graph.initializer:
        constant.name = shortened(constant.name)
    for index, node in enumerate(graph.node):
        node.name = f"n{index}"
        for names in (node.input, node.output):
            names[:] = [shortened(name) for name in names]
    del graph.value_info[:]


@contextmanager
def _quiet(logger: str | None, least: int = logging.ERROR) -> Iterator[None]:
    """Holds back advice to the developer of a conversion, such as preparations that were done here in another way."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(least)
    try:
        yield
    finally:
        log.setLevel(level)
