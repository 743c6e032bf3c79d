"""What would train something else than is meant, in silence, and is refused or told of instead."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images, small_network
from test_distiller import KD, SP, distiller

from spkd_keras import Distiller, Term, TermWeightSchedule, WeightSchedule
from spkd_keras.distiller import compared_layers, loss_parts

MSE = keras.losses.MeanSquaredError


@pytest.mark.parametrize("terms", [[], [Term(SP())]], ids=["labels", "similarity"])
@pytest.mark.filterwarnings("ignore:.*input ran out of data")
def test_arrays_without_an_image_are_refused(terms: list[Term]) -> None:
    model, (x, y) = distiller(small_network(8), small_network(), terms), images(8)
    for arguments in ({}, {"validation_data": (x, y)}):
        with pytest.raises(ValueError, match=r"training data must have at least one batch\. Received: none"):
            model.fit(x[:0], y[:0], verbose=0, **arguments)
    for arguments in ({}, {"return_dict": True}):
        with pytest.raises(ValueError, match=r"evaluate on must have at least one batch\. Received: none"):
            model.evaluate(x[:0], y[:0], verbose=0, **arguments)
    with pytest.raises(ValueError, match=r"evaluate on must have at least one batch\. Received: none"):
        model.fit(x, y, verbose=0, validation_data=(x[:0], y[:0]))


@pytest.mark.parametrize("loss", [MSE(), keras.losses.MeanAbsoluteError(), keras.losses.Huber()])
def test_a_difference_of_two_shapes_is_refused(loss: Any) -> None:
    message = (
        r"\(4, 4, 8\) with the student's of shape \(4, 4, 1\): \w+ would repeat .*give the term an `adapter` in Python"
    )
    with pytest.raises(ValueError, match=message) as caught:
        Distiller(small_network(8), small_network(1), [Term(loss, 1.0, "stage2", "stage2")])
    assert "\n" not in str(caught.value)
    Distiller(small_network(1), small_network(1), [Term(loss, 1.0, "stage2", "stage2")])


def test_a_number_an_image_and_a_list_of_one_are_the_same_shape() -> None:
    def network(shape: tuple[int, ...]) -> keras.Model:
        small = small_network()
        value = layers.Reshape(shape, name="value")(layers.Dense(1)(small.get_layer("pooling").output))
        return keras.Model(small.input, [small.output, value])

    model = Distiller(network(()), network((1,)), [Term(MSE(), 1.0, "value", "value")])
    assert compared_layers(model) == {"mean_squared_error": {"teacher": ["value"], "student": ["value"]}}


def test_a_loss_of_a_subclass_that_nothing_calls_is_refused() -> None:
    class Mine(Distiller):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 0.0

    with pytest.raises(ValueError, match=r"does not call `compute_loss`\. Received: Mine, which overrides it\. Give"):
        Mine(small_network(8), small_network(), [Term(SP())]).compile("sgd", cross_entropy())


def test_a_scheduled_term_has_its_own_weight_again_when_the_training_ends() -> None:
    model = distiller(small_network(8), small_network(), [Term(SP(), 8.0)])
    schedule = TermWeightSchedule({"similarity_preserving": WeightSchedule(until=1)})
    model.fit(*images(8), epochs=2, verbose=0, callbacks=[schedule])
    assert float(model.term_weights["similarity_preserving"]) == 8.0


def inputs_of(*names: str, as_list: bool = False) -> keras.Model:
    taken = {name: keras.Input(IMAGE_SHAPE, name=name) for name in names}
    x = layers.Flatten()(sum(taken.values()) if len(taken) > 1 else taken[names[0]])
    given: Any = taken if len(taken) > 1 else taken[names[0]]
    return keras.Model(list(taken.values()) if as_list else given, layers.Dense(CLASSES, name="logits")(x))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (inputs_of("pixels"), inputs_of("image", "meta"), r"takes pixels .* takes image, meta\. Wrap the teacher"),
        (inputs_of("image"), inputs_of("image", "meta", as_list=True), r"takes image and .* image, meta\. Wrap the te"),
        (inputs_of("image", "meta"), inputs_of("pixels"), r"takes image, meta .* takes pixels\. Wrap the student"),
    ],
)
def test_one_image_and_several_inputs_do_not_go_together(teacher: Any, student: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Distiller(teacher, student, [Term(KD())])
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_one_image_is_taken_by_its_name_out_of_several_inputs() -> None:
    model, (x, y) = distiller(inputs_of("image"), inputs_of("image", "meta"), [Term(KD())]), images(8)
    assert np.isfinite(model.fit({"image": x, "meta": x}, y, verbose=0).history["soft_targets"]).all()


def test_images_that_the_student_alone_sees_augmented_are_told_of() -> None:
    inside = keras.Sequential([layers.Input(IMAGE_SHAPE), layers.RandomFlip(name="flip")], name="augmenting")
    student = small_network(before=[inside, layers.GaussianNoise(0.1), layers.RandomRotation(0.1, name="turn")])
    with pytest.warns(UserWarning, match=r"compare different images: augmenting/flip, turn\. Put that into the data"):
        Distiller(small_network(8), student, [Term(SP())])
    Distiller(None, student)  # which compares none


def test_a_softmax_within_a_nested_model_is_told_with_its_path() -> None:
    def classifier(activation: str | None) -> keras.Model:
        last = layers.Dense(CLASSES, activation, name="last")
        inner = keras.Sequential([layers.Input(IMAGE_SHAPE), layers.Flatten(), last], name="inner")
        image = keras.Input(IMAGE_SHAPE)
        return keras.Model(image, inner(image))

    with pytest.raises(ValueError, match=r"Set the `activation` of its layer 'inner/last' to keras\.activations\.lin"):
        Distiller(classifier("softmax"), classifier(None), [Term(KD())])


class Scaling(layers.Layer):
    """Cannot be saved: Keras does not know what to write of its argument."""

    def __init__(self, by: Any) -> None:
        super().__init__(name="scaling")
        self.by = by

    def call(self, x: Any) -> Any:
        return x * self.by()


def test_a_teacher_that_cannot_be_saved_teaches() -> None:
    teacher = small_network(8, before=[Scaling(lambda: 2.0)])
    with pytest.raises(NotImplementedError):
        teacher.get_layer("scaling").get_config()
    model = distiller(teacher, small_network(), [Term(SP())])
    assert np.isfinite(model.fit(*images(8), verbose=0).history["similarity_preserving"]).all()


def test_parts_of_a_loss_that_is_not_compiled() -> None:
    model = Distiller(small_network(8), small_network(), [Term(SP())])
    with pytest.raises(ValueError, match=r"needs a compiled Distiller\. Call distiller\.compile"):
        loss_parts(model, *images(4))
