"""What is in a cache, and whether it is what an experiment needs."""

import dataclasses
import hashlib
import json
import math
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from spkd_keras.cache.sketch import SketchError
from spkd_keras.data import AnyImages, Images, prefetched
from spkd_keras.storage import write_json

FORMAT = 2
FILE = "manifest.json"


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """One tensor of an entry.

    Attributes:
        name: of the place in the teacher, as `Tap.key` gives it.
        shape: without the batch.
        sketched_from: the number of values that a random projection to `shape` was made of; None for the values
            themselves.
    """

    name: str
    shape: tuple[int, ...]
    sketched_from: int | None = None

    @property
    def size(self) -> int:
        """The number of values."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What is in a cache. An entry is view * images + image, in the order of the training images.

    Attributes:
        teacher_name: of the model.
        teacher_fingerprint: of the model.
        teacher_dtype: in which a copy of it computed; None for the teacher as it was.
        tensors: of an entry, one after the other.
        defaults: names of the tensors that a term without names means, by default tap.
        store: dtype in the files, "float16" or "float32".
        views: of each image.
        sketch: size of the random projections that were asked for; None for none.
        seed: of views and sketches.
        augmentation: of the views.
        images: how many there are.
        data: digest of the images.
        entries_a_shard: in every file but the last.
        same_in_every_batch: by name, whether images had the same values, bit for bit, in another batch.
        gives_probabilities: whether the teacher's output is that of a softmax or a sigmoid.
        sketches: by name, `SketchError`s measured on a batch, for tensors of which a sketch will do.
        format: of the files.
    """

    teacher_name: str
    teacher_fingerprint: str
    teacher_dtype: str | None
    tensors: tuple[StoredTensor, ...]
    defaults: dict[str, list[str]]
    store: str
    views: int
    sketch: int | None
    seed: int
    augmentation: str
    images: int
    data: str
    entries_a_shard: int
    same_in_every_batch: dict[str, bool] = dataclasses.field(default_factory=dict)
    gives_probabilities: bool = False
    sketches: dict[str, list[SketchError]] = dataclasses.field(default_factory=dict)
    format: int = FORMAT

    @property
    def entries(self) -> int:
        """How many there are."""
        return self.views * self.images

    @property
    def bytes_an_entry(self) -> int:
        """In the files, beside their own marks."""
        return bytes_of(self.tensors, self.store)

    def write(self, folder: Path) -> None:
        """Writes it into a folder."""
        write_json(folder / FILE, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Reads it from a folder.

        Raises:
            ValueError: if there is none, or it is of another format.
        """
        try:
            plain = json.loads((folder / FILE).read_text(encoding="utf-8"))
            if plain["format"] != FORMAT:
                raise ValueError(f"format {plain['format']} where {FORMAT} is read")
            tensors = tuple(StoredTensor(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in plain["tensors"])
            sketches = {name: [SketchError(*error) for error in found] for name, found in plain["sketches"].items()}
            return cls(**{**plain, "tensors": tensors, "sketches": sketches})
        except FileNotFoundError:
            raise ValueError(f"{folder} is no cache of a teacher: it has no {FILE}. Compute it: spkd cache.") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{folder / FILE} cannot be read ({error}). Remove the folder.") from error

    def check(self, folder: Path, **needed: Any) -> None:
        """Checks that it is what is needed.

        Args:
            folder: for the message.
            **needed: values of attributes.

        Raises:
            ValueError: naming all that differ.
        """
        own = dataclasses.asdict(self)
        wrong = [f"{key}: {own[key]} -> {value}" for key, value in needed.items() if own[key] != value]
        if wrong:
            raise ValueError(
                f"{folder} was computed for something else ({'; '.join(wrong)}). Remove it, or name another folder as "
                "`teacher.cache.path`."
            )


def bytes_of(tensors: Sequence[StoredTensor], store: str) -> int:
    """Returns what an entry of such tensors takes in the dtype of the files."""
    return sum(tensor.size for tensor in tensors) * np.dtype(store).itemsize


def data_digest(images: AnyImages) -> str:
    """Digest of images: their labels, and their pixels, or for photos their files' bytes and their size."""
    if images not in _DIGESTS:
        _DIGESTS[images] = _data_digest(images)
    return _DIGESTS[images]


# All photos are read for one.
_DIGESTS: weakref.WeakKeyDictionary[AnyImages, str] = weakref.WeakKeyDictionary()


def _data_digest(images: AnyImages) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(images.labels, np.int64).tobytes())
    if isinstance(images, Images):
        digest.update(np.ascontiguousarray(images.pixels).tobytes())
    else:
        files = prefetched(tf.data.Dataset.from_tensor_slices(images.numbers).map(images.read, tf.data.AUTOTUNE))
        for content in files.as_numpy_iterator():
            digest.update(hashlib.sha256(content).digest())  # so that no byte moves from one file to the next unseen
    digest.update(str(images.image_shape).encode())
    return digest.hexdigest()[:32]
