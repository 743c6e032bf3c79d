"""The networks of `keras.applications`, made to take raw pixels and to give logits as ours do."""

import difflib
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from spkd_keras.messages import one_line
from spkd_keras.models import blocks
from spkd_keras.models.normalization import fused

# Arguments that are settled, so that the network takes raw pixels and gives logits for the classes of the data.
SETTLED = (
    "include_top",
    "include_preprocessing",
    "input_tensor",
    "input_shape",
    "pooling",
    "classes",
    "classifier_activation",
    "name",
)


def applications() -> list[str]:
    """Returns the names of the networks in `keras.applications`."""
    return [name for name, value in sorted(vars(keras.applications).items()) if inspect.isfunction(value)]


def from_keras(application: str, **arguments: Any) -> keras.Model:
    """Calls a function of `keras.applications`.

    Raises:
        ValueError: if Keras refuses a value.
        OSError: if the weights are neither in Keras' cache nor to be downloaded.
    """
    try:
        return getattr(keras.applications, application)(**arguments)
    except (ValueError, TypeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"keras.applications.{application} refuses {given}: {one_line(error)}") from error
    except Exception as error:  # Keras raises no kind of its own for a download that fails
        if arguments.get("weights") is None or isinstance(error, Warning):
            raise
        raise OSError(
            f"The weights of keras.applications.{application} could not be loaded; Keras downloads them once into "
            f"$KERAS_HOME/models (~/.keras/models): {one_line(error)}"
        ) from error


def keras_application(
    name: str, *, num_classes: int = 1000, image_shape: Sequence[int] = (224, 224, 3), **arguments: Any
) -> keras.Model:
    """A network of `keras.applications` between its own preprocessing and a new classifier.

    `image` (pixels 0..255) -> `preprocessing`, as the network's own `preprocess_input` has it -> the network without
    its top, as the nested model `backbone` -> `pooling` -> `logits`, float32 without softmax. With
    `weights="imagenet"` and 1000 classes the network keeps its own top.

    Args:
        name: for example "MobileNet" or "EfficientNetV2B0".
        num_classes: at least 2.
        image_shape: (height, width, channels).
        **arguments: of the function in `keras.applications`, for example `alpha=0.5` or `weights="imagenet"`; `weights`
            are random by default.

    Returns:
        A functional model from `image`, shape (batch, *image_shape), to logits, shape (batch, num_classes).

    Raises:
        ValueError: if there is no such network or argument, or Keras refuses a value.
        OSError: if the weights are neither in Keras' cache nor to be downloaded.
    """
    if name not in applications():
        raise ValueError(f"`keras.applications` has no network {name!r}.{_nearest(name, applications())}")
    function = getattr(keras.applications, name)
    valid = [parameter for parameter in inspect.signature(function).parameters if parameter not in SETTLED]
    for argument in arguments:
        if argument not in valid:
            settled = " It is settled here." if argument in SETTLED else _nearest(argument, valid)
            raise ValueError(f"keras.applications.{name} takes no {argument!r} here.{settled}")
    shape = blocks.check_arguments(1, num_classes, image_shape, total_stride=1)
    arguments = {"weights": None} | arguments
    with_top = num_classes == 1000 and arguments["weights"] == "imagenet"
    image = keras.Input(shape, name="image")
    x = _preprocessing(image, function)
    top = {"classifier_activation": None} if with_top else {}
    backbone = fused(_backbone(name, shape, include_top=with_top, **top, **arguments))
    backbone.name = "backbone"  # given as an argument, it is a KeyError in EfficientNetV2 (Keras 3.12 to 3.15)
    x = backbone(x)
    if with_top:
        return keras.Model(image, layers.Activation("linear", dtype="float32", name="logits")(x), name=name)
    return blocks.classifier(image, x, num_classes, name)


def _backbone(name: str, shape: tuple[int, int, int], **arguments: Any) -> keras.Model:
    """Returns Keras' network for the images, with weights that there are.

    Keras (3.15) asks for those of the images' size, which MobileNetV2 above width 1 has at 224x224 alone.
    """
    published = arguments["weights"] == "imagenet" and name == "MobileNetV2" and arguments.get("alpha") in (1.3, 1.4)
    if not published or shape[:2] == (224, 224):
        return from_keras(name, input_shape=shape, **arguments)
    backbone = from_keras(name, input_shape=shape, **{**arguments, "weights": None})
    backbone.set_weights(from_keras(name, input_shape=(224, 224, 3), **arguments).get_weights())
    return backbone


def _preprocessing(image: Any, function: Callable[..., keras.Model]) -> Any:
    """Returns what the module's `preprocess_input` makes of the image, by layers that a file can hold.

    All of Keras' ones multiply and shift each channel; some of them turn the order of the channels round.
    """
    preprocess_input = sys.modules[function.__module__].preprocess_input
    channels = image.shape[-1]
    black, pure = np.zeros((1, channels), "float32"), 255 * np.eye(channels, dtype="float32")
    try:
        offset = preprocess_input(black, data_format="channels_last")[0]
        difference = preprocess_input(pure, data_format="channels_last") - offset
    except IndexError:
        raise ValueError(
            f"keras.applications.{function.__name__} takes images of 3 channels. Received: {channels}."
        ) from None
    scale = difference.sum(axis=1) / 255
    is_reversed = channels > 1 and not difference[0, 0]
    x = layers.Rescaling(
        scale.tolist(), (offset[::-1] if is_reversed else offset).tolist(), dtype="float32", name="preprocessing"
    )(image)
    return x[..., ::-1] if is_reversed else x


def _nearest(name: str, valid: list[str]) -> str:
    nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else f" Valid: {', '.join(valid)}."
