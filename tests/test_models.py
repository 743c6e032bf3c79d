"""Networks: published counts, taps, preprocessing, precision, files, and what they refuse."""

import types
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from numpy.testing import assert_allclose

from spkd_keras.models import BUILDERS, fused, multiply_adds, wide_resnet

CIFAR_MEAN, CIFAR_STD = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def mixed_policy(request):
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size=shape, dtype="uint8")


def taps(model, *names):
    return keras.Model(model.input, {name: model.get_layer(name).output for name in names})


def preprocessed(images, **arguments):
    """What the layer `preprocessing` of a network with these arguments makes of the images."""
    model = wide_resnet(10, 0.25, image_shape=images.shape[1:], **arguments)
    return taps(model, "preprocessing")(images)["preprocessing"]


# Counted from the paper's supplementary tables: convolutions without bias, the dense layer, gamma and
# beta of each BatchNormalization, and among all parameters its two moving averages.
@pytest.mark.parametrize(
    ("depth", "width", "trainable", "parameters", "cost"),
    [
        (16, 1, 175_066, 175_994, 26_657_408),
        (16, 2, 691_674, 693_498, 101_106_944),
        (16, 8, 10_961_370, 10_968_570, 1_548_145_664),
        (40, 1, 563_930, 566_650, 83_280_512),
        (40, 2, 2_243_546, 2_248_954, 327_599_360),
    ],
)
def test_published_counts(depth, width, trainable, parameters, cost):
    model = wide_resnet(depth, width)
    assert model.name == f"wide_resnet_{depth}_{width}"
    assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == trainable
    assert model.count_params() == parameters
    assert multiply_adds(model) == cost


def test_dropout_is_between_the_convolutions_of_every_block():
    model = wide_resnet(10, 0.25, dropout=0.3)
    found = [layer for layer in model.layers if isinstance(layer, layers.Dropout)]
    assert [layer.name for layer in found] == [f"stage{stage}_block0_dropout" for stage in (1, 2, 3)]
    assert {layer.rate for layer in found} == {0.3}
    assert found[0].input is model.get_layer("stage1_block0_relu2").output
    assert model.get_layer("stage1_block0_conv2").input is found[0].output


def test_counts_of_a_small_network_by_hand():
    # 10-1 on 4x4x3, 2 classes: stem 3*3*3*16 = 432 over 4x4; block 1 2 * 9*16*16 = 4608 over 4x4; block 2
    # 16*32 + 9*16*32 + 9*32*32 = 14336 over 2x2; block 3 32*64 + 9*32*64 + 9*64*64 = 57344 once; logits 64*2.
    model = wide_resnet(10, 1, num_classes=2, image_shape=(4, 4, 3))
    assert multiply_adds(model) == (432 + 4608) * 16 + 14336 * 4 + 57344 + 128
    # Four weights for each channel of a BatchNormalization, and a bias of 2.
    channels = 16 + 16 + 16 + 32 + 32 + 64 + 64
    assert model.count_params() == 432 + 4608 + 14336 + 57344 + 128 + 2 + 4 * channels


# "same" padding rounds up: 45 -> 23 -> 12.
@pytest.mark.parametrize(
    ("image_shape", "sides"),
    [
        ((32, 32, 3), [(32, 32), (16, 16), (8, 8)]),
        ((8, 8, 1), [(8, 8), (4, 4), (2, 2)]),
        ((28, 28, 1), [(28, 28), (14, 14), (7, 7)]),
        ((30, 45, 3), [(30, 45), (15, 23), (8, 12)]),
        ((4, 4, 4), [(4, 4), (2, 2), (1, 1)]),
    ],
)
@pytest.mark.parametrize(("depth", "width", "channels"), [(16, 2, (32, 64, 128)), (10, 0.5, (8, 16, 32))])
def test_taps_and_their_shapes(image_shape, sides, depth, width, channels):
    model = wide_resnet(depth, width, image_shape=image_shape, num_classes=7)
    expected = {f"stage{i}": (*sides[i - 1], channels[i - 1]) for i in (1, 2, 3)}
    expected |= {"preprocessing": image_shape, "head": expected["stage3"], "logits": (7,)}
    outputs = taps(model, *expected)(pixels(2, *image_shape))
    assert {name: tuple(output.shape) for name, output in outputs.items()} == {
        name: (2, *shape) for name, shape in expected.items()
    }
    assert model.input.name == "image"
    assert model.output_shape == (None, 7)
    assert model.get_layer("stage2_block0_conv1").strides == (2, 2)


def test_a_narrow_network_keeps_a_channel_everywhere():
    # int(16 * 0.05) = 0, int(32 * 0.05) = 1, int(64 * 0.05) = 3.
    model = wide_resnet(10, 0.05)
    assert [model.get_layer(f"stage{i}").output.shape[-1] for i in (1, 2, 3)] == [1, 1, 3]


def test_stages_are_before_the_activation_and_the_head_after_it():
    model = wide_resnet(16, 1)
    outputs = taps(model, "stage1", "stage2", "stage3", "head", "logits")(pixels(4, 32, 32, 3))
    for name in ("stage1", "stage2", "stage3"):
        assert np.min(outputs[name]) < 0 < np.max(outputs[name])
    assert np.min(outputs["head"]) == 0 < np.max(outputs["head"])
    # Logits are the head's mean over the image through the dense layer, and nothing after it.
    logits = model.get_layer("logits")
    expected = np.mean(outputs["head"], axis=(1, 2)) @ logits.kernel.numpy() + logits.bias.numpy()
    assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-6)
    assert np.min(outputs["logits"]) < 0
    assert logits.activation is keras.activations.linear


def test_pixels_may_be_integers_or_floats():
    model, images = wide_resnet(10, 1, image_shape=(8, 8, 3)), pixels(4, 8, 8, 3)
    expected = model(images.astype("float32")).numpy()
    np.testing.assert_array_equal(model(images), expected)
    np.testing.assert_array_equal(model(tf.constant(images)), expected)
    np.testing.assert_array_equal(model.predict(images, verbose=0), model.predict(images * 1.0, verbose=0))


def test_preprocessing_by_hand():
    images = np.array([0, 127.5, 255]).reshape(1, 1, 3, 1) * np.ones((1, 4, 1, 3))
    images = np.concatenate([images, images[:, :, :1]], axis=2)  # 4 pixels wide, the least there is
    assert_allclose(preprocessed(images)[0, 0, :3, 0], [-1, 0, 1], atol=1e-6)
    # One number for all channels: (x - 100) / 50.
    assert_allclose(preprocessed(images, mean=100, std=50.0)[0, 0, :3, 2], [-2, 0.55, 3.1], atol=1e-6)
    # One for each channel: the mean becomes 0 and two deviations above it 2.
    images = np.tile(np.array([CIFAR_MEAN, np.add(CIFAR_MEAN, np.multiply(2, CIFAR_STD))]), (1, 4, 2, 1))
    result = preprocessed(images, mean=CIFAR_MEAN, std=CIFAR_STD)
    assert_allclose(result[0, 0, :2], [[0, 0, 0], [2, 2, 2]], atol=1e-5)
    # One mean for all, a deviation for each.
    result = preprocessed(images, mean=0, std=list(CIFAR_MEAN))
    assert_allclose(result[0, 0, 0], [1, 1, 1], atol=1e-5)


def test_mixed_policies_keep_pixels_and_logits_in_float32(mixed_policy):
    # float16 would round 200.3 to 200.25 and bfloat16 to 200, the network's input to no better than 0.001.
    images = np.full((1, 8, 8, 3), 200.3)
    pixel = preprocessed(images)
    assert pixel.dtype == "float32"
    assert_allclose(pixel, images / 127.5 - 1, atol=1e-6)
    model = wide_resnet(10, 1, image_shape=(8, 8, 3))
    outputs = taps(model, "stage3", "logits")(pixels(2, 8, 8, 3))
    assert outputs["stage3"].dtype == mixed_policy.removeprefix("mixed_")
    assert outputs["logits"].dtype == "float32"
    assert model.compute_dtype == mixed_policy.removeprefix("mixed_")
    assert all(weight.dtype == "float32" for weight in model.weights)
    floats = model(pixels(2, 8, 8, 3).astype("float32"))
    np.testing.assert_array_equal(outputs["logits"], floats)


@pytest.mark.parametrize("statistics", [{}, {"mean": CIFAR_MEAN, "std": CIFAR_STD}])
def test_saved_files_hold_standard_layers_only_and_load_equal(tmp_path, statistics):
    model, images = wide_resnet(10, 0.5, image_shape=(8, 8, 3), **statistics), pixels(16, 8, 8, 3)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images, np.arange(16) % 10, verbose=0)  # so that no weight is at its initial value
    model.save(tmp_path / "network.keras")
    with zipfile.ZipFile(tmp_path / "network.keras") as archive:
        assert "spkd_keras" not in archive.read("config.json").decode()
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)  # not by the fused kernel
    np.testing.assert_array_equal(fused(loaded)(images), model(images))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
    for saved, weight in zip(model.weights, loaded.weights, strict=True):
        np.testing.assert_array_equal(saved.numpy(), weight.numpy(), err_msg=saved.path)


def test_layers_are_as_published():
    model = wide_resnet(10, 4)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # PyTorch's momentum 0.1 and epsilon 1e-5.
            assert (layer.momentum, layer.epsilon, layer.axis) == (0.9, 1e-5, -1)
        if isinstance(layer, layers.Conv2D):
            assert not layer.use_bias
            assert layer.padding == "same"
    # He normal: sqrt(2 / fan-out), not cut off. From 128 to 256 channels fan-in would give 1.41 times it.
    kernel = model.get_layer("stage3_block0_conv1").kernel.numpy()
    assert kernel.shape == (3, 3, 128, 256)
    deviation = (2 / (9 * 256)) ** 0.5
    assert_allclose(kernel.std(), deviation, rtol=0.1)
    assert np.abs(kernel).max() > 3.5 * deviation
    assert_allclose(model.get_layer("logits").bias.numpy(), np.zeros(10), atol=0)


def test_shortcuts_are_where_the_shape_changes():
    def shortcuts(model):
        return {layer.name for layer in model.layers if layer.name.endswith("shortcut")}

    strided = {"stage2_block0_shortcut", "stage3_block0_shortcut"}
    assert shortcuts(wide_resnet(16, 1)) == strided
    assert shortcuts(wide_resnet(16, 2)) == strided | {"stage1_block0_shortcut"}
    # It takes the block's first BN-ReLU, of every second place, and is added to the second convolution.
    model = wide_resnet(10, 1, image_shape=(8, 8, 3))
    names = ("relu1", "shortcut", "conv2")
    outputs = taps(model, "stage2", *(f"stage2_block0_{name}" for name in names))(pixels(2, 8, 8, 3))
    outputs = {name.removeprefix("stage2_block0_"): output.numpy() for name, output in outputs.items()}
    kernel = model.get_layer("stage2_block0_shortcut").kernel.numpy()
    assert_allclose(outputs["shortcut"], outputs["relu1"][:, ::2, ::2] @ kernel[0, 0], rtol=1e-4, atol=1e-5)
    assert_allclose(outputs["stage2"], outputs["shortcut"] + outputs["conv2"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("synchronized", "replicas", "expected"),
    [(None, 1, False), (None, 2, True), (True, 1, True), (False, 2, False)],
)
def test_synchronized_batch_normalization(synchronized, replicas, expected, monkeypatch):
    strategy = types.SimpleNamespace(num_replicas_in_sync=replicas)
    with monkeypatch.context() as patch:
        patch.setattr(tf.distribute, "get_strategy", lambda: strategy)
        model = wide_resnet(10, 0.25, synchronized=synchronized, image_shape=(4, 4, 1))
    found = {layer.synchronized for layer in model.layers if isinstance(layer, layers.BatchNormalization)}
    assert found == {expected}


def test_multiply_adds_by_hand():
    backbone = keras.Sequential(
        [
            keras.Input((9, 9, 4)),
            layers.Conv2D(6, (3, 2), strides=2, padding="same", groups=2),  # 5x5 of 3*2*2*6 = 72: 1800
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, depth_multiplier=2),  # 3x3 of 3*3*6*2 = 108: 972
        ]
    )
    image = keras.Input((9, 9, 4))
    x = backbone(image)
    x = layers.Dense(5)(x)  # at each of the 3x3 places 12*5 = 60: 540
    x = layers.Dense(7)(layers.Flatten()(x))  # 45*7 = 315
    assert multiply_adds(backbone) == 1800 + 972
    assert multiply_adds(keras.Model(image, x)) == 1800 + 972 + 540 + 315
    assert multiply_adds(keras.Sequential([keras.Input((9, 9, 4)), backbone, layers.Flatten()])) == 2772


def test_multiply_adds_of_a_separable_convolution():
    # 6x6 places of 3*3*3 = 27 and 3*4 = 12.
    model = keras.Sequential([keras.Input((8, 8, 3)), layers.SeparableConv2D(4, 3)])
    assert multiply_adds(model) == 36 * (27 + 12)


def test_multiply_adds_of_a_layer_that_is_used_twice():
    image, shared = keras.Input((8, 8, 3)), layers.Conv2D(3, 3, padding="same")
    assert multiply_adds(keras.Model(image, shared(shared(image)))) == 2 * 64 * 81


def test_multiply_adds_need_a_fixed_size():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(4, 3, name="first")])
    with pytest.raises(ValueError, match=r"need a fixed image size.* layer first with shape \(None"):
        multiply_adds(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 15}, r"`depth` must be 6n \+ 4, for example 16 or 40. Received: depth=15."),
        ({"depth": 4}, r"`depth` must be 6n \+ 4.*Received: depth=4."),
        ({"width": 0}, r"`width` must be finite and above 0.*Received: width=0."),
        ({"width": float("nan")}, r"`width` must be finite and above 0.*Received: width=nan."),
        ({"num_classes": 1}, r"`num_classes` must be an integer of at least 2. Received: num_classes=1."),
        (
            {"image_shape": (3, 3, 3)},
            r"must be at least 4x4.*Received: image_shape=\(3, 3, 3\). Resize the images.",
        ),
        ({"image_shape": (32, 3, 3)}, r"must be at least 4x4.*Received: image_shape=\(32, 3, 3\)"),
        (
            {"image_shape": (32, 32)},
            r"must be \(height, width, channels\).*Received: image_shape=\(32, 32\).",
        ),
        (
            {"image_shape": (None, None, 3)},
            r"must be \(height, width, channels\).*Received: image_shape=\(None",
        ),
        (
            {"image_shape": (32, 32, 0)},
            r"must be \(height, width, channels\).*Received: image_shape=\(32, 32, 0\)",
        ),
        ({"mean": 120}, r"`mean` and `std` must be given together. Received: mean=120, std=None."),
        ({"std": 60}, r"`mean` and `std` must be given together. Received: mean=None, std=60."),
        (
            {"mean": (1, 2), "std": 1},
            r"`mean` must be one number or one for each of the 3 channels. .*mean=\(1, 2\)",
        ),
        ({"mean": 1, "std": (1, 2, 3, 4)}, r"`std` must be one number or one for each of the 3 channels."),
        ({"mean": [1, [2, 3]], "std": 1}, r"`mean` must be one number .*Received: mean=\[1, \[2, 3\]\]"),
        ({"mean": True, "std": 1}, r"`mean` must be one number .*Received: mean=True"),
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\)"),
        ({"mean": 120, "std": 0}, r"`std` must be above 0, in 0..255 units. Received: std=0."),
        ({"mean": 120, "std": (60, -1, 60)}, r"`std` must be above 0.*Received: std=\(60, -1, 60\)."),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        wide_resnet(**arguments)


def test_builders_are_found_by_name():
    assert BUILDERS["wide_resnet"] is wide_resnet
    for name, builder in BUILDERS.items():
        assert builder.__name__ == name
        assert "Reference" in builder.__doc__


def test_whether_statistics_are_synchronized_is_yes_no_or_by_the_strategy():
    with pytest.raises(ValueError, match=r"`synchronized` must be True, False or None\. Received: synchronized='no'"):
        wide_resnet(10, 0.25, synchronized="no")


def test_channels_come_last(monkeypatch):
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    with pytest.raises(ValueError, match="built for channels_last"):
        wide_resnet(10, 0.25)
