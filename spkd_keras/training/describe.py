"""What a network is and costs."""

import re
from typing import Any

import keras

from spkd_keras import models
from spkd_keras.distiller import taps

NAMED_TAP = re.compile(r"(?:^|/)(stage\d+|head|logits)$")


def describe(network: keras.Model) -> dict[str, Any]:
    """Returns a network's size, cost and taps, as plain data.

    Args:
        network: functional or Sequential, with a fixed image size.

    Returns:
        Name, image shape, number of classes, parameters (all, and trainable), multiply-adds for an image, bytes of the
        weights in float32, the taps `stage<N>`, `head` and `logits` with their shapes, and the default tap of losses
        on activations with its shape, which is among them unless the network has no layers named `stage<N>`. Where
        there is no default (None), the taps are all layers that a term can name.

    Raises:
        ValueError: if the image size is open or the network's inside cannot be reached.
    """
    cost = models.multiply_adds(network)  # refuses what has no graph
    named = [taps.Tap(path) for path, _ in taps.layer_paths(network) if NAMED_TAP.search(path)]
    try:
        (default,) = taps.resolve(network, None, "last_stage", "network")
        places = list(dict.fromkeys([*named, default]))
    except ValueError:  # neither stages nor a pooling or flatten: here above all one needs the names
        default, places = None, taps.nameable(network)
    tapped = taps.tapped(network, places)
    shapes = {str(tap): list(taps.shape(tapped, places, [tap])[1:]) for tap in places}
    return {
        "name": network.name,
        "image_shape": list(network.inputs[0].shape[1:]),
        "num_classes": network.outputs[0].shape[-1],
        "parameters": network.count_params(),
        "trainable_parameters": sum(weight.shape.num_elements() for weight in network.trainable_weights),
        "multiply_adds": cost,
        "float32_bytes": 4 * network.count_params(),
        "taps": shapes,
        "default_tap": None if default is None else str(default),
    }
