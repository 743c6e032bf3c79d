"""CINIC-10 as a TFDS builder."""

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, ClassVar

import tensorflow_datasets as tfds

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = {"train": "train", "validation": "valid", "test": "test"}  # and the archive's folders


class Cinic10(tfds.core.GeneratorBasedBuilder):
    """270,000 images of 32x32 from CIFAR-10 and ImageNet, 9,000 of each class in each of three splits.

    Reads the official archive, whose files are `<train|valid|test>/<class>/<name>.png`. An archive with another number
    of images is refused.

    Reference: Darlow et al., "CINIC-10 is not ImageNet or CIFAR-10", arXiv:1810.03505, 2018.
    """

    URL = "https://datashare.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"
    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "The official archive of 2018."}
    IMAGES_IN_SPLIT = 90_000

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "id": tfds.features.Text(),
            "image": tfds.features.Image(shape=(32, 32, 3)),
            "label": tfds.features.ClassLabel(names=CLASSES),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://datashare.ed.ac.uk/handle/10283/3192",
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        archive = dl_manager.download(self.URL)
        return {
            split: self._generate_examples(dl_manager.iter_archive(archive), folder) for split, folder in SPLITS.items()
        }

    def _generate_examples(self, files: Any, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
        found = 0
        for name, file in files:
            path = PurePosixPath(name)
            if path.suffix != ".png" or path.parts[-3:-2] != (folder,):
                continue
            found += 1
            key = f"{path.parts[-2]}/{path.stem}"
            yield key, {"id": key, "image": file, "label": path.parts[-2]}
        if found != self.IMAGES_IN_SPLIT:
            raise ValueError(
                f"The archive of CINIC-10 must have {self.IMAGES_IN_SPLIT} images in {folder}. Received: {found}. "
                f"Get the whole of it from {self.URL}."
            )
