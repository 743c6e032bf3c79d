"""What is done to training images. Every random choice is made of two integers, the seeds of the image."""

from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

PADDING = 4
EVALUATION_ZOOM = 256 / 224  # shorter side before the central crop, in sizes of the crop
CROP_AREA = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


class Augmentation(NamedTuple):
    """What is done to the training images.

    Attributes:
        name: "none"; "cifar": reflect-pad by 4, random crop, random flip; "imagenet": random-resized crop, random flip.
        mixup: alpha of MixUp's beta distribution; 0 for none.
        cutmix: Keras' factor of CutMix, whose alpha is uniform from 0 to it, drawn for each batch; 0 for none.
        randaugment: Keras' factor of RandAugment, up to 1; 0 for none. The two operations are drawn for each batch, not
            for each image, and turn by up to factor * 360 degrees one way.
    """

    name: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment: float = 0.0

    @property
    def mixes_labels(self) -> bool:
        """Whether labels become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0


def crop_and_flip(pixels: Any, seeds: Any) -> Any:
    """Reflect-pads by 4, crops to the size before at a random place, and flips every second image.

    Works on a batch at once: one image at a time this takes longer than a training step.

    Args:
        pixels: shape (batch, height, width, channels), sides of at least 5.
        seeds: shape (batch, 2), int32, uniform over all integers.

    Returns:
        Shape and dtype of `pixels`.

    Reference: the augmentation of Zagoruyko & Komodakis, BMVC 2016.
    """
    height, width = pixels.shape[1], pixels.shape[2]
    places = 2 * PADDING + 1
    down = tf.math.floormod(seeds[:, 0], places)
    right = tf.math.floormod(seeds[:, 0] // places, places)
    flip = tf.math.floormod(seeds[:, 1], 2)[:, None]
    column = tf.range(width)[None]
    rows = _reflected(tf.range(height)[None] + down[:, None] - PADDING, height)
    columns = _reflected(tf.where(flip == 1, width - 1 - column, column) + right[:, None] - PADDING, width)
    return tf.gather(tf.gather(pixels, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _reflected(index: Any, size: int) -> Any:
    """Mirrors what is outside of 0 .. size - 1 at the first and at the last, which are not repeated."""
    return (size - 1) - tf.abs((size - 1) - tf.abs(index))


def decode(encoded: Any, channels: int = 3) -> Any:
    """Decodes a JPEG, PNG, GIF (its first picture) or BMP to (height, width, channels) uint8.

    TensorFlow's own choice for JPEG is a fast transform that darkens CIFAR-10's blue by a hundredth.
    """
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.io.decode_jpeg(encoded, channels=channels, dct_method="INTEGER_ACCURATE"),
        lambda: tf.io.decode_image(encoded, channels=channels, expand_animations=False),
    )


def random_resized_crop(encoded: Any, seeds: Any, size: int) -> Any:
    """Cuts out a random part of a photo, brings it to size x size, and flips every second one.

    The part has 8% to 100% of the area and sides in a ratio of 3/4 to 4/3. Of a JPEG nothing else is decoded.

    Args:
        encoded: bytes of a photo.
        seeds: shape (2,), int32, uniform over all integers.
        size: in pixels.

    Returns:
        Shape (size, size, 3), uint8.

    Reference: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6.
    """

    def window(shape: Any) -> Any:
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.constant([[[0.0, 0.0, 1.0, 1.0]]]),
            seed=seeds,
            min_object_covered=0.0,
            area_range=CROP_AREA,
            aspect_ratio_range=CROP_RATIO,
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], extent[:2]], axis=0)

    image = tf.ensure_shape(scaled(_decoded_window(encoded, window), size, size), (size, size, 3))
    return tf.cond(tf.math.floormod(seeds[1], 2) == 1, lambda: tf.image.flip_left_right(image), lambda: image)


def central_crop(encoded: Any, size: int) -> Any:
    """Cuts the middle out of a photo: as resizing the shorter side to 256/224 of `size`, then cropping to it.

    Args:
        encoded: bytes of a photo.
        size: in pixels.

    Returns:
        Shape (size, size, 3), uint8.
    """

    def window(shape: Any) -> Any:
        side = tf.cast(tf.round(tf.cast(tf.minimum(shape[0], shape[1]), tf.float32) / EVALUATION_ZOOM), tf.int32)
        side = tf.maximum(side, 1)
        return tf.stack([(shape[0] - side) // 2, (shape[1] - side) // 2, side, side])

    return tf.ensure_shape(scaled(_decoded_window(encoded, window), size, size), (size, size, 3))


def _decoded_window(encoded: Any, window: Any) -> Any:
    """Decodes what `window(shape)`, as (top, left, height, width), says of a photo."""

    def of_jpeg() -> Any:
        place = window(tf.io.extract_jpeg_shape(encoded))
        return tf.io.decode_and_crop_jpeg(encoded, place, channels=3, dct_method="INTEGER_ACCURATE")

    def of_others() -> Any:
        image = decode(encoded)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return image[top : top + height, left : left + width]

    return tf.cond(tf.io.is_jpeg(encoded), of_jpeg, of_others)


def scaled(images: Any, height: int, width: int) -> Any:
    """Brings an image (height, width, channels), or a batch, to a size by antialiased bilinear interpolation; uint8."""
    return _as_pixels(tf.image.resize(images, (height, width), antialias=True))


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Brings images in memory, (n, height, width, channels), to a size as `scaled` does, 1,000 at a time; uint8."""
    parts = [scaled(pixels[start : start + 1000], size, size).numpy() for start in range(0, len(pixels), 1000)]
    return np.concatenate(parts)


def _as_pixels(values: Any) -> Any:
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)


class _Seeds(keras.random.SeedGenerator):
    """Gives Keras' layers their random seeds from given integers, not from a state that counts their calls."""

    def start(self, seeds: Any) -> None:
        """Begins anew from two integers."""
        self.seeds, self.drawn = seeds, 0

    def next(self, ordered: bool = True) -> Any:
        """Returns the next seed."""
        del ordered
        self.drawn += 1
        return tf.random.fold_in(self.seeds, self.drawn)


class Mixer:
    """RandAugment, MixUp and CutMix on whole batches, by Keras' own layers.

    Args:
        augmentation: which of them, and how strong.

    Raises:
        ValueError: if both MixUp and CutMix are asked for.
    """

    def __init__(self, augmentation: Augmentation) -> None:
        if augmentation.mixup > 0 and augmentation.cutmix > 0:
            raise ValueError("Give either `mixup` or `cutmix`, not both.")
        self.seeds = _Seeds(seed=0)
        self.layers: list[keras.layers.Layer] = []
        if augmentation.randaugment > 0:
            self.layers.append(keras.layers.RandAugment(factor=augmentation.randaugment, dtype="float32"))
        if augmentation.mixup > 0:
            self.layers.append(keras.layers.MixUp(alpha=augmentation.mixup, dtype="float32"))
        if augmentation.cutmix > 0:
            self.layers.append(keras.layers.CutMix(factor=augmentation.cutmix, dtype="float32"))
        for layer in self.layers:
            for inner in [layer, *(value for value in vars(layer).values() if isinstance(value, keras.layers.Layer))]:
                if hasattr(inner, "generator"):
                    inner.generator = self.seeds

    def __call__(self, pixels: Any, labels: Any, seeds: Any) -> tuple[Any, Any]:
        """Changes a batch.

        Args:
            pixels: shape (batch, height, width, channels), uint8.
            labels: shape (batch,), or (batch, classes) float32 where labels are mixed.
            seeds: shape (2,), int32.

        Returns:
            The same shapes and dtypes.
        """
        if not self.layers:
            return pixels, labels
        self.seeds.start(seeds)
        batch = {"images": tf.cast(pixels, tf.float32), "labels": labels}
        for layer in self.layers:
            batch = layer(batch, training=True)
        return tf.ensure_shape(_as_pixels(batch["images"]), pixels.shape), tf.cast(batch["labels"], labels.dtype)
