"""What is said of labels that do not fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

TEXT_LABELS = "Labels must be numbers: integers from 0, or shares of classes. Received: text."


def one_array(y: Any, term: str) -> Any:
    """Returns the labels as a loss takes them, one for each image.

    Args:
        y: as the batch has them.
        term: the name of the term that needs them.

    Raises:
        ValueError: if there are none, or those of several outputs.
    """
    if y is None:
        raise ValueError(f"The term '{term}' needs labels y. Received: images only.")
    arrays = keras.tree.flatten(y)
    if len(arrays) != 1:
        raise ValueError(
            f"The term '{term}' needs one array of labels. Received: {len(arrays)}, for several outputs. Leave the "
            "term out, or distil a model that has the one output."
        )
    return arrays[0]


def as_classes(y: Any) -> np.ndarray:
    """Returns the class of each image, of integers or one-hot rows.

    Raises:
        ValueError: if they are not numbers.
    """
    labels = np.asarray(y)
    if labels.dtype.kind not in "biuf":
        raise ValueError(TEXT_LABELS)
    labels = labels.argmax(axis=-1) if labels.ndim > 1 and labels.shape[-1] != 1 else labels.reshape(-1)
    return np.round(labels).astype("int64")


@contextmanager
def clear_label_errors(num_classes: int | None) -> Iterator[None]:
    """Turns the errors of Keras and TensorFlow on labels that do not fit into one clear line.

    For labels outside the classes there is none on a GPU: the loss becomes NaN, which the guard reports.
    """
    try:
        yield
    except ValueError as error:
        first = (str(error).splitlines() or [""])[0]
        if "Invalid dtype: str" in first:
            raise ValueError(f"{TEXT_LABELS} {first}") from error
        if "target" not in first or "`output`" not in first:
            raise
        raise ValueError(
            "The labels do not fit the compiled loss. Integers of shape (batch,) take "
            "keras.losses.SparseCategoricalCrossentropy, one-hot rows of shape (batch, classes) "
            f"keras.losses.CategoricalCrossentropy. {first}"
        ) from error
    except tf.errors.UnimplementedError as error:
        if "Cast string to float" not in str(error):
            raise
        raise ValueError(TEXT_LABELS) from error
    except tf.errors.InvalidArgumentError as error:
        if "label value" not in str(error):
            raise
        detail = str(error)[str(error).index("Received a label value") :].split("  Label values")[0].splitlines()[0]
        raise ValueError(
            f"Labels must be integers from 0 to the student's number of classes less one"
            f"{f', {num_classes - 1}' if num_classes else ''}. {detail}"
        ) from error
