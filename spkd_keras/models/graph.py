"""Walking through the graph of a functional or Sequential model."""

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import keras
from keras import layers

# What does not make its input into something else: its values go on as they are, rescaled or in another shape.
PASSING_ON = (layers.Activation, layers.Softmax, layers.Identity, layers.Reshape, layers.Dropout)


def is_graph(layer: Any) -> bool:
    """Whether this is a functional or a built Sequential model, whose inner layers can be reached."""
    if not isinstance(layer, keras.Model) or not layer.built:
        return False
    # A subclass may be built from inputs and outputs and still compute something else.
    own = next(kind for kind in type(layer).__mro__ if "call" in vars(kind))
    return own.__module__.startswith("keras.") and bool(getattr(layer, "inputs", None))


def inputs_like(tensors: Any) -> Any:
    """Returns new symbolic inputs of the same shapes, dtypes and names, optional where they are."""

    def like(x: Any) -> Any:
        optional = getattr(x._keras_history.operation, "optional", False)
        return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=x.name, optional=optional)

    return keras.tree.map_structure(like, tensors)


def input_structure(model: keras.Model) -> Any:
    """Returns the model's own symbolic inputs; `input` of a Sequential in another model is that model's tensor."""
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


def output_operation(model: keras.Model) -> Any:
    """Returns the layer or operation that gives a model's (first) output; of a nested model, the one in it."""
    last = model.outputs[0]._keras_history.operation
    return output_operation(last) if is_graph(last) else last


def last_operations(model: keras.Model) -> list[Any]:
    """Returns the layers and operations that give a model's outputs, back to those that do more than pass them on."""
    found = []
    for tensor in model.outputs:
        while True:
            operation, node, _ = tensor._keras_history
            if is_graph(operation):
                found += last_operations(operation)
                break
            found.append(operation)
            if not isinstance(operation, PASSING_ON):
                break
            tensor = operation._inbound_nodes[node].input_tensors[0]
    return found


def first_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Returns what a layer is called on, by position or by name."""
    return (*args, *kwargs.values())[0]


class _Ended(Exception):  # noqa: N818  (it is no error)
    """All of a graph was replayed."""


def replay(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """Calls every layer of a model again, on new symbolic inputs, in the order of the forward pass.

    The layers and their weights are the model's own, and the model is not changed.

    Args:
        model: functional or built Sequential.
        inputs: symbolic tensors, as many as the model's inputs; those of another dtype are cast, as Keras does.
        call: called as `call(layer, *args, **kwargs)` for every call of a layer or operation; returns its output.

    Returns:
        The model's output for these inputs.
    """
    outputs: list[Any] = []
    end = layers.Identity()

    def call_or_end(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer is not end:
            return call(layer, *args, **kwargs)
        outputs.append(args[0])
        raise _Ended  # else `clone_model` makes a model of it, which fails for a model that is called twice

    inputs = _as_called(model, inputs, call)
    output = model.outputs[0] if isinstance(model, keras.Sequential) else model.output
    # Functional even for a Sequential, and not compiled, so that no optimizer is copied. `clone_model` moves a graph
    # that starts at inner tensors to new inputs, so what was computed here is taken at the end layer.
    graph = keras.Model(input_structure(model), end(output))
    with contextlib.suppress(_Ended):
        keras.models.clone_model(
            graph, input_tensors=inputs, clone_function=lambda layer: layer, call_function=call_or_end
        )
    return outputs[0]


def _as_called(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """Returns inputs as Keras hands them to a model's layers: in the model's own structure and dtypes."""
    own = input_structure(model)
    if isinstance(inputs, dict) and isinstance(own, dict):  # there may be more than are taken
        inputs = {name: inputs[name] for name in own}
    elif isinstance(inputs, dict):
        inputs = [inputs[tensor.name] for tensor in keras.tree.flatten(own)]
    tensors = []
    for given, wanted in zip(keras.tree.flatten(inputs), keras.tree.flatten(own), strict=True):
        if given.dtype != wanted.dtype:
            cast = keras.ops.cast(given, wanted.dtype)._keras_history.operation
            given = call(cast, given)
        tensors.append(given)
    return keras.tree.pack_sequence_as(own, tensors)


def replay_laid_open(model: keras.Model, inputs: Any, call: Callable[..., Any]) -> Any:
    """As `replay`, also of the models in the model: `call` gets the layers in them, and no functional model itself."""

    def call_or_enter(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if is_graph(layer):
            return replay(layer, first_argument(args, kwargs), call_or_enter)
        return call(layer, *args, **kwargs)

    return replay(model, inputs, call_or_enter)


def sole_readers(model: keras.Model) -> list[tuple[Any, Any]]:
    """Returns the pairs of layers of which the second alone takes what the first gives, each called once.

    Nested models are laid open. An output of the model counts as taken.
    """
    calls: Counter[int] = Counter()
    uses: Counter[int] = Counter()
    given_by: dict[int, Any] = {}
    taken_by: dict[int, Any] = {}
    kept: list[Any] = []  # so that no id is given twice

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = layer(*args, **kwargs)
        calls[id(layer)] += 1
        for tensor in keras.tree.flatten((args, kwargs)):
            uses[id(tensor)] += 1
            taken_by[id(tensor)] = layer
        for tensor in keras.tree.flatten(outputs):
            given_by[id(tensor)] = layer
        kept.append((args, kwargs, outputs))
        return outputs

    output = replay_laid_open(model, inputs_like(input_structure(model)), call)
    uses.update(id(tensor) for tensor in keras.tree.flatten(output))
    return [
        (giver, taken_by[tensor])
        for tensor, giver in given_by.items()
        if uses[tensor] == 1 and tensor in taken_by and calls[id(giver)] == calls[id(taken_by[tensor])] == 1
    ]
