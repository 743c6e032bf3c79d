"""The same network in another precision."""

import keras
from keras import layers

from spkd_keras.models.copying import copied, in_policy
from spkd_keras.models.graph import is_graph, last_operations

# Weights stay in float32 and are cast where they are used, so that nothing is rounded twice.
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


def in_precision(model: keras.Model, dtype: str) -> keras.Model:
    """Returns a copy of a network that computes in another dtype, with the same weights.

    The layers that normalise raw pixels and those that give the outputs, such as a dense layer and a softmax behind it,
    stay in float32.

    Args:
        model: functional or Sequential, nested ones included.
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        ValueError: if the dtype is another, or the model cannot be copied layer by layer.
    """
    if dtype not in PRECISIONS:
        raise ValueError(f"The dtype must be one of {', '.join(PRECISIONS)}. Received: {dtype!r}.")
    last = {id(operation) for operation in last_operations(model)} if is_graph(model) else set()

    def copy_layer(layer: layers.Layer) -> layers.Layer:
        config = layer.get_config()
        stays = id(layer) in last or isinstance(layer, layers.Rescaling | layers.Normalization)
        config["dtype"] = "float32" if stays else PRECISIONS[dtype]
        return in_policy(type(layer).from_config(config), config["dtype"])

    return copied(model, copy_layer, dtype)
