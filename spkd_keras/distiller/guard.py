"""What goes wrong during `fit` and can only be seen there."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


class TrainingGuard(keras.callbacks.Callback):
    """Stops a training that cannot work, with an error that says why.

    It looks once after each epoch, so that no step waits for it.

    Raises:
        ValueError: if there are no data, or every batch has one image and a term compares the images of a batch.
        FloatingPointError: if the loss or a term of an epoch is not finite.
    """

    def __init__(self, relational_terms: list[str], term_names: list[str]) -> None:
        super().__init__()
        self.relational_terms = relational_terms
        self.term_names = term_names

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the size of the batches and for values that are not finite."""
        images_a_batch = self.model.images_a_batch()
        if images_a_batch == 0:
            raise ValueError("The training data must have at least one batch. Received: none.")
        if self.relational_terms and images_a_batch <= 1:
            raise ValueError(
                "Batches must have at least two images, since these terms compare the images of a batch: "
                f"{', '.join(self.relational_terms)}. Received: batches of one. Raise the batch size."
            )
        values = {name: float((logs or {}).get(name, 0.0)) for name in (*self.term_names, "student_loss", "loss")}
        bad = [f"{name}={value}" for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"The loss is not finite in epoch {epoch + 1}: {', '.join(bad)}. Lower the learning rate or the weight "
                "of a term, and look for labels outside the classes and pixels that are not finite."
            )


@contextmanager
def clear_label_errors(num_classes: int | None) -> Iterator[None]:
    """Turns TensorFlow's error on labels outside the classes, raised inside the graph, into one clear line.

    On a GPU there is no such error and the loss becomes NaN, which the guard reports.
    """
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        if "label value" not in str(error):
            raise
        detail = str(error)[str(error).index("Received a label value") :].split("  Label values")[0].splitlines()[0]
        raise ValueError(
            f"Labels must be integers from 0 to the student's number of classes less one"
            f"{f', {num_classes - 1}' if num_classes else ''}. {detail}"
        ) from error
