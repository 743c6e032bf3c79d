"""What a Distiller is given to train and to evaluate on, beside arrays that fit."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images, small_network, weights
from test_distiller import KD, SP, distiller

from spkd_keras import Distiller, Term, losses
from spkd_keras.distiller.stand_in import Cached, StandIn


class Batches(keras.utils.PyDataset):
    """Batches of five images."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        x, y = images(20)
        return x[5 * index : 5 * index + 5], y[5 * index : 5 * index + 5]


def test_a_py_dataset_is_as_good_as_arrays() -> None:
    trained = []
    for as_batches in (True, False):
        keras.utils.set_random_seed(1)
        model = distiller(small_network(8), small_network(), [Term(SP(), 10.0), Term(KD(), 0.5)])
        data = (Batches(),) if as_batches else images(20)
        options: dict[str, Any] = {} if as_batches else {"batch_size": 5}
        held_out = {"validation_data": Batches() if as_batches else images(20)}
        given = {"class_weight": {0: 1.0, 1: 0.5, 2: 2.0, 3: 0.0}, "shuffle": False, "verbose": 0}
        history = model.fit(*data, **options, **held_out, **given, epochs=2).history
        trained.append([*weights(model.student), history["val_loss"], model.evaluate(*data, **options, verbose=0)])
        assert model.predict(Batches(), verbose=0).shape == (20, CLASSES)
    for one, other in zip(*trained, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_the_regulariser_of_an_adapter_is_no_loss_of_the_student() -> None:
    adapter = keras.layers.Conv2D(8, 1, kernel_regularizer=keras.regularizers.L2(1.0))
    student = small_network(regularizer="l2")
    terms = [Term(losses.Hint(), adapter=adapter)]
    alone, with_terms = (
        distiller(small_network(8), student, terms, evaluate_terms=evaluated) for evaluated in (False, True)
    )
    x, y = images(20)
    student.compile(loss=cross_entropy())
    own = student.evaluate(x, y, verbose=0)
    assert alone.evaluate(x, y, verbose=0) == pytest.approx(own, rel=1e-5)
    logs = with_terms.evaluate(x, y, verbose=0, return_dict=True)
    kernel = with_terms.adapters["hint"].kernel.numpy().astype("float64")
    assert logs["loss"] == pytest.approx(own + logs["hint"] + (kernel**2).sum(), rel=1e-5)
    with_terms.compile(keras.optimizers.SGD(0.0), cross_entropy())
    logs = with_terms.train_on_batch(x, y, return_dict=True)
    added = float(sum(student.losses)) + (kernel**2).sum()
    assert logs["loss"] == pytest.approx(logs["student_loss"] + logs["hint"] + added, rel=1e-4)


def test_a_labelled_loss_without_a_weight_may_be_anything() -> None:
    """Labels of images that have none are -1 to many, of which a GPU makes NaN."""
    nothing = lambda y, y_pred: keras.ops.mean(y_pred, -1) * float("nan")  # noqa: E731
    model = distiller(small_network(8), small_network(), [Term(SP())], {"loss": nothing}, student_loss_weight=0)
    before = weights(model.student)
    history = model.fit(*images(20), verbose=0).history
    assert np.isnan(history["student_loss"]).all()
    assert np.isfinite(history["loss"]).all()
    assert any((one != other).any() for one, other in zip(before, weights(model.student), strict=True))


def test_batches_of_one_are_told_before_an_epoch_is_over() -> None:
    asked: list[int] = []

    def generate() -> Any:
        for index in range(100):
            asked.append(index)
            yield images(1)

    model = distiller(small_network(8), small_network(), [Term(SP())])
    model.look_every = 5
    with pytest.raises(ValueError, match=r"Batches must have at least two images.*similarity_preserving"):
        model.fit(generate(), steps_per_epoch=100, shuffle=False, verbose=0)
    assert len(asked) < 50  # five, and those that Keras has asked for ahead


def cached(images: np.ndarray, logits: Any) -> Cached:
    return Cached(images, {"/output": logits})


def stand_in(gives_probabilities: bool = False) -> StandIn:
    return StandIn(
        "teacher",
        "1234",
        shapes={"/output": (None, CLASSES)},
        defaults={"logits": ("/output",)},
        gives_probabilities=gives_probabilities,
    )


def test_cached_images_without_labels_are_a_tuple_of_one() -> None:
    x = images(4)[0]
    whole = tf.data.Dataset.from_tensors(cached(x, np.ones((4, CLASSES), "float32")))
    model = distiller(stand_in(), small_network(), [Term(KD())], student_loss_weight=0)
    with pytest.raises(ValueError, match=r"A batch must be a tuple, .*Received: a Cached alone"):
        model.fit(whole, shuffle=False, verbose=0)
    batches = whole.map(lambda batch: (batch,))
    assert np.isfinite(model.fit(batches, shuffle=False, verbose=0).history["soft_targets"]).all()


def ending(activation: str | None, classes: int = CLASSES) -> keras.Model:
    return keras.Sequential(
        [keras.Input(IMAGE_SHAPE), keras.layers.Flatten(), keras.layers.Dense(classes, activation)], name=activation
    )


def test_a_stand_in_of_probabilities_is_refused_where_logits_are_compared() -> None:
    with pytest.raises(ValueError, match=r"compares logits. Received: a teacher 'teacher' that ends in a softmax"):
        Distiller(stand_in(gives_probabilities=True), small_network(), [Term(KD())])


def test_an_average_of_probabilities_is_one() -> None:
    image = keras.Input(IMAGE_SHAPE)
    ensemble = keras.Model(image, keras.layers.Average()([ending("softmax")(image), ending("sigmoid")(image)]))
    with pytest.raises(ValueError, match=r"compares logits. Received: a teacher"):
        Distiller(ensemble, ending(None), [Term(KD())])
    logits = keras.Model(image, keras.layers.Average()([ending("softmax")(image), ending(None)(image)]))
    Distiller(logits, ending(None), [Term(KD())])


def test_a_loss_of_keras_gets_the_same_of_both() -> None:
    loss = keras.losses.MeanSquaredError()
    message = r"outputs, so both must be logits or both probabilities. Received: {} of the teacher '\w+' and {} of"
    with pytest.raises(ValueError, match=message.format("probabilities", "logits")):
        Distiller(ending("softmax"), small_network(), [Term(loss)])
    with pytest.raises(ValueError, match=message.format("logits", "probabilities")):
        Distiller(small_network(), ending("softmax"), [Term(loss)])
    Distiller(ending("softmax"), ending("softmax"), [Term(keras.losses.KLDivergence())])
    with pytest.raises(ValueError, match=r"compares outputs, so teacher and student must have the same number of"):
        Distiller(small_network(), ending(None, classes=1), [Term(loss)])


def test_a_layer_that_gives_probabilities_is_told_how_to_give_logits() -> None:
    teacher = ending("softmax")
    name = teacher.layers[-1].name
    with pytest.raises(ValueError, match=rf"Set the `activation` of its layer '{name}' to keras.activations.linear"):
        Distiller(teacher, ending(None), [Term(KD())])
    teacher.layers[-1].activation = keras.activations.linear
    Distiller(teacher, ending(None), [Term(KD())])
    apart = keras.Sequential([keras.Input(IMAGE_SHAPE), *ending(None).layers, keras.layers.Softmax()])
    with pytest.raises(ValueError, match=r"Remove that activation, or name the layer before it: teacher="):
        Distiller(apart, ending(None), [Term(KD())])


@pytest.mark.parametrize("loss", [KD(), losses.DIST(), losses.DecoupledDistillation()])
def test_one_output_has_no_probabilities_to_compare(loss: Any) -> None:
    with pytest.raises(ValueError, match=r"the probabilities of classes and needs at least 2. Received: outputs of 1"):
        Distiller(ending(None, classes=1), ending(None, classes=1), [Term(loss)])


KL, CE = keras.losses.KLDivergence, keras.losses.CategoricalCrossentropy


@pytest.mark.parametrize(
    ("loss", "teacher", "student", "refused"),
    [
        (KL(), "softmax", "softmax", None),
        (
            KL(),
            None,
            "softmax",
            "takes probabilities of the teacher. Received: logits of .* Use spkd_keras",
        ),
        (KL(), "softmax", None, "takes probabilities of the student. Received: logits of"),
        (CE(), "softmax", "softmax", None),
        (CE(), "softmax", None, "takes probabilities of the student. Received: logits of"),
        (CE(from_logits=True), "softmax", None, None),
        (CE(from_logits=True), None, None, "takes probabilities of the teacher. Received: logits of"),
        (
            CE(from_logits=True),
            "softmax",
            "softmax",
            "takes logits of the student. Received: probabilities of .* Set",
        ),
    ],
)
def test_keras_losses_on_classes_get_what_they_take(loss: Any, teacher: Any, student: Any, refused: str | None) -> None:
    if refused is None:
        Distiller(ending(teacher), ending(student), [Term(loss)])
        return
    with pytest.raises(ValueError, match=refused):
        Distiller(ending(teacher), ending(student), [Term(loss)])


class Shares(keras.layers.Layer):
    """A softmax that nobody can see from outside."""

    def call(self, x: Any) -> Any:
        return keras.ops.softmax(x)


class SoftKL(keras.losses.KLDivergence):
    """Does its own softmax."""

    def call(self, teacher: Any, student: Any) -> Any:
        return super().call(keras.ops.softmax(teacher), keras.ops.softmax(student))


class Plain(losses.DistillationLoss):
    """Compares two outputs, whatever they are."""

    def call(self, teacher: Any, student: Any) -> Any:
        return keras.ops.mean(keras.ops.abs(teacher - student), axis=-1)


class OwnCrossentropy(keras.losses.CategoricalCrossentropy):
    """Has a configuration of its own."""

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def test_what_is_not_known_is_not_refused() -> None:
    hidden = keras.Sequential([keras.Input(IMAGE_SHAPE), keras.layers.Flatten(), keras.layers.Dense(CLASSES), Shares()])
    squares = Term(keras.losses.MeanSquaredError(), adapter=keras.layers.Dense(7))
    models = [
        Distiller(ending("softmax"), hidden, [Term(KL())], student_loss_weight=0),
        Distiller(ending("softmax"), ending(None), [Term(KL(), adapter=keras.layers.Softmax())], student_loss_weight=0),
        Distiller(ending(None, 7), ending(None, 3), [squares], student_loss_weight=0),
        Distiller(ending(None), ending(None), [Term(SoftKL())], student_loss_weight=0),
        Distiller(ending(None, 1), ending(None, 1), [Term(Plain())], student_loss_weight=0),
        Distiller(ending("sigmoid"), ending("sigmoid"), [Term(Plain())], student_loss_weight=0),
    ]
    for model in models:
        model.compile("sgd")
        (value,) = model.fit(images(4)[0] / np.float32(255), verbose=0).history[model.terms[0].name]
        assert value > 0
    models[3].compile("sgd", OwnCrossentropy())  # of which it is not known whether it takes logits
    assert models[3].compiled


@pytest.mark.parametrize("loss", ["sparse_categorical_crossentropy", keras.losses.SparseCategoricalCrossentropy()])
def test_a_loss_on_the_labels_that_takes_probabilities_is_told_of(loss: Any) -> None:
    model = Distiller(small_network(8), small_network(), [Term(SP())])
    with pytest.warns(UserWarning, match=r"gives logits, and its loss on the labels takes probabilities"):
        model.compile("sgd", loss)
    Distiller(None, ending("softmax")).compile("sgd", loss)


def test_networks_of_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a teacher 'big' for images of shape \(16, 16, 1\) and a student"):
        Distiller(keras.Sequential([keras.Input((16, 16, 1)), keras.layers.Flatten()], name="big"), small_network(), [])


def test_networks_of_any_size_teach_and_learn() -> None:
    def open_sized() -> keras.Model:
        inner = [keras.layers.Conv2D(4, 3, name="stage1"), keras.layers.GlobalAveragePooling2D()]
        return keras.Sequential([keras.Input((None, None, IMAGE_SHAPE[-1])), *inner, keras.layers.Dense(CLASSES)])

    for teacher, student in ((open_sized(), small_network()), (small_network(), open_sized())):
        model = distiller(teacher, student, [Term(SP()), Term(KD())])
        assert np.isfinite(model.fit(*images(8), verbose=0).history["loss"]).all()


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_network_that_prepares_its_own_images_is_told_of(role: str, recwarn: pytest.WarningsRecorder) -> None:
    networks = {"teacher": small_network(8), "student": small_network(name="prepared")}
    networks[role].preprocessor = keras.layers.Rescaling(1 / 255)
    with pytest.warns(UserWarning, match=rf"The {role} '.*' has a `preprocessor`") as caught:
        model = Distiller(**networks, terms=[Term(SP())])
    assert caught[0].filename == __file__
    networks[role].preprocessor = None
    recwarn.clear()
    Distiller(**networks, terms=[Term(SP())])
    model.teacher = networks["teacher"]
    assert not [warning for warning in recwarn.list if "preprocessor" in str(warning.message)]


@pytest.mark.parametrize(
    ("labels", "loss", "message"),
    [
        (np.eye(CLASSES)[[0, 1, 2, 3]], cross_entropy(), "do not fit the compiled loss. Integers of shape"),
        (np.arange(4), keras.losses.CategoricalCrossentropy(from_logits=True), "do not fit the compiled loss"),
        (np.array(list("abcd")), cross_entropy(), r"Labels must be numbers: .* Received: text\."),
    ],
)
def test_labels_that_do_not_fit_the_loss_are_told_in_one_line(labels: Any, loss: Any, message: str) -> None:
    model = distiller(small_network(8), small_network(), [Term(SP())], {"loss": loss})
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match=message):
            call(images(4)[0], labels, verbose=0)


class OfShares(losses.DistillationLoss):
    """Takes labels as shares of classes alone."""

    needs_labels = True

    def call(self, target: Any, student: Any) -> Any:
        teacher, shares = target
        return keras.ops.sum(shares * keras.ops.square(teacher - student), axis=-1)


class Unfinished(losses.DistillationLoss):
    """Forgets to return something."""

    def call(self, teacher: Any, student: Any) -> Any:
        """Does nothing."""


def test_a_loss_of_ones_own_may_take_one_hot_labels() -> None:
    x, y = images(8)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model = distiller(small_network(8), small_network(), [Term(OfShares())], {"loss": loss})
    assert np.isfinite(model.fit(x, np.eye(CLASSES)[y], verbose=0).history["of_shares"]).all()


def test_what_is_wrong_with_a_loss_of_ones_own_is_told_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"The term 'unfinished' cannot compare") as caught:
        Distiller(small_network(8), small_network(), [Term(Unfinished())])
    assert "Name other layers" not in str(caught.value)

    class Between(losses.DistillationLoss):
        def call(self, teacher: Any, student: Any) -> Any:
            return keras.ops.mean(teacher - student, axis=(1, 2, 3))

        default_tap = "last_stage"

    with pytest.raises(ValueError, match=r"Incompatible shapes.*Name other layers") as caught:
        Distiller(small_network(8), small_network(3), [Term(Between())])
    assert "function_node" not in str(caught.value)
    Between.default_tap = "last_stag"  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"`default_tap` of a loss must be one of .* Received: 'last_stag' of Between"):
        Term(Between())
