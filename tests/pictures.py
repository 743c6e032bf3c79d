"""Pictures, folders of photos and archives that the tests of the data write."""

import io
import tarfile

import numpy as np
from PIL import Image

from spkd_keras.data import Images, digits
from spkd_keras.data.builders.cinic10 import CLASSES

DTD_CLASSES = ("banded", "dotted", "zigzagged")  # 0, 10 and 46 of the 47
DTD_CLASS_PHOTOS = 9  # of each, a third of them in each part
DTD_ARCHIVE = "dtd-r1.0.1.tar.gz"
CINIC10_ARCHIVE = "CINIC-10.tar.gz"


def numbered(count, classes=2):
    """Images that can be told apart: the only pixel is the image's number."""
    pixels = np.arange(count, dtype=np.uint8).reshape(count, 1, 1, 1)
    return Images(pixels, np.arange(count, dtype=np.int64) % classes, tuple(map(str, range(classes))))


def noise(count, side=8, channels=3, classes=4):
    """Images of random pixels."""
    pixels = np.random.default_rng(7).integers(0, 256, (count, side, side, channels), dtype=np.uint8)
    return Images(pixels, np.arange(count, dtype=np.int64) % classes, tuple(map(str, range(classes))))


def rows(images):
    """Images as a set, to compare parts by what is in them."""
    return {(pixels.tobytes(), int(label)) for pixels, label in zip(images.pixels, images.labels, strict=True)}


def gradient(height, width, blue=128):
    """A picture whose red tells the row and whose green tells the column, both below 256."""
    down, right = np.mgrid[:height, :width]
    return np.stack([down, right, np.full_like(down, blue)], axis=-1).astype(np.uint8)


def plain(colour, height, width):
    """A picture of one colour."""
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, len(colour))).copy()


def encoded(pixels, kind="JPEG"):
    """The bytes of a picture file, a JPEG as good as it gets."""
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" and pixels.ndim == 3 else {}
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def digit_pictures(folder):
    """Writes the first six test digits, two of them to a folder below, and returns the folder."""
    (folder / "more").mkdir(parents=True)
    for index, pixels in enumerate(digits()[1].pixels[:6]):
        (folder / ("more" if index > 3 else "") / f"{index}.png").write_bytes(encoded(pixels[..., 0], "PNG"))
    return folder


def photo_folder(root, counts, classes=("cat", "dog")):
    """Writes photos of several sizes to `<root>/<split>/<class>/`, and returns the class of each by its blue.

    A split has `counts[split]` photos of each class, all of them together at most 25.
    """
    blues = {split: {} for split in counts}
    for split, count in counts.items():
        for label, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                blue = 5 + 10 * sum(map(len, blues.values()))
                blues[split][blue] = label
                (root / split / name / f"{number:03}.jpg").write_bytes(
                    encoded(gradient(60 + number, 90 - number, blue))
                )
    return blues


def blue_of(pixels):
    """Which of the photos above each image of a batch is, whatever was cut out of it."""
    return (np.round((np.asarray(pixels)[..., 2].mean(axis=(1, 2)) - 5) / 10) * 10 + 5).astype(int).tolist()


def archive(path, members):
    """Writes a .tar.gz of these names and bytes."""
    with tarfile.open(path, "w:gz") as file:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return path


def cinic10(folder, of_class=2, **changed):
    """Writes a small archive of CINIC-10 in its layout, and returns pixels by (split of ours, label, number)."""
    random = np.random.default_rng(3)
    pictures, members = {}, {}
    for split, inside in (("train", "train"), ("validation", "valid"), ("test", "test")):
        for label, name in enumerate(CLASSES):
            for number in range(of_class):
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                pictures[split, label, number] = pixels
                members[f"{inside}/{name}/cifar10-{inside}-{number}.png"] = encoded(pixels, "PNG")
    archive(folder / CINIC10_ARCHIVE, members | changed)
    return pictures


def dtd_members():
    """The files of a small archive of DTD in its layout; a photo's colour tells its class and its number."""
    photos = {}
    for label, name in enumerate(DTD_CLASSES):
        for number in range(DTD_CLASS_PHOTOS):
            pixels = plain((80 * label, 20 * number, 9), 40 + number, 70 - number)
            photos[f"{name}/{name}_{number:04}.jpg"] = encoded(pixels)
    lists = {}
    for fold in range(1, 11):
        for index, part in enumerate(("train", "val", "test")):
            chosen = [name for place, name in enumerate(photos) if (place + place // 3 * fold) % 3 == index]
            lists[f"dtd/labels/{part}{fold}.txt"] = "".join(f"{name}\n" for name in chosen).encode()
    return {f"dtd/images/{name}": content for name, content in photos.items()} | lists
