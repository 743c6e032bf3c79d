"""MobileNet, MobileNetV2, ShuffleNetV2 and ResNet from the inside: their layers, and the published forward passes."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from architectures import SMALL, each_family, pixels, randomize, taps
from keras import layers
from numpy.testing import assert_allclose, assert_array_equal

from spkd_keras.models import mobilenet, mobilenet_v2, resnet, shufflenet_v2


def test_depthwise_kernels_begin_he_normal():
    kernel = mobilenet(image_shape=(32, 32, 3)).get_layer("stage4_block0_depthwise").kernel
    assert_allclose(np.std(kernel), (2 / 9) ** 0.5, rtol=0.05)  # nine outputs for each input


@each_family
def test_the_ends_of_every_network(family):
    model = SMALL[family]()
    assert [layer.name for layer in model.layers[:2]] == ["image", "preprocessing"]
    assert [layer.name for layer in model.layers[-2:]] == ["pooling", "logits"]
    assert isinstance(model.get_layer("pooling"), layers.GlobalAveragePooling2D)
    logits = model.get_layer("logits")
    assert isinstance(logits, layers.Dense)
    assert logits.activation is keras.activations.linear
    assert logits.input is model.get_layer("pooling").output
    assert model.output is logits.output


@each_family
def test_layers_are_as_published(family):
    # Keras' MobileNets have an epsilon of 1e-3, PyTorch's recipes 1e-5; a momentum of 0.9 is PyTorch's 0.1.
    epsilon = 1e-3 if family.startswith("mobilenet") else 1e-5
    model = SMALL[family]()
    found = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum, layer.axis, layer.synchronized) for layer in found} == {
        (epsilon, 0.9, -1, False)
    }
    convolutions = [layer for layer in model.layers if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D)]
    assert not any(layer.use_bias for layer in convolutions)
    # Every one has its BatchNormalization, and a WideResNet's shortcuts none.
    assert family == "wide_resnet" or len(convolutions) == len(found)


def test_names_of_the_layers():
    found = {family: [layer.name for layer in build().layers] for family, build in SMALL.items()}

    def names(family, prefix):
        return {name.removeprefix(prefix) for name in found[family] if name.startswith(prefix)}

    separable = {"_depthwise", "_depthwise_bn", "_depthwise_relu", "_conv", "_bn"}
    assert names("mobilenet", "stage4_block0") == {*separable, ""}
    assert names("mobilenet", "stage4_block5") == separable  # and its output is `stage4`
    assert names("mobilenet", "stage4_block6") == set()
    depthwise = {"_depthwise", "_depthwise_bn", "_depthwise_relu"}
    expand = {"_expand", "_expand_bn", "_expand_relu"}
    assert names("mobilenet_v2", "stage1_block0_expand") == set()
    assert names("mobilenet_v2", "stage4_block1") == {*expand, *depthwise, "_project", "_project_bn", ""}
    assert names("mobilenet_v2", "stage4_block6") == {*expand, *depthwise, "_project", "_project_bn"}
    assert names("mobilenet_v2", "stage4_block7") == set()
    branch = {"_conv1", "_bn1", "_relu1", "_depthwise", "_depthwise_bn", "_conv2", "_bn2", "_relu2", "_concat"}
    shortcut = {"_depthwise", "_depthwise_bn", "_conv", "_bn", "_relu"}
    assert names("shufflenet_v2", "stage3_block0") >= branch | {f"_shortcut{name}" for name in shortcut} | {""}
    assert names("shufflenet_v2", "stage3_block7") >= branch
    assert not any("shortcut" in name or "depthwise_relu" in name for name in names("shufflenet_v2", "stage3_block7"))
    assert names("shufflenet_v2", "stage3_block8") == set()
    for family in ("mobilenet", "mobilenet_v2", "resnet"):
        assert names(family, "stem") == {"", "_bn", "_relu"}
    for family in ("mobilenet_v2", "shufflenet_v2"):
        assert names(family, "head") == {"", "_conv", "_bn"}


@each_family
def test_each_stage_halves_the_resolution_in_the_middle_of_its_first_block(family):
    model = SMALL[family](image_shape=(32, 32, 3))
    strided = {layer.name for layer in model.layers if getattr(layer, "strides", 1) == (2, 2)}
    if family.startswith("mobilenet"):
        assert strided == {"stem", *(f"stage{stage}_block0_depthwise" for stage in (2, 3, 4, 5))}
    elif family == "shufflenet_v2":
        branches = ("depthwise", "shortcut_depthwise")
        assert strided == {f"stage{stage}_block0_{branch}" for stage in (2, 3, 4) for branch in branches}
    else:
        branches = ("conv1", "shortcut")
        assert strided == {f"stage{stage}_block0_{branch}" for stage in (2, 3) for branch in branches}


@each_family
def test_taps_are_before_or_after_the_activation(family):
    model = randomize(SMALL[family]())
    for layer in model.layers:  # far beyond 6, where a ReLU6 shows
        if isinstance(layer, layers.BatchNormalization):
            layer.gamma.assign(3 * layer.gamma)
    names = [layer.name for layer in model.layers if layer.name in ("head", *(f"stage{i}" for i in range(1, 6)))]
    outputs = {name: np.asarray(output) for name, output in taps(model, *names)(pixels(8, model)).items()}
    linear = family in ("wide_resnet", "mobilenet_v2")
    for name, output in outputs.items():
        if name.startswith("stage") and linear:
            assert output.min() < 0 < output.max(), name
        else:
            assert output.min() == 0, name
            assert (output.max() == 6) if family.startswith("mobilenet") else (6 < output.max() < np.inf), name


def test_residuals_of_mobilenet_v2_are_where_the_shape_stays():
    model = randomize(mobilenet_v2(0.5, image_shape=(32, 32, 3)))
    sums = {layer.name for layer in model.layers if isinstance(layer, layers.Add)}
    # Of (t, c, n, s) in the paper's table 2 all but the first of the n blocks: 1 + 2 + 3 + 2 + 2.
    expected = {"stage2", "stage3_block1", "stage3", "stage4_block1", "stage4_block2", "stage4_block3"}
    assert sums == expected | {"stage4_block5", "stage4", "stage5_block1", "stage5_block2"}
    outputs = taps(model, "stage4_block5", "stage4_block6_project_bn", "stage4")(pixels(2, model))
    assert_allclose(outputs["stage4"], outputs["stage4_block5"] + outputs["stage4_block6_project_bn"], rtol=1e-5)


# ShuffleNet's shuffle: (g, n) -> transpose -> flatten, with g = 2. 8 channels by hand; of 48 every second from 24 on.
@pytest.mark.parametrize(
    ("width", "order"),
    [
        (0.085, [0, 4, 1, 5, 2, 6, 3, 7]),
        (0.5, [c for pair in zip(range(24), range(24, 48), strict=True) for c in pair]),
    ],
)
@pytest.mark.parametrize(("unit", "output"), [("stage2_block0", "stage2_block0"), ("stage2_block3", "stage2")])
def test_the_channel_shuffle_is_the_published_permutation(width, order, unit, output):
    model = shufflenet_v2(width, image_shape=(10, 12, 3))
    shuffle = keras.Model(model.get_layer(f"{unit}_concat").output, model.get_layer(output).output)
    # Channel c at place p is 100 p + c: no value may change its place.
    places = 100.0 * np.arange(2 * 5 * 6).reshape(2, 5, 6, 1)
    assert_array_equal(shuffle(places + np.arange(len(order))), places + order)


def test_a_basic_unit_of_shufflenet_passes_the_first_half_on_untouched():
    model = randomize(SMALL["shufflenet_v2"]())
    unit = "stage2_block1"
    names = ("stage2_block0", f"{unit}_conv1", f"{unit}_relu2", f"{unit}_concat", unit)
    outputs = taps(model, *names)(pixels(4, model))
    before, first, branch, concatenated, after = (np.asarray(outputs[name]) for name in names)
    half = before.shape[-1] // 2
    assert_array_equal(concatenated[..., :half], before[..., :half])
    assert_array_equal(concatenated[..., half:], branch)
    assert_array_equal(after[..., ::2], before[..., :half])
    assert_array_equal(after[..., 1::2], branch)
    kernel = model.get_layer(f"{unit}_conv1").kernel.numpy()[0, 0]
    assert_allclose(first, before[..., half:] @ kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_the_first_unit_of_a_stage_halves_the_resolution_on_both_branches(stage):
    model = shufflenet_v2(0.5, image_shape=(32, 32, 3))
    side, channels = 32 // 2 ** (stage - 1), 48 * 2 ** (stage - 2)

    def shape(name):
        return model.get_layer(f"stage{stage}_block0_{name}").output.shape[1:]

    assert shape("conv1") == (2 * side, 2 * side, channels // 2)
    assert shape("relu2") == shape("shortcut_relu") == (side, side, channels // 2)
    assert shape("concat") == (side, side, channels)


class Published:
    """The papers' forward passes in TensorFlow's own operations, on the weights of one of our networks."""

    def __init__(self, model):
        self.weights = {layer.name: [weight.numpy() for weight in layer.weights] for layer in model.layers}

    def normalized(self, x, name):
        gamma, beta, mean, variance = self.weights[name]
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def convolved(self, x, name, normalization, stride=1):
        return self.normalized(tf.nn.conv2d(x, self.weights[name][0], stride, "SAME"), normalization)

    def filtered(self, x, name, stride):
        x = tf.nn.depthwise_conv2d(x, self.weights[name][0], [1, stride, stride, 1], "SAME")
        return self.normalized(x, f"{name}_bn")

    def logits(self, x):
        kernel, bias = self.weights["logits"]
        return tf.reduce_mean(x, (1, 2)) @ kernel + bias

    def resnet(self, x, depth):
        """Basic blocks of He et al., with 1x1 convolutions where the shape changes (their option B)."""
        x = tf.nn.relu(self.convolved(x, "stem", "stem_bn"))
        for stage in (1, 2, 3):
            for index in range((depth - 2) // 6):
                block, stride = f"stage{stage}_block{index}", 2 if stage > 1 and index == 0 else 1
                y = tf.nn.relu(self.convolved(x, f"{block}_conv1", f"{block}_bn1", stride))
                y = self.convolved(y, f"{block}_conv2", f"{block}_bn2")
                if stride > 1:
                    x = self.convolved(x, f"{block}_shortcut", f"{block}_shortcut_bn", stride)
                x = tf.nn.relu(x + y)
        return self.logits(x)

    def shufflenet_v2(self, x):
        """Figure 3 (c) and (d) of Ma et al., the ways that pass by and the shortcuts first."""
        x = tf.nn.relu(self.convolved(x, "stem", "stem_bn"))
        for stage, units in ((2, 4), (3, 8), (4, 4)):
            for index in range(units):
                unit, stride = f"stage{stage}_block{index}", 2 if index == 0 else 1
                if index == 0:
                    passed = self.filtered(x, f"{unit}_shortcut_depthwise", 2)
                    passed = tf.nn.relu(self.convolved(passed, f"{unit}_shortcut_conv", f"{unit}_shortcut_bn"))
                else:
                    passed, x = tf.split(x, 2, axis=-1)
                x = tf.nn.relu(self.convolved(x, f"{unit}_conv1", f"{unit}_bn1"))
                x = self.filtered(x, f"{unit}_depthwise", stride)
                x = tf.nn.relu(self.convolved(x, f"{unit}_conv2", f"{unit}_bn2"))
                x = tf.reshape(tf.stack([passed, x], axis=-1), (*passed.shape[:3], 2 * passed.shape[3]))
        return self.logits(tf.nn.relu(self.convolved(x, "head_conv", "head_bn")))


@pytest.mark.parametrize(("depth", "widths"), [(8, (6, 6, 8, 12)), (14, (4, 4, 4, 4))])
def test_resnet_computes_what_the_paper_says(depth, widths):
    model = randomize(resnet(depth, widths, image_shape=(9, 12, 3)))
    images = pixels(6, model)
    expected = Published(model).resnet(images / np.float32(127.5) - 1, depth)
    assert np.ptp(expected, axis=0).min() > 0.01  # the images do matter
    assert_allclose(model(images), expected, rtol=1e-4, atol=1e-4)


def test_shufflenet_v2_computes_what_the_paper_says():
    model = randomize(SMALL["shufflenet_v2"](image_shape=(20, 12, 3)))
    images = pixels(6, model)
    expected = Published(model).shufflenet_v2(images / np.float32(127.5) - 1)
    assert np.ptp(expected, axis=0).min() > 0.01
    assert_allclose(model(images), expected, rtol=1e-4, atol=1e-4)
