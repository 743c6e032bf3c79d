"""Cutting squares out of photos, at random and in the middle, against PIL and known pictures."""

import io

import numpy as np
import pytest
import tensorflow as tf
from pictures import encoded, gradient, plain
from PIL import Image, ImageFilter

from spkd_keras.data.augmentation import central_crop, decode, random_resized_crop

HEIGHT, WIDTH, SIZE = 200, 250, 64


def seeds(count):
    return tf.random.stateless_uniform([count, 2], [11, 2], None, None, tf.int32).numpy()


def smooth(height, width, seed=0):
    """A colourful picture without fine detail."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(2)))


def saved(pixels, mode="RGB", kind="JPEG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def difference(one, other):
    return np.abs(np.asarray(one).astype(float) - np.asarray(other).astype(float))


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 60, "subsampling": 0}, {"progressive": True}])
def test_a_jpeg_is_decoded_as_others_decode_it(options):
    content = saved(smooth(96, 120), **options)
    expected = np.asarray(Image.open(io.BytesIO(content)))
    assert difference(decode(content), expected).max() <= 1
    whole = np.asarray(central_crop(content, 96 * 7 // 8))  # the middle, not resized
    # At the border of a window, halved colours lack the neighbours that they are smoothed with.
    assert difference(whole, expected[6:90, 18:102])[1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("L", "PNG"), ("LA", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("1", "PNG"), ("RGB", "BMP"), ("L", "GIF")],
)
def test_whatever_is_decoded_has_three_channels(mode, kind):
    content = saved(smooth(40, 60), mode, kind)
    result = decode(content)
    assert (result.dtype, result.shape) == (tf.uint8, (40, 60, 3))
    np.testing.assert_array_equal(result, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_of_a_moving_picture_the_first_is_taken():
    first, second = Image.fromarray(plain((250, 0, 0), 30, 30)), Image.fromarray(plain((0, 0, 250), 30, 30))
    file = io.BytesIO()
    first.save(file, "GIF", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode(file.getvalue()), plain((250, 0, 0), 30, 30))


# --- the random crop -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def windows():
    """(top, left, height, width, flipped) of 400 crops, measured at a picture that tells its rows and columns."""
    content = encoded(gradient(HEIGHT, WIDTH), "PNG")
    found = []
    for pair in seeds(400):
        pixels = random_resized_crop(content, pair, SIZE).numpy().astype(float)
        assert (pixels[..., 2] == 128).all()
        red, green = pixels[..., 0].mean(axis=1), pixels[..., 1].mean(axis=0)
        flipped = green[-1] < green[0]
        sides = []
        for line in (red, green[::-1] if flipped else green):
            # Between a quarter and three quarters, where no edge is near, the line is straight.
            steps = np.arange(SIZE // 4, SIZE * 3 // 4)
            slope, start = np.polyfit(steps + 0.5, line[SIZE // 4 : SIZE * 3 // 4] + 0.5, 1)
            sides.append((start, slope * SIZE))
        (top, height), (left, width) = sides
        found.append((top, left, height, width, flipped))
    return np.array(found)


def test_areas_and_ratios_are_those_of_the_paper(windows):
    _, _, height, width, _ = windows.T
    area, ratio = height * width / (HEIGHT * WIDTH), width / height
    assert area.min() > 0.08 - 0.01
    assert area.max() < 1.01
    assert ratio.min() > 3 / 4 - 0.03
    assert ratio.max() < 4 / 3 + 0.04
    assert (area < 0.2).any()
    assert (area > 0.8).any()
    assert (ratio < 0.8).any()
    assert (ratio > 1.25).any()


def test_windows_lie_inside_and_everywhere(windows):
    top, left, height, width, _ = windows.T
    assert min(top.min(), left.min()) > -1
    assert (top + height).max() < HEIGHT + 1
    assert (left + width).max() < WIDTH + 1
    small = height * width < 0.3 * HEIGHT * WIDTH
    for start, side, whole in ((top, height, HEIGHT), (left, width, WIDTH)):
        place = start[small] / (whole - side[small])  # 0 at one edge, 1 at the other
        assert small.sum() > 60
        assert np.histogram(place, bins=4, range=(-0.1, 1.1))[0].min() > 0.1 * small.sum()


def test_every_second_photo_is_flipped(windows):
    flipped = windows[:, 4]
    assert abs(flipped.mean() - 0.5) < 3 * 0.5 / np.sqrt(len(flipped))
    # Where a window lies does not tell whether it is flipped.
    assert np.abs(np.corrcoef(windows.T)[4, :4]).max() < 3 / np.sqrt(len(flipped))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("shape", [(120, 90), (30, 300), (300, 30), (7, 5), (1, 1)])
def test_a_plain_photo_stays_plain(kind, shape):
    colour = (200, 60, 10)
    content = encoded(plain(colour, *shape), kind)
    for pair in seeds(10):
        for result in (random_resized_crop(content, pair, 32), central_crop(content, 32)):
            assert (result.dtype, result.shape) == (tf.uint8, (32, 32, 3))
            assert difference(result, colour).max() <= (2 if kind == "JPEG" else 0)


def test_jpeg_and_png_of_a_picture_are_cut_alike():
    pixels = smooth(160, 200)
    jpeg, png = encoded(pixels, "JPEG"), encoded(pixels, "PNG")
    for pair in seeds(40):
        apart = difference(random_resized_crop(jpeg, pair, SIZE), random_resized_crop(png, pair, SIZE))
        assert apart.max() <= 12  # of 256: what JPEG and its decoder change
        assert apart.mean() < 2
    apart = difference(random_resized_crop(png, [1, 2], SIZE), random_resized_crop(png, [2, 2], SIZE))
    assert apart.mean() > 10, "other windows are told apart"


@pytest.mark.parametrize("options", [{"quality": 85}, {"quality": 85, "progressive": True}])
def test_a_jpeg_as_cameras_write_it_is_cut_as_when_decoded_whole(options):
    content = saved(smooth(160, 200), **options)
    whole = encoded(decode(content).numpy(), "PNG")
    for pair in seeds(20):
        apart = difference(random_resized_crop(content, pair, SIZE), random_resized_crop(whole, pair, SIZE))
        assert apart.mean() < 0.5
        assert apart[2:-2, 2:-2].max() <= 4  # colours, of half the resolution, are blended differently at the edge


def test_of_a_jpeg_nothing_else_is_decoded():
    content = encoded(smooth(160, 200))
    cut = content[:-200]  # the last rows
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(cut)
    np.testing.assert_array_equal(central_crop(cut, SIZE), central_crop(content, SIZE))


# --- the central crop ------------------------------------------------------------------------------------------------


def resized_then_cropped(picture, size):
    """The usual words, done by PIL: the shorter side to 256/224 of the size, then the middle."""
    short = round(size * 256 / 224)
    scale = short / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BILINEAR)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return np.asarray(picture.crop((left, top, left + size, top + size)).convert("RGB"))


# Windows of 280 or 560 pixels at whole places, for 224: those of resizing and cropping lie exactly there.
@pytest.mark.parametrize("shape", [(320, 480), (480, 320), (320, 320), (640, 1000)])
@pytest.mark.parametrize(
    ("mode", "kind"), [("RGB", "PNG"), ("RGB", "JPEG"), ("L", "JPEG"), ("L", "PNG"), ("RGBA", "PNG")]
)
def test_the_middle_is_that_of_resizing_and_cropping(shape, mode, kind):
    content = saved(smooth(*shape), mode, kind, **({"quality": 95} if kind == "JPEG" else {}))
    expected = resized_then_cropped(Image.open(io.BytesIO(content)), 224)
    apart = difference(central_crop(content, 224), expected)[2:-2, 2:-2]  # there is nothing outside of the window
    assert apart.max() <= (12 if kind == "JPEG" else 1)
    assert apart.mean() < (2 if kind == "JPEG" else 0.5)


@pytest.mark.parametrize("shape", [(231, 347), (500, 375), (101, 99), (64, 333)])
def test_the_middle_of_any_size_is_the_nearest_of_whole_pixels(shape):
    content = encoded(smooth(*shape), "PNG")
    side = min(shape) * 224 / 256
    top, left = (shape[0] - side) / 2, (shape[1] - side) / 2  # between pixels, which PIL can resize from

    def apart(down, right, larger):
        box = (left + right - larger, top + down - larger, left + right + side + larger, top + down + side + larger)
        expected = Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.BILINEAR, box)
        return difference(central_crop(content, 64), expected).mean()

    here = apart(0, 0, 0)
    assert here < 6
    for other in ((1.5, 0, 0), (-1.5, 0, 0), (0, 1.5, 0), (0, -1.5, 0), (0, 0, 1.5), (0, 0, -1.5)):
        assert here < apart(*other)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("height", "width"), [(320, 480), (480, 320), (320, 320)])
def test_the_frame_around_the_middle(height, width, kind):
    # The middle has 320 * 224 / 256 = 280 pixels a side. A frame of 10 pixels inside its edge becomes one of 8.
    pixels = plain((0, 0, 255), height, width)
    top, left = (height - 280) // 2, (width - 280) // 2
    pixels[top : top + 280, left : left + 280] = (255, 0, 0)
    pixels[top + 10 : top + 270, left + 10 : left + 270] = (0, 255, 0)
    result = central_crop(encoded(pixels, kind), 224).numpy().astype(int)
    tolerance = 12 if kind == "JPEG" else 0
    assert difference(result[9:-9, 9:-9], (0, 255, 0)).max() <= tolerance
    for side in (result[1:7], result[-7:-1], result[:, 1:7], result[:, -7:-1]):
        assert difference(side[1:-1, 1:-1], (255, 0, 0)).max() <= tolerance
    assert result[2:-2, 2:-2, 2].max() <= tolerance, "nothing from outside"
