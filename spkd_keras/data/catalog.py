"""Finding a data set by its name and dividing it."""

from collections.abc import Callable, Sequence

from spkd_keras.data.digits import digits
from spkd_keras.data.folder import image_folder
from spkd_keras.data.splits import AnyImages, Images, Splits, check_images, held_out

DATASETS: dict[str, Callable[[], tuple[Images, Images]]] = {"digits": digits}  # those that come with a package
IMAGE_FOLDER = "image_folder"
VALIDATION_NAMES = ("validation", "valid", "val")
HELD_OUT = 0.1  # of the training images, where a set has no validation split of its own

Reader = Callable[[str], AnyImages]


def load(
    name: str,
    *,
    path: str | None = None,
    image_size: int | None = None,
    validation: float | str | None = None,
    test: str = "test",
    train_fraction: float = 1.0,
    validation_seed: int = 0,
) -> Splits:
    """Loads a data set and divides it into parts to train on, to choose by and to report.

    Args:
        name: one of `DATASETS`, "image_folder", or a name of TFDS, with a config behind a slash if it has any.
        path: the folder, for "image_folder".
        image_size: side to which images are brought; photos of different sizes need it.
        validation: name of the split to choose hyper-parameters by, or the fraction of the training images, stratified
            by class, that is held out for it (0 for none). None is the set's own validation split, or a tenth.
        test: name of the split to report.
        train_fraction: fraction of the training images to use, stratified by class.
        validation_seed: of the choice of held-out images.

    Returns:
        The parts, and where they come from.

    Raises:
        ValueError: if there is no such set or split, it is not prepared or not whole, or it cannot be divided so.
    """
    if path is not None and name != IMAGE_FOLDER:
        raise ValueError(f"`path` is for {IMAGE_FOLDER}. Received: name={name!r}, path={path!r}.")
    splits, read = _open(name, path, image_size)
    own = next((split for split in VALIDATION_NAMES if split in splits and split != test), None)
    validation = (own or HELD_OUT) if validation is None else validation
    for key, split in (("test", test), ("train", "train"), ("validation", validation)):
        if isinstance(split, str) and split not in splits:
            raise ValueError(f"`{key}`: {name} has no split {split!r}. It has {', '.join(splits)}.")
    if len({"train", test, validation}) < 3:
        raise ValueError(
            "`validation` and `test` must be other splits than train and each other. "
            f"Received: validation={validation!r}, test={test!r}."
        )
    for key, fraction, valid in (
        ("validation", validation, "from 0 to below 1"),
        ("train_fraction", train_fraction, "above 0, up to 1"),
    ):
        if not isinstance(fraction, str) and not (0 <= fraction < 1 if key == "validation" else 0 < fraction <= 1):
            raise ValueError(f"`{key}` must be a fraction {valid}. Received: {key}={fraction!r}.")

    def checked(split: str) -> AnyImages:
        images = read(split)
        check_images(images, f"The {split} part of {name}")
        return images

    train, chosen_by, origin = checked("train"), None, {"train": "train", "validation": None, "test": test}
    if isinstance(validation, str):
        chosen_by, origin["validation"] = checked(validation), validation
    elif validation > 0:
        train, chosen_by = held_out(train, validation, "validation", validation_seed)
        origin["validation"] = f"{validation:g} of train, stratified, seed {validation_seed}"
        origin["train"] = "train without validation"
    if train_fraction < 1:
        _, train = held_out(train, train_fraction, "train_fraction", validation_seed)
        origin["train"] = f"{train_fraction:g} of {origin['train']}"
    return Splits(train, chosen_by, checked(test), origin)


def _open(name: str, path: str | None, image_size: int | None) -> tuple[Sequence[str], Reader]:
    """Returns the names of a set's splits and a function that reads one."""
    if name in DATASETS:
        parts: dict[str, AnyImages] = dict(zip(("train", "test"), DATASETS[name](), strict=True))
        return list(parts), lambda split: _resized(parts[split], image_size)
    if name == IMAGE_FOLDER:
        if path is None or image_size is None:
            raise ValueError(f"{IMAGE_FOLDER} needs `path`, the folder, and `image_size`, for example 224.")
        return image_folder(path, image_size)
    from spkd_keras.data.prepared import prepared  # TFDS is imported where it is needed

    splits, read = prepared(name, image_size)
    return splits, lambda split: _resized(read(split), image_size)


def _resized(images: AnyImages, size: int | None) -> AnyImages:
    if size is None or not isinstance(images, Images) or images.image_shape[:2] == (size, size):
        return images
    from spkd_keras.data.augmentation import resize

    return Images(resize(images.pixels, size), images.labels, images.class_names)
