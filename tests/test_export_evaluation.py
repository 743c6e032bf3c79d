"""Figures of merit by hand."""

import numpy as np
import pytest

from spkd_keras.export import evaluation

NAMES = ("cat", "dog", "owl")
LABELS = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, 0, 0])
MATRIX = [[2, 1, 0], [1, 1, 0], [1, 0, 0]]


def outputs(predicted, confidence=0.8):
    """Probabilities with the confidence on the predicted class and the rest on the others."""
    probabilities = np.full((len(predicted), 3), (1 - confidence) / 2)
    probabilities[np.arange(len(predicted)), predicted] = confidence
    return {"logits": np.log(probabilities), "probabilities": probabilities}


def test_each_class_by_hand():
    cat, dog, owl = evaluation.per_class(np.array(MATRIX), NAMES)
    assert cat == {"class": "cat", "images": 3, "recall": 2 / 3, "precision": 2 / 4}
    assert dog == {"class": "dog", "images": 2, "recall": 1 / 2, "precision": 1 / 2}
    assert owl == {"class": "owl", "images": 1, "recall": 0.0, "precision": None}  # never predicted
    (_, empty) = evaluation.per_class(np.array([[2, 0], [0, 0]]), ("a", "b"))
    assert empty == {"class": "b", "images": 0, "recall": None, "precision": None}


def test_expected_calibration_error_by_hand():
    # Ten bins. In (0.8, 0.9]: confidences 0.85 and 0.9, one of two right, so |0.5 - 0.875| = 0.375.
    # In (0.5, 0.6]: confidence 0.6, right, so |1 - 0.6| = 0.4. In all 2/3 * 0.375 + 1/3 * 0.4.
    probabilities = np.array([[0.85, 0.15], [0.1, 0.9], [0.6, 0.4]])
    labels = np.array([0, 0, 0])
    error = evaluation.expected_calibration_error(probabilities, labels, bins=10)
    assert error == pytest.approx(2 / 3 * 0.375 + 1 / 3 * 0.4)


def test_the_edges_of_the_bins():
    # A confidence of 0.5 is in (0, 0.5]; another of 0.51 is not with it.
    right_and_wrong = np.array([0, 1])
    together = evaluation.expected_calibration_error(np.array([[0.5, 0.5], [0.5, 0.5]]), right_and_wrong, bins=2)
    apart = evaluation.expected_calibration_error(np.array([[0.5, 0.5], [0.51, 0.49]]), right_and_wrong, bins=2)
    assert together == pytest.approx(0)
    assert apart == pytest.approx((0.5 + 0.51) / 2)


@pytest.mark.parametrize(("right", "error"), [(10, 0.0), (0, 1.0)])
def test_sure_and_right_or_sure_and_wrong(right, error):
    probabilities = np.tile([1.0, 0.0], (10, 1))
    labels = np.array([0] * right + [1] * (10 - right))
    assert evaluation.expected_calibration_error(probabilities, labels) == error


def test_an_evaluation_holds_all_of_it():
    result = evaluation.evaluate(outputs(PREDICTED), LABELS, NAMES)
    assert result["images"] == 6
    assert result["accuracy"] == 0.5
    assert result["mean_confidence"] == pytest.approx(0.8)
    assert result["expected_calibration_error"] == pytest.approx(0.3)  # all are in one bin: |3/6 - 0.8|
    assert result["confusion"] == MATRIX
    assert [row["class"] for row in result["per_class"]] == list(NAMES)


def test_a_class_without_images_has_a_row_too():
    names = ("ant", *NAMES)  # nobody is one, and nothing is taken for one
    probabilities = np.hstack([np.full((6, 1), 1e-6), outputs(PREDICTED)["probabilities"]])
    result = evaluation.evaluate({"logits": np.log(probabilities), "probabilities": probabilities}, LABELS + 1, names)
    assert result["confusion"] == [[0, 0, 0, 0], *([0, *row] for row in MATRIX)]
    assert result["per_class"][0]["images"] == 0


def test_the_first_class_of_another_name():
    assert evaluation.differing_class(NAMES, NAMES) is None
    assert evaluation.differing_class(NAMES, ["cat", "owl", "dog"]) == 1
    assert evaluation.differing_class(NAMES, ("lynx", "dog", "owl")) == 0
    assert evaluation.differing_class(None, NAMES) is None
    assert evaluation.differing_class(("0", "1", "2"), NAMES) is None, "numbers stand for names that were not given"
    assert evaluation.differing_class(NAMES, ("0", "1", "2")) == 0


def test_what_there_are_probabilities_for():
    infinite = {
        "logits": np.array([[0, 1], [np.nan, 0], [np.inf, 0], [-np.inf, 0], [-np.inf, -np.inf]]),
        "probabilities": np.array([[0.3, 0.7], [0, 1], [np.nan, 0], [0, 1], [np.nan, np.nan]]),
    }
    assert evaluation.sound(infinite).tolist() == [True, False, False, True, False]
    with pytest.raises(evaluation.UnsoundOutputsError, match=r"no numbers \(NaN or infinite\) for 3 of 5 images"):
        evaluation.evaluate(infinite, np.zeros(5, int), ("a", "b"))


def test_a_student_against_its_teacher():
    teacher = np.array([0, 0, 0, 1, 2, 1])
    assert evaluation.against(teacher, PREDICTED, LABELS) == {
        "agreement": 3 / 6,
        **{"both_right": 3, "only_teacher_right": 1, "only_student_right": 0, "both_wrong": 2},
    }
    assert evaluation.BINS == 15  # Guo et al., 2017


def test_what_each_of_two_is_right_on_alone():
    labels, teacher, student = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 0, 1, 2, 1], [0, 1, 1, 0, 0, 0]])
    assert evaluation.against(teacher, student, labels) == {
        "agreement": 1 / 6,
        **{"both_right": 1, "only_teacher_right": 2, "only_student_right": 3, "both_wrong": 0},
    }
