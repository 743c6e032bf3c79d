"""What a network must be to be exported, or to classify pictures."""

import keras

from spkd_keras.experiment import ExperimentError


def image_shape_and_classes(model: keras.Model, what: str) -> tuple[tuple[int | None, ...], int]:
    """Returns the (height, width, channels) that a network takes, None for a side that may vary, and its classes.

    Args:
        model: functional or Sequential.
        what: of whom this is asked, for the message.

    Raises:
        ExperimentError: if it takes anything but one image, or gives anything but one vector.
    """
    shapes = [tuple(tensor.shape[1:]) for tensor in model.inputs]
    outputs = [tuple(tensor.shape[1:]) for tensor in model.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 3 or len(outputs) != 1 or len(outputs[0]) != 1 or None in outputs[0]:
        raise ExperimentError(
            f"{what} takes one image, (height, width, channels), to one vector of logits. "
            f"Received: '{model.name}' from {_listed(shapes)} to {_listed(outputs)}."
        )
    return shapes[0], outputs[0][0]


def _listed(shapes: list[tuple[int | None, ...]]) -> str:
    return " and ".join(map(str, shapes))
