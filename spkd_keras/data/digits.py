"""Handwritten digits that come with scikit-learn, so that the first run needs no network."""

import numpy as np

from spkd_keras.data.splits import Images

TEST_FRACTION = 0.5


def digits() -> tuple[Images, Images]:
    """The 1,797 grey 8x8 handwritten digits of scikit-learn, half of them for testing.

    scikit-learn has them as numbers from 0 to 16 and has no test split of its own. Here they are scaled to 0..255, as
    every network takes them, and split into halves, stratified by class, always the same.

    Returns:
        The training images (898) and the test images (899), of shape (n, 8, 8, 1), uint8.

    Reference: Alpaydin & Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    train, test = train_test_split(
        np.arange(len(pixels)), test_size=TEST_FRACTION, stratify=bunch.target, random_state=0
    )
    class_names = tuple(str(name) for name in bunch.target_names)
    return (
        Images(pixels[train], bunch.target[train].astype(np.int64), class_names),
        Images(pixels[test], bunch.target[test].astype(np.int64), class_names),
    )
