"""Putting trained weights into a network: the public ImageNet ones, or those of a file."""

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
from keras import layers

from spkd_keras.messages import one_line
from spkd_keras.models.applications import from_keras

LOGITS = "logits"
SUFFIXES = (".keras", ".weights.h5")


class ImageNet(NamedTuple):
    """Where the ImageNet weights of a network come from.

    Attributes:
        application: name of the network in `keras.applications`.
        alphas: widths at which there are weights.
        sizes: sides of the square images on which they were trained; the largest is taken for all other images, and at
            widths above 1, where there is no other.
    """

    application: str
    alphas: tuple[float, ...]
    sizes: tuple[int, ...]


def load(
    model: keras.Model,
    weights: str | Path | None,
    skip_head: bool,
    imagenet: ImageNet | None = None,
    width: float = 1.0,
) -> keras.Model:
    """Loads trained weights into a network and returns it.

    Args:
        model: as a builder made it, with a dense layer `logits` at its end.
        weights: None to leave it as it is, "imagenet", or the path of a `.keras` or `.weights.h5` file.
        skip_head: whether to leave `logits` as they are. With "imagenet" so they are too unless there are 1000 classes.
        imagenet: where its ImageNet weights come from, if there are any.
        width: the network's, for these.

    Raises:
        ValueError: if the weights are not of this network.
        OSError: if the ImageNet weights are neither in Keras' cache nor to be downloaded.
    """
    if not isinstance(skip_head, bool):
        raise ValueError(f"`skip_head` must be True or False. Received: skip_head={skip_head!r}.")
    if weights is None:
        if skip_head:
            raise ValueError("`skip_head` says how `weights` are loaded. Received: skip_head=True without weights.")
    elif weights == "imagenet":
        _load_imagenet(model, skip_head, imagenet, width)
    elif isinstance(weights, str | Path) and str(weights):
        _load_file(model, Path(weights), skip_head)
    else:
        raise ValueError(f'`weights` must be None, "imagenet" or the path of a file. Received: weights={weights!r}.')
    return model


def _load_imagenet(model: keras.Model, skip_head: bool, imagenet: ImageNet | None, width: float) -> None:
    if imagenet is None:
        raise ValueError(f"There are no ImageNet weights for {model.name}. Give the path of a file, or leave them out.")
    if width not in imagenet.alphas:
        raise ValueError(
            f"The ImageNet weights exist at width {', '.join(map(str, imagenet.alphas))} only. Received: width={width}."
        )
    alpha = imagenet.alphas[imagenet.alphas.index(width)]  # a Python number, which names a file
    height, wide, channels = model.input_shape[1:]
    if channels != 3:
        raise ValueError(f"The ImageNet weights are for images of 3 channels. Received: {channels}.")
    has_own = height == wide and height in imagenet.sizes and width <= 1
    size = height if has_own else max(imagenet.sizes)
    classes = model.get_layer(LOGITS).units
    with_head = classes == 1000 and not skip_head
    source = from_keras(
        imagenet.application, input_shape=(size, size, 3), alpha=alpha, weights="imagenet", include_top=with_head
    )
    targets = [layer for layer in model.layers if layer.weights and (with_head or layer.name != LOGITS)]
    sources = [layer for layer in source.layers if layer.weights]
    for target, layer in zip(targets, sources, strict=True):
        values = layer.get_weights()
        if target.name == LOGITS:  # a 1x1 convolution in MobileNet
            values[0] = values[0].reshape(target.kernel.shape)
        target.set_weights(values)


def _load_file(model: keras.Model, path: Path, skip_head: bool) -> None:
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"`weights` must be a file that ends in {' or '.join(SUFFIXES)}. Received: {path}.")
    if not path.is_file():
        raise ValueError(f"`weights`: the file does not exist: {path}.")
    try:
        shapes = _layers_in(path)
    except (OSError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"`weights`: {path} cannot be read: {one_line(error)}") from error
    _check_layers(model, shapes, path)
    head, kernel = model.get_layer(LOGITS), shapes[LOGITS][0]
    classes = kernel[-1]
    if classes != head.units and not skip_head:
        raise ValueError(
            f"`weights`: {path} is for {classes} classes. Received: num_classes={head.units}. Give skip_head=True to "
            "load everything but the last layer."
        )
    # The same layers with another head in the place of `logits`, which takes what is to be left out.
    body = keras.Model(model.input, layers.Dense(classes, name=LOGITS)(head.input)) if skip_head else model
    body.load_weights(path)


def _layers_in(path: Path) -> dict[str, list[tuple[int, ...]]]:
    """Returns the shapes of the weights in a file by the name of the layer."""
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            source: str | Path | io.BytesIO = io.BytesIO(archive.read("model.weights.h5"))
    else:
        source = path
    with h5py.File(source) as file:
        groups = [group["vars"] for group in file["layers"].values() if len(group.get("vars", ()))]
        return {
            group.attrs["name"]: [tuple(group[key].shape) for key in sorted(group, key=int)]
            for group in groups
            if "name" in group.attrs
        }


def _check_layers(model: keras.Model, shapes: dict[str, list[tuple[int, ...]]], path: Path) -> None:
    """Keras finds a layer's weights by its kind and number, and so may take another's."""
    own = {layer.name: [tuple(weight.shape) for weight in layer.weights] for layer in model.layers if layer.weights}
    different = [name for name in {**own, **shapes} if name != LOGITS and own.get(name) != shapes.get(name)]
    if different or LOGITS not in shapes or own[LOGITS][0][0] != shapes[LOGITS][0][0]:
        name = (different or [LOGITS])[0]
        raise ValueError(
            f"`weights`: {path} is not of the network {model.name}. Layer {name} in the file: "
            f"{shapes.get(name, 'none')}. In the network: {own.get(name, 'none')}."
        )
