"""A cache on the disk, and batches from it."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from spkd_keras.cache.manifest import Manifest, data_digest
from spkd_keras.cache.shards import ShardReader
from spkd_keras.data import AnyImages, Augmentation, EpochClock, prefetched, view_batches
from spkd_keras.distiller import Cached, StandIn


class TeacherCache:
    """A cache on the disk.

        cache = TeacherCache("cache")
        distiller = Distiller(cache.stand_in, student, terms)
        distiller.compile(...)
        clock = EpochClock()
        distiller.fit(cache.batches(images, 128, seed=0, clock=clock), epochs=10, shuffle=False, callbacks=[clock])

    Args:
        folder: in which `compute` wrote it.

    Attributes:
        folder: the same.
        manifest: says what is in it.

    Raises:
        ValueError: if there is none, or it is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self._reader = ShardReader(self.folder, self.manifest.entries, self.manifest.entries_a_shard)

    @property
    def stand_in(self) -> StandIn:
        """What a Distiller gets in the teacher's place."""
        manifest = self.manifest
        return StandIn(
            manifest.teacher_name,
            manifest.teacher_fingerprint,
            {tensor.name: (None, *tensor.shape) for tensor in manifest.tensors},
            frozenset(tensor.name for tensor in manifest.tensors if tensor.sketched_from is not None),
            {kind: tuple(keys) for kind, keys in manifest.defaults.items()},
            manifest.teacher_dtype,
            manifest.gives_probabilities,
        )

    def read(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Returns entries: for each name an array of shape (numbers, ...).

        Args:
            numbers: view * images + image.
        """
        dtype = np.dtype(self.manifest.store)
        rows = self._reader.read(numbers, self.manifest.bytes_an_entry)
        ends = np.cumsum([tensor.size * dtype.itemsize for tensor in self.manifest.tensors])
        parts = np.split(rows, ends[:-1], axis=1)
        return {
            tensor.name: np.ascontiguousarray(part).view(dtype).reshape(len(numbers), *tensor.shape)
            for tensor, part in zip(self.manifest.tensors, parts, strict=True)
        }

    def batches(
        self, images: AnyImages, batch_size: int, seed: int, clock: EpochClock, skip: int = 0
    ) -> tf.data.Dataset:
        """Returns one epoch of shuffled batches each time it is iterated; pass `clock` to `fit` as a callback.

        Epoch e has view e modulo `views` of every image. The order is that of `data.training_batches`: a function of
        seed, epoch and position.

        Args:
            images: those of which the cache was computed.
            batch_size: may be another than when it was computed.
            seed: of the order.
            clock: gives the epoch.
            skip: how many batches to leave out at the beginning of each epoch.

        Returns:
            Batches of (Cached(pixels, values), labels).

        Raises:
            ValueError: if the images are others.
        """
        manifest = self.manifest
        manifest.check(self.folder, images=len(images), data=data_digest(images))
        dtype = tf.as_dtype(manifest.store)

        def with_teacher(pixels: Any, labels: Any, numbers: Any) -> tuple[Any, Any]:
            values = tf.numpy_function(
                lambda entries: list(self.read(entries).values()), [numbers], [dtype] * len(manifest.tensors), False
            )
            named = {
                tensor.name: tf.ensure_shape(value, (None, *tensor.shape))
                for tensor, value in zip(manifest.tensors, values, strict=True)
            }
            return Cached(pixels, named), labels

        views = view_batches(
            images, batch_size, seed, clock, Augmentation(manifest.augmentation), manifest.views, manifest.seed, skip
        )
        return prefetched(views.map(with_teacher))
