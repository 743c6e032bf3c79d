"""Computing a cache: the teacher's one pass over every view of every image."""

import contextlib
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from spkd_keras import models
from spkd_keras.cache.manifest import Manifest, StoredTensor, bytes_of, data_digest
from spkd_keras.cache.shards import ShardWriter
from spkd_keras.cache.sketch import projector, sketch_errors
from spkd_keras.cache.teacher_cache import TeacherCache
from spkd_keras.data import AnyImages, Augmentation, EpochClock, view_batches
from spkd_keras.distiller import Term
from spkd_keras.distiller.outputs import check_logits, output_kind
from spkd_keras.distiller.taps import LOGITS, Tap, resolve
from spkd_keras.distiller.wiring import tapped_teacher
from spkd_keras.storage import bring_to_disk, partial_of

SHARD_BYTES = 256 * 2**20
STORES = ("float16", "float32")
DEFAULT_TAPS = ("logits", "embedding", "last_stage", "all_stages")


def compute(
    folder: str | Path,
    teacher: keras.Model,
    terms: Sequence[Term],
    images: AnyImages,
    *,
    batch_size: int = 128,
    augmentation: Augmentation | None = None,
    views: int = 1,
    seed: int = 0,
    store: str = "float16",
    sketch: int | None = None,
    teacher_dtype: str | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> TeacherCache:
    """Runs the teacher on every view of every image, and keeps what the terms compare, and its output.

    Args:
        folder: for the files; it must not exist.
        teacher: the teacher.
        terms: that students will be trained on.
        images: that they will be trained on.
        batch_size: of the teacher's passes.
        augmentation: of the views; None for none, for which one view is all there is.
        views: augmented views of each image, from 1 to 16. They take turns over the epochs, which is another recipe
            than new augmentation in every epoch.
        seed: of the views and the sketch.
        store: "float16" or "float32", the dtype in the files.
        sketch: size of a random projection, kept in place of a tap of which all terms use inner products between images
            alone. None keeps the taps.
        teacher_dtype: "bfloat16", "float16" or "float32": run a copy of the teacher in it.
        tell: called with the numbers of entries done and of all.

    What was interrupted goes on behind the last file that was written, of 256 MiB.

    Returns:
        The cache.

    Raises:
        ValueError: if an argument is out of range, the values do not fit into float16, or what was interrupted there
            was a cache of something else.
        OSError: if a file cannot be written.
    """
    folder, augmentation = Path(folder), augmentation or Augmentation()
    _check(folder, augmentation, views, store, sketch)
    places = _places(teacher, terms)
    tapped = tapped_teacher(teacher, teacher_dtype, list(places))
    run = tf.function(lambda pixels: tapped(pixels, training=False)["taps"])
    tensors = _tensors(tapped, places, sketch)
    values = _values(run, tensors, seed, store)
    manifest = Manifest(
        teacher.name,
        models.fingerprint(teacher),
        teacher_dtype,
        tensors,
        _defaults(teacher, places),
        store,
        views,
        sketch,
        seed,
        augmentation.name,
        len(images),
        data_digest(images),
        max(1, SHARD_BYTES // max(1, bytes_of(tensors, store))),
        gives_probabilities=output_kind(teacher, LOGITS) == "probabilities",
    )
    clock = EpochClock()
    batches = functools.partial(view_batches, images, batch_size, None, clock, augmentation, views, seed)
    with _whole_or_not_at_all(folder, manifest) as partial:
        _write(partial, manifest, batches, batch_size, clock, values, tell)
        same = _same_in_every_batch(TeacherCache(partial), images, batch_size, augmentation, values)
        pixels, _, _ = next(iter(batches()))
        sketches = {
            tap.key: sketch_errors(value, seed, store)
            for (tap, sketch_will_do), value in zip(places.items(), run(pixels), strict=True)
            if sketch_will_do
        }
        dataclasses.replace(manifest, same_in_every_batch=same, sketches=sketches).write(partial)
    return TeacherCache(folder)


def _check(folder: Path, augmentation: Augmentation, views: int, store: str, sketch: int | None) -> None:
    if folder.exists():
        raise ValueError(
            f"{folder} exists. TeacherCache(folder) opens the cache that is there. To compute another one, remove it "
            "or name another folder."
        )
    if store not in STORES:
        raise ValueError(f"`store` must be one of {', '.join(STORES)}. Received: {store!r}.")
    if type(views) is not int or not 1 <= views <= 16:
        raise ValueError(f"`views` must be an integer from 1 to 16. Received: views={views!r}.")
    if views > 1 and augmentation == Augmentation():
        raise ValueError(f"Without augmentation an image has one view. Received: views={views}.")
    if sketch is not None and (type(sketch) is not int or sketch < 1):
        raise ValueError(f"`sketch` must be an integer of at least 1, or None. Received: sketch={sketch!r}.")


def _places(teacher: keras.Model, terms: Sequence[Term]) -> dict[Tap, bool]:
    """Returns what is kept of the teacher, and whether a sketch of it will do.

    Raises:
        ValueError: if a term compares logits, and the teacher gives probabilities there.
    """
    places: dict[Tap, bool] = {}
    for term in terms:
        found = resolve(teacher, term.teacher, term.default_tap, "teacher")
        check_logits(term, "teacher", teacher, found)
        for tap in found:
            places[tap] = places.get(tap, True) and term.takes_sketches
    return {**places, LOGITS: False}


def _defaults(teacher: keras.Model, places: dict[Tap, bool]) -> dict[str, list[str]]:
    defaults = {}
    for kind in DEFAULT_TAPS:
        with contextlib.suppress(ValueError):  # a teacher may have none of a kind
            found = resolve(teacher, None, kind, "teacher")
            if set(found) <= set(places):
                defaults[kind] = [tap.key for tap in found]
    return defaults


def _tensors(tapped: Any, places: dict[Tap, bool], sketch: int | None) -> tuple[StoredTensor, ...]:
    """Returns what an entry consists of."""
    if not isinstance(tapped, keras.Model):
        raise ValueError("The teacher must be a functional or built Sequential model, so that its shapes are known.")
    tensors = []
    for (tap, sketch_will_do), output in zip(places.items(), tapped.output["taps"], strict=True):
        shape = tuple(output.shape[1:])
        if None in shape:
            raise ValueError(f"The {tap} of the teacher must have a fixed shape. Received: {shape}.")
        size = int(np.prod(shape))
        if sketch is not None and sketch_will_do and sketch < size:
            tensors.append(StoredTensor(tap.key, (sketch,), size))
        else:
            tensors.append(StoredTensor(tap.key, shape))
    return tuple(tensors)


def bytes_an_entry(teacher: keras.Model, terms: Sequence[Term], store: str, sketch: int | None) -> int:
    """Returns how large an entry of a cache would be; arguments as those of `compute`."""
    places = _places(teacher, terms)
    return bytes_of(_tensors(tapped_teacher(teacher, None, list(places)), places, sketch), store)


def _values(
    run: Callable[[Any], Sequence[Any]], tensors: Sequence[StoredTensor], seed: int, store: str
) -> Callable[[Any], list[np.ndarray]]:
    """Returns a function from a batch of pixels to what is kept of the teacher's taps, sketched and in their dtype."""
    projectors = [
        None if tensor.sketched_from is None else projector(tensor.sketched_from, tensor.size, seed)
        for tensor in tensors
    ]

    def values(pixels: Any) -> list[np.ndarray]:
        kept = []
        for value, projected in zip(run(pixels), projectors, strict=True):
            if projected is not None:
                value = projected(tf.reshape(tf.cast(value, tf.float32), (value.shape[0], -1)))
            kept.append(tf.cast(value, store).numpy())
        return kept

    return values


def _write(
    folder: Path,
    manifest: Manifest,
    batches: Callable[..., tf.data.Dataset],
    batch_size: int,
    clock: EpochClock,
    values: Callable[[Any], list[np.ndarray]],
    tell: Callable[[int, int], None] | None,
) -> None:
    """Writes the shards that are not there yet, view after view."""
    writer = ShardWriter(folder, manifest.entries, manifest.entries_a_shard)
    for view in range(writer.written // manifest.images, manifest.views):
        clock.epoch.assign(view)
        skip, first = divmod(writer.written - view * manifest.images, batch_size)
        for pixels, _, _ in batches(skip=skip):
            batch = [value[first:] for value in values(pixels)]
            first = 0
            _check_finite(batch, manifest.tensors, manifest.store)
            writer.write(batch)
            if tell:
                tell(writer.written, manifest.entries)
    writer.close()


def _check_finite(batch: list[np.ndarray], tensors: Sequence[StoredTensor], store: str) -> None:
    for value, tensor in zip(batch, tensors, strict=True):
        if not np.isfinite(value).all():
            raise ValueError(
                f"The teacher's {tensor.name} must be finite in {store}. Received: values that are not. "
                "Keep them with store: float32, or look at the teacher."
            )


def _same_in_every_batch(
    cache: TeacherCache,
    images: AnyImages,
    batch_size: int,
    augmentation: Augmentation,
    values: Callable[[Any], list[np.ndarray]],
) -> dict[str, bool]:
    """Runs other images together, as many as in a batch and in the last one, to see whether values depend on that.

    Where they do, in their last bits, a training from the cache is not the same bits as one with the teacher.
    """
    manifest = cache.manifest
    shuffled = view_batches(images, batch_size, 1, EpochClock(), augmentation, manifest.views, manifest.seed)
    pixels, _, numbers = next(iter(shuffled))
    stored = cache.read(numbers.numpy())
    same = dict.fromkeys(stored, True)
    for count in {len(pixels), len(images) % batch_size} - {0}:
        for (name, one), other in zip(stored.items(), values(pixels[:count]), strict=True):
            same[name] = same[name] and bool(np.array_equal(one[:count], other))
    return same


@contextlib.contextmanager
def _whole_or_not_at_all(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """Gives a folder to write into that gets its name when all is written; an earlier attempt's, if it was at this."""
    partial = partial_of(folder)
    if not _is_begun(partial, manifest):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        manifest.write(partial)
    yield partial
    partial.rename(folder)
    bring_to_disk(folder.parent)


def _is_begun(partial: Path, manifest: Manifest) -> bool:
    """Whether an interrupted attempt was at the same cache.

    Raises:
        ValueError: if it was at another, and came to more than its beginning, which may be hours of work.
    """
    try:
        begun = dataclasses.replace(Manifest.read(partial), same_in_every_batch={}, sketches={})
    except ValueError:  # there was none, or it did not come so far
        return False
    differing = [key for key, value in vars(manifest).items() if vars(begun)[key] != value]
    if differing and ShardWriter(partial, begun.entries, begun.entries_a_shard).written:
        raise ValueError(
            f"{partial} is a part of a cache of something else (of other {', '.join(differing)}). Remove it, or name "
            "another folder."
        )
    return not differing
