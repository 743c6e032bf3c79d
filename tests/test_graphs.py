"""Networks in networks, and others whose graph is not a plain chain: what is copied of them computes the same."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops
from networks import CLASSES, cross_entropy, small_network

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.export import inference_network
from spkd_keras.models.folding import folded

IMAGE_SHAPE = (8, 8, 3)
SP, KD = losses.SimilarityPreserving, losses.SoftTargets
random = np.random.default_rng(0)
PIXELS = random.integers(0, 256, (8, *IMAGE_SHAPE), dtype="uint8")
LABELS = np.arange(8) % CLASSES


def head(x: Any) -> Any:
    return layers.Dense(CLASSES, name="logits")(layers.GlobalAveragePooling2D()(x))


def block(x: Any, name: str | None = None) -> Any:
    x = layers.BatchNormalization()(layers.Conv2D(3, 3, padding="same", kernel_initializer="he_normal")(x))
    return layers.ReLU(name=name)(x)


def plain(dtype: str = "float32") -> keras.Model:
    image = keras.Input(IMAGE_SHAPE, dtype=dtype, name="image")
    return keras.Model(image, head(block(layers.Rescaling(1 / 255)(image), "stage1")), name="plain")


def with_numbers() -> keras.Model:
    image = keras.Input(IMAGE_SHAPE)
    return keras.Model(image, head(block(image[..., ::-1] / 127.5 - 1, "stage1")), name="with_numbers")


def of_bytes() -> keras.Model:
    """The inner model takes float32 and doubles it, which in bytes would be another thing."""
    inner_image = keras.Input(IMAGE_SHAPE)
    inner = keras.Model(inner_image, block(layers.Rescaling(1 / 255)(inner_image * 2), "stage1"), name="inner")
    image = keras.Input(IMAGE_SHAPE, dtype="uint8")
    return keras.Model(image, head(inner(image)), name="of_bytes")


def of_bytes_read_twice() -> keras.Model:
    """What a convolution gives goes into a normalisation and, cast, into an inner model: nothing may be folded."""
    inner_image = keras.Input((8, 8, 3), dtype="float16")
    inner = keras.Model(inner_image, layers.Rescaling(0.5, dtype="float32")(inner_image), name="inner")
    image = keras.Input(IMAGE_SHAPE)
    x = layers.Conv2D(3, 3, padding="same")(layers.Rescaling(1 / 255)(image))
    normalised = layers.BatchNormalization(moving_variance_initializer=keras.initializers.Constant(4.0))(x)
    return keras.Model(image, head(layers.Add(name="stage1")([normalised, inner(x)])), name="read_twice")


def of_lists() -> keras.Model:
    """`inputs` and `outputs` of another model, which are lists of one."""
    base = plain()
    features = keras.Model(base.inputs, [base.get_layer("stage1").output], name="features")
    image = keras.Input(IMAGE_SHAPE)
    return keras.Model(image, [head(features([image])[0])], name="of_lists")


def called_twice() -> keras.Model:
    inner_image = keras.Input(IMAGE_SHAPE)
    inner = keras.Model(inner_image, block(inner_image, "inside"), name="block")
    image = keras.Input(IMAGE_SHAPE)
    last = layers.ReLU(name="stage1")(inner(inner(layers.Rescaling(1 / 255)(image))))
    return keras.Model(image, head(last), name="called_twice")


def given_by_name(own: Any) -> keras.Model:
    """The inner model takes two images by name, in an order that is not that of their names."""
    image, aside = keras.Input(IMAGE_SHAPE, name="image"), keras.Input(IMAGE_SHAPE, name="aside")
    inner = keras.Model(own(image, aside), layers.Subtract()([image, 3 * aside]), name="inner")
    whole = keras.Input(IMAGE_SHAPE)
    small = layers.Rescaling(1 / 255)(whole)
    x = inner({"image": small, "aside": small[:, ::-1]})
    return keras.Model(whole, head(block(x, "stage1")), name="given_by_name")


def by_name_for_a_list() -> keras.Model:
    return given_by_name(lambda image, aside: [image, aside])


def by_name_for_a_dict() -> keras.Model:
    return given_by_name(lambda image, aside: {"image": image, "aside": aside})


NETWORKS = [
    *(with_numbers, of_bytes, of_bytes_read_twice, of_lists, called_twice),
    *(by_name_for_a_list, by_name_for_a_dict),
]


def logits(model: Any, pixels: np.ndarray = PIXELS) -> np.ndarray:
    return np.asarray(keras.tree.flatten(model(pixels.astype(model.inputs[0].dtype), training=False))[0])


@pytest.mark.parametrize("network", NETWORKS)
def test_copies_compute_the_same(network: Any) -> None:
    model = network()
    expected = logits(model)
    assert np.ptp(expected, axis=0).max() > 1e-3, "the images are told apart"
    for copy in (folded(model), inference_network(model)):
        np.testing.assert_allclose(logits(copy), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", NETWORKS)
def test_they_teach_and_learn_from_what_they_compute(network: Any) -> None:
    model = network()
    pixels, expected = PIXELS.astype(model.inputs[0].dtype), logits(model)
    terms = [Term(SP()), Term(KD())]
    teaching = Distiller(model, plain(model.inputs[0].dtype), terms)
    _, given = teaching._wiring.run_teacher(pixels)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    learning = Distiller(plain(model.inputs[0].dtype), model, terms)
    _, (_, given) = learning._wiring.run_student(pixels, training=False, with_taps=True)
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-5)
    learning.compile("sgd", cross_entropy())
    learning.fit(pixels, LABELS, verbose=0)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_teacher_is_the_same_however_often_it_is_used(network: Any) -> None:
    teacher = network()
    fingerprint = models.fingerprint(teacher)
    model = Distiller(teacher, plain(teacher.inputs[0].dtype), [Term(SP()), Term(KD())])
    model.compile("sgd", cross_entropy())
    pixels = PIXELS.astype(teacher.inputs[0].dtype)
    model.fit(pixels, LABELS, verbose=0)
    compiled = model.train_function
    model.fit(pixels, LABELS, verbose=0)
    assert model.train_function is compiled, "it is not traced again"
    assert models.fingerprint(teacher) == model.teacher_fingerprint == fingerprint
    model.teacher = teacher


def test_an_ensemble_of_networks_whose_layers_have_the_same_names_teaches() -> None:
    image, members = keras.Input(IMAGE_SHAPE), [plain(), plain()]
    for member, name in zip(members, ("one", "two"), strict=True):
        member.name = name
    mean = layers.Average(name="mean")([member(image) for member in members])
    ensemble = keras.Model(image, mean, name="ensemble")
    expected = logits(ensemble)
    np.testing.assert_allclose(logits(inference_network(ensemble)), expected, rtol=1e-4, atol=1e-5)
    model = Distiller(ensemble, plain(), [Term(KD()), Term(SP(), teacher="one/stage1", student="stage1")])
    given, _ = model._wiring.run_teacher(PIXELS)
    np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)
    model.compile("sgd", cross_entropy())
    assert np.isfinite(model.fit(PIXELS, LABELS, verbose=0).history["loss"]).all()


def test_a_tap_in_a_model_that_is_called_twice_is_ambiguous() -> None:
    with pytest.raises(ValueError, match="'block/inside' of 'called_twice' is called 2 times"):
        Distiller(plain(), called_twice(), [Term(SP(), student="block/inside")])


class AddIfGiven(layers.Layer):
    """Adds a sum to its input, where there is something to sum."""

    def call(self, x: Any, more: Any = None) -> Any:
        return x if more is None else x + ops.sum(more)

    def compute_output_shape(self, x_shape: Any, more_shape: Any = None) -> Any:
        return x_shape


def test_an_optional_input_stays_optional() -> None:
    image, more = keras.Input(IMAGE_SHAPE, name="image"), keras.Input((2,), name="more", optional=True)
    x = block(AddIfGiven()(layers.Rescaling(1 / 255)(image), more), "stage1")
    student = keras.Model({"image": image, "more": more}, head(x))
    given = {"image": PIXELS.astype("float32"), "more": None}
    model = Distiller(plain(), student, [Term(SP())])
    output, _ = model._wiring.run_student(given, training=False, with_taps=True)
    np.testing.assert_allclose(output, student(given), rtol=1e-5, atol=1e-6)
    for copy in (models.fused(student), models.in_precision(student, "float32")):
        assert copy is not student
        np.testing.assert_allclose(copy(given), student(given), rtol=1e-4, atol=1e-5)


class Outputs(keras.Model):
    """A subclassed network, with whatever outputs."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs_of, self.dense = outputs, layers.Dense(CLASSES)

    def call(self, x: Any) -> Any:
        return self.outputs_of(self.dense(ops.mean(ops.cast(x, "float32"), axis=(1, 2)) / 255.0))


@pytest.mark.parametrize("outputs", [lambda z: (z, -z), lambda z: {"one": z, "other": -z}])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_subclassed_network_with_several_outputs_is_refused(outputs: Any, role: str) -> None:
    network = Outputs(outputs)
    network(PIXELS)
    with pytest.raises(ValueError, match=r"must be one tensor to be compared. Received: 2"):  # noqa: PT012
        model = Distiller(*((network, plain()) if role == "teacher" else (plain(), network)), [Term(KD())])
        model.compile("sgd", cross_entropy())
        model.fit(PIXELS.astype("float32"), LABELS, verbose=0)


def test_a_subclassed_network_with_a_list_of_one_teaches() -> None:
    network = Outputs(lambda z: [z])
    network(PIXELS)
    model = Distiller(network, plain(), [Term(KD())])
    np.testing.assert_array_equal(model._wiring.run_teacher(PIXELS)[0], network(PIXELS)[0])
    model.compile("sgd", cross_entropy())
    model.fit(PIXELS.astype("float32"), LABELS, verbose=0)


@pytest.mark.parametrize(
    "before",
    [
        [layers.Flatten()],
        [layers.Rescaling(1 / 255), layers.Flatten()],
        [layers.Normalization(mean=[1.0] * 3, variance=[2.0] * 3), layers.Reshape((192, 1)), layers.Flatten()],
        [layers.Normalization(), layers.Flatten()],  # has weights, which are measured and not learned
        [layers.GlobalAveragePooling2D(), layers.Flatten()],
    ],
)
@pytest.mark.parametrize("functional", [True, False])
def test_pixels_are_no_default_tap(before: list[layers.Layer], functional: bool) -> None:
    """The similarity of the images themselves has no gradient, whatever its weight."""
    copies = [type(layer).from_config(layer.get_config()) for layer in before]
    end = [layers.Dense(8, activation="relu", name="hidden"), layers.Dense(CLASSES)]
    student = keras.Sequential([keras.Input(IMAGE_SHAPE), *copies, *end], name="perceptron")
    if functional:
        image = x = keras.Input(IMAGE_SHAPE)
        for layer in [*copies, *end]:
            x = layer(x)
        student = keras.Model(image, x, name="perceptron")
    with pytest.raises(ValueError, match=r"The student 'perceptron' has no layer named stage<N>.* layers: .*hidden"):
        Distiller(plain(), student, [Term(SP())])
    Distiller(plain(), student, [Term(SP(), student="hidden")])


@pytest.mark.parametrize("trainable", [True, False])
def test_shared_statistics_are_refused_where_they_change(trainable: bool) -> None:
    shared = layers.BatchNormalization(center=False, scale=False, trainable=trainable)
    image = keras.Input(IMAGE_SHAPE)
    teacher, student = (keras.Model(image, head(layers.Conv2D(3, 3, name="stage1")(shared(image)))) for _ in range(2))
    if trainable:
        with pytest.raises(ValueError, match=r"must not share what training changes. Received: 2 such"):
            Distiller(teacher, student, [Term(SP())])
        return
    model = Distiller(teacher, student, [Term(SP())])
    model.compile("sgd", cross_entropy())
    before = teacher.get_weights()
    model.fit(PIXELS.astype("float32"), LABELS, verbose=0)
    for one, other in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_evaluation_within_an_epoch_does_not_count_as_batches() -> None:
    model = Distiller(small_network(), small_network(), [Term(SP())])
    model.compile("sgd", cross_entropy())
    pixels, labels = random.normal(size=(8, *model.student.inputs[0].shape[1:])).astype("float32"), LABELS

    class Evaluate(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.evaluate(pixels[:2], labels[:2], batch_size=1, verbose=0)

    model.fit(pixels, labels, batch_size=4, verbose=0, callbacks=[Evaluate()])
    with pytest.raises(ValueError, match="Received: batches of one"):
        model.fit(tf.data.Dataset.from_tensor_slices((pixels, labels)).batch(1), shuffle=False, verbose=0)


def test_compiled_again_with_the_same_optimizer_it_goes_on() -> None:
    model = Distiller(small_network(), small_network(), [Term(SP())])
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-4), dynamic_growth_steps=2)
    pixels = random.normal(size=(8, *model.student.inputs[0].shape[1:])).astype("float32")
    model.compile(optimizer, cross_entropy())
    model.fit(pixels, LABELS, batch_size=2, verbose=0)
    before = [np.asarray(variable) for variable in optimizer.variables]
    assert float(optimizer.dynamic_scale) != optimizer.initial_scale
    model.compile(optimizer, cross_entropy(), metrics=["accuracy"])
    assert len(optimizer.variables) == len(before)
    for one, other in zip(before, optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def in_bfloat16() -> Any:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        image = keras.Input(IMAGE_SHAPE)
        x = layers.Rescaling(1 / 255, dtype="float32")(image)
        x = layers.ReLU(name="stage1")(layers.SpectralNormalization(layers.Conv2D(4, 3))(x))
        yield keras.Model(image, layers.Dense(CLASSES, dtype="float32")(layers.GlobalAveragePooling2D()(x)))
    finally:
        keras.config.set_dtype_policy("float32")


def test_layers_in_layers_compute_in_the_precision_that_was_asked_for(in_bfloat16: keras.Model) -> None:
    keras.config.set_dtype_policy("float32")
    for copy in (inference_network(in_bfloat16), models.in_precision(in_bfloat16, "float32")):
        assert {layer.compute_dtype for layer in copy._flatten_layers()} == {"float32"}
    narrow = models.in_precision(inference_network(in_bfloat16), "bfloat16")
    inner = {layer.name: layer.compute_dtype for layer in narrow._flatten_layers() if "conv2d" in layer.name}
    assert inner
    assert set(inner.values()) == {"bfloat16"}


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_what_a_layer_made_and_built_itself_is_left_in_its_precision(policy: str) -> None:
    class Holder(layers.Layer):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            image = keras.Input((8, 8, 3), dtype=policy)
            self.normalization = layers.Normalization(mean=[125.3] * 3, variance=[60.0] * 3)
            self.normalization.build((None, *IMAGE_SHAPE))
            self.inner = keras.Model(image, layers.Conv2D(3, 1, dtype=policy)(image))

        def call(self, x: Any) -> Any:
            return self.inner(ops.cast(self.normalization(x), policy))

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    image = keras.Input(IMAGE_SHAPE)
    model = keras.Model(image, head(layers.ReLU(name="stage1", dtype="float32")(Holder()(image))))
    for copy in (inference_network(model), models.in_precision(model, "bfloat16")):
        np.testing.assert_allclose(logits(copy), logits(model), rtol=2e-2, atol=2e-2)
        inner = {type(layer).__name__: layer.compute_dtype for layer in copy._flatten_layers()}
        assert (inner["Conv2D"], inner["Normalization"]) == (policy, "float32")
