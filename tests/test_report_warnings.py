"""What makes results less than they seem is told, and what cannot be compared is not compared."""

import numpy as np
import pytest
from fake_runs import change, note, write_run, write_runs, write_trial

from spkd_keras import report
from spkd_keras.experiment import Experiment, ExperimentError
from spkd_keras.page import contents
from spkd_keras.report.results import similarities

SP = [{"loss": "similarity_preserving", "weight": 100.0}]
OTHER = [{"loss": "similarity_preserving", "weight": 3000.0}]


def summarised(folder):
    (result,) = report.summarise(report.read_runs(folder), report.read_trials(folder))
    return result


def test_runs_of_one_method_with_different_settings(tmp_path):
    for seed, terms in enumerate([SP, SP, OTHER]):
        write_run(tmp_path, "student", seed, 0.5, [])
        write_run(tmp_path, "sp", seed, 0.25, [], terms=terms)
    result = summarised(tmp_path)
    assert result.warnings == [
        "The runs of sp differ, and are not compared: methods.sp.terms.0.weight: 100.0 -> 3000.0."
    ]
    assert report.verdicts(result) == []
    assert f"- {result.warnings[0]}" in report.markdown([result])
    assert result.warnings[0] in contents.section(result, "one")["warnings"]


def test_a_method_and_the_baseline_with_different_settings(tmp_path):
    write_run(tmp_path, "student", 0, 0.5, [])
    write_run(tmp_path, "kd", 0, 0.25, [])
    change(write_run(tmp_path, "sp", 0, 0.25, []), "epochs: 200", "epochs: 30")
    result = summarised(tmp_path)
    assert result.warnings == [
        "sp and the student alone are not compared, since they differ: schedule.epochs: 30 -> 200."
    ]
    assert [line.split()[0] for line in report.verdicts(result)] == ["kd"]
    assert result.comparisons == [], "sp and kd differ in it too"


def test_the_baseline_needs_no_teacher(tmp_path):
    change(write_run(tmp_path, "student", 0, 0.5, []), "width: 2", "width: 8")
    write_run(tmp_path, "sp", 0, 0.25, [])
    write_run(tmp_path, "kd", 0, 0.125, [])
    result = summarised(tmp_path)
    assert result.warnings == []
    assert len(report.verdicts(result)) == 2


@pytest.mark.parametrize(("fingerprints", "compared"), [(["f", "f"], True), (["f", "g"], False), ([None, None], False)])
def test_a_teacher_that_was_moved(tmp_path, fingerprints, compared):
    for seed, (fingerprint, place) in enumerate(zip(fingerprints, "ab", strict=True)):
        run = write_run(tmp_path, "sp", seed, 0.25, [])
        change(
            run,
            "model: wide_resnet\n  path: null\n  schedule: {}\n  dtype: null\n  cache: null\n  width: 2",
            f"path: {place}.keras",
        )
        note(run, teacher_fingerprint=fingerprint)
    assert (not any("teacher.path" in line for line in summarised(tmp_path).warnings)) == compared


def test_a_baseline_of_before_another_teacher(tmp_path):
    """It is compared, and the teacher in the picture is that of the method with terms."""
    for seed in (0, 1):
        write_run(tmp_path, "student", seed, 0.5, [])
        write_run(tmp_path, "sp", seed, 0.25, [])
    change(tmp_path / "student-seed0", "width: 2", "width: 8")
    other = {"labels": np.array([0, 0, 1]), "student": np.eye(3), "teacher": np.full((3, 3), 0.5)}
    np.savez_compressed(tmp_path / "student-seed0" / "similarity.npz", **other)
    result = summarised(tmp_path)
    assert result.warnings == []
    assert report.verdicts(result) == [
        "sp had fewer errors than the student alone with each of 2 seeds: -25.00 points in the median "
        "(sign test: p = 0.5, the least that 2 can give)."
    ]
    matrices, _ = similarities(result)
    np.testing.assert_array_equal(matrices["teacher"], np.eye(3))


def test_methods_are_compared_with_each_other(tmp_path):
    for seed, (kd, sp) in enumerate([(0.5, 0.25), (0.25, 0.125), (0.25, 0.25)]):
        write_run(tmp_path, "kd", seed, kd, [])
        write_run(tmp_path, "sp", seed, sp, [])
    result = summarised(tmp_path)
    assert result.comparisons == [report.Comparison("kd", "sp", [0.25, 0.125, 0.0])]
    said = "kd is not told apart from sp: +12.50 points in the median of 3 seeds (0 better, 2 worse, 1 equal"
    assert report.comparisons(result)[0].startswith(said)
    assert said in report.markdown([result])
    (plain,) = report.as_json([result])
    assert plain["comparisons"] == [{"one": "kd", "other": "sp", "differences": [0.25, 0.125, 0.0], "sign_test": 0.5}]


def test_seeds_that_some_methods_lack(tmp_path):
    for seed in (2, 3, 4):
        write_run(tmp_path, "student", seed, 0.5, [])
    for seed in (0, 1, 2):
        write_run(tmp_path, "sp", seed, 0.25, [])
    assert summarised(tmp_path).warnings == [
        "Not every method has all seeds: student lacks 0, 1; sp lacks 3, 4. Only those of both are compared."
    ]


def test_a_rounding_is_no_difference(tmp_path):
    write_run(tmp_path, "student", 0, 0.1 + 0.2, [])
    write_run(tmp_path, "sp", 0, 0.3, [])
    (line,) = report.verdicts(summarised(tmp_path))
    assert line.startswith("sp had as many errors as the student alone: +0.00 points")


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_what_is_no_number_is_refused(tmp_path, value):
    file = write_run(tmp_path, "sp", 0, 0.25, []) / "summary.json"
    file.write_text(file.read_text().replace('"test_error": 0.25', f'"test_error": {value}'), encoding="utf-8")
    with pytest.raises(ExperimentError, match=r"summary\.json is damaged .*test_error is (nan|inf)"):
        report.read_runs(tmp_path)


def test_the_confirmation_of_a_search_is_no_experiment(tmp_path):
    write_runs(tmp_path / "tiny")
    write_run(tmp_path / "tiny-search" / "confirmation" / "best", "sp", 0, 0.25, [], name="trial-3")
    assert summarised(tmp_path).name == "tiny"
    (run,) = report.read_runs(tmp_path / "tiny-search" / "confirmation")  # unless it is asked for
    assert run.experiment == "trial-3"
    write_run(tmp_path / "other" / "confirmation", "sp", 0, 0.25, [], name="confirmation")  # as one may be called
    assert {result.name for result in report.summarise(report.read_runs(tmp_path))} == {"tiny", "confirmation"}


def test_a_run_without_held_out_images_beside_a_trial(tmp_path):
    epochs = Experiment.model_fields["schedule"].default.epochs
    file = write_run(tmp_path / "tiny", "sp", 0, 0.25, []) / "summary.json"
    file.write_text(file.read_text().replace('"validation_error"', '"unknown"'), encoding="utf-8")
    write_trial(tmp_path, 0, 300.0, {"validation_error": 0.2, "epochs": epochs})
    assert summarised(tmp_path).weights == [], "the trial has no test error, and the run no other"
    write_run(tmp_path / "tiny", "sp-1000", 0, 0.5, [])
    (curve,) = summarised(tmp_path).weights
    assert (curve.measured, curve.errors) == ("test", {100.0: [0.25], 1000.0: [0.5]})
    assert "Lowest" not in report.tell_weights(curve), "test images choose nothing"


def test_experiments_of_one_name_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        write_run(tmp_path / folder / "tiny", "student", 0, 0.5, [])
    titles = [result.title for result in report.summarise(report.read_runs(tmp_path))]
    assert titles == [f"tiny in {tmp_path / folder / 'tiny'}" for folder in ("one", "two")]


def test_folds_that_are_taken_together_keep_their_costs(tmp_path):
    for fold in (1, 2):
        name = f"textures-fold{fold}"
        for method in ("student", "sp"):
            write_run(tmp_path / name, method, 0, 0.5, [0.5] * 3, name=name, data=f"dtd/fold{fold}")
    pooled = report.summarise(report.read_runs(tmp_path))[0]
    assert pooled.unit == "folds"
    section = contents.section(pooled, "one")
    assert section["name"] == "textures, folds 1, 2"
    assert section["costs"][0][:4] == ["student", "175,066", "26.7", "1.5"]
    assert section["curves"] is not None


def test_other_data_is_no_other_fold(tmp_path):
    for fold, data in ((1, "mnist-fold1"), (2, "dtd/fold2"), (3, "dtd/fold1")):
        name = f"textures-fold{fold}"
        write_run(tmp_path / name, "student", 0, 0.5, [], name=name, data=data)
    assert [result.unit for result in report.summarise(report.read_runs(tmp_path))] == ["seeds"] * 3


def test_a_page_of_summaries_with_little_in_them(tmp_path):
    for method in ("student", "sp"):
        file = write_run(tmp_path, method, 0, 0.5, [None] * 3) / "summary.json"
        text = file.read_text().replace('"versions": {"keras": "3.15.1"}', '"versions": null')
        file.write_text(text.replace('["/physical_device:CPU:0"]', "null"), encoding="utf-8")
    section = contents.section(summarised(tmp_path), "one")
    assert section["classes"] is None
    assert section["conditions"] == ["2 threads"]


def test_a_run_that_went_on_elsewhere_is_named(tmp_path):
    file = write_run(tmp_path, "sp", 0, 0.5, []) / "summary.json"
    file.write_text(file.read_text()[:-1] + ', "earlier_conditions": ["intra_op_threads: 4 -> 2"]}', encoding="utf-8")
    conditions = contents.section(summarised(tmp_path), "one")["conditions"]
    assert conditions[1] == "sp-seed0 went on under other conditions: intra_op_threads: 4 -> 2"


def test_histories_of_different_lengths(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(contents.figures, "learning_curves", lambda curves, *_: drawn.update(curves) or "")
    write_run(tmp_path, "student", 0, 0.5, [], epochs=3)
    write_run(tmp_path, "student", 1, 0.5, [], epochs=5)
    contents.section(summarised(tmp_path), "one")
    assert drawn["student alone"].shape == (1, 5)


@pytest.mark.parametrize(
    ("fingerprints", "warns", "one"), [("aa", False, True), ("ab", True, False), (["a", None], False, False)]
)
def test_students_of_several_teachers(tmp_path, fingerprints, warns, one):
    for seed, fingerprint in enumerate(fingerprints):
        note(write_run(tmp_path, "sp", seed, 0.25, []), teacher_fingerprint=fingerprint)
    result = summarised(tmp_path)
    assert result.warnings == ["The students were distilled from 2 teachers, which is in their differences."] * warns
    assert ("teacher wide_resnet (width 2), one for all." in report.settings(result)[1]) is one


def test_runs_under_different_conditions(tmp_path):
    versions = [{"tensorflow": "2.20.0", "keras": "3.15.1"}, {"tensorflow": "2.21.0", "keras": "3.15.1"}]
    for seed in (0, 1):
        for method in ("student", "sp"):
            run = write_run(tmp_path, method, seed, 0.25, [])
            note(run, versions=versions[seed], threads=2, processor=["avx2"])
    earlier = ["commit: a -> b", "intra_op_threads: 2 -> 4", "commit: b -> c"]
    note(tmp_path / "sp-seed1", earlier_conditions=earlier)
    assert summarised(tmp_path).warnings == [
        "The runs were made under different conditions: version of tensorflow.",
        "sp-seed1 went on under other conditions than it began (commit, intra_op_threads).",
    ]


@pytest.mark.parametrize(("key", "what"), [("data_digest", "images"), ("start_digest", "weights at the start")])
def test_runs_on_other_images_or_from_other_weights_are_not_compared(tmp_path, key, what):
    note(write_run(tmp_path, "student", 0, 0.5, []), **{key: "d57e0000" + "0" * 24})
    note(write_run(tmp_path, "sp", 0, 0.25, []), **{key: "40410000" + "0" * 24})
    note(write_run(tmp_path, "kd", 0, 0.25, []), **{key: None})  # of before this was recorded
    result = summarised(tmp_path)
    told = f"sp and the student alone are not compared, since they differ: {what}: 40410000 -> d57e0000."
    assert result.warnings == [told]
    assert [line.split()[0] for line in report.verdicts(result)] == ["kd"]


def test_folds_are_of_other_images_each(tmp_path):
    for fold in (1, 2):
        for method, error in (("student", 0.5), ("sp", 0.25)):
            run = write_run(
                tmp_path / f"x-fold{fold}", method, 0, error, [], name=f"x-fold{fold}", data=f"dtd/fold{fold}"
            )
            note(run, data_digest=str(fold) * 32)
    together = report.summarise(report.read_runs(tmp_path))[0]
    assert (together.unit, [len(one.differences) for one in together.methods if one.method == "sp"]) == ("folds", [2])


def test_a_cache_of_augmented_views_is_another_recipe_than_the_baseline(tmp_path):
    for method in ("student", "sp"):
        run = write_run(tmp_path, method, 0, 0.5, [])
        change(run, "augmentation: none", "augmentation: cifar")
        change(run, "cache: null", "cache: {views: 1}")
    (told,) = summarised(tmp_path).warnings
    assert told.startswith("sp saw 1 fixed view of each image (`teacher.cache`), the student alone a new one in every")
    for method in ("student", "sp"):
        change(tmp_path / f"{method}-seed0", "augmentation: cifar", "augmentation: none")
    assert summarised(tmp_path).warnings == []


def test_a_curve_over_weights_of_several_teachers_says_so_and_names_no_lowest(tmp_path):
    for weight, fingerprint in ((30.0, "e"), (100.0, "f")):
        terms = [{"loss": "similarity_preserving", "weight": weight}]
        run = write_run(tmp_path / f"out-{weight:g}" / "tiny", "sp", 0, 0.25, [], terms=terms)
        note(run, teacher_fingerprint=fingerprint * 32)
    for result in report.summarise(report.read_runs(tmp_path)):
        (curve,) = result.weights
        assert report.tell_weights(curve).endswith(" Not all of them are of the same teachers.")
    note(tmp_path / "out-30" / "tiny" / "sp-seed0", teacher_fingerprint="f" * 32)
    (curve,) = report.summarise(report.read_runs(tmp_path))[0].weights
    assert "Lowest at 30 and 100" in report.tell_weights(curve)
