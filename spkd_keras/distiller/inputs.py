"""What the inputs of the two networks are: the images of a batch, as they come."""

import warnings

import keras

from spkd_keras.distiller import taps
from spkd_keras.distiller.stand_in import StandIn


def check_same_images(teacher: keras.Model, student: keras.Model) -> None:
    """Checks that both networks take the images that both get, where each has one input.

    Raises:
        ValueError: if their shapes differ.
    """
    one, other = (model.input_shape if taps.is_graph(model) else None for model in (teacher, student))
    if not (isinstance(one, tuple) and isinstance(other, tuple)) or len(one) != len(other):
        return  # several inputs, or what Keras reshapes
    if any(None not in sides and sides[0] != sides[1] for sides in zip(one, other, strict=True)):
        raise ValueError(
            f"Both networks get the same images. Received: a teacher '{teacher.name}' for images of shape {one[1:]} "
            f"and a student '{student.name}' for {other[1:]}. Put a keras.layers.Resizing or the like in front of one."
        )


def warn_of_preprocessor(network: keras.Model | StandIn, role: str) -> None:
    """Warns of a network that prepares its images in its own `fit` and `predict`, as KerasHub's do (0.32).

    A Distiller calls the network, which then gets the images as they come.
    """
    if getattr(network, "preprocessor", None) is not None:
        warnings.warn(
            f"The {role} '{network.name}' has a `preprocessor`, which its own `fit` and `predict` apply and a "
            f"Distiller does not. Give the Distiller images that went through it, data.map({role}.preprocessor), and "
            f"set {role}.preprocessor = None, so that nothing applies it again.",
            stacklevel=4,
        )
