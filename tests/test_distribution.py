"""Several replicas make the steps of one device, on logical devices of the processor."""

import json
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).parent / "replica_facts.py"

pytestmark = pytest.mark.slow


def facts_of(*parts):
    """What parts of the script came to."""
    done = subprocess.run([sys.executable, str(SCRIPT), *parts], capture_output=True, text=True)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert results, done.stderr[-3000:]
    return json.loads(results[0].removeprefix("RESULT "))


@pytest.fixture(scope="module")
def facts():
    alike = ("one_answer", "other_losses", "uneven", "inside_the_scope", "weighted", "averaged_and_eager")
    return facts_of(*alike, "clipped", "half_precision")


def assert_same(found, tolerance=1e-5):
    assert found["weights"] < tolerance
    assert found["logs"] < tolerance
    assert found["same_accuracy"]  # of training, and of a validation on 53 images in batches of 16: exactly


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_the_steps_of_one_device(facts, replicas):
    assert_same(facts["one_answer"][f"replicas_{replicas}"])


def test_the_logs_are_those_of_one_device(facts):
    terms = ["relational_distance", "similarity_preserving", "soft_targets"]
    names = sorted(["accuracy", "loss", "student_loss", *terms])
    assert facts["one_answer"]["keys"] == sorted([*names, *(f"val_{name}" for name in names)])


@pytest.mark.parametrize("what", ["local_gram", "local_statistics"])
def test_a_gram_matrix_or_statistics_of_each_replica_would_be_another_training(facts, what):
    assert facts["one_answer"][what] > 1e-3


def test_predictions_are_in_their_order(facts):
    assert max(facts["one_answer"]["predictions"]) < 1e-5  # of arrays and of a dataset


def test_other_losses_and_adapters(facts):
    assert_same(facts["other_losses"])


@pytest.mark.parametrize("data", ["dataset", "weighted_dataset", "arrays"])
def test_batches_that_are_shared_out_unevenly(facts, data):
    assert_same(facts["uneven"][data])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("arrays_with_none", "ValueError: The last batch of 5 images would leave some of the 4 replicas without any."),
        (
            "split_with_none",
            "ValueError: The last batch of 5 images would leave some of the 4 replicas without any.",
        ),
        (
            "too_few_shuffled_arrays",
            "ValueError: The last batch of 3 images would leave some of the 4 replicas without any. Leave these images "
            "out, or choose another `batch_size` than 16.",  # nor would a dataset help
        ),
        ("too_few", "ValueError: Every training batch must have at least 4 images, one for each replica."),
        ("generated", "ValueError: Every training batch must have an image for each of the 4 replicas. Received: one"),
        (
            "indivisible",
            "ValueError: `batch_size` must be a multiple of 4, the number of replicas. Received: batch_size=6",
        ),
    ],
)
def test_batches_that_cannot_be_shared_out(facts, what, said):
    assert facts["uneven"][what].startswith(said)


def test_arrays_in_new_orders_are_shared_out_evenly(facts):
    assert facts["uneven"]["shuffled_arrays"] is None


def test_the_images_that_keras_takes_to_validate_on_do_not_count(facts):
    assert facts["uneven"]["split"] is None
    assert facts["uneven"]["held_out_apart"] is None  # then it takes none


def test_all_of_it_within_the_scope(facts):
    assert facts["inside_the_scope"] < 1e-5


def test_class_weights(facts):
    assert_same(facts["weighted"])


@pytest.mark.parametrize("how", ["averaged", "eager"])
def test_a_moving_average_of_the_weights_and_steps_that_are_not_compiled(facts, how):
    assert_same(facts["averaged_and_eager"][how], 2e-6)


def test_the_gradient_of_the_whole_batch_is_clipped(facts):
    found = dict(facts["clipped"])
    assert found.pop("without") > 1e-3
    assert set(found) == {"clipnorm", "clipvalue", "global_clipnorm", "scaled", "fixed"}
    assert max(found.values()) < 1e-5


@pytest.mark.parametrize(("policy", "tolerance"), [("mixed_bfloat16", 2e-3), ("mixed_float16", 5e-4)])
def test_half_precision(facts, policy, tolerance):
    """Within the rounding of the activations, 4e-3 and 5e-4 of them: one device uses the fused BatchNormalization."""
    found = facts["half_precision"][policy]
    assert found["weights"] < tolerance
    assert found["logs"] < tolerance
    assert found["scales"] == (policy == "mixed_float16")


def test_a_student_whose_replicas_normalise_alone_is_told_of(facts):
    (said,) = facts["one_answer"]["warned"]
    assert said.startswith("Each replica normalises by its own images alone, unlike one device: bn1, bn2.")
    assert "models.synchronized(student)" in said
