"""The Describable Textures data set with all of its ten folds, as a TFDS builder."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow as tf
import tensorflow_datasets as tfds

from spkd_keras.data.augmentation import decode

NUM_FOLDS = 10
SPLITS = {"train": "train", "validation": "val", "test": "test"}  # and the names of the archive's lists


class DtdFolds(tfds.core.GeneratorBasedBuilder):
    """5,640 photos of textures in 47 classes, in ten splits into thirds: the configs `fold1` to `fold10`.

    Reads the official archive: photos in `dtd/images/<class>/`, the lists of each fold in
    `dtd/labels/{train,val,test}<fold>.txt`. TFDS' own `dtd` is its `fold1`.

    Reference: Cimpoi et al., "Describing Textures in the Wild", CVPR 2014.
    """

    URL = "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The official archive, release 1.0.1."}
    BUILDER_CONFIGS: ClassVar[list[Any]] = [
        tfds.core.BuilderConfig(name=f"fold{fold}", description=f"The official fold {fold}.")
        for fold in range(1, NUM_FOLDS + 1)
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        names = tfds.core.tfds_path(os.path.join("image_classification", "dtd_key_attributes.txt"))
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(names_file=names),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        root = Path(dl_manager.download_and_extract(self.URL)) / "dtd"
        fold = self.builder_config.name.removeprefix("fold")
        return {split: self._generate_examples(root, f"{name}{fold}.txt") for split, name in SPLITS.items()}

    def _generate_examples(self, root: Path, list_name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        names = root / "labels" / list_name
        if not names.is_file():
            raise ValueError(f"The archive of DTD must have its lists. Not found: dtd/labels/{list_name}.")
        for name in names.read_text(encoding="utf-8").split():
            image = root / "images" / name
            if not image.is_file():
                raise ValueError(f"The archive of DTD must have the photos of its lists. Not found: {name}.")
            try:
                decode(tf.io.read_file(str(image)))  # TFDS writes it undecoded
            except tf.errors.OpError as error:
                raise ValueError(
                    f"The archive of DTD must have photos that can be decoded. Received: {name}."
                ) from error
            yield name, {"file_name": name, "image": image, "label": name.split("/")[0]}
