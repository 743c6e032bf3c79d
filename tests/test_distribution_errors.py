"""What goes wrong on several replicas, what is refused there, and why what is done for them is still needed."""

import pytest
from test_distribution import facts_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def facts():
    return facts_of("parts_apart", "guarded", "refused", "still_needed", "runs")


@pytest.mark.parametrize(("how", "parts"), [("value", "spoiled, loss"), ("gradient", "gradient")])
def test_a_step_that_is_not_finite_on_one_replica_is_applied_on_none(facts, how, parts):
    found = facts["guarded"]
    assert found[how].startswith(f"NotFiniteError: The loss is not finite in epoch 1, batch 3: {parts}.")
    assert found[f"{how}_difference"] == 0  # to the weights, statistics and slots after two steps


def test_an_overflow_on_one_replica_halves_the_loss_scale_of_all(facts):
    assert facts["guarded"]["overflow"] is None
    assert facts["guarded"]["scale"] == 512
    assert facts["guarded"]["finite"]


def test_the_parts_of_the_loss(facts):
    found = facts["parts_apart"]
    assert found["parts"] < 1e-5
    assert found["weight"] == 0.5  # as it is now, not as the term was made
    assert found["changed"] == 0


def test_a_run_that_is_not_finite_says_where(facts):
    said, failure = facts["runs"]["not_finite"], facts["runs"]["failure"]
    assert "FloatingPointError: The loss is not finite in epoch 1, batch 2:" in said
    assert "The batch is the training images" in said
    assert (failure["epoch"], failure["batch"]) == (1, 2)
    assert set(failure["parts"]) == {"student_loss", "similarity_preserving"}


def test_a_run_that_was_killed_goes_on_as_if_it_was_not(facts):
    assert facts["runs"]["left_by_the_kill"]
    assert facts["runs"]["after_a_kill"] is None


def test_a_run_from_the_cache_of_the_teacher_is_that_of_one_device(facts):
    assert facts["runs"]["cached"] < 1e-5


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("jit", "jit_compile=True"),
        ("steps", "steps_per_execution=2"),
        ("accumulation", "an optimizer with gradient_accumulation_steps"),
        ("ema", "an optimizer with ema_overwrite_frequency"),
    ],
)
def test_what_tensorflow_cannot_do_is_refused_in_one_line(facts, what, said):
    expected = f"ValueError: TensorFlow cannot do this under a Mirrored on CPU: {said}. Leave it out."
    assert facts["refused"][what] == expected


def test_other_refusals(facts):
    assert "can have an `activity_regularizer`. Received: logits." in facts["refused"]["summing_layer"]
    for said, name in zip(facts["refused"]["one_batch"], ("fit", "evaluate", "predict"), strict=True):
        assert f"does not share a batch between 2 replicas. Use `{name}`" in said
    assert facts["refused"]["moving_average_without"] is None
    assert "Construct it within `with strategy.scope():`" in facts["refused"]["optimizer_outside"]
    assert "`reduction` of `loss` must be one of sum_over_batch_size, mean. Received: sum" in facts["refused"]["summed"]
    assert "`reduction` of the term 'similarity_preserving' must be one of" in facts["refused"]["summed_term"]


@pytest.mark.parametrize(
    ("what", "kinds"),
    [
        ("student_outside", "a Distiller of a Mirrored and a student of no strategy."),
        ("distiller_outside", "a Distiller of no strategy and a student of a Mirrored."),
    ],
)
def test_a_student_of_another_strategy(facts, what, kinds):
    said = "ValueError: Construct teacher, student and Distiller within the same `with strategy.scope():`. Received: "
    assert facts["refused"][what] == said + kinds


def test_shapes_that_a_dataset_leaves_open_are_those_of_the_student_or_must_be_told(facts):
    open_sizes, no_shape = facts["refused"]["open_shapes"]
    assert open_sizes is None
    assert no_shape.startswith(
        "ValueError: With several replicas the shapes of a batch must be known. Received: a data"
    )


def test_layers_that_draw_the_same_numbers_on_every_replica_are_told_of(facts):
    said = facts["refused"]["dropping"]  # warnings are errors there
    assert said.startswith("UserWarning: Keras draws the same numbers on every replica")
    assert said.endswith("unlike one device: dropout.")
    assert facts["refused"]["turning"].endswith("unlike one device: turning.")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("odd_first_batch", "must have the same size and shape"),  # ReplicatedTrainer builds on zeros
        ("jit", "known_issues#tfvariable_on_a_different_device"),  # check_compiled
        ("steps", "Placeholder"),  # check_compiled
        ("accumulation", "merge_call"),  # check_compiled
        ("ema", "merge_call"),  # check_compiled
        ("bfloat16", "bfloat16 not in list of allowed values"),  # Share.gather casts
        ("condition", "control flow out of `fn`"),  # conditionally
    ],
)
def test_keras_and_tensorflow_still_need_what_is_done_for_them(facts, what, said):
    """Once one of these works, what is named beside it can go."""
    assert said in facts["still_needed"][what]


def test_an_empty_batch_still_loses_its_channels(facts):
    """Once it has four with oneDNN's kernels, `with_a_row` can go."""
    if facts["still_needed"]["empty_channels"] == 4:
        pytest.skip("TensorFlow runs without oneDNN's kernels here, or convolves empty batches by now")
    assert facts["still_needed"]["empty_channels"] == 1


def test_keras_still_takes_the_logs_of_the_last_step(facts):
    """Once this is 1 / 7, `ReplicatedTrainer._get_metrics_result_or_logs` can go."""
    assert facts["still_needed"]["logs"] == pytest.approx(1 / 6)  # the mean of 0 / 4 and 1 / 3


def test_keras_still_clips_each_replica(facts):
    """Once this is -1, `Share.clipped` can go."""
    assert facts["still_needed"]["clipped"] == -2


def test_keras_still_draws_alike_on_every_replica(facts):
    """Once they differ, the warning of `check_layers` and what the README says of Dropout can go."""
    one, other = facts["still_needed"]["draws"]
    assert 0 in one
    assert one == other


def test_keras_asks_the_first_replica_alone_for_an_overflow(facts):
    """Once this holds, `Share.agreed` can go."""
    assert not facts["still_needed"]["second_replicas_overflow_is_skipped"]
