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
    test: float | str = "test",
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
        test: name of the split to report, or the fraction of the train split, stratified by class, that is held out for
            it, before anything else is.
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
    _check_parts(name, splits, validation, test)
    if not 0 < train_fraction <= 1:
        raise ValueError(f"`train_fraction` must be above 0, up to 1. Received: train_fraction={train_fraction!r}.")

    def checked(split: str) -> AnyImages:
        images = read(split)
        check_images(images, f"The {split} part of {name}")
        return images

    rest, taken = checked("train"), ["train"]
    parts: dict[str, AnyImages] = {}
    origin: dict[str, str | None] = {"train": None, "validation": None, "test": None}
    for part, source in (("test", test), ("validation", validation)):
        if isinstance(source, str):
            parts[part], origin[part] = checked(source), source
        elif source > 0:
            origin[part] = f"{source:g} of {_without(taken)}, stratified, seed {validation_seed}"
            rest, parts[part] = held_out(rest, source, part, validation_seed)
            taken.append(part)
    origin["train"] = _without(taken)
    if train_fraction < 1:
        _, rest = held_out(rest, train_fraction, "train_fraction", validation_seed)
        origin["train"] = f"{train_fraction:g} of {origin['train']}"
    return Splits(rest, parts.get("validation"), parts["test"], origin)


def _check_parts(name: str, splits: Sequence[str], validation: float | str, test: float | str) -> None:
    """Checks that the parts can be what they are asked to be.

    Raises:
        ValueError: if there is no such split, one is named twice, or a fraction is out of range.
    """
    for key, split in (("test", test), ("train", "train"), ("validation", validation)):
        if isinstance(split, str) and split not in splits:
            advice = " Hold a part of train out for it: test: 0.2." if key == "test" and "test" not in splits else ""
            raise ValueError(f"`{key}`: {name} has no split {split!r}. It has {', '.join(splits)}.{advice}")
    named = [split for split in ("train", test, validation) if isinstance(split, str)]
    if len(set(named)) < len(named):
        raise ValueError(
            "`validation` and `test` must be other splits than train and each other. "
            f"Received: validation={validation!r}, test={test!r}."
        )
    if not isinstance(test, str) and not 0 < test < 1:
        raise ValueError(f"`test` must be a split or a fraction above 0 and below 1. Received: test={test!r}.")
    if not isinstance(validation, str) and not 0 <= validation < 1:
        raise ValueError(f"`validation` must be a fraction from 0 to below 1. Received: validation={validation!r}.")


def _without(taken: Sequence[str]) -> str:
    """Returns what a split is called of which parts were taken."""
    return " without ".join([taken[0], " and ".join(taken[1:])]) if taken[1:] else taken[0]


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
