"""Augmentation of batches: crops and flips against NumPy, mixtures against their own labels."""

import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from pictures import noise

from spkd_keras.data import Augmentation, check_augmentation
from spkd_keras.data.augmentation import Mixer, crop_and_flip, resize

PLACES = 9  # of the window in each direction: a padding of 4 on both sides


def reference(image, down, right, flip):
    """Crop and flip of one image by NumPy's own padding."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    window = padded[down : down + height, right : right + width]
    return window[:, ::-1] if flip else window


def cropped(pixels, seeds):
    result = crop_and_flip(tf.constant(pixels), tf.constant(seeds, tf.int32))
    assert result.dtype == pixels.dtype
    return result.numpy()


def drawn(count, seed=5):
    """Seeds as the pipeline draws them, uniform over all integers."""
    return tf.random.stateless_uniform([count, 2], [seed, 1], None, None, tf.int32).numpy()


def all_cuts(image):
    """Where every cut of an image comes from, by its bytes."""
    cuts = itertools.product(range(PLACES), range(PLACES), (0, 1))
    return {reference(image, *cut).tobytes(): cut for cut in cuts}


# --- crop and flip ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "flip", "first_row", "first_column"),
    [
        # An image of 5 rows and 6 columns, numbered from 0. Reflected around its ends without repeating them, rows are
        # 4 3 2 1 [0 1 2 3 4] 3 2 1 0, columns 4 3 2 1 [0 1 2 3 4 5] 4 3 2 1; a seed's place is 9 * right + down.
        (9 * 4 + 4, 0, [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]),
        (9 * 4 + 4, 1, [5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4]),
        (9 * 0 + 0, 0, [4, 3, 2, 1, 0, 1], [4, 3, 2, 1, 0]),
        (9 * 8 + 8, 0, [4, 5, 4, 3, 2, 1], [4, 3, 2, 1, 0]),
        (9 * 8 + 3, 1, [1, 2, 3, 4, 5, 4], [1, 0, 1, 2, 3]),
        (9 * 3 + 5, 0, [1, 0, 1, 2, 3, 4], [1, 2, 3, 4, 3]),
        (9 * 3 + 5 - 81, -1, [4, 3, 2, 1, 0, 1], [1, 2, 3, 4, 3]),
    ],
)
def test_crops_by_hand(seed, flip, first_row, first_column):
    image = np.stack(np.broadcast_arrays(np.arange(5)[:, None], np.arange(6)[None]), axis=-1).astype(np.uint8)
    (result,) = cropped(image[None], [[seed, flip]])
    assert result[0, :, 1].tolist() == first_row
    assert result[:, 0, 0].tolist() == first_column
    assert (result[..., 0] == result[:, :1, 0]).all()
    assert (result[..., 1] == result[:1, :, 1]).all()


@pytest.mark.parametrize("shape", [(5, 5, 1), (5, 9, 3), (8, 8, 1), (32, 32, 3), (33, 6, 2)])
def test_crops_are_those_of_numpy(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (400, *shape), dtype=np.uint8)
    extremes = [[2**31 - 1, -(2**31)], [-(2**31), 2**31 - 1], [-1, -1], [0, 0]]
    seeds = np.concatenate([drawn(396), np.array(extremes, np.int32)])
    places = [(int(first) % 81, int(second) % 2) for first, second in seeds]
    expected = [
        reference(image, place % 9, place // 9, flip) for image, (place, flip) in zip(pixels, places, strict=True)
    ]
    np.testing.assert_array_equal(cropped(pixels, seeds), np.stack(expected))


def test_every_cut_is_about_equally_frequent():
    image = np.arange(121, dtype=np.uint8).reshape(11, 11, 1)
    cuts = all_cuts(image)
    assert len(cuts) == 162
    count = 100 * len(cuts)
    results = cropped(np.broadcast_to(image, (count, *image.shape)), drawn(count))
    counts = collections.Counter(cuts[result.tobytes()] for result in results)
    assert len(counts) == 162
    # Pearson's statistic has a mean of 161 and a standard deviation of 18 if all are equally frequent.
    assert sum((found - 100) ** 2 / 100 for found in counts.values()) < 161 + 4 * 18


# --- mixtures --------------------------------------------------------------------------------------------------------

SIDE = 16
COUNT = 24


def coloured(count=COUNT):
    """Plain images of as many colours and classes as there are images."""
    colours = np.random.default_rng(1).integers(0, 256, (count, 3), dtype=np.uint8)
    pixels = np.broadcast_to(colours[:, None, None], (count, SIDE, SIDE, 3))
    return colours.astype(np.float64), tf.constant(pixels), tf.one_hot(np.arange(count), count)


def mixed(augmentation, seeds=(1, 2), count=COUNT):
    colours, pixels, labels = coloured(count)
    pixels, labels = Mixer(augmentation)(pixels, labels, tf.constant(seeds))
    assert (pixels.dtype, labels.dtype) == (tf.uint8, tf.float32)
    assert (pixels.shape, labels.shape) == ((count, SIDE, SIDE, 3), (count, count))
    return colours, pixels.numpy(), labels.numpy().astype(np.float64)


EACH = [Augmentation(mixup=1.0), Augmentation(mixup=0.2), Augmentation(cutmix=1.0), Augmentation(cutmix=0.3)]


@pytest.mark.parametrize("augmentation", EACH)
def test_labels_become_shares_of_two_classes(augmentation):
    for seed in range(5):
        _, _, labels = mixed(augmentation, (seed, 0))
        np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)
        assert ((labels >= 0) & (labels <= 1)).all()
        assert (np.count_nonzero(labels, axis=1) <= 2).all()
        assert (labels.diagonal() > 0).mean() > 0.5, "an image keeps a share of its own class"
        assert len(set(labels.diagonal().round(5))) > 3, "each image has a share of its own"


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_mixup_mixes_pixels_as_labels(alpha):
    colours, pixels, labels = mixed(Augmentation(mixup=alpha))
    expected = np.broadcast_to((labels @ colours)[:, None, None], pixels.shape)
    np.testing.assert_allclose(pixels, expected, atol=0.51)  # rounded to integers
    assert (labels.max(axis=1) < 1).any()


@pytest.mark.parametrize("alpha", [1.0, 0.2])
def test_shares_of_mixup_have_the_distribution_of_its_alpha(alpha):
    _, _, labels = mixed(Augmentation(mixup=alpha), count=1500)
    # Beta(alpha, alpha): mean 1/2, variance 1 / (4 (2 alpha + 1)).
    assert labels.diagonal().mean() == pytest.approx(0.5, abs=0.04)
    assert labels.diagonal().var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_cutmix_replaces_a_rectangle_as_large_as_the_other_share(factor):
    colours, pixels, labels = mixed(Augmentation(cutmix=factor))
    replaced, off_diagonal = 0, 0
    for own, (image, shares) in enumerate(zip(pixels, labels, strict=True)):
        other = next((label for label in np.flatnonzero(shares) if label != own), own)
        from_other = (image == colours[other]).all(axis=-1)
        assert (from_other | (image == colours[own]).all(axis=-1)).all(), "every pixel is of one of the two"
        if other != own and from_other.any():
            replaced += 1
            rows, columns = np.flatnonzero(from_other.any(axis=1)), np.flatnonzero(from_other.any(axis=0))
            assert from_other.sum() == len(rows) * len(columns), "a rectangle"
            assert (len(rows), len(columns)) == (np.ptp(rows) + 1, np.ptp(columns) + 1), "without gaps"
            off_diagonal += abs(rows[0] - columns[0]) > 2
            # Its sides are less than a pixel longer or shorter than the share says.
            assert abs(from_other.mean() - shares[other]) < (len(rows) + len(columns) + 1) / SIDE**2
    assert replaced > COUNT // 3
    assert off_diagonal > 0, "row and column are drawn apart"


@pytest.mark.parametrize("augmentation", [*EACH, Augmentation(randaugment=0.5), Augmentation(mixup=0.3, randaugment=1)])
def test_a_mixture_is_a_function_of_its_seeds(augmentation):
    images = noise(COUNT, SIDE, classes=COUNT)
    batch = tf.constant(images.pixels), tf.one_hot(images.labels, COUNT)

    def result(seeds):
        return [np.asarray(part) for part in Mixer(augmentation)(*batch, tf.constant(seeds))]

    first = result((3, 4))
    keras.utils.set_random_seed(9)
    keras.random.normal((3,))
    for before, again in zip(first, result((3, 4)), strict=True):
        np.testing.assert_array_equal(before, again)
    for other in ((4, 3), (3, 5), (-3, 4)):
        assert (result(other)[0] != first[0]).any()
    assert (first[0] != images.pixels).any()
    mixer = Mixer(augmentation)
    in_graph = tf.data.Dataset.from_tensors((*batch, (3, 4))).map(lambda x, y, s: mixer(x, y, tf.stack(s))).repeat(2)
    for pixels, labels in in_graph:  # the second call draws as the first
        np.testing.assert_array_equal(pixels, first[0])
        np.testing.assert_array_equal(labels, first[1])


def test_mixer_without_anything_gives_back_what_it_gets():
    images = noise(6)
    pixels, labels = Mixer(Augmentation("cifar"))(images.pixels, images.labels, tf.constant([1, 2]))
    assert pixels is images.pixels
    assert labels is images.labels


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0])
def test_randaugment_changes_pixels_only(strength):
    images = noise(6, SIDE)
    changed, values = 0, []
    for seed in range(20):
        pixels, labels = Mixer(Augmentation(randaugment=strength))(images.pixels, images.labels, tf.constant([seed, 1]))
        assert (pixels.dtype, tuple(pixels.shape)) == (tf.uint8, images.pixels.shape)
        np.testing.assert_array_equal(labels, images.labels)
        assert labels.dtype == images.labels.dtype
        changed += bool((pixels.numpy() != images.pixels).any())
        values.append(pixels.numpy())
    assert changed > 10
    assert np.std(values) > 30, "of 256 values, not of 0 to 1"
    assert len({value.tobytes() for value in values}) > 10


def test_mixup_and_cutmix_exclude_each_other():
    both = Augmentation(mixup=0.2, cutmix=1.0)
    for build in (Mixer, lambda augmentation: check_augmentation(noise(4), augmentation)):
        with pytest.raises(ValueError, match=r"^Give either `mixup` or `cutmix`, not both\.$"):
            build(both)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("augmentation", [EACH[0], EACH[2], Augmentation(randaugment=0.5)])
def test_a_mixture_does_not_depend_on_the_precision_of_the_networks(augmentation, policy):
    expected = mixed(augmentation)
    keras.config.set_dtype_policy(policy)
    for value, want in zip(mixed(augmentation), expected, strict=True):
        np.testing.assert_array_equal(value, want)


# --- resize ----------------------------------------------------------------------------------------------------------


def test_resize():
    plain = np.arange(0, 250, 25, dtype=np.uint8).repeat(64).reshape(10, 8, 8, 1)
    for size in (4, 8, 12):
        result = resize(plain, size)
        assert (result.dtype, result.shape) == (np.uint8, (10, size, size, 1))
        np.testing.assert_array_equal(result, plain[:, :1, :1].repeat(size, 1).repeat(size, 2))
    # A checkerboard of 0 and 255 has a mean of 127.5: halved with antialiasing it is grey, without it is not.
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 255).astype(np.uint8)[None, ..., None]
    np.testing.assert_allclose(resize(board, 8)[:, 2:-2, 2:-2], 127.5, atol=1)
    many = noise(2100, 5).pixels  # it goes a thousand at a time
    np.testing.assert_array_equal(resize(many, 5), many)
