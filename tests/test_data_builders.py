"""CINIC-10 and all folds of DTD as builders of TFDS, by the test case that TFDS has for builders."""

import tempfile
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from pictures import CINIC10_ARCHIVE, cinic10, dtd_members

from spkd_keras.data.builders import Cinic10, DtdFolds


class _OnExamples(tfds.testing.DatasetBuilderTestCase):
    """Runs on examples that are written for it; the archives have no checksums that are known to TFDS."""

    SKIP_CHECKSUMS = True

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory(prefix="spkd-examples-")
        cls.addClassCleanup(folder.cleanup)
        cls.EXAMPLE_DIR = folder.name
        cls.write_examples(Path(folder.name))
        super().setUpClass()


class TestCinic10(_OnExamples):
    DATASET_CLASS = Cinic10
    SPLITS = {"train": 20, "validation": 20, "test": 20}  # noqa: RUF012  (as TFDS has it)
    DL_DOWNLOAD_RESULT = CINIC10_ARCHIVE

    @classmethod
    def write_examples(cls, folder):
        cinic10(folder, of_class=2)

    def setUp(self):
        super().setUp()
        self.enterContext(pytest.MonkeyPatch.context()).setattr(Cinic10, "IMAGES_IN_SPLIT", 20)


class TestDtdFolds(_OnExamples):
    DATASET_CLASS = DtdFolds
    SPLITS = {"train": 9, "validation": 9, "test": 9}  # noqa: RUF012
    BUILDER_CONFIG_NAMES_TO_TEST = ["fold1", "fold10"]  # noqa: RUF012

    @classmethod
    def write_examples(cls, folder):
        for name, content in dtd_members().items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


del _OnExamples  # has no builder of its own to test
