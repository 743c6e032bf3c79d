"""Taps: reading the outputs of inner layers of a network in the same forward pass."""

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from spkd_keras.models.graph import first_argument, input_structure, inputs_like, is_graph, output_operation, replay

UNCHANGING = ("Identity", "Reshape", "Flatten", "Cast")  # operations that leave probabilities what they are
GLOBAL = (layers.GlobalAveragePooling2D, layers.GlobalMaxPooling2D)
POOLING = (*GLOBAL, layers.Flatten)


class Tap(NamedTuple):
    """A place in a network: the output of a layer, or what goes into it.

    Attributes:
        path: the layer's name, after those of the nested models it is in: `backbone/block_12_add`. Empty: the
            network's own output.
        is_input: whether the layer's input is meant.
    """

    path: str
    is_input: bool = False

    def __str__(self) -> str:
        return f"input of {self.path}" if self.is_input else self.path or "output"

    @property
    def key(self) -> str:
        """A name that no other place has, since layers' paths do not begin with a slash: a layer may be `output`."""
        return self.path if self.path and not self.is_input else f"/{self}"

    @classmethod
    def of_key(cls, key: str) -> "Tap":
        """Finds the place of a key."""
        is_input = key.startswith(INPUT)
        return LOGITS if key == LOGITS.key else cls(key.removeprefix(INPUT), is_input)


LOGITS = Tap("")
INPUT = Tap("", is_input=True).key


def layer_paths(model: keras.Model, prefix: str = "") -> Iterator[tuple[str, layers.Layer]]:
    """Yields every layer with its path, in the order of the forward pass, going into nested models."""
    for layer in model.layers:
        if isinstance(layer, layers.InputLayer):
            continue
        yield prefix + layer.name, layer
        if is_graph(layer):
            yield from layer_paths(layer, f"{prefix}{layer.name}/")


def resolve(model: keras.Model, names: str | tuple[str, ...] | None, default_tap: str, role: str) -> tuple[Tap, ...]:
    """Finds the places that a term names.

    Args:
        model: the network.
        names: one layer's path, a tuple of them, or None for the default tap.
        default_tap: `"logits"`; `"embedding"`: the input of the dense layer that gives the output; `"last_stage"`: the
            highest layer named `stage<N>`, else what goes into the last global pooling or flatten, unless it is the
            pixels; `"all_stages"`: every layer named `stage<N>`, in order.
        role: "teacher" or "student", for the messages.

    Raises:
        ValueError: if a layer does not exist, naming those with the nearest names, or there is no such default.
    """
    if names is None and default_tap == "logits":
        return (LOGITS,)
    if not is_graph(model):
        raise ValueError(
            f"The {role}'s inner layers can be reached in a functional or built Sequential model only. Received: "
            f"{type(model).__name__} '{model.name}'. Wrap it in a functional model, or use losses on the logits."
        )
    paths = dict(layer_paths(model))
    if names is not None:
        wanted = names if isinstance(names, tuple) else (names,)
        for name in wanted:
            if name not in paths:
                raise ValueError(_unknown_layer(name, list(paths), role, model.name))
        return tuple(Tap(name) for name in wanted)
    if default_tap == "embedding" and (classifier := _classifier(model.outputs[0])):
        return (Tap(next(path for path, layer in paths.items() if layer is classifier), is_input=True),)
    stages = sorted((int(found.group(1)), path) for path in paths if (found := re.search(r"(?:^|/)stage(\d+)$", path)))
    if default_tap == "all_stages" and stages:
        return tuple(Tap(path) for _, path in stages)
    if default_tap == "last_stage" and stages:
        return (Tap(stages[-1][1]),)
    # The similarity of the images themselves has no gradient.
    pooling = [
        path
        for path, layer in paths.items()
        if isinstance(layer, POOLING)
        and any(_is_learned(x, "/" in path) for node in layer._inbound_nodes for x in node.input_tensors)
    ]
    if default_tap == "last_stage" and pooling:
        return (Tap(_last_of_maps(paths, pooling), is_input=True),)
    missing = {
        "embedding": "no dense layer",
        "last_stage": "no layer named stage<N> and no global pooling or flatten behind layers with weights",
        "all_stages": "no layer named stage<N>",
    }
    raise ValueError(
        f"The {role} '{model.name}' has {missing[default_tap]}, where this loss looks by default. Name the layers in "
        f"the term: {role}=... Its layers: {', '.join(paths)}."
    )


def _classifier(tensor: Any) -> layers.Dense | None:
    """Returns the dense layer that gives a network's output, for example before its activation; None if none does.

    Others, as in a squeeze-and-excite block, do not classify.
    """
    operation, node, _ = tensor._keras_history
    if is_graph(operation):
        return _classifier(operation.outputs[0])
    if isinstance(operation, layers.Dense):
        return operation
    given = operation._inbound_nodes[node].input_tensors
    return _classifier(given[0]) if len(given) == 1 and not getattr(operation, "weights", None) else None


def _unknown_layer(name: str, paths: list[str], role: str, model_name: str) -> str:
    nearest = difflib.get_close_matches(name, paths, n=3, cutoff=0.5)
    # A layer of a nested model is often asked for without its path.
    nearest += [path for path in paths if path.endswith("/" + name) and path not in nearest]
    hint = f"Did you mean {' or '.join(nearest)}?" if nearest else f"Its layers: {', '.join(paths)}."
    return f"The {role} '{model_name}' has no layer '{name}'. {hint}"


def tapped(model: keras.Model, taps: Sequence[Tap], with_output: bool = False) -> Any:
    """Returns a model with the same layers and weights that gives `{"taps": [value, ...]}`.

    Layers that no tap depends on are not run. Nested models on the way to a tap are entered; the others are called as
    they are. The given model computes what it did before.

    Args:
        model: functional or Sequential; any built model if every tap is its output.
        taps: as `resolve` gives them.
        with_output: whether to give the model's own output too, under "output".

    Raises:
        ValueError: if a tapped layer is called more than once in the model, so that its output is ambiguous.
    """
    if not is_graph(model):
        return _OutputOnly(model, len(taps))  # `resolve` gave nothing but the output
    inputs, outputs, found = _replayed(model, taps)
    for tap, tensors in found.items():
        if len(tensors) != 1:
            raise ValueError(
                f"The layer '{tap.path}' of '{model.name}' is called {len(tensors)} times, so that its output is "
                "ambiguous. Name a layer that is called once."
            )
        if not isinstance(tensors[0], keras.KerasTensor):
            raise ValueError(
                f"The {tap} of '{model.name}' must be one tensor to be compared. Received: {len(tensors[0])}. "
                "Name the layer that gives the one that is meant."
            )
    results = {"taps": [found[tap][0] for tap in taps]}
    return keras.Model(inputs, results | ({"output": outputs} if with_output else {}), name=f"{model.name}_tapped")


def nameable(model: keras.Model) -> list[Tap]:
    """Returns the outputs of all layers that a term can name: one tensor, of a layer that is called once."""
    _, _, found = _replayed(model, [Tap(path) for path, _ in layer_paths(model)])
    return [tap for tap, tensors in found.items() if len(tensors) == 1 and isinstance(tensors[0], keras.KerasTensor)]


def _replayed(model: keras.Model, taps: Sequence[Tap]) -> tuple[Any, Any, dict[Tap, list[Any]]]:
    """Returns new inputs, what the model gives for them, and every tensor that passes at each tap."""
    found: dict[Tap, list[Any]] = {tap: [] for tap in taps}
    inputs = inputs_like(input_structure(model))
    outputs = replay(model, inputs, _recorder(found, prefix=""))
    if LOGITS in found:
        found[LOGITS].append(_unwrapped(outputs))
    return inputs, outputs, found


def _recorder(found: dict[Tap, list[Any]], prefix: str) -> Callable[..., Any]:
    """Returns a call for `replay` that keeps what passes at the taps.

    Nested models that have a tap inside are replayed too, so that their inner tensors belong to the same graph.
    """

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        path = prefix + layer.name
        if is_graph(layer) and any(tap.path.startswith(f"{path}/") for tap in found):
            outputs = replay(layer, first_argument(args, kwargs), _recorder(found, prefix=f"{path}/"))
        else:
            outputs = layer(*args, **kwargs)
        if Tap(path) in found:
            found[Tap(path)].append(_unwrapped(outputs))
        if Tap(path, is_input=True) in found:
            found[Tap(path, is_input=True)].append(first_argument(args, kwargs))
        return outputs

    return call


def _unwrapped(outputs: Any) -> Any:
    """Returns the one tensor of a list of one, which Keras' losses take as well."""
    return outputs[0] if isinstance(outputs, list | tuple) and len(outputs) == 1 else outputs


class _OutputOnly:
    """A model whose inside cannot be reached, in the form of a tapped one."""

    def __init__(self, model: keras.Model, count: int) -> None:
        self.model = model
        self.count = count

    def __call__(self, x: Any, training: bool) -> dict[str, Any]:
        output = self.model(x, training=training)
        tap = _unwrapped(output)
        if self.count and keras.tree.is_nested(tap):
            raise ValueError(
                f"The output of '{self.model.name}' must be one tensor to be compared. Received: {len(tap)}. Wrap it "
                "in a functional model, and name the layer that gives the one that is meant."
            )
        return {"taps": [tap] * self.count, "output": output}


def shape(tapped_model: Any, places: Sequence[Tap], group: Sequence[Tap]) -> Any:
    """Returns the shape of a tap, or the list of shapes of several; None where the model's inside cannot be reached."""
    if isinstance(tapped_model, _OutputOnly):
        return None
    shapes = [tuple(tapped_model.output["taps"][places.index(tap)].shape) for tap in group]
    return shapes[0] if len(shapes) == 1 else shapes


def zeros(tapped_model: Any) -> list[Any] | None:
    """Returns zeros for two images at every tap; None where a size is open or the model's inside cannot be reached."""
    if isinstance(tapped_model, _OutputOnly):
        return None
    shapes = [output.shape[1:] for output in tapped_model.output["taps"]]
    return None if any(None in shape for shape in shapes) else [keras.ops.zeros((2, *shape)) for shape in shapes]


def num_classes(model: keras.Model) -> int | None:
    """Returns the size of the output's last axis, None for a model whose inside cannot be reached."""
    return model.outputs[0].shape[-1] if is_graph(model) else None


def _is_learned(tensor: Any, nested: bool) -> bool:
    """Whether a tensor depends on weights of the network; what goes into a nested one is taken to."""
    operation, node, _ = tensor._keras_history
    if isinstance(operation, layers.InputLayer):
        return nested
    if getattr(operation, "weights", None) and not isinstance(operation, layers.Normalization):
        return True
    return any(_is_learned(given, nested) for given in operation._inbound_nodes[node].input_tensors)


def _last_of_maps(paths: dict[str, layers.Layer], pooling: list[str]) -> str:
    """Returns the last pooling or flatten; of a flatten behind a global pooling, that one.

    There may be others before it, within blocks. Where what is between them is no chain of layers, the one before it
    is taken.
    """
    last = pooling[-1]
    prefix, layer = last[: len(last) - len(paths[last].name)], paths[last]
    while isinstance(paths[last], layers.Flatten):
        given = layer._inbound_nodes[0].input_tensors
        if len(given) != 1 or is_graph(layer):
            return next((path for path in reversed(pooling) if not _flattens_vectors(paths[path])), last)
        if _has_positions(given[0]):
            return prefix + layer.name if isinstance(layer, GLOBAL) else last
        layer = given[0]._keras_history.operation
    return last


def _flattens_vectors(layer: layers.Layer) -> bool:
    return isinstance(layer, layers.Flatten) and not _has_positions(layer._inbound_nodes[0].input_tensors[0])


def _has_positions(tensor: Any) -> bool:
    """Whether a tensor still has positions of the image."""
    return len(tensor.shape) == 4 and tuple(tensor.shape[1:3]) != (1, 1)


def probability_layer(model: keras.Model, tap: Tap) -> Any:
    """Returns the operation that makes probabilities of what a tap gives, a softmax or a sigmoid; None if none does.

    Averages of probabilities are probabilities, as an ensemble gives them. What cannot be seen from outside does not.
    """
    if not is_graph(model) or tap.is_input:
        return None
    operation = output_operation(model) if tap == LOGITS else dict(layer_paths(model))[tap.path]
    return _probability_operation(_making(operation))


def gives_logits(model: keras.Model) -> bool:
    """Whether the output of a functional or Sequential model is that of a dense layer or a convolution as it is."""
    operation = _making(output_operation(model))
    if is_graph(operation):
        return gives_logits(operation)
    return isinstance(operation, layers.Dense | layers.Conv2D) and operation.activation is keras.activations.linear


def _making(operation: Any) -> Any:
    """Returns the operation that made the values, which others have passed on unchanged."""
    while type(operation).__name__ in UNCHANGING or (
        isinstance(operation, layers.Activation) and operation.activation is keras.activations.linear
    ):
        operation = operation.input._keras_history.operation
    return operation


def _probability_operation(operation: Any) -> Any:
    if is_graph(operation):
        return probability_layer(operation, LOGITS)
    if isinstance(operation, layers.Average):
        found = [_probability_operation(_making(tensor._keras_history.operation)) for tensor in operation.input]
        return found[0] if all(found) else None
    activation = getattr(operation, "activation", None)
    probable = activation in (keras.activations.softmax, keras.activations.sigmoid)
    return operation if probable or type(operation).__name__ in ("Softmax", "Sigmoid") else None
