"""What an experiment's file says that will not be as it says."""

from spkd_keras.experiment import Experiment, Schedule
from spkd_keras.training.findings import Finding


def check_settings(experiment: Experiment, training: Experiment | None) -> list[Finding]:
    """Looks through the schedules and the cache, without any data.

    Args:
        experiment: what will be run.
        training: of the teacher, if it is still to be trained.
    """
    return [*_late_drops(experiment, training), *_idle_schedules(experiment), *_cached_views(experiment)]


def _late_drops(experiment: Experiment, training: Experiment | None) -> list[Finding]:
    """Looks for drops of the learning rate at epochs that never come, which a fraction may round to as well."""
    schedules = {"schedule": experiment.schedule}
    if training is not None and training.schedule != experiment.schedule:
        schedules["teacher.schedule"] = training.schedule
    return [
        Finding(
            "warning",
            place,
            f"drops at {', '.join(map(str, late))} never happen in {_epochs(schedule.epochs)}.",
            f"Give fractions of the epochs, such as --set '{place}.drops={{0.3: 0.2, 0.6: 0.2, 0.8: 0.2}}'."
            if any(isinstance(when, int) for when in late)
            else "Give smaller fractions, or more epochs.",
        )
        for place, schedule in schedules.items()
        # The default ones are for no number of epochs in particular.
        if schedule.drops != Schedule().drops
        and (late := [when for when in schedule.drops if schedule.epoch_of(when) >= schedule.epochs])
    ]


def _idle_schedules(experiment: Experiment) -> list[Finding]:
    """Looks for changes of a term's weight that do not come about within the epochs."""
    epochs = experiment.schedule.epochs
    findings = []
    for name, method in experiment.methods.items():
        for index, term in enumerate(method.terms):
            place, schedule = f"methods.{name}.terms.{index}.schedule", term.schedule
            if schedule.warm_up >= epochs:
                reached = f"the weight rises over {schedule.warm_up} epochs, to {epochs / (schedule.warm_up + 1):.0%} "
                found = f"{reached}of it in {_epochs(epochs)}."
                findings.append(Finding("warning", place, found, "Give a shorter `warm_up`, or more epochs."))
            if schedule.until is not None and schedule.until > epochs:
                found = f"`until: {schedule.until}` never comes in {_epochs(epochs)}."
                findings.append(Finding("warning", place, found, "Give an earlier epoch, or leave it out."))
    return findings


def _cached_views(experiment: Experiment) -> list[Finding]:
    """Says that what is trained from a cache sees other augmented images than the student alone."""
    views = experiment.fixed_views
    if views is None or all(method.terms for method in experiment.methods.values()):
        return []
    found = (
        f"methods with terms see {views} fixed view{'s' * (views > 1)} of an image, the student alone a new "
        "one in every epoch, so that their difference is not the method's alone."
    )
    return [Finding("warning", "teacher.cache", found, "Compare these methods with each other, or cache nothing.")]


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count > 1)}"
