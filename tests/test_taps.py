"""Terms and taps: what is named, what is found, and what is said when it is not."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from networks import IMAGE_SHAPE, assert_same_weights, cross_entropy, images, small_network

from spkd_keras import Distiller, Term, losses, models
from spkd_keras.distiller import taps

SP = losses.SimilarityPreserving
KD = losses.SoftTargets


def transfer_stack(backbone: keras.Model, classes: int = 4) -> keras.Model:
    """Preprocessing -> backbone -> head, as in Keras' transfer-learning guide."""
    image = keras.Input(IMAGE_SHAPE)
    x = layers.Rescaling(1 / 255)(image)
    x = backbone(x, training=False)
    x = layers.GlobalAveragePooling2D(name="outer_pooling")(x)
    return keras.Model(image, layers.Dense(classes, name="logits")(x), name="stack")


def backbone(name: str = "backbone") -> keras.Model:
    image = keras.Input(IMAGE_SHAPE)
    x = layers.Conv2D(3, 3, name="conv")(image)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Dropout(0.3)(x)
    x = keras.ops.relu(x)  # an operation, not a layer
    return keras.Model(image, layers.Conv2D(5, 3, name="last_conv")(x), name=name)


def sequential_stack() -> keras.Model:
    return keras.Sequential(
        [
            keras.Input(IMAGE_SHAPE),
            layers.Rescaling(1 / 255),
            keras.Sequential([layers.Conv2D(3, 3, name="inner"), layers.ReLU(name="inner_relu")], name="features"),
            layers.Flatten(name="flat"),
            layers.Dense(4, name="logits"),
        ]
    )


@pytest.mark.parametrize(
    ("network", "path"),
    [
        (lambda: transfer_stack(backbone()), "backbone/bn"),
        (lambda: transfer_stack(backbone()), "backbone/last_conv"),
        (lambda: transfer_stack(backbone()), "backbone"),
        (lambda: transfer_stack(backbone()), "outer_pooling"),
        (sequential_stack, "features/inner"),
        (sequential_stack, "features"),
        (sequential_stack, "flat"),
        (small_network, "stage1"),
    ],
)
def test_a_tap_is_the_layers_output_in_the_same_pass(network: Any, path: str) -> None:
    model = network()
    x, _ = images(3)
    expected: list[np.ndarray] = []
    layer = dict(taps.layer_paths(model))[path]
    original = type(layer).call

    def spy(self: Any, *args: Any, **kwargs: Any) -> Any:
        value = original(self, *args, **kwargs)
        if self is layer and not keras.backend.is_keras_tensor(value):
            expected.append(np.asarray(value))
        return value

    view = taps.tapped(model, [taps.LOGITS, taps.Tap(path)])
    type(layer).call = spy
    try:
        output = np.asarray(model(x))
    finally:
        type(layer).call = original
    values = view(x)["taps"]
    np.testing.assert_array_equal(values[0], output)
    np.testing.assert_array_equal(values[1], expected[-1])
    assert {id(w) for w in view.weights} == {id(w) for w in model.weights}


def test_layers_behind_the_last_tap_are_not_run() -> None:
    view = taps.tapped(small_network(), [taps.Tap("stage1")])
    assert not {"conv2", "logits"} & {layer.name for layer in view.layers}


@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (lambda: models.wide_resnet(10, 1, image_shape=IMAGE_SHAPE), "stage3"),
        (lambda: transfer_stack(backbone()), "input of outer_pooling"),
        (sequential_stack, "input of flat"),
        (
            lambda: keras.applications.MobileNet((32, 32, 3), 0.25, weights=None),
            "input of global_average_pooling2d",
        ),
        (lambda: keras.Sequential([keras.Input(IMAGE_SHAPE), small_network(name="whole")]), "whole/stage2"),
    ],
)
def test_the_last_stage(network: Any, expected: str) -> None:
    (tap,) = taps.resolve(network(), None, "last_stage", "teacher")
    assert str(tap) == expected


def test_the_last_stage_is_the_highest_number_and_not_the_last_by_alphabet() -> None:
    image = x = keras.Input(IMAGE_SHAPE)
    for stage in range(1, 12):
        x = layers.ReLU(name=f"stage{stage}")(x)
    model = keras.Model(image, x)
    assert taps.resolve(model, None, "last_stage", "student") == (taps.Tap("stage11"),)
    assert len(taps.resolve(model, None, "all_stages", "student")) == 11


def test_the_input_of_the_pooling_is_what_goes_into_it() -> None:
    model = transfer_stack(backbone())
    x, _ = images(3)
    inner = model.get_layer("backbone")
    (value,) = taps.tapped(model, taps.resolve(model, None, "last_stage", "teacher"))(x)["taps"]
    np.testing.assert_allclose(value, inner(np.asarray(x, "float32") / 255), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", [lambda: transfer_stack(backbone()), sequential_stack])
def test_distilling_into_a_nested_student_moves_what_plain_training_moves(network: Any) -> None:
    """BatchNormalization and Dropout of a nested model as in plain Keras, and the shared weights are trained."""
    x, y = images(20)
    path = "backbone/last_conv" if network is not sequential_stack else "features/inner"

    def build() -> keras.Model:
        keras.utils.set_random_seed(3)
        return network()

    plain, student, moved = build(), build(), build()
    teacher = small_network(8)
    plain.compile("sgd", cross_entropy())
    plain.fit(x, y, batch_size=5, verbose=0, shuffle=False)
    for weight, trained in ((0.0, student), (30.0, moved)):
        model = Distiller(teacher, trained, [Term(SP(), weight, student=path)])
        model.compile("sgd", cross_entropy())
        model.fit(x, y, batch_size=5, verbose=0, shuffle=False)
    assert_same_weights(plain, student)
    assert not np.array_equal(plain.weights[0].numpy(), moved.weights[0].numpy())


def test_a_subclassed_teacher_gives_its_logits_and_nothing_else() -> None:
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.network = small_network(8)

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.network(x, training=training)

    teacher, student = Subclassed(), small_network()
    x, y = images(6)
    with pytest.raises(ValueError, match=r"`teacher` must be a built keras.Model"):
        Distiller(teacher, student, [Term(KD())])
    expected = teacher(x)
    model = Distiller(teacher, student, [Term(KD(temperature=1.0))])
    model.compile("sgd", cross_entropy())
    np.testing.assert_array_equal(model._wiring.run_teacher(x)[0], expected)
    assert np.isfinite(model.train_on_batch(x, y)[0])
    with pytest.raises(ValueError, match=r"inner layers can be reached in a functional .* Subclassed"):
        Distiller(teacher, student, [Term(SP())])


def test_a_layer_that_is_called_twice_is_ambiguous() -> None:
    image = keras.Input(IMAGE_SHAPE)
    shared = layers.Conv2D(1, 3, padding="same", name="shared")
    x = layers.GlobalAveragePooling2D()(shared(shared(image)))
    network = keras.Model(image, layers.Dense(4)(x))
    with pytest.raises(ValueError, match=r"'shared' of .* is called 2 times.* Name a layer that is called once"):
        Distiller(network, small_network(), [Term(SP(), teacher="shared")])


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda: Term(SP(), teacher="stage3"), r"The teacher 'big' has no layer 'stage3'. Did you mean stage"),
        (lambda: Term(SP(), student="bn_1"), r"The student 'small' has no layer 'bn_1'. Did you mean bn1"),
        (lambda: Term(SP(), student="xyz"), r"no layer 'xyz'. Its layers: preprocessing, conv1, "),
        (lambda: Term(SP(), student="image"), r"no layer 'image'"),
        (
            lambda: Term(SP(), teacher=("stage1", "stage2")),
            r"finds 2 in the teacher \(stage1, stage2\) and 1 in the student",
        ),
    ],
)
def test_errors_of_taps(term: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distiller(small_network(8, name="big"), small_network(name="small"), [term()])


def test_a_nested_layer_asked_for_without_its_path_is_shown_with_it() -> None:
    with pytest.raises(ValueError, match=r"has no layer 'last_conv'. Did you mean backbone/last_conv"):
        Distiller(transfer_stack(backbone()), small_network(), [Term(SP(), teacher="last_conv")])


def test_no_default_tap_names_the_layers() -> None:
    image = keras.Input(IMAGE_SHAPE)
    network = keras.Model(image, layers.Conv2D(4, 8, name="only")(image), name="bare")
    with pytest.raises(
        ValueError, match=r"'bare' has no layer named stage<N> and no global pooling .* Its layers: only"
    ):
        Distiller(network, small_network(), [Term(SP())])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "similarity_preserving"}, r"`loss` of a Term must be a keras.losses.Loss object"),
        ({"loss": SP(reduction=None)}, r"must reduce to one number"),
        ({"loss": SP(reduction="none")}, r"must reduce to one number"),
        ({"weight": -1.0}, r"finite and at least 0. Received: weight=-1.0"),
        ({"weight": float("nan")}, r"finite and at least 0"),
        ({"weight": "3"}, r"must be a number. Received: weight='3'"),
        ({"teacher": 3}, r"`teacher` of a Term must be a layer's name"),
        ({"student": ()}, r"`student` of a Term must be a layer's name"),
        ({"teacher": ("a", "b"), "student": ("a",)}, r"same number of layers, paired by position"),
        ({"adapter": "dense"}, r"`adapter` of a Term must be a Keras layer"),
    ],
)
def test_errors_of_a_term(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Term(**{"loss": SP(), **arguments})


def test_a_term_is_frozen_and_takes_lists_as_tuples() -> None:
    term = Term(SP(), teacher=["a", "b"], student=["c", "d"])
    assert term.teacher == ("a", "b")
    with pytest.raises(AttributeError):
        term.weight = 2.0  # type: ignore[misc]


def test_the_embedding_is_what_goes_into_the_last_dense_layer() -> None:
    head = [layers.Flatten(), layers.Dense(6, "relu", name="hidden"), layers.Dense(4, name="logits")]
    model = keras.Sequential([keras.Input(IMAGE_SHAPE), *head])
    assert taps.resolve(model, None, "embedding", "teacher") == (taps.Tap("logits", is_input=True),)


@pytest.mark.parametrize(
    "end", [[], [layers.Softmax()], [layers.Activation("relu"), layers.Identity()], [layers.Rescaling(0.5)]]
)
def test_the_embedding_is_found_behind_what_follows_the_classifier(end: list[layers.Layer]) -> None:
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="logits"), *end], name="head")
    model = keras.Sequential([keras.Input(IMAGE_SHAPE), layers.Flatten(), layers.Dense(6), inner, *end])
    assert taps.resolve(model, None, "embedding", "teacher") == (taps.Tap("head/logits", is_input=True),)


def test_a_dense_layer_that_weighs_channels_is_no_classifier() -> None:
    x = image = keras.Input(IMAGE_SHAPE)
    x = layers.Conv2D(6, 3)(x)
    excited = layers.Dense(6, "sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(4, 1)(layers.Multiply()([x, excited]))
    model = keras.Model(image, layers.GlobalAveragePooling2D()(x))
    with pytest.raises(ValueError, match="has no dense layer, where this loss looks by default"):
        taps.resolve(model, None, "embedding", "teacher")


def test_names_of_terms() -> None:
    teacher, student = small_network(8), small_network()
    model = Distiller(
        teacher, student, [Term(SP()), Term(SP()), Term(KD(), name="similarity_preserving_2"), Term(SP())]
    )
    assert list(model.term_weights) == [
        "similarity_preserving",
        "similarity_preserving_3",
        "similarity_preserving_2",
        "similarity_preserving_4",
    ]
    assert [term.name for term in model.terms] == list(model.term_weights)
    for name in ("loss", "student_loss", "images", "accuracy", "learning_rate", "epoch", "a b", ""):
        with pytest.raises(ValueError, match=rf"`name` of a Term must be a word.*Received: name='{name}'"):
            Distiller(teacher, student, [Term(SP(), name=name)])
    with pytest.raises(ValueError, match="that no other term has"):
        Distiller(teacher, student, [Term(SP(), name="twice"), Term(SP(), name="twice")])
    with pytest.raises(ValueError, match="`terms` must be a list of Term"):
        Distiller(teacher, student, [SP()])


def softmax_network(how: str) -> keras.Model:
    image = keras.Input(IMAGE_SHAPE)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(1, 1)(image))
    if how == "dense":
        x = layers.Dense(4, activation="softmax")(x)
    elif how == "layer":
        x = layers.Softmax()(layers.Dense(4)(x))
    elif how == "activation":
        x = layers.Activation("softmax")(layers.Dense(4)(x))
    elif how == "sigmoid":
        x = layers.Dense(4, activation="sigmoid")(x)
    elif how == "operation":
        x = keras.ops.softmax(layers.Dense(4)(x))
    else:
        nested = keras.Sequential([keras.Input((1,)), layers.Dense(4, activation="softmax")])
        x = nested(x)
    return keras.Model(image, x, name="probable")


@pytest.mark.parametrize("how", ["dense", "layer", "activation", "sigmoid", "operation", "nested"])
def test_probabilities_are_refused_where_logits_are_compared(how: str) -> None:
    with pytest.raises(ValueError, match=r"compares logits. Received: a teacher 'probable' that ends in a softmax"):
        Distiller(softmax_network(how), small_network(), [Term(KD())])
    with pytest.raises(ValueError, match=r"Received: a student 'probable'"):
        Distiller(small_network(), softmax_network(how), [Term(KD())])
    Distiller(softmax_network(how), small_network(), [Term(SP())])  # SP does not look at them


def test_different_class_counts_are_refused_where_logits_are_compared() -> None:
    with pytest.raises(ValueError, match=r"same number of classes. Received: 7 for 'big' and 4 for 'small'"):
        Distiller(small_network(8, classes=7, name="big"), small_network(name="small"), [Term(KD())])
    Distiller(small_network(8, classes=7), small_network(), [Term(SP())])


def test_the_last_stage_is_not_within_a_block_that_pools() -> None:
    image = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(image)
    weights = layers.Dense(8)(layers.GlobalAveragePooling2D(keepdims=True, name="squeeze")(x))
    x = layers.Conv2D(8, 3, padding="same", name="last")(layers.Multiply()([x, weights]))
    for closing, path in ((layers.AveragePooling2D(16), "flatten"), (layers.GlobalMaxPooling2D(name="max"), "max")):
        network = keras.Model(image, layers.Dense(4)(layers.Flatten(name="flatten")(closing(x))))
        assert taps.resolve(network, None, "last_stage", "student") == (taps.Tap(path, is_input=True),)


def test_the_last_stage_before_a_flatten_that_a_pooling_is_not_straight_before() -> None:
    image = keras.Input((16, 16, 3))
    pooled = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(8, 3)(image))
    nested = keras.Sequential([image, keras.Model(image, pooled, name="backbone"), layers.Flatten(), layers.Dense(4)])
    assert taps.resolve(nested, None, "last_stage", "student") == (taps.Tap("backbone/pool", is_input=True),)
    x = layers.GlobalAveragePooling2D(keepdims=True, name="pool")(layers.Conv2D(8, 3)(image))
    x = layers.Conv2D(8, 1)(x)
    x = layers.Conv2D(4, 1)(x * keras.ops.sigmoid(x))
    network = keras.Model(image, layers.Flatten()(keras.ops.relu(x)))
    assert taps.resolve(network, None, "last_stage", "student") == (taps.Tap("pool", is_input=True),)


@pytest.mark.parametrize(
    ("closing", "path"),
    [
        (layers.MaxPooling2D(16, name="closing"), "flatten"),
        (layers.Conv2D(8, 16, name="closing"), "flatten"),
        (layers.GlobalMaxPooling2D(name="closing"), "closing"),
        (layers.AveragePooling2D(4, name="closing"), "flatten"),
    ],
)
def test_a_flatten_is_behind_the_last_stage_unless_a_pooling_of_whole_maps_is_before_it(
    closing: Any, path: str
) -> None:
    image = keras.Input((16, 16, 3))
    x = layers.Flatten(name="flatten")(closing(layers.Conv2D(8, 3, padding="same")(image)))
    network = keras.Model(image, layers.Dense(4)(x))
    assert taps.resolve(network, None, "last_stage", "student") == (taps.Tap(path, is_input=True),)
