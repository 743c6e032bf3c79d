"""`precision` in an experiment, and what a half-precision teacher costs in accuracy of the loss."""

import keras
import numpy as np
import pytest
from tiny_experiment import tiny

from spkd_keras import data, losses, models
from spkd_keras.distiller import taps
from spkd_keras.experiment import ExperimentError
from spkd_keras.losses import similarity_matrix
from spkd_keras.training import build, run_experiment


def dtypes(network):
    """Of computation, by the names of the layers with weights."""
    return {layer.name: layer.compute_dtype for layer in network.layers if layer.weights}


@pytest.mark.parametrize(
    ("overrides", "student", "teacher"),
    [
        ([], "float32", None),
        (["precision=mixed_bfloat16"], "bfloat16", "bfloat16"),
        (["precision=mixed_float16", "teacher.dtype=float32"], "float16", "float32"),
        (["teacher.dtype=bfloat16"], "float32", "bfloat16"),
    ],
)
def test_one_choice_for_both_networks(overrides, student, teacher, tmp_path):
    experiment = tiny(tmp_path, *overrides)
    splits = build.load_data(experiment.data)
    keras.utils.set_random_seed(0)
    network = build.build_student(experiment, splits.train)
    computed = dtypes(network)
    assert computed.pop("logits") == "float32"
    assert set(computed.values()) == {student}
    assert network.get_layer("preprocessing").compute_dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"
    keras.utils.set_random_seed(0)
    plain = build.build_student(tiny(tmp_path), splits.train)
    for one, other in zip(network.weights, plain.weights, strict=True):
        assert one.dtype == "float32"
        np.testing.assert_array_equal(one, other)
    teacher_network = build.build_network(experiment.teacher, splits.train, "teacher")
    distiller = build.build_distiller(teacher_network, network, experiment, "sp")
    assert distiller.teacher_dtype == teacher
    assert isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer) == (student == "float16")
    (tap,) = distiller._wiring.run_teacher(splits.train.pixels[:2])
    assert tap.dtype == (teacher or "float32")


@pytest.mark.parametrize("text", ["precision=bfloat16", "teacher.dtype=mixed_bfloat16"])
def test_an_unknown_precision_is_refused(text, tmp_path):
    with pytest.raises(ExperimentError, match=text.split("=")[0]):
        tiny(tmp_path, text)


def test_the_teacher_is_trained_in_the_precision_too(tmp_path):
    training = tiny(tmp_path, "precision=mixed_bfloat16").teacher_training()
    assert (training.precision, training.teacher_dtype) == ("mixed_bfloat16", "bfloat16")


@pytest.mark.slow
def test_a_run_in_bfloat16(tmp_path):
    """Its student computes in it, also when loaded, and nothing of the process has changed."""
    experiment = tiny(tmp_path, "precision=mixed_bfloat16", "schedule.epochs=1").select(["sp"])
    root = run_experiment(experiment, tmp_path / "runs")
    student = keras.saving.load_model(root / "sp-seed0" / "student.keras")
    assert set(dtypes(student).values()) == {"bfloat16", "float32"}
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_similarities_of_a_bfloat16_teacher_are_within_a_hundredth():
    """On a trained pair: the loss between student and teacher hardly moves, as the two teachers hardly differ."""
    train = data.load("digits").train
    networks = [models.wide_resnet(10, width, image_shape=(8, 8, 1)) for width in (1, 0.5)]
    for network in networks:
        network.compile(
            keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        network.fit(train.pixels, train.labels, batch_size=64, epochs=4, verbose=0)
    teacher, student = networks
    x = train.pixels[:128]

    def stage(network):
        return taps.tapped(network, [taps.Tap("stage3")])(x, training=False)["taps"][0]

    loss = losses.SimilarityPreserving()
    half = models.in_precision(teacher, "bfloat16")
    exact, rounded = (float(loss(stage(each), stage(student))) for each in (teacher, half))
    between = float(loss(stage(teacher), stage(half)))
    assert exact > 1e-4
    assert rounded == pytest.approx(exact, rel=0.01)
    assert 0 < between < 0.01 * exact
    assert similarity_matrix(stage(half)).dtype == "float32"


def test_the_optimizer_is_that_of_the_schedule(tmp_path):
    def optimizer(*overrides):
        experiment = tiny(tmp_path, *overrides)
        student = build.build_student(experiment, build.load_data(experiment.data).train)
        return build.build_distiller(None, student, experiment, "student").optimizer

    found = optimizer("schedule={momentum: 0.5, weight_decay: 0.01, ema: 0.8}")
    assert (found.momentum, found.nesterov, found.weight_decay) == (0.5, True, 0.01)
    assert (found.use_ema, found.ema_momentum) == (True, 0.8)
    assert (optimizer("schedule.momentum=0.0").nesterov, optimizer().use_ema) == (False, False)
