"""Networks that converters trip over, and those that a format cannot hold."""

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
import tf2onnx
from exported import FILES, each_format, logits_of
from keras import layers

from spkd_keras.export import NotConvertible, export_student, load_runner
from spkd_keras.export.onnx_format import OPSET, XLA

SHAPE = (4, 4, 2)
GIVEN = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)


@pytest.fixture(scope="module")
def network():
    """Constants that are no variables, those of `mean` and `variance`, and the exact GELU, which is made of Erfc."""
    keras.utils.set_random_seed(0)
    adapted = layers.Normalization()
    adapted.adapt(GIVEN.astype("float32"))
    given = layers.Normalization(mean=[0.1, -0.2], variance=[4.0, 0.5])
    convolution = layers.Conv2D(3, 3, activation=keras.activations.gelu)
    return keras.Sequential([keras.Input(SHAPE), adapted, given, convolution, layers.Flatten(), layers.Dense(2)])


@each_format
def test_constants_and_the_exact_gelu_are_exported(network, tmp_path, kind):
    path = export_student(network, tmp_path / FILES[kind], kind).path
    np.testing.assert_allclose(load_runner(path).predict(GIVEN)["logits"], logits_of(network, GIVEN), atol=1e-5)


@pytest.mark.parametrize("groups", [2, 4])
@each_format
def test_grouped_convolutions_are_exported(tmp_path, kind, groups):
    keras.utils.set_random_seed(0)
    given = keras.Input((6, 6, 4))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, groups=groups)(given)))
    network = keras.Model(given, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 4), dtype=np.uint8)
    path = export_student(network, tmp_path / FILES[kind], kind).path
    np.testing.assert_allclose(load_runner(path).predict(pixels)["logits"], logits_of(network, pixels), atol=1e-3)


def test_keras_still_has_xla_compile_grouped_convolutions():
    """Where this fails, what `_with_constants` in onnx_format.py does about XLA can go (Keras 3.15)."""
    convolution = layers.Conv2D(8, 3, groups=2)
    convolution.build((None, 6, 6, 4))
    function = tf.function(convolution).get_concrete_function(tf.TensorSpec((None, 6, 6, 4)))
    assert XLA in str(function.graph.as_graph_def())


def test_onnx_takes_the_image_alone_and_holds_onnx_alone(network, tmp_path):
    model = onnx.load(export_student(network, tmp_path / "a.onnx", "onnx").path)
    assert [value.name for value in model.graph.input] == ["image"]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("onnx", r"^ONNX cannot hold this network: tf2onnx has no conversion of Erfinv\. Use another layer or activ"),
        ("litert", r"^litert cannot hold this network: .*Erfinv.* Use another format, or other layers\.$"),
    ],
)
def test_an_operation_that_a_format_has_not_is_named(tmp_path, kind, said):
    given = keras.Input(SHAPE)
    x = keras.ops.erfinv(keras.ops.sigmoid(layers.Flatten()(given)))
    with pytest.raises(NotConvertible, match=said) as caught:
        export_student(keras.Model(given, layers.Dense(2)(x)), tmp_path / FILES[kind], kind)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_tf2onnx_still_needs_help():
    """Where this fails, `_with_constants` or `_one_less_erf` in onnx_format.py can go (tf2onnx 1.17)."""
    captured = tf.constant([1.0, 2.0])
    function = tf.function(lambda image: {"logits": tf.math.erfc(image - captured)})
    model, _ = tf2onnx.convert.from_function(
        function, input_signature=[tf.TensorSpec((None, 2), name="image")], opset=OPSET
    )
    assert "Erfc" in [node.op_type for node in model.graph.node]
    made = {name for node in model.graph.node for name in node.output} | {each.name for each in model.graph.initializer}
    read = {name for node in model.graph.node for name in node.input}
    assert read - made - {"image"}, "the captured constant is nowhere"
