"""The MobileNets beside those of `keras.applications`, and the public ImageNet weights in them."""

import functools
import inspect
import os
import pathlib

import keras
import numpy as np
import pytest
from architectures import SMALL, pixels, randomize, taps
from numpy.testing import assert_allclose, assert_array_equal

from spkd_keras.models import fused, keras_application, mobilenet, mobilenet_v2

FILE = pathlib.Path(os.environ.get("KERAS_HOME", "nowhere")) / "models" / "mobilenet_1_0_224_tf.h5"
needs_imagenet = pytest.mark.skipif(not FILE.exists(), reason=f"KERAS_HOME has no models/{FILE.name}")
PAIRS = {"MobileNet": mobilenet, "MobileNetV2": mobilenet_v2}


def weighted(model):
    return [layer for layer in model.layers if layer.weights]


def assert_holds(model, application, head=True):
    """Layer by layer, in the order of the forward pass; MobileNet's classifier is a 1x1 convolution."""
    for ours, theirs in zip(weighted(model)[: None if head else -1], weighted(application), strict=head):
        for weight, value in zip(ours.weights, theirs.get_weights(), strict=True):
            expected = value.reshape(weight.shape) if ours.name == "logits" else value
            assert_array_equal(weight, expected, err_msg=weight.path)


def copied(application, model):
    """Gives a network of ours the weights of Keras' one."""
    for ours, theirs in zip(weighted(model), weighted(application), strict=True):
        ours.set_weights([value.reshape(w.shape) for w, value in zip(ours.weights, theirs.get_weights(), strict=True)])
    assert_holds(model, application)
    return model


def assert_same_outputs(name, width, size, count):
    application = getattr(keras.applications, name)(
        (size, size, 3), alpha=width, weights=None, classifier_activation=None
    )
    arguments = {"head": "fixed"} if name == "MobileNetV2" else {}
    model = PAIRS[name](width, num_classes=1000, image_shape=(size, size, 3), **arguments)
    copied(randomize(application), model)
    images = pixels(count, model)
    scaled = taps(model, "preprocessing")(images)["preprocessing"]
    # Of one bit in the last place, 1.2e-7, random weights make 1e-4: both get the same.
    assert_allclose(scaled, images / 127.5 - 1, rtol=0, atol=2e-7)
    # By the same kernels as ours, and by Keras' own, whose last bits differ too.
    expected, logits = fused(application)(scaled), model(images)
    assert np.ptp(expected, axis=0).mean() > 0.1  # the images do matter
    assert_allclose(logits, expected, rtol=0, atol=1e-4)
    assert_allclose(logits, application(scaled), rtol=0, atol=5e-4)
    assert_allclose(keras.ops.softmax(logits), keras.ops.softmax(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "width"),
    [
        *(("MobileNet", width) for width in (0.25, 0.5, 0.75, 1.0)),
        *(("MobileNetV2", width) for width in (0.28, 0.35, 0.5, 0.75, 0.84, 1.0, 1.3, 1.4)),
    ],
)
def test_keras_weights_give_keras_outputs(name, width):
    assert_same_outputs(name, width, 96, 4)


@pytest.mark.parametrize(("name", "width"), [("MobileNet", 0.5), ("MobileNetV2", 1.4)])
def test_keras_weights_give_keras_outputs_at_the_default_size(name, width):
    assert_same_outputs(name, width, 224, 2)


@pytest.fixture(params=list(PAIRS))
def published(request, monkeypatch):
    """Keras' function with random weights in the place of the published ones, and how it was called."""
    real = getattr(keras.applications, request.param)
    calls = []

    def downloaded(*args, **kwargs):
        arguments = inspect.signature(real).bind(*args, **kwargs)
        arguments.apply_defaults()
        assert arguments.arguments["weights"] == "imagenet"
        model = randomize(real(**{**arguments.arguments, "weights": None}))
        calls.append((arguments.arguments["alpha"], model))
        return model

    monkeypatch.setattr(keras.applications, request.param, downloaded)
    return request.param, calls


@pytest.mark.parametrize("size", [96, 50])
def test_imagenet_weights_are_those_of_keras(published, size):
    name, calls = published
    arguments = {"head": "fixed"} if name == "MobileNetV2" else {}
    for width in (0.5, 0.75):
        model = PAIRS[name](
            width, num_classes=1000, image_shape=(size, size, 3), weights="imagenet", mean=100, std=50, **arguments
        )
        alpha, application = calls.pop()
        assert not calls
        assert alpha == width
        trained_at = 96 if (name, size) == ("MobileNetV2", 96) else 224  # MobileNet has none for 96
        assert application.input_shape[1:3] == (trained_at, trained_at)
        assert_holds(model, application)
        # The network's own statistics stay what they were asked to be.
        assert_allclose(taps(model, "preprocessing")(np.full((1, size, size, 3), 150.0))["preprocessing"], 1)


@pytest.mark.parametrize("published", ["MobileNetV2"], indirect=True)
@pytest.mark.parametrize(("width", "trained_at"), [(1.3, 224), (1.4, 224), (1.0, 96)])
def test_above_width_1_there_are_weights_of_one_size_alone(published, width, trained_at):
    _, calls = published
    model = mobilenet_v2(width, image_shape=(96, 96, 3), weights="imagenet")
    ((_, application),) = calls
    assert application.input_shape[1:3] == (trained_at, trained_at)
    assert_holds(model, application, head=False)


@pytest.mark.parametrize(("alpha", "trained_at"), [(1.4, 224), (1.0, 96)])
def test_a_network_of_keras_takes_the_weights_that_there_are(alpha, trained_at, monkeypatch):
    real, downloaded = keras.applications.MobileNetV2, []

    @functools.wraps(real)
    def function(weights, **arguments):
        model = real(weights=None, **arguments)
        if weights == "imagenet":
            downloaded.append(randomize(model))
        return model

    monkeypatch.setattr(keras.applications, "MobileNetV2", function)
    model = keras_application("MobileNetV2", num_classes=4, image_shape=(96, 96, 3), weights="imagenet", alpha=alpha)
    (source,) = downloaded
    assert source.input_shape[1:3] == (trained_at, trained_at)
    backbone = model.get_layer("backbone")
    assert backbone.input_shape == (None, 96, 96, 3)
    for weight, value in zip(backbone.weights, source.get_weights(), strict=True):
        assert_array_equal(weight, value)


@pytest.mark.parametrize("arguments", [{"num_classes": 47}, {"num_classes": 1000, "skip_head": True}])
def test_other_classes_get_everything_but_the_logits(published, arguments):
    name, calls = published
    model = PAIRS[name](1.0, image_shape=(32, 32, 3), weights="imagenet", **arguments)  # no `head` needed at 1.0
    ((alpha, application),) = calls
    assert alpha == 1.0
    assert_holds(model, application, head=False)
    logits = model.get_layer("logits")
    assert model.output_shape == (None, arguments["num_classes"])
    # As the builder leaves it: Glorot's uniform distribution within sqrt(6 / (inputs + classes)), no bias.
    bound = (6 / sum(logits.kernel.shape)) ** 0.5
    assert 0.95 * bound < np.abs(logits.kernel).max() <= bound
    assert_array_equal(logits.bias, np.zeros(arguments["num_classes"]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("MobileNet", {"width": 0.3}, r"0\.25, 0\.5, 0\.75,? (or )?1(\.0)?\b.*width=0\.3"),
        ("MobileNet", {"width": 1.4}, r"0\.25, 0\.5, 0\.75,? (or )?1(\.0)?\b.*width=1\.4"),
        *(
            ("MobileNetV2", {"width": width, "head": "fixed"}, r"0\.35, 0\.5, 0\.75, 1(\.0)?, 1\.3,? (or )?1\.4")
            for width in (0.25, 1.1)
        ),
        ("MobileNetV2", {"width": 0.35}, r"head=['\"]fixed['\"]"),
        ("MobileNetV2", {"width": 0.35, "num_classes": 1000}, r"head=['\"]fixed['\"]"),
        ("MobileNet", {"image_shape": (32, 32, 1)}, r"3 channels.*1"),
        ("MobileNetV2", {"image_shape": (32, 32, 4)}, r"3 channels.*4"),
    ],
)
def test_what_imagenet_weights_do_not_exist_for(name, arguments, message, monkeypatch):
    monkeypatch.setattr(keras.applications, name, lambda *_, **__: pytest.fail("tried to get the weights"))
    with pytest.raises(ValueError, match=message) as caught:
        PAIRS[name](**{"image_shape": (32, 32, 3)} | arguments, weights="imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["wide_resnet", "shufflenet_v2", "resnet"])
def test_families_without_imagenet_weights(family):
    with pytest.raises(ValueError, match=r"no ImageNet weights.*path") as caught:
        SMALL[family](weights="imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("build", [mobilenet, lambda **kwargs: keras_application("MobileNet", **kwargs)])
def test_a_download_that_fails_says_where_the_weights_belong(build, monkeypatch):
    @functools.wraps(keras.applications.MobileNet)
    def fails(**_):
        raise Exception("URL fetch failure\non https://...")  # of no kind of its own, in Keras 3.15 too

    monkeypatch.setattr(keras.applications, "MobileNet", fails)
    with pytest.raises(OSError, match=r"MobileNet could not be loaded.*KERAS_HOME.*URL fetch failure") as caught:
        build(num_classes=4, image_shape=(32, 32, 3), weights="imagenet")
    assert "\n" not in str(caught.value)


@needs_imagenet
def test_real_imagenet_weights_predict_as_in_keras():
    application = keras.applications.MobileNet(weights="imagenet")
    model = mobilenet(1.0, num_classes=1000, weights="imagenet")
    images = pixels(2, model)
    expected = application(images / np.float32(127.5) - 1)
    assert_allclose(keras.ops.softmax(model(images)), expected, rtol=0, atol=1e-5)
    # The same for the network that is Keras' own inside.
    wrapped = keras_application("MobileNet", num_classes=1000, image_shape=(224, 224, 3), weights="imagenet")
    assert_allclose(keras.ops.softmax(wrapped(images)), expected, rtol=0, atol=1e-5)
    # And with another number of classes all but the logits, at another size too.
    for size in (224, 64):
        transferred = mobilenet(1.0, image_shape=(size, size, 3), weights="imagenet")
        assert_holds(transferred, application, head=False)
