"""An experiment in which something varies as a hypermodel: what of a point is declared, built and trained."""

import h5py
import keras_tuner
import numpy as np
import pytest
from networks import assert_same_weights
from test_search import SHORT, SLOW, point
from tiny_experiment import TINY, Listener, history_of, summary_of
from tiny_search import GAMMA, WEIGHT, outcomes, tiny_search, tiny_space

from spkd_keras.experiment import load_search
from spkd_keras.search import DistillationHyperModel, TrialResult, confirmation
from spkd_keras.search.results import best_experiment
from spkd_keras.training import run_experiment


def largest_checkpoint(distiller):
    return sum(variable.value.numpy().size for variable in [*distiller.variables, *distiller.optimizer.variables])


def numbers_in(file):
    """How many numbers an HDF5 file holds."""
    sizes = []
    with h5py.File(file) as opened:
        opened.visititems(lambda _, item: sizes.append(item.size) if isinstance(item, h5py.Dataset) else None)
    return sum(sizes)


def test_build_gives_a_compiled_distiller(tmp_path):
    taps = "methods.sp.terms.0.student={choice: [stage2, [stage3], null], default: null}"
    rate = "schedule.learning_rate={float: [0.01, 1], log: true}"
    hypermodel = DistillationHyperModel(*tiny_space(tmp_path, GAMMA, taps, rate), tmp_path / "runs")
    first = hypermodel.build(point(hypermodel))
    changed = {WEIGHT: 7.0, "schedule.learning_rate": 0.5, "methods.sp.terms.0.student": "stage2"}
    other = hypermodel.build(point(hypermodel, **changed))
    assert [float(d.term_weights["similarity_preserving"].numpy()) for d in (first, other)] == [3000.0, 7.0]
    assert [d.terms[0].student for d in (first, other)] == [None, "stage2"]
    assert [float(d.optimizer.learning_rate.numpy()) for d in (first, other)] == pytest.approx([0.1, 0.5])
    assert_same_weights(first.student, other.student)  # both from the experiment's first seed
    assert first.teacher is other.teacher is hypermodel.teacher
    first.save_weights(tmp_path / "checkpoint.weights.h5")
    assert numbers_in(tmp_path / "checkpoint.weights.h5") <= largest_checkpoint(first)
    assert largest_checkpoint(first) < 2.5 * first.student.count_params() < hypermodel.teacher.count_params()


@SLOW
def test_fit_of_the_hypermodel_is_the_training_of_a_run(tmp_path):
    """On the held-out images, and with the drop of the rate behind the first epoch."""
    hypermodel = DistillationHyperModel(*tiny_space(tmp_path, GAMMA), tmp_path / "runs")
    hp = point(hypermodel)
    found = hypermodel.fit(hp, hypermodel.build(hp)).history
    rows = history_of(run_experiment(hypermodel.point(hp), tmp_path / "alone") / "sp-seed0")
    for key in ("loss", "val_loss"):
        assert found[key] == pytest.approx([row[key] for row in rows], rel=1e-4)


@SLOW
def test_a_search_ranks_by_the_averaged_weights_that_it_delivers(tmp_path):
    search = tiny_search(tmp_path, GAMMA, SHORT, "schedule.ema=0.9", trials=1)
    (trial,) = search.run().trials
    alone = run_experiment(search.hypermodel.point(point(search.hypermodel)), tmp_path / "alone") / "sp-seed0"
    assert trial.error == summary_of(alone)["validation_error"]
    epoch = history_of(search.folder / "trials" / "trial_0")[-1]
    assert outcomes(search)["trial_0"]["val_loss"] != epoch["val_loss"]


def test_a_search_over_the_student_alone_names_no_file_that_nobody_trains(tmp_path, monkeypatch):
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    rate = "schedule.learning_rate={float: [0.01, 1], log: true}"
    hypermodel = DistillationHyperModel(*load_search(file, [rate], ["student"]), tmp_path / "runs")
    assert best_experiment(hypermodel, {"schedule.learning_rate": 0.5}, [0]).teacher.path is None
    asked = []
    monkeypatch.setattr(confirmation, "run_experiment", lambda experiment, *_: asked.append(experiment.teacher.path))
    monkeypatch.setattr(confirmation, "_runs", lambda *_: {})
    best = TrialResult("trial 2", {"schedule.learning_rate": 0.5}, "COMPLETED", 0.5, 0.5, 2, 1, None)
    confirmation.confirm(hypermodel, [best], [0, 1], tmp_path, Listener())
    assert asked == [None, None]


def test_what_varies_is_declared_as_it_stands_in_the_file(tmp_path):
    weight = f"{WEIGHT}={{float: [1, 10000], log: true}}"
    depth = "student.depth={int: [10, 22], step: 6}"
    hypermodel = DistillationHyperModel(*tiny_space(tmp_path, weight, depth, methods=("kd", "sp")), tmp_path / "runs")
    hp = point(hypermodel)
    declared = {one.name: one for one in hp.space}
    assert (declared[WEIGHT].sampling, declared["student.depth"].values) == ("log", [10, 16, 22])
    assert not hp.is_active(declared[WEIGHT])  # kd is the first
    other = hypermodel.point(point(hypermodel, methods="sp", **{WEIGHT: 7.0}))
    assert (list(other.methods), other.methods["sp"].terms[0].weight) == (["sp"], 7.0)


@SLOW
def test_any_tuner_of_keras_tuner_takes_the_hypermodel(tmp_path):
    hypermodel = DistillationHyperModel(*tiny_space(tmp_path, GAMMA, "schedule.epochs=3"), tmp_path / "runs")
    tuner = keras_tuner.Hyperband(
        hypermodel, keras_tuner.Objective("val_accuracy", "max"), max_epochs=3, seed=1, directory=str(tmp_path)
    )
    tuner.oracle.max_trials = 4
    tuner.search(verbose=0)
    (last,) = [trial for trial in tuner.oracle.trials.values() if "tuner/trial_id" in trial.hyperparameters.values]
    assert last.status == "COMPLETED", last.message
    earlier = last.hyperparameters.values["tuner/trial_id"]
    file = tuner._get_checkpoint_fname(earlier)
    distiller = tuner._build_hypermodel(last.hyperparameters)
    assert numbers_in(file) <= largest_checkpoint(distiller)
    # What Keras skips where the optimizer is not built: its slots are those that the earlier trial ended with.
    reference = hypermodel.build(last.hyperparameters)
    slots = len(reference.trainable_variables)
    assert not any(np.any(variable.numpy()) for variable in reference.optimizer.variables[-slots:])
    assert all(np.any(variable.numpy()) for variable in distiller.optimizer.variables[-slots:])
    with h5py.File(file) as opened:
        saved = [np.array(item) for _, item in sorted(opened["optimizer/vars"].items(), key=lambda pair: int(pair[0]))]
    for variable, value in zip(distiller.optimizer.variables, saved, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    with pytest.raises(ValueError, match="`search` takes no data"):
        hypermodel.fit(last.hyperparameters, distiller, np.zeros(3))
