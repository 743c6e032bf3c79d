"""Any Keras network as teacher or student, and the networks of `keras.applications` from raw pixels to logits."""

import sys
import zipfile

import keras
import numpy as np
import pytest
from architectures import randomize, taps
from keras import layers
from networks import CLASSES, assert_same_weights, cross_entropy, weights

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.distiller import taps as places

IMAGE_SHAPE = (32, 32, 3)
SP = losses.SimilarityPreserving
ARGUMENTS = {"num_classes": CLASSES, "image_shape": IMAGE_SHAPE}


def images(count=8):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (count, *IMAGE_SHAPE), dtype="uint8"), np.arange(count) % CLASSES


def small():
    return models.wide_resnet(10, 0.25, **ARGUMENTS)


def application():
    """As Keras gives it, for pixels of -1 to 1: it takes ours all the same."""
    return keras.applications.MobileNetV2(
        IMAGE_SHAPE, alpha=0.35, weights=None, classes=CLASSES, classifier_activation=None
    )


def sequential():
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Rescaling(1 / 255),
            layers.Conv2D(6, 3, 2, activation="relu", name="first"),
            layers.BatchNormalization(),
            layers.Conv2D(8, 3, 2, activation="relu", name="second"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(CLASSES),
        ]
    )


def nested():
    """Preprocessing -> backbone -> head, as in Keras' transfer-learning guide."""
    backbone = keras.applications.MobileNetV2(IMAGE_SHAPE, alpha=0.35, weights=None, include_top=False, name="backbone")
    image = keras.Input(IMAGE_SHAPE)
    x = backbone(layers.Rescaling(1 / 127.5, -1)(image))
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(image, layers.Dense(CLASSES)(x))


def wrapped():
    return models.keras_application("MobileNet", alpha=0.25, **ARGUMENTS)


@pytest.mark.parametrize(
    ("teacher", "student", "tapped"),
    [
        (sequential, small, {}),
        (small, sequential, {}),
        (application, small, {}),
        (nested, small, {"teacher": "backbone/block_12_add"}),
        (wrapped, sequential, {"teacher": ("backbone/conv_pw_5_relu", "backbone"), "student": ("first", "second")}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [
                (small, application, {}),
                (small, nested, {"student": "backbone/block_12_add"}),
                (small, nested, {}),
                (small, wrapped, {}),
                (nested, application, {"teacher": "backbone/block_12_add", "student": "block_12_add"}),
            ]
        ),
    ],
)
def test_any_network_teaches_and_learns(teacher, student, tapped):
    x, y = images()
    teacher, student = teacher(), student()
    taught, learned = weights(teacher), weights(student)
    model = Distiller(teacher, student, [Term(SP(), 10.0, **tapped), Term(losses.SoftTargets())])
    model.compile("sgd", cross_entropy())
    logs = model.fit(x, y, batch_size=4, verbose=0).history
    assert set(logs) == {"loss", "student_loss", "similarity_preserving", "soft_targets"}
    assert np.isfinite(list(logs.values())).all()
    assert logs["similarity_preserving"][0] > 0
    for weight, value in zip(teacher.weights, taught, strict=True):
        np.testing.assert_array_equal(weight, value, err_msg=weight.path)
    changed = [not np.array_equal(weight, value) for weight, value in zip(student.weights, learned, strict=True)]
    assert np.mean(changed) > 0.9  # some biases may have no gradient yet
    np.testing.assert_array_equal(model.predict(x, verbose=0), student.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("path", "layer"), [(None, "out_relu"), ("backbone/block_12_add", "block_12_add"), ("backbone", "out_relu")]
)
def test_a_tap_of_a_real_backbone_is_its_layers_output(path, layer):
    teacher, student, (x, y) = nested(), small(), images()
    backbone = randomize(teacher.get_layer("backbone"))
    inner = keras.Model(backbone.input, backbone.get_layer(layer).output)
    rows = []
    for features in (inner(x / np.float32(127.5) - 1), taps(student, "stage3")(x)["stage3"]):
        flat = np.asarray(features, "float64").reshape(len(x), -1)
        rows.append(flat @ flat.T / np.linalg.norm(flat @ flat.T, axis=1, keepdims=True))
    model = Distiller(teacher, student, [Term(SP(), teacher=path)], evaluate_terms=True)
    model.compile("sgd", cross_entropy())
    logs = model.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)
    assert logs["similarity_preserving"] == pytest.approx(np.sum((rows[0] - rows[1]) ** 2) / len(x) ** 2, rel=1e-3)


# Pixels from -1 to 1 (tf), ImageNet's mean and deviation (torch), blue first without its mean (caffe), and raw ones.
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("MobileNet", {"alpha": 0.25}),
        ("VGG16", {}),
        ("MobileNetV3Small", {"minimalistic": True}),
        pytest.param("DenseNet121", {}, marks=pytest.mark.slow),
        pytest.param("ResNet50", {}, marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", {}, marks=pytest.mark.slow),
    ],
)
def test_an_application_has_its_own_preprocessing_and_round_trips(name, arguments, tmp_path):
    model = models.keras_application(name, **ARGUMENTS, **arguments)
    x, _ = images(4)
    operations = model.operations
    backbone = model.get_layer("backbone")
    before = keras.Model(model.input, operations[operations.index(backbone) - 1].output)
    module = sys.modules[getattr(keras.applications, name).__module__]
    expected = module.preprocess_input(x.astype("float32"))
    np.testing.assert_allclose(before(x), expected, rtol=1e-5, atol=1e-4)
    # The network that Keras gives without its top, between them and the new classifier.
    logits = model.get_layer("logits")
    features = np.mean(backbone(expected), axis=(1, 2))
    np.testing.assert_allclose(model(x), features @ logits.kernel + logits.bias, rtol=1e-3, atol=1e-4)
    assert [layer.name for layer in (operations[0], *operations[-2:])] == ["image", "pooling", "logits"]
    assert model.output_shape == (None, CLASSES)
    model.save(tmp_path / "network.keras")
    with zipfile.ZipFile(tmp_path / "network.keras") as archive:
        assert "spkd_keras" not in archive.read("config.json").decode()
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    assert_same_weights(model, loaded)
    np.testing.assert_array_equal(models.fused(loaded)(x), model(x))
    np.testing.assert_array_equal(models.in_precision(model, "float32")(x), model(x))


def test_the_arguments_of_an_application_are_those_of_keras(tmp_path):
    model = wrapped()
    expected = keras.applications.MobileNet(IMAGE_SHAPE, alpha=0.25, weights=None, include_top=False)
    assert model.get_layer("backbone").count_params() == expected.count_params()
    for weight in expected.weights:
        weight.assign(weight + 0.5)
    expected.save_weights(tmp_path / "mine.weights.h5")
    path = str(tmp_path / "mine.weights.h5")
    model = models.keras_application("MobileNet", alpha=0.25, weights=path, **ARGUMENTS)
    assert_same_weights(model.get_layer("backbone"), expected)


def test_an_application_in_mixed_precision_has_float32_ends():
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = wrapped()
    x, _ = images(2)
    pixel = keras.Model(model.input, model.get_layer("preprocessing").output)(x)
    assert pixel.dtype == "float32"
    assert model.get_layer("backbone").get_layer("conv_pw_13").compute_dtype == "bfloat16"
    assert model(x).dtype == "float32"


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("MobileNet2", {}, r"no network 'MobileNet2'.*MobileNet"),
        ("EfficientNet_B0", {}, r"no network 'EfficientNet_B0'.*EfficientNetB0"),
        ("mobilenet", {}, r"no network 'mobilenet'.*MobileNet"),  # the module of that name
        ("MobileNet", {"alfa": 0.25}, r"'alfa'.*alpha"),
        ("MobileNet", {"weight": None}, r"'weight'.*weights"),
        ("MobileNet", {"num_classes": 1}, r"`num_classes` must be an integer of at least 2"),
        ("MobileNet", {"image_shape": (32, 32)}, r"must be \(height, width, channels\)"),
        ("MobileNet", {"image_shape": (31, 31, 3)}, r"at least 32x32"),
    ],
)
def test_errors_of_an_application(name, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.keras_application(name, **{**ARGUMENTS, "weights": None} | arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["EfficientNetV2B0", "EfficientNetB0", "MobileNetV3Small"])
def test_the_default_tap_is_before_the_closing_pooling_and_not_in_a_branch(name):
    # Squeeze-and-excite branches pool too; at 32x32 the closing pooling has a single position left.
    network = models.keras_application(name, num_classes=3, image_shape=(32, 32, 3))
    (tap,) = places.resolve(network, None, "last_stage", "teacher")
    assert str(tap) == "input of pooling"


def test_integers_and_shapes_may_be_numpys():
    network = models.mobilenet(0.25, num_classes=np.int64(5), image_shape=np.array([32, 32, 3]))
    assert network.output_shape == (None, 5)
    assert models.resnet(np.int64(8), np.array([4, 4, 8, 8])).name == "resnet_8_4_4_8_8"


def test_a_fingerprint_sees_the_order_of_the_channels():
    network = models.keras_application("VGG16", num_classes=3, image_shape=(32, 32, 3))
    image = keras.Input((32, 32, 3))
    x = network.get_layer("backbone")(network.get_layer("preprocessing")(image))
    unreversed = keras.Model(image, network.get_layer("logits")(network.get_layer("pooling")(x)))
    assert models.fingerprint(network) != models.fingerprint(unreversed)
