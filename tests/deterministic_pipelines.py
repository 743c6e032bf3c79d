"""Goes through pipelines where operations must be deterministic, and prints the name of each to standard error.

With `TF_CPP_VMODULE=make_deterministic=2` TensorFlow says between the names what it takes the threads from. It prepares
a data set in `TFDS_DATA_DIR`.
"""

import sys
from pathlib import Path

import tensorflow as tf
from networks import small_network
from pictures import DTD_ARCHIVE, archive, dtd_members, noise, photo_folder

from spkd_keras import Term, cache, losses
from spkd_keras.data import Augmentation, EpochClock, evaluation_batches, load, training_batches
from spkd_keras.data.prepare import prepare

AUGMENTATIONS = {
    "none": Augmentation(),
    "mixup": Augmentation(mixup=0.4),
    "cutmix": Augmentation(cutmix=1.0),
    "randaugment": Augmentation(randaugment=0.5),
}


def main(folder: Path) -> None:
    """Takes one batch of each."""
    tf.config.experimental.enable_op_determinism()
    photo_folder(folder / "photos", {"train": 4, "test": 1})
    photos = load("image_folder", path=str(folder / "photos"), image_size=24, validation=0).train
    arrays, clock, teacher = noise(8, 8), EpochClock(), small_network()
    cifar, imagenet = Augmentation("cifar"), Augmentation("imagenet")
    archive(folder / DTD_ARCHIVE, dtd_members())
    prepare("dtd/fold1", manual_dir=folder)
    prepared = load("dtd/fold1", image_size=24).train
    grey = noise(8, 8, channels=1)
    kept = cache.compute(folder / "cache", teacher, [Term(losses.SoftTargets())], grey, batch_size=4)
    pipelines = {
        **{f"arrays, {name}": training_batches(arrays, 4, 0, clock, some) for name, some in AUGMENTATIONS.items()},
        **{f"photos, {name}": training_batches(photos, 4, 0, clock, some) for name, some in AUGMENTATIONS.items()},
        "arrays, cifar": training_batches(arrays, 4, 0, clock, cifar),
        "photos, imagenet": training_batches(photos, 4, 0, clock, imagenet),
        "arrays, evaluated": evaluation_batches(arrays, 4),
        "photos, evaluated": evaluation_batches(photos, 4),
        "a prepared set": training_batches(prepared, 4, 0, clock, imagenet),
        "a cached teacher": kept.batches(grey, 4, 0, clock),
        "control": tf.data.Dataset.range(8).map(lambda number: number + clock.epoch, tf.data.AUTOTUNE),
    }
    for name, batches in pipelines.items():
        print(f"--- {name}", file=sys.stderr, flush=True)
        next(iter(batches))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
