"""The weight of a term from epoch to epoch: known factors, and what `fit` and a resumed run see."""

import math

import keras
import numpy as np
import pytest
from networks import cross_entropy, images, small_network
from tiny_experiment import Listener, assert_same_run, tiny

from spkd_keras import Distiller, Term, TermWeightSchedule, WeightSchedule, losses
from spkd_keras.experiment import ExperimentError
from spkd_keras.training import run_experiment


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (WeightSchedule(), [1, 1, 1, 1]),
        (WeightSchedule(warm_up=3), [1 / 4, 2 / 4, 3 / 4, 1]),
        (WeightSchedule(until=2), [1, 1, 0, 0]),
        # (1 + cos(0, 45, 90, 135 degrees)) / 2
        (WeightSchedule(decay="cosine"), [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]),
        (WeightSchedule(warm_up=1, decay="cosine", until=3), [0.5, (1 + math.sqrt(0.5)) / 2, 0.5, 0]),
    ],
)
def test_factors_by_hand(schedule, factors):
    assert [schedule.factor(epoch, 4) for epoch in range(4)] == pytest.approx(factors)


@pytest.mark.parametrize("wrong", [{"warm_up": -1}, {"warm_up": 1.5}, {"decay": "linear"}, {"until": 0}])
def test_wrong_schedules(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be .*Received: {name}="):
        WeightSchedule(**wrong)


def test_the_callback_sets_the_weight_of_each_epoch():
    terms = [Term(losses.SimilarityPreserving(), weight=8.0), Term(losses.SoftTargets(), weight=2.0)]
    model = Distiller(small_network(), small_network(), terms)
    model.compile("sgd", cross_entropy())
    seen = []
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append([float(weight) for weight in model.term_weights.values()])
    )
    schedule = TermWeightSchedule({"similarity_preserving": WeightSchedule(warm_up=1, until=3)})
    model.fit(*images(8), batch_size=8, epochs=4, verbose=0, callbacks=[schedule, watch])
    assert seen == [[4.0, 2.0], [8.0, 2.0], [8.0, 2.0], [0.0, 2.0]]
    with pytest.raises(ValueError, match=r"has the terms similarity_preserving, soft_targets\. Received: sp"):
        model.fit(*images(8), verbose=0, callbacks=[TermWeightSchedule({"sp": WeightSchedule()})])


SCHEDULED = (
    "methods={sp: [{loss: similarity_preserving, weight: 100.0, schedule: {until: 1}}]}",
    "teacher.schedule.epochs=1",
)


@pytest.mark.slow
def test_an_experiment_schedules_weights_and_resumes_with_them(tmp_path):
    experiment = tiny(tmp_path, *SCHEDULED)
    whole = run_experiment(experiment, tmp_path / "whole") / "sp-seed0"
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, tmp_path / "parts", Listener(stop_after=1))  # in the teacher
    parts = run_experiment(experiment, tmp_path / "parts") / "sp-seed0"
    assert_same_run(whole, parts)
    constant = run_experiment(tiny(tmp_path, SCHEDULED[0].replace("until: 1", "until: 2")), tmp_path / "other")
    one, other = (
        keras.saving.load_model(run / "student.keras").get_weights() for run in (whole, constant / "sp-seed0")
    )
    assert any(not np.array_equal(left, right) for left, right in zip(one, other, strict=True))


def test_what_is_no_schedule_is_refused_at_once():
    with pytest.raises(ValueError, match=r"must have a WeightSchedule for 'sp'\. Received: \{'warm_up': 3\}"):
        TermWeightSchedule({"sp": {"warm_up": 3}})


def test_a_wrong_schedule_in_an_experiment_is_refused(tmp_path):
    for part, message in [("untill: 1", "unknown key `untill`.*Did you mean `until`"), ("until: 0", "greater than or")]:
        with pytest.raises(ExperimentError, match=message):
            tiny(tmp_path, SCHEDULED[0].replace("until: 1", part))


def test_a_part_of_a_training_has_the_weights_of_the_whole():
    model, seen = Distiller(small_network(), small_network(), [Term(losses.SimilarityPreserving(), 8.0)]), []
    model.compile("sgd", cross_entropy())
    weight = model.term_weights["similarity_preserving"]
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(float(weight)))
    schedule = TermWeightSchedule({"similarity_preserving": WeightSchedule(decay="cosine")}, epochs=4)
    model.fit(*images(8), epochs=2, verbose=0, callbacks=[schedule, watch])
    assert seen == pytest.approx([8.0, 4 * (1 + math.sqrt(0.5))])


def test_whatever_ends_a_fit_the_terms_have_their_own_weights_again():
    class Cancel(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    model = Distiller(small_network(), small_network(), [Term(losses.SimilarityPreserving(), weight=8.0)])
    model.compile("sgd", cross_entropy())
    schedule = TermWeightSchedule({"similarity_preserving": WeightSchedule(warm_up=3)})
    with pytest.raises(KeyboardInterrupt):
        model.fit(*images(8), verbose=0, callbacks=[schedule, Cancel()])
    assert float(model.term_weights["similarity_preserving"]) == 8.0
    # The best weights are put back behind the schedule's end, with the term's weight of that epoch.
    best = keras.callbacks.EarlyStopping("loss", patience=0, restore_best_weights=True, mode="max", start_from_epoch=0)
    model.fit(*images(8), epochs=3, verbose=0, callbacks=[schedule, best])
    assert float(model.term_weights["similarity_preserving"]) == 8.0
