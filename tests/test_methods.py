"""Every method as a list of terms: known by name, trained from YAML, and none of them special to the Distiller."""

from pathlib import Path

import keras
import numpy as np
import pytest
from networks import CLASSES, cross_entropy, images, small_network
from tiny_experiment import summary_of
from typer.testing import CliRunner

from spkd_keras import Distiller, Term, WeightSchedule, losses, models
from spkd_keras.cli import app
from spkd_keras.data import digits
from spkd_keras.experiment import ExperimentError, loss_facts, preset_methods, presets
from spkd_keras.losses import LOSSES
from spkd_keras.training import run_experiment
from spkd_keras.training.build import build_terms

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
DIGITS = """
data: {name: digits, batch_size: 64, train_fraction: 0.2, validation: 0}
teacher: {model: wide_resnet, depth: 16, width: 2, schedule: {epochs: 1}}
student: {model: wide_resnet, depth: 16, width: 1}
schedule: {epochs: 1, learning_rate: 0.01}
"""


def distiller(loss, width=8, **arguments):
    return Distiller(small_network(width), small_network(4), [Term(loss, **arguments)], student_loss_weight=0.0)


def test_every_loss_is_known_by_its_name_and_explained():
    assert list(loss_facts()) == list(LOSSES)
    for name, facts in loss_facts().items():
        assert set(facts) == {"formula", "weight", "across", "cost", "reference"}, name
        assert LOSSES[name]().name == name


KD = ("soft_targets", 0.9, {"temperature": 4.0})
AT, SP = ("attention_transfer", 1000.0, {}), ("similarity_preserving", 3000.0, {})
# What the papers or the code that peers compare with have: the weight of the labels, and loss, weight and arguments of
# each term.
PUBLISHED = {
    "student": (1.0, []),
    "kd": (0.1, [KD]),
    "kd-standardized": (0.1, [("soft_targets", 9.0, {"temperature": 2.0, "standardize": True})]),
    "dkd": (1.0, [("decoupled_distillation", 1.0, {"alpha": 1.0, "beta": 8.0, "temperature": 4.0})]),
    "dist": (1.0, [("dist", 1.0, {"beta": 2.0, "gamma": 2.0, "temperature": 4.0})]),
    "logits-mse": (1.0, [("mean_squared_error", 1.0, {})]),
    "at": (1.0, [AT]),
    "sp": (1.0, [SP]),
    "kd+sp": (0.1, [KD, SP]),
    "at+sp": (1.0, [AT, SP]),
    "kd+at": (0.1, [KD, AT]),
    "kd+at+sp": (0.1, [KD, AT, SP]),
    "nst": (1.0, [("neuron_selectivity", 50.0, {})]),
    "ickd": (1.0, [("inter_channel_correlation", 2.5, {})]),
    "rkd": (1.0, [("relational_distance", 25.0, {}), ("relational_angle", 50.0, {})]),
    "pkt": (1.0, [("pkt", 30000.0, {})]),
    "fitnet": (1.0, [("hint", 100.0, {})]),
    "vid": (1.0, [("variational_information", 1.0, {})]),
    "projection": (1.0, [("projection", 25.0, {})]),
}


@pytest.mark.parametrize("name", presets())
def test_a_published_method_is_what_was_published(name):
    method = preset_methods()[name]
    labels, terms = PUBLISHED[name]
    assert method.student_loss_weight == labels
    assert [(term.loss, term.weight, term.arguments) for term in method.terms] == terms
    assert all(term.teacher is term.student is None for term in method.terms)
    assert [term.schedule.warm_up for term in method.terms] == [19 if name == "dkd" else 0] * len(terms)


def test_all_published_methods_are_there_and_counted():
    assert list(presets()) == list(PUBLISHED)
    assert f"each of the {len(PUBLISHED)} published methods" in README


def test_the_weight_of_dkd_rises_as_its_authors_have_it():
    """As min(epoch / 20, 1), epochs counted from 1."""
    (term,) = preset_methods()["dkd"].terms
    schedule = WeightSchedule(**term.schedule.model_dump())
    assert [schedule.factor(epoch, 240) for epoch in range(30)] == [min((epoch + 1) / 20, 1.0) for epoch in range(30)]


def test_what_published_methods_minimise_is_told():
    told = " ".join(CliRunner().invoke(app, ["methods"]).stdout.split())
    for line in (
        "student: student_loss kd: 0.1 student_loss + 0.9 soft_targets (temperature 4)",
        "rkd: student_loss + 25 relational_distance + 50 relational_angle",
        "dist: student_loss + 1 dist (beta 2, gamma 2, temperature 4)",
    ):
        assert line in told
    assert [name for name in presets() if f" {name}: " in told] == list(presets())


def test_where_each_loss_looks_when_no_layer_is_named():
    embedding = {"relational_distance", "relational_angle", "pkt", "correlation_congruence", "projection"}
    last = {"similarity_preserving", "inter_channel_correlation", "hint", "variational_information"}
    taps = dict.fromkeys(embedding, "embedding") | dict.fromkeys(last, "last_stage")
    taps |= dict.fromkeys(["attention_transfer", "neuron_selectivity"], "all_stages")
    for name, kind in LOSSES.items():
        assert Term(kind()).default_tap == taps.get(name, "logits"), name


def test_every_published_method_is_made_of_known_losses(load):
    experiment = load(DIGITS + f"methods: [{', '.join(presets())}]")
    assert list(experiment.methods) == list(presets())
    used = {term.loss for method in experiment.methods.values() for term in method.terms}
    assert used == set(LOSSES) - {"correlation_congruence"}  # of which no published weight is known


def test_an_unknown_key_of_a_term_is_answered_with_each_valid_one_once(load):
    experiment = load(DIGITS + "methods: {mine: [{loss: hint, adapter: conv}]}")
    with pytest.raises(ExperimentError, match="unknown key `adapter`") as caught:
        build_terms(experiment, "mine")
    valid = str(caught.value).partition("Valid: ")[2].rstrip(".").split(", ")
    assert len(valid) == len(set(valid))
    assert {"reduction", "name", "weight", "teacher"} <= set(valid)


def test_a_preset_is_named_in_a_list_or_under_another_name_and_changed_from_outside(load):
    named = load(DIGITS + "methods: {student: [], mine: at+sp}", "methods.mine.terms.1.weight=7.0")
    assert [term.weight for term in named.methods["mine"].terms] == [1000.0, 7.0]
    assert presets()["at+sp"][1]["weight"] == 3000.0
    with pytest.raises(ExperimentError, match=r"unknown method `sq`\. Did you mean `sp`\?"):
        load(DIGITS + "methods: [student, sq]")
    with pytest.raises(ExperimentError, match=r"must have names of .*methods"):
        load(DIGITS + "methods: [[student]]")
    assert load(DIGITS + "methods: {student: , sp: sp}").methods["student"].terms == []
    with pytest.raises(
        ExperimentError, match=r"^methods\.sp: it must have terms, .* Received: nothing\. Write `sp: sp` "
    ):
        load(DIGITS + "methods: {student: , sp: }")  # would be the student alone under another name


@pytest.mark.slow
def test_every_published_method_runs(load, tmp_path):
    root = run_experiment(load(DIGITS + f"methods: [{', '.join(presets())}]"), tmp_path)
    for name in presets():
        assert 0 <= summary_of(root / f"{name}-seed0")["test_error"] <= 1
        student = keras.saving.load_model(root / f"{name}-seed0" / "student.keras")
        assert student.count_params() == models.wide_resnet(16, 1, image_shape=(8, 8, 1)).count_params()


def of_all_losses(**arguments):
    """One Distiller of every loss."""
    model = Distiller(small_network(8), small_network(4), [Term(kind()) for kind in LOSSES.values()], 0.0)
    model.compile("sgd", cross_entropy(), **arguments)
    return model


def distilled_digits(name, rate, **arguments):
    """A WideResNet-16-1 to train from a WideResNet-16-2 by one loss alone."""
    teacher = models.wide_resnet(16, 2, image_shape=(8, 8, 1))
    student = models.wide_resnet(16, 1, image_shape=(8, 8, 1))
    # Of a variance of 5, the default, the logarithm is most of the value and does not fall.
    arguments_of = {"variational_information": {"initial_variance": 1.0}}
    loss = LOSSES[name](**arguments_of.get(name, {}))
    model = Distiller(teacher, student, [Term(loss)], student_loss_weight=0.0)
    model.compile(keras.optimizers.Adam(rate), cross_entropy(), **arguments)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_term_falls_on_a_fixed_batch(name):
    train, _ = digits()
    model = distilled_digits(name, rate=0.01)
    history = model.fit(train.pixels[:32], train.labels[:32], batch_size=32, epochs=20, shuffle=False, verbose=0)
    values = history.history[name]
    assert values[-1] < values[0] - 0.1 * abs(values[0])


@pytest.mark.parametrize(
    ("policy", "arguments"), [("mixed_float16", {}), ("mixed_bfloat16", {}), ("float32", {"run_eagerly": True})]
)
def test_every_loss_in_mixed_precision_and_eagerly(policy, arguments):
    keras.config.set_dtype_policy(policy)
    model = of_all_losses(**arguments)
    history = model.fit(*images(16), batch_size=8, verbose=0).history
    assert set(LOSSES) < set(history)
    assert all(np.isfinite(values).all() for values in history.values())
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


@pytest.mark.slow
def test_files_keep_every_loss_and_its_adapter(tmp_path):
    model, (x, y) = of_all_losses(), images(16)
    model.fit(x, y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.teacher = model.teacher
    one, other = (each.fit(x, y, batch_size=8, verbose=0, shuffle=False).history for each in (model, loaded))
    assert one == other


@pytest.mark.parametrize(
    ("loss", "layers"),
    [
        (losses.Hint(), {"teacher": "stage1", "student": "stage2"}),
        (losses.VariationalInformation(), {"teacher": "stage1", "student": "stage2"}),
    ],
)
def test_what_does_not_fit_is_told_with_what_to_do(loss, layers):
    with pytest.raises(ValueError, match=r"(?s)(positions|multiple).*(adapter|layers)"):
        distiller(loss, **layers)


def test_adapters_are_where_channels_differ():
    assert not distiller(losses.Hint(), width=4).adapters
    assert list(distiller(losses.Hint()).adapters) == ["hint"]
    head = distiller(losses.VariationalInformation()).adapters["variational_information"]
    assert isinstance(head, losses.VariationalHead)
    # softplus(scale) + epsilon = 5 at the beginning.
    np.testing.assert_allclose(head(np.zeros((1, 4, 4, 4), "float32"))[..., 8:], 5.0, rtol=1e-6)
    assert head(np.zeros((1, 8, 8, 4), "float32")).shape == (1, 4, 4, 16)


def test_the_embedding_is_what_goes_into_the_classifier():
    teacher, student = small_network(8), small_network(4)
    model = Distiller(teacher, student, [Term(losses.RelationalDistance())])
    x, y = images(8)
    model.compile("sgd", cross_entropy())
    embedding = [keras.Model(net.input, net.get_layer("pooling").output)(x) for net in (teacher, student)]
    expected = float(losses.RelationalDistance()(*embedding))
    # Training mode changes the student's BatchNormalization, so it is compared in evaluation.
    model.evaluate_terms = True
    assert model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)["relational_distance"] == pytest.approx(
        expected, rel=1e-5
    )
    no_dense = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(CLASSES, 8), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="has no dense layer, where this loss looks by default"):
        Distiller(no_dense, student, [Term(losses.RelationalDistance())])


def test_a_loss_that_needs_labels_gets_them():
    model = distiller(losses.DecoupledDistillation())
    x, y = images(8)
    model.compile("sgd", cross_entropy())
    model.evaluate_terms = True
    logits = model.teacher(x), model.student(x)
    value = model.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)["decoupled_distillation"]
    expected = float(np.mean(losses.decoupled_distillation(*logits, y)))
    assert value == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(
        float(np.mean(losses.decoupled_distillation(*logits, (y + 1) % CLASSES))), rel=1e-3
    )
    with pytest.raises(ValueError, match="The term 'decoupled_distillation' needs labels y"):
        model.fit(x, batch_size=8, verbose=0)
