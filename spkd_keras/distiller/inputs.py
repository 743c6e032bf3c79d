"""What the inputs of the two networks are: the images of a batch, as they come."""

import warnings

import keras

from spkd_keras.distiller import taps
from spkd_keras.distiller.stand_in import StandIn
from spkd_keras.distiller.strategy_checks import draws
from spkd_keras.models.graph import input_structure


def check_same_images(teacher: keras.Model, student: keras.Model) -> None:
    """Checks that both networks take the images that both get, where at least one of them has a single input.

    Raises:
        ValueError: if their shapes differ, or the other takes more than that and not by its name.
    """
    if taps.is_graph(teacher) and taps.is_graph(student):
        _check_same_structure(teacher, student)
    one, other = (model.input_shape if taps.is_graph(model) else None for model in (teacher, student))
    if not (isinstance(one, tuple) and isinstance(other, tuple)) or len(one) != len(other):
        return  # several inputs, or what Keras reshapes
    if any(None not in sides and sides[0] != sides[1] for sides in zip(one, other, strict=True)):
        raise ValueError(
            f"Both networks get the same images. Received: a teacher '{teacher.name}' for images of shape {one[1:]} "
            f"and a student '{student.name}' for {other[1:]}. Put a keras.layers.Resizing or the like in front of one."
        )


def _check_same_structure(teacher: keras.Model, student: keras.Model) -> None:
    """A network of one input takes it out of a dictionary by its name, and cannot take a list of several."""
    structures = [input_structure(model) for model in (teacher, student)]
    several = [isinstance(structure, dict | list | tuple) for structure in structures]
    if several[0] == several[1]:
        return
    single, others = structures[several.index(False)], structures[several.index(True)]
    if isinstance(others, dict) and single.name in others:
        return
    if not isinstance(others, dict) and len(others) == 1:
        return
    taken = [", ".join(tensor.name for tensor in keras.tree.flatten(structure)) for structure in structures]
    role = "student" if several[0] else "teacher"
    raise ValueError(
        f"Both networks get the same inputs. Received: a teacher '{teacher.name}' that takes {taken[0]} and a student "
        f"'{student.name}' that takes {taken[1]}. Wrap the {role} in a functional model that takes what the other does."
    )


def warn_of_augmentation(student: keras.Model) -> None:
    """Warns of layers that alter the images at random in training, which the teacher then sees as they were."""
    drawing = [
        path
        for path, layer in taps.layer_paths(student)
        if hasattr(layer, "get_random_transformation") and draws(layer)  # an augmentation of Keras, and not a Dropout
    ]
    if drawing:
        warnings.warn(
            f"The student '{student.name}' augments its images itself, and the teacher sees them as they were, so that "
            f"the terms compare different images: {', '.join(drawing)}. Put that into the data.",
            stacklevel=4,
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
