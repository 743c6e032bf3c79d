"""What `fit` and `evaluate` of a Distiller do, seen on real calls."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import CLASSES, Counter, NeedsAdapter, assert_same_weights, cross_entropy, images, small_network, weights

from spkd_keras import Distiller, Term, losses, models, optimizers

SP = losses.SimilarityPreserving
KD = losses.SoftTargets


def distiller(
    teacher: keras.Model, student: keras.Model, terms: Any, compiled: dict[str, Any] | None = None, **kwargs: Any
) -> Distiller:
    model = Distiller(teacher, student, terms, **kwargs)
    settings = {"optimizer": optimizers.CoupledSGD(0.1, weight_decay=5e-4), "loss": cross_entropy()}
    model.compile(**{**settings, **(compiled or {})})
    return model


def similarity(teacher: Any, student: Any) -> float:
    """The paper's formula in float64, row by row."""
    matrices = []
    for activations in (teacher, student):
        features = np.asarray(activations, "float64").reshape(len(activations), -1)
        gram = features @ features.T
        matrices.append(np.stack([row / np.linalg.norm(row) for row in gram]))
    return float(((matrices[0] - matrices[1]) ** 2).sum() / len(teacher) ** 2)


@pytest.mark.parametrize("mode", [{}, {"run_eagerly": True}, {"steps_per_execution": 2}])
def test_each_network_runs_once_a_step(mode: dict[str, Any]) -> None:
    in_teacher, in_student = Counter(), Counter()
    teacher, student = small_network(8, before=[in_teacher]), small_network(before=[in_student])
    # Three terms at two taps and the logits still need one pass.
    terms = [Term(SP()), Term(SP(), teacher="stage1", student="stage1"), Term(KD())]
    model = distiller(teacher, student, terms, mode)
    x, y = images(20)
    before = in_teacher.passes.numpy(), in_student.passes.numpy()
    model.fit(x, y, batch_size=5, epochs=2, verbose=0)
    assert (in_teacher.passes.numpy() - before[0], in_student.passes.numpy() - before[1]) == (8, 8)
    model.evaluate(x, y, batch_size=5, verbose=0)
    assert (in_teacher.passes.numpy() - before[0], in_student.passes.numpy() - before[1]) == (8, 12)
    model.predict(x, batch_size=5, verbose=0)
    assert (in_teacher.passes.numpy() - before[0], in_student.passes.numpy() - before[1]) == (8, 16)


def test_evaluate_runs_the_teacher_only_when_asked() -> None:
    in_teacher = Counter()
    model = distiller(small_network(before=[in_teacher]), small_network(), [Term(SP())], evaluate_terms=True)
    x, y = images(20)
    before = in_teacher.passes.numpy()
    logs = model.evaluate(x, y, batch_size=5, verbose=0, return_dict=True)
    assert in_teacher.passes.numpy() - before == 4
    assert set(logs) == {"loss", "student_loss", "similarity_preserving"}


def test_without_terms_the_teacher_never_runs() -> None:
    in_teacher = Counter()
    model = distiller(small_network(before=[in_teacher]), small_network(), [])
    before = in_teacher.passes.numpy()
    model.fit(*images(), verbose=0)
    assert in_teacher.passes.numpy() == before


@pytest.mark.parametrize(
    ("compiled", "fitted", "tolerance"),
    [
        ({}, {}, 0.0),
        ({"run_eagerly": True}, {}, 0.0),
        ({"steps_per_execution": 4}, {}, 0.0),
        pytest.param({"jit_compile": True}, {}, 1e-6, marks=pytest.mark.slow),
        ({}, {"sample_weight": np.linspace(0, 2, 20)}, 0.0),
        ({}, {"class_weight": {0: 1.0, 1: 0.5, 2: 2.0, 3: 0.0}}, 0.0),
        ({"optimizer": "gradient_accumulation"}, {}, 0.0),
        ({"optimizer": "moving_average"}, {}, 0.0),
        ({"metrics": "by name"}, {}, 0.0),
    ],
    ids=["graph", "eager", "steps", "jit", "sample_weight", "class_weight", "accumulation", "ema", "dict_metrics"],
)
def test_terms_of_weight_zero_are_plain_training(
    compiled: dict[str, Any], fitted: dict[str, Any], tolerance: float
) -> None:
    """With regularisers, dropout and BatchNormalization: the student moves exactly as without us."""
    x, y = images(20)
    targets = keras.utils.to_categorical(y, CLASSES) if "metrics" in compiled else y

    def settings() -> dict[str, Any]:
        kinds: dict[str, dict[str, Any]] = {
            "gradient_accumulation": {"gradient_accumulation_steps": 2},
            "moving_average": {"use_ema": True, "ema_overwrite_frequency": 2},
        }
        options = kinds.get(compiled.get("optimizer", ""), {})
        optimizer = optimizers.CoupledSGD(0.1, nesterov=True, weight_decay=5e-4, **options)
        changes: dict[str, Any] = {"optimizer": optimizer, "loss": cross_entropy()}
        if "metrics" in compiled:
            changes["loss"] = {"logits": keras.losses.CategoricalCrossentropy(from_logits=True)}
            changes["metrics"] = {"logits": ["accuracy", keras.metrics.F1Score(name="f1")]}
        return {**compiled, **changes}

    def build() -> keras.Model:
        keras.utils.set_random_seed(1)
        return small_network(dropout=0.3, regularizer="l2")

    plain, student, baseline = build(), build(), build()
    teacher = small_network(8)
    histories = []
    terms = [Term(SP(), weight=0.0), Term(KD(), weight=0.0)]
    for model in (plain, Distiller(teacher, student, terms), Distiller(None, baseline)):
        model.compile(**settings())
        history = model.fit(x, targets, batch_size=5, epochs=2, verbose=0, shuffle=False, **fitted).history
        histories.append(history)
    for trained in (student, baseline):
        assert_same_weights(plain, trained, tolerance)
    for name, values in histories[0].items():
        np.testing.assert_allclose(histories[1][name], values, rtol=max(tolerance, 1e-7), err_msg=name)
    assert any(np.abs(now - then).max() > 0 for now, then in zip(weights(plain), weights(build()), strict=True))


def test_jit_compiled_terms_train_as_without_jit() -> None:
    x, y = images(20)
    students = []
    for jit in (False, True):
        keras.utils.set_random_seed(1)
        student, teacher = small_network(), small_network(8)
        model = distiller(teacher, student, [Term(SP(), 10.0), Term(KD())], {"jit_compile": jit})
        model.fit(x, y, batch_size=5, verbose=0, shuffle=False)
        students.append(student)
    assert_same_weights(*students, tolerance=1e-5)


def test_evaluate_and_predict_change_nothing_and_are_the_students_own() -> None:
    teacher, student = small_network(8), small_network(dropout=0.5, regularizer="l2")
    metrics = {"metrics": ["accuracy"]}
    model = distiller(teacher, student, [Term(SP(), 3000.0)], metrics, student_loss_weight=0.1)
    x, y = images(20)
    model.fit(x, y, batch_size=5, verbose=0)
    before = weights(model)
    logs = model.evaluate(x, y, batch_size=6, verbose=0, return_dict=True)
    predictions = model.predict(x, verbose=0)
    for old, new in zip(before, weights(model), strict=True):
        np.testing.assert_array_equal(old, new)
    np.testing.assert_array_equal(predictions, student.predict(x, verbose=0))
    student.compile(loss=cross_entropy(), **metrics)
    own = student.evaluate(x, y, batch_size=6, verbose=0, return_dict=True)
    np.testing.assert_allclose([logs["loss"], logs["accuracy"]], [own["loss"], own["accuracy"]], rtol=1e-6)


def test_the_teacher_and_its_trainable_flags_are_left_alone() -> None:
    teacher = small_network(8, dropout=0.5)
    teacher.get_layer("conv1").trainable = False
    flags = {layer.name: layer.trainable for layer in teacher.layers}
    before = weights(teacher)
    model = distiller(teacher, small_network(), [Term(SP(), 3000.0), Term(KD())])
    model.fit(*images(20), batch_size=5, epochs=2, verbose=0)
    for old, new in zip(before, weights(teacher), strict=True):
        np.testing.assert_array_equal(old, new)
    assert {layer.name: layer.trainable for layer in teacher.layers} == flags
    assert model.teacher is teacher
    own = {id(weight) for weight in teacher.weights}
    assert not own & {id(weight) for weight in model.variables}


def test_values_of_terms_and_objective_by_hand() -> None:
    """The teacher in inference mode, the student in training mode; regularisers once."""
    teacher = small_network(8, dropout=0.5)
    teacher.get_layer("bn1").moving_mean.assign(np.linspace(-1, 1, 8))
    student = small_network(regularizer=keras.regularizers.L2(0.01))
    x, y = images(10)
    hidden = [keras.Model(net.input, net.get_layer("stage2").output) for net in (teacher, student)]
    expected_sp = similarity(hidden[0](x, training=False), hidden[1](x, training=True))
    logits = np.asarray(student(x, training=True), "float64")
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected_ce = -np.log(probabilities[np.arange(10), y]).mean()
    expected_l2 = 0.01 * sum((student.get_layer(name).kernel.numpy() ** 2).sum() for name in ("conv1", "conv2"))
    model = distiller(teacher, student, [Term(SP(), 50.0)], student_loss_weight=0.3)
    logs = model.train_on_batch(x, y, return_dict=True)
    assert logs["student_loss"] == pytest.approx(expected_ce, rel=1e-5)
    assert logs["similarity_preserving"] == pytest.approx(expected_sp, rel=1e-4)
    assert logs["loss"] == pytest.approx(0.3 * expected_ce + 50 * expected_sp + expected_l2, rel=1e-5)


def test_logs_are_weighted_by_batch_size() -> None:
    teacher, student = small_network(8), small_network()
    teacher.get_layer("bn1").trainable = False
    student.get_layer("bn1").trainable = student.get_layer("bn2").trainable = False  # so that training is inference
    # Nothing moves, so the epoch's value is that of the batches of 4, 4 and 2, by hand.
    model = distiller(teacher, student, [Term(SP())], {"optimizer": keras.optimizers.SGD(0.0)}, evaluate_terms=True)
    x, y = images(10)
    hidden = [keras.Model(net.input, net.get_layer("stage2").output) for net in (teacher, student)]
    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]
    values = [similarity(*(net(x[part], training=False) for net in hidden)) for part in parts]
    expected = np.average(values, weights=[4, 4, 2])
    history = model.fit(x, y, batch_size=4, verbose=0, shuffle=False).history
    assert history["similarity_preserving"][0] == pytest.approx(expected, rel=1e-4)
    logs = {name: float(value) for name, value in model.evaluate(x, y, 4, 0, return_dict=True).items()}
    assert logs["similarity_preserving"] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["student_loss"] + expected, rel=1e-4)


def test_sample_weights_act_on_the_labels_and_not_on_terms() -> None:
    x, y = images(10)
    logs = []
    for sample_weight in (None, np.linspace(0, 3, 10)):
        keras.utils.set_random_seed(1)
        model = distiller(small_network(8), small_network(), [Term(SP())])
        logs.append(model.train_on_batch(x, y, sample_weight=sample_weight, return_dict=True))
    assert logs[0]["similarity_preserving"] == logs[1]["similarity_preserving"]
    assert logs[0]["student_loss"] != pytest.approx(logs[1]["student_loss"], rel=1e-3)


def test_a_callback_can_switch_a_term_off_during_training() -> None:
    x, y = images(20)

    class SwitchOff(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.term_weights["similarity_preserving"].assign(10.0 if epoch < 1 else 0.0)

    students = []
    for schedule in ("callback", "by hand"):
        keras.utils.set_random_seed(1)
        student, teacher = small_network(), small_network(8)
        model = distiller(teacher, student, [Term(SP(), 10.0)])
        if schedule == "callback":
            model.fit(x, y, batch_size=5, epochs=2, verbose=0, shuffle=False, callbacks=[SwitchOff()])
        else:
            model.fit(x, y, batch_size=5, verbose=0, shuffle=False)
            model.term_weights["similarity_preserving"].assign(0.0)
            model.fit(x, y, batch_size=5, verbose=0, shuffle=False)
        students.append(student)
    assert_same_weights(*students)


def test_unlabelled_images_train_on_the_terms_alone() -> None:
    teacher, student = small_network(8), small_network()
    model = distiller(teacher, student, [Term(SP())], {"loss": None, "metrics": ["accuracy"]}, student_loss_weight=0)
    x, y = images(20)
    before = weights(student)
    head = student.get_layer("logits").kernel.numpy()
    data = tf.data.Dataset.from_tensor_slices(x).batch(5)
    history = model.fit(data, epochs=8, verbose=0, shuffle=False, validation_data=(x, y)).history
    assert history["similarity_preserving"][-1] < history["similarity_preserving"][0]
    assert "val_accuracy" in history
    assert "accuracy" not in history
    assert "student_loss" not in history
    np.testing.assert_array_equal(student.get_layer("logits").kernel.numpy(), head)  # behind the tap
    assert not np.array_equal(before[0], weights(student)[0])


def test_an_adapter_is_trained_with_the_student() -> None:
    teacher, student = small_network(8), small_network(4)
    model = distiller(teacher, student, [Term(NeedsAdapter(), 5.0)])
    adapter = model.adapters["needs_adapter"]
    assert adapter.kernel.shape == (1, 1, 4, 8)
    assert any(adapter.kernel is weight for weight in model.trainable_weights)
    before = adapter.kernel.numpy()
    history = model.fit(*images(20), batch_size=5, epochs=5, verbose=0).history
    assert not np.array_equal(adapter.kernel.numpy(), before)
    assert history["needs_adapter"][-1] < history["needs_adapter"][0]
    assert len(student.weights) == len(small_network(4).weights)


def test_an_adapter_of_the_users_own() -> None:
    adapter = keras.layers.Conv2D(8, 3, padding="same")
    model = distiller(small_network(8), small_network(4), [Term(NeedsAdapter(), adapter=adapter)])
    assert isinstance(model.adapters["needs_adapter"], keras.layers.Conv2D)
    assert model.adapters["needs_adapter"].kernel.shape == (3, 3, 4, 8)
    assert np.isfinite(model.train_on_batch(*images(6))[0])
    assert not adapter.built  # the Distiller has a copy of its own


def test_a_plain_keras_loss_compares_the_logits() -> None:
    teacher, student = small_network(8), small_network()
    model = distiller(teacher, student, [Term(keras.losses.MeanSquaredError(), 2.0)], evaluate_terms=True)
    x, y = images(10)
    logs = model.evaluate(x, y, verbose=0, return_dict=True)
    expected = np.mean((np.asarray(teacher(x)) - np.asarray(student(x))) ** 2)
    assert float(logs["mean_squared_error"]) == pytest.approx(expected, rel=1e-5)


def test_a_loss_over_several_layers_gets_them_paired() -> None:
    class SumOfMeans(losses.DistillationLoss):
        default_tap = "all_stages"
        takes_several_layers = True

        def call(self, y_true: Any, y_pred: Any) -> Any:
            pairs = zip(y_true, y_pred, strict=True)
            return sum(keras.ops.mean(t - 2 * s, axis=(1, 2, 3)) for t, s in pairs)

    teacher, student = small_network(8), small_network(8)
    x, y = images(10)
    for terms in ([Term(SumOfMeans())], [Term(SumOfMeans(), teacher=("stage1", "stage2"))]):
        model = distiller(teacher, student, terms, evaluate_terms=True)
        value = model.evaluate(x, y, verbose=0, return_dict=True)["sum_of_means"]
        taps = [
            [keras.Model(n.input, n.get_layer(s).output)(x) for s in ("stage1", "stage2")] for n in (teacher, student)
        ]
        expected = sum(np.mean(t) - 2 * np.mean(s) for t, s in zip(*taps, strict=True))
        assert float(value) == pytest.approx(expected, rel=1e-4)


def test_teacher_and_student_may_be_normalised_differently() -> None:
    shape = {"image_shape": (8, 8, 1), "num_classes": CLASSES}
    teacher = models.wide_resnet(10, 1, mean=33.3, std=78.6, **shape)
    student = models.wide_resnet(10, 0.5, **shape)
    model = distiller(teacher, student, [Term(SP(), 10.0), Term(KD(), 0.9)], student_loss_weight=0.1)
    history = model.fit(*images(16), batch_size=8, epochs=2, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())


def test_constructing_draws_no_random_numbers() -> None:
    """So that a student built afterwards does not depend on the method."""
    teacher, student = small_network(8), small_network()
    keras.utils.set_random_seed(5)
    expected = small_network()
    keras.utils.set_random_seed(5)
    Distiller(teacher, student, [Term(SP()), Term(KD())])
    assert_same_weights(small_network(), expected)


def test_sample_weights_count_in_evaluate_and_in_weighted_metrics() -> None:
    student, (x, y) = small_network(), images(20)
    nll = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="nll")
    settings = {"weighted_metrics": [nll]}
    model = distiller(small_network(8), student, [Term(SP())], settings)
    weight = {"sample_weight": np.linspace(0, 3, 20), "verbose": 0, "return_dict": True}
    logs = model.evaluate(x, y, **weight)
    student.compile(loss=cross_entropy(), **settings)
    assert logs == pytest.approx(student.evaluate(x, y, **weight), rel=1e-5)
