"""The hypermodel, its tuners and a search's results, on real trainings of tiny networks."""

import keras
import keras_tuner
import pytest
from networks import assert_same_weights
from sklearn.gaussian_process import GaussianProcessRegressor
from tiny_experiment import TINY, Listener, content, summary_of
from tiny_search import GAMMA, WEIGHT, by_name, outcomes, tiny_search

from spkd_keras.experiment import ExperimentError, load_experiment, load_search
from spkd_keras.observer import Renamed
from spkd_keras.search import DistillationHyperModel, TrialResult
from spkd_keras.search.results import best_experiment
from spkd_keras.storage import locked
from spkd_keras.training import Interrupted, run_experiment
from spkd_keras.training.interruption import Interruption

SHORT = "schedule.epochs=1"
SLOW = pytest.mark.slow


def point(hypermodel, **values):
    """Hyperparameters, at the first point but for some values."""
    hp = keras_tuner.HyperParameters()
    hypermodel.declare(hp)
    hp.values.update(values)
    return hp


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("student.depth={choice: [10, 12]}", r"student: `depth` must be 6n \+ 4, .*depth=12"),
        ("student.widt={choice: [1, 2]}", r"student: unknown key `widt`. Did you mean `width`\?"),
        ("methods.sp.terms.0.student={choice: [stage3, stage4]}", r"methods.sp: .*stage4"),
        ("methods.sp.terms.0.loss={choice: [similarity_preserving, pkd]}", r"unknown loss `pkd`. Did you mean `pkt`\?"),
        ("methods.sp.terms.0.temperture={float: [1, 2]}", r"methods.sp.terms.0: unknown key `temperture`"),
        ("data.augmentation={choice: [none, imagenet]}", r"augmentation"),
    ],
)
def test_what_cannot_be_built_is_told_before_any_training(tmp_path, override, said):
    search = tiny_search(tmp_path, override, trials=2)
    with pytest.raises(ExperimentError, match=said) as caught:
        search.run()
    assert "\n" not in str(caught.value)
    assert not (search.folder / "trials").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tuner": "bayes"}, r"--tuner: unknown tuner `bayes`. Did you mean `bayesian`\?"),
        ({"objective": "val_acuracy"}, r"unknown objective `val_acuracy`. Did you mean `val_accuracy`\?"),
        ({"objective": "test_accuracy"}, r"A search chooses by held-out images alone"),
        ({"trials": 0}, r"`trials` must be at least 1"),
    ],
)
def test_options_that_are_refused(tmp_path, options, said):
    with pytest.raises(ExperimentError, match=said):
        tiny_search(tmp_path, GAMMA, **{"trials": 2, **options})


def test_two_searches_at_once(tmp_path):
    search = tiny_search(tmp_path, GAMMA, trials=1)
    with locked(search.folder), pytest.raises(ExperimentError, match="is being run by another process"):
        search.run()


def test_hyperband_chooses_the_epochs_itself(tmp_path):
    with pytest.raises(ExperimentError, match=r"`schedule.epochs` cannot vary with hyperband"):
        tiny_search(tmp_path, "schedule.epochs={int: [1, 3]}", trials=2, tuner="hyperband")


def test_the_best_point_keeps_the_teacher(tmp_path):
    """A learning rate is the teacher's too: it would train another one, so that the trained one is named."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY, encoding="utf-8")
    rate = "schedule.learning_rate={float: [0.01, 1], log: true}"
    experiment, space = load_search(file, [GAMMA, rate, "seeds=[0, 1]"], ["sp"])
    hypermodel = DistillationHyperModel(experiment, space, tmp_path / "runs")
    first = space.first()
    same = best_experiment(hypermodel, {**first, WEIGHT: 7.0}, [0, 1])
    assert same.teacher == experiment.teacher
    assert (same.name, list(same.methods), same.seeds) == ("tiny-best", ["student", "sp"], [0, 1])
    other = best_experiment(hypermodel, {**first, "schedule.learning_rate": 0.5}, [0])
    assert other.teacher.path == str(tmp_path / "runs" / "tiny" / "teacher-seed0" / "student.keras")
    assert other.schedule.learning_rate == 0.5


def test_why_a_search_ended_early(tmp_path):
    """A range of floats cannot be counted; of a method that is not chosen, nothing counts."""
    depth = "student.depth={choice: [10, 16]}"

    def told(override, methods, *found):
        trials = [TrialResult(f"trial {n}", v, "COMPLETED", 0.5, 0.5, 1, 9, None) for n, v in enumerate(found)]
        return tiny_search(tmp_path, depth, override, methods=methods, trials=9)._exhausted(trials)

    ten, sixteen = {"student.depth": 10}, {"student.depth": 16}
    assert told(GAMMA, ["sp"], ten).startswith("No new point was found after these 1, ")
    weights = f"{WEIGHT}={{choice: [1.0, 2.0]}}"
    kd = [{"methods": "kd", **one} for one in (ten, sixteen)]
    sp = [{"methods": "sp", **one, WEIGHT: weight} for one in (ten, sixteen) for weight in (1.0, 2.0)]
    choice = "methods={choice: {kd: kd, sp: [{loss: similarity_preserving, weight: {choice: [1.0, 2.0]}}]}}"
    assert told(choice, None, *kd, *sp) == "There are no more points than those of these 6."
    assert told(choice, None, *kd, *sp[1:], kd[0]).startswith("No new point")
    assert told(weights, ["sp"], *sp[:3]).startswith("No new point")
    assert told(GAMMA, ["sp"], *[ten] * 9) is None


def test_an_observer_of_renamed_runs():
    listener = Listener()
    renamed = Renamed(listener, lambda run: f"small {run}", held_out=True)
    renamed.planned(["sp-seed0"], [])
    renamed.started("sp-seed0", 2)
    renamed.noticed("something")
    renamed.completed("sp-seed0", {"method": "sp"})
    assert listener.told == [("started", "small sp-seed0", 2), ("noticed", "something")]  # `tried` it does not keep


# --- a search by its steps -------------------------------------------------------------------------------------------


class Stopping(Listener):
    """Sends the signal of a machine that is taken away, in the first epoch of a trial."""

    def __init__(self, interruption, trial):
        super().__init__()
        self.interruption, self.trial = interruption, trial

    def tried(self, run, results):
        self.told.append(("tried", run, results))

    def progressed(self, run, epochs_done, logs):
        super().progressed(run, epochs_done, logs)
        if run == self.trial and epochs_done == 1:
            self.interruption.received = 15


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid of three weights, one of which cannot be trained, stopped in its second trial and gone on with."""
    folder = tmp_path_factory.mktemp("grid")
    weights = f"{WEIGHT}={{choice: [100.0, 10.0, 1.0e+35]}}"
    interruption = Interruption()
    listener = Stopping(interruption, "trial 1")
    options = {"trials": 5, "tuner": "grid"}
    stopped = tiny_search(folder, weights, **options, observer=listener, interruption=interruption)
    with pytest.raises(Interrupted):
        stopped.run()
    before = content(stopped.folder / "trials" / "trial_0")
    again = Stopping(Interruption(), None)
    search = tiny_search(folder, weights, **options, observer=again)
    return search, search.run(), listener, again, before


@SLOW
def test_a_search_goes_on(grid):
    search, _, listener, again, before = grid
    assert listener.of("started") == ["trial 0", "trial 1"]
    assert listener.of("tried") == ["trial 0"]
    assert again.told[0] == ("planned", [f"trial {n}" for n in range(5)], ["trial 0"])
    assert again.of("started") == ["trial 1", "trial 2"]
    assert [told[2] for told in again.told if told[:2] == ("progressed", "trial 1")] == [1, 2]  # not from the start
    assert content(search.folder / "trials" / "trial_0") == before


@SLOW
def test_a_trial_that_fails_has_its_reason(grid):
    _, result, _, again, _ = grid
    failed = by_name(result)["trial 2"]
    assert (failed.status, failed.score, failed.error) == ("FAILED", None, None)
    assert failed.reason.startswith("FloatingPointError: The loss is not finite in epoch 1, batch 1: gradient")
    assert again.of("failed") == ["trial 2"]
    assert [trial.name for trial in result.trials][-1] == "trial 2"
    assert result.exhausted == "There are no more points than those of these 3."


@SLOW
def test_a_trial_is_a_run_of_its_point(grid):
    """Also the one that was interrupted: trained like an ordinary run, by the same error, with the same weights."""
    search, result, _, _, _ = grid
    best = load_experiment(result.best)
    assert (best.name, list(best.methods), best.seeds) == ("tiny-best", ["student", "sp"], [0])
    trials = by_name(result)
    root = run_experiment(best.select(["sp"]), search.out / "best")
    weight = best.methods["sp"].terms[0].weight
    assert weight == result.trials[0].values[WEIGHT]
    trial = search.folder / "trials" / f"trial_{result.trials[0].name.split()[1]}"
    ours, theirs = (keras.saving.load_model(path / "student.keras") for path in (trial, root / "sp-seed0"))
    assert_same_weights(ours, theirs)
    assert result.trials[0].error == summary_of(root / "sp-seed0")["validation_error"]
    assert all(trials[f"trial {n}"].epochs == 2 for n in (0, 1))


@SLOW
def test_a_trial_holds_the_student_alone(grid):
    search, _, _, _, _ = grid
    names = {path.name for path in (search.folder / "trials" / "trial_0").iterdir()}
    assert names == {"best.keras", "experiment.yaml", "history.csv", "outcome.json", "student.keras", "trial.json"}
    student = keras.saving.load_model(search.folder / "trials" / "trial_0" / "student.keras")
    assert student.count_params() == outcomes(search)["trial_0"]["parameters"]


@SLOW
def test_another_search_is_refused(grid):
    search, _, _, _, _ = grid
    for weights, options, said in [
        ("[100.0, 10.0, 1.0e+35]", {"tuner": "random"}, "tuner: grid -> random"),
        ("[100.0, 10.0]", {"tuner": "grid"}, "space: "),
    ]:
        other = tiny_search(search.out.parent, f"{WEIGHT}={{choice: {weights}}}", trials=5, **options)
        with pytest.raises(ExperimentError, match=rf"holds another search \({said}.*--out"):
            other.run()


@SLOW
def test_hyperband_goes_on_from_the_whole_state(tmp_path):
    """The last trial goes on from the best of the first three, and ends as if it had never stopped."""
    search = tiny_search(tmp_path, GAMMA, "schedule.epochs=3", trials=4, tuner="hyperband")
    result = search.run()
    trials = by_name(result)
    assert [trials[f"trial {n}"].epochs for n in range(4)] == [1, 1, 1, 3]
    earlier = max(range(3), key=lambda n: trials[f"trial {n}"].score)
    assert trials["trial 3"].values == trials[f"trial {earlier}"].values
    folders = [search.folder / "trials" / f"trial_{n}" for n in (earlier, 3)]
    hypermodel = DistillationHyperModel(search.experiment, search.space, search.out)
    hp = point(hypermodel, **trials["trial 3"].values)
    rows = [(folder / "history.csv").read_text().splitlines() for folder in folders]
    assert rows[1][:2] == rows[0]
    alone = run_experiment(hypermodel.point(hp), tmp_path / "alone")
    ours, theirs = (keras.saving.load_model(path / "student.keras") for path in (folders[1], alone / "sp-seed0"))
    assert_same_weights(ours, theirs)
    assert (alone / "sp-seed0" / "history.csv").read_text().splitlines() == rows[1]


@SLOW
def test_a_bayesian_search_trains(tmp_path, monkeypatch):
    """The first three points are random, the fourth is where the Gaussian process of these expects the most."""
    fitted, fit = [], GaussianProcessRegressor.fit
    monkeypatch.setattr(GaussianProcessRegressor, "fit", lambda gpr, x, y: fitted.append(y) or fit(gpr, x, y))
    result = tiny_search(tmp_path, GAMMA, SHORT, trials=4, tuner="bayesian").run()
    trials = by_name(result)
    assert [trial.status for trial in result.trials] == ["COMPLETED"] * 4
    assert [len(y) for y in fitted] == [3]
    assert trials["trial 0"].values == {WEIGHT: 3000.0}
    assert len({trial.values[WEIGHT] for trial in result.trials}) == 4
    assert sorted(-fitted[0]) == pytest.approx(sorted(trials[f"trial {n}"].score for n in range(3)))
