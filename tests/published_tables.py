"""What is published of the experiments in `experiments/paper`, written down apart from the files.

The paper's numbers and protocols are as remembered; RepDistiller's are of its README, its `train_student.py` (schedule,
optimiser, temperature), `run_cifar_distill.sh` (weights) and `dataset/cifar100.py` (statistics of the pixels).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

METHODS = ("student", "kd", "at", "sp", "teacher")


class Protocol(NamedTuple):
    """How the networks of a family are trained, and by what the methods' terms are multiplied."""

    data: str
    classes: int
    image_size: int | None
    validation: float | None  # None: the set's own
    augmentation: str
    batch_size: int
    epochs: int
    learning_rate: float
    drops: dict[int, float]
    momentum: float
    nesterov: bool
    weight_decay: float
    temperature: float | None  # None: no KD in the table
    alpha: float | None
    beta: float  # of attention transfer
    gamma: float  # of similarity-preserving distillation
    seeds: int


PROTOCOLS = {
    "cifar10": Protocol(
        *("cifar10", 10, None, 0.0, "cifar", 128),
        *(200, 0.1, {60: 0.2, 120: 0.2, 160: 0.2}, 0.9, True, 5e-4),
        *(4.0, 0.9, 1000.0, 3000.0, 5),
    ),
    # Its methods are multiplied as CIFAR-10's; three seeds are ours.
    "cifar100": Protocol(
        *("cifar100", 100, None, 0.0, "cifar", 64),
        *(240, 0.05, {150: 0.1, 180: 0.1, 210: 0.1}, 0.9, False, 5e-4),
        *(4.0, 0.9, 1000.0, 3000.0, 3),
    ),
    # Augmentation and number of runs were not recovered.
    "cinic10": Protocol(
        *("cinic10", 10, None, None, "cifar", 96),
        *(140, 0.01, {100: 0.1, 120: 0.1}, 0.9, True, 5e-4),
        *(16.0, 0.6, 50.0, 2000.0, 3),
    ),
    # One seed for each of the ten folds. Beta and gamma were chosen on held-out images: these are CIFAR-10's.
    "dtd": Protocol(
        *("dtd/fold1", 47, 224, None, "imagenet", 96),
        *(60, 0.01, {30: 0.1}, 0.9, True, 5e-4),
        *(None, None, 1000.0, 3000.0, 1),
    ),
}
# RepDistiller trains its ShuffleNets more slowly, and their teachers like all others.
STUDENT_LEARNING_RATES = {"cifar100-shufflenet_v2-from-resnet32x4": 0.01}

# Mean and standard deviation of the pixels, 0..255.
PIXELS: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": (
        [255 * value for value in (0.5071, 0.4867, 0.4408)],
        [255 * value for value in (0.2675, 0.2565, 0.2761)],
    ),
    "cinic10": (
        [255 * value for value in (0.47889522, 0.47227842, 0.43047404)],
        [255 * value for value in (0.24205776, 0.23828046, 0.25874835)],
    ),
}


class Architecture(NamedTuple):
    """A network's builder and size, and its parameters as counted from the papers' tables at some number of classes."""

    model: str
    size: dict[str, Any]
    classes: int
    trainable: int
    parameters: int
    embedding: int  # values that go into the last dense layer, which has a bias

    def counts(self, classes: int) -> tuple[int, int]:
        """Returns the trainable and all parameters with so many classes."""
        more = (classes - self.classes) * (self.embedding + 1)
        return self.trainable + more, self.parameters + more


NARROW, WIDE = [16, 16, 32, 64], [32, 64, 128, 256]
# By the names that files have.
ARCHITECTURES = {
    "wrn-16-1": Architecture("wide_resnet", {"depth": 16, "width": 1}, 10, 175_066, 175_994, 64),
    "wrn-16-2": Architecture("wide_resnet", {"depth": 16, "width": 2}, 10, 691_674, 693_498, 128),
    "wrn-16-8": Architecture("wide_resnet", {"depth": 16, "width": 8}, 10, 10_961_370, 10_968_570, 512),
    "wrn-40-1": Architecture("wide_resnet", {"depth": 40, "width": 1}, 10, 563_930, 566_650, 64),
    "wrn-40-2": Architecture("wide_resnet", {"depth": 40, "width": 2}, 10, 2_243_546, 2_248_954, 128),
    "resnet20": Architecture("resnet", {"depth": 20, "widths": NARROW}, 10, 272_474, 274_042, 64),
    "resnet32": Architecture("resnet", {"depth": 32, "widths": NARROW}, 10, 466_906, 469_370, 64),
    "resnet56": Architecture("resnet", {"depth": 56, "widths": NARROW}, 10, 855_770, 860_026, 64),
    "resnet110": Architecture("resnet", {"depth": 110, "widths": NARROW}, 10, 1_730_714, 1_739_002, 64),
    "resnet8x4": Architecture("resnet", {"depth": 8, "widths": WIDE}, 10, 1_210_410, 1_213_162, 256),
    "resnet32x4": Architecture("resnet", {"depth": 32, "widths": WIDE}, 10, 7_410_730, 7_420_650, 256),
    "shufflenet_v2-0.5": Architecture("shufflenet_v2", {"width": 0.5}, 10, 352_042, 359_994, 1024),
    "shufflenet_v2-1.0": Architecture("shufflenet_v2", {"width": 1.0}, 10, 1_263_854, 1_280_034, 1024),
    "shufflenet_v2-2.0": Architecture("shufflenet_v2", {"width": 2.0}, 10, 5_365_486, 5_399_202, 2048),
    "mobilenet-0.25": Architecture("mobilenet", {"width": 0.25}, 47, 225_151, 230_623, 256),
    "mobilenet-0.5": Architecture("mobilenet", {"width": 0.5}, 47, 842_703, 853_647, 512),
    "mobilenet-1.0": Architecture("mobilenet", {"width": 1.0}, 47, 3_255_151, 3_277_039, 1024),
    "mobilenet_v2-0.35": Architecture("mobilenet_v2", {"width": 0.35}, 47, 322_383, 334_799, 448),
    "mobilenet_v2-1.0": Architecture("mobilenet_v2", {"width": 1.0}, 47, 2_284_079, 2_318_191, 1280),
    "mobilenet_v2-1.4": Architecture("mobilenet_v2", {"width": 1.4}, 47, 4_400_047, 4_447_983, 1792),
}
# RepDistiller's `ShuffleV2` is that of width 1.
ARCHITECTURES["shufflenet_v2"] = ARCHITECTURES["shufflenet_v2-1.0"]
# With the public ImageNet weights' head of 1280 channels, which is another one only below width 1.
WITH_FIXED_HEAD = {
    "mobilenet_v2-0.35": Architecture("mobilenet_v2", {"width": 0.35}, 47, 456_335, 470_415, 1280),
    "mobilenet_v2-1.0": ARCHITECTURES["mobilenet_v2-1.0"],
    "mobilenet_v2-1.4": ARCHITECTURES["mobilenet_v2-1.4"],
}

# Test errors in %, in the order of METHODS.
ERRORS: dict[str, tuple[float | None, ...]] = {
    "cifar10-wrn-16-1-from-40-1": (8.74, 8.48, 8.30, 8.13, 6.51),
    "cifar10-wrn-16-1-from-16-2": (8.74, 7.94, 8.28, 7.52, 6.07),
    "cifar10-wrn-16-2-from-40-2": (6.07, 6.00, 5.89, 5.52, 5.18),
    "cifar10-wrn-16-2-from-16-8": (6.07, 5.62, 5.47, 5.34, 4.24),
    "cifar10-wrn-40-2-from-16-8": (5.18, 4.86, 4.47, 4.55, 4.24),
    "dtd-mobilenet-0.25-from-0.5": (42.45, None, 42.39, 41.30, 36.76),
    "dtd-mobilenet-0.25-from-1.0": (42.45, None, 41.89, 41.76, 34.10),
    "dtd-mobilenet-0.5-from-1.0": (36.76, None, 35.61, 35.45, 34.10),
    "dtd-mobilenet_v2-0.35-from-1.0": (41.23, None, 41.60, 40.29, 36.62),
    "dtd-mobilenet_v2-0.35-from-1.4": (41.23, None, 41.04, 40.43, 35.35),
    "dtd-mobilenet_v2-1.0-from-1.4": (36.62, None, 36.33, 35.61, 35.35),
}
# Accuracies in %, in the same order, as RepDistiller prints them.
ACCURACIES = {
    "cifar100-wrn-16-2-from-wrn-40-2": (73.26, 74.92, 74.08, 73.83, 75.61),
    "cifar100-wrn-40-1-from-wrn-40-2": (71.98, 73.54, 72.77, 72.43, 75.61),
    "cifar100-resnet20-from-resnet56": (69.06, 70.66, 70.55, 69.67, 72.34),
    "cifar100-resnet20-from-resnet110": (69.06, 70.67, 70.22, 70.04, 74.31),
    "cifar100-resnet32-from-resnet110": (71.14, 73.08, 72.31, 72.69, 74.31),
    "cifar100-resnet8x4-from-resnet32x4": (72.50, 73.33, 73.44, 72.94, 79.42),
    "cifar100-shufflenet_v2-from-resnet32x4": (71.82, 74.45, 72.73, 74.56, 79.42),
}
# Pairs whose published numbers were not recovered.
WITHOUT_NUMBERS = (
    "cinic10-shufflenet_v2-0.5-from-1.0",
    "cinic10-shufflenet_v2-0.5-from-2.0",
    "cinic10-shufflenet_v2-1.0-from-2.0",
    "cinic10-mobilenet_v2-0.35-from-1.0",
)


def published_errors(stem: str) -> dict[str, float] | None:
    """Returns the published test errors of a pair in %, by method; None where there are none."""
    if stem in WITHOUT_NUMBERS:
        return None
    if stem in ACCURACIES:
        return {method: round(100 - accuracy, 2) for method, accuracy in zip(METHODS, ACCURACIES[stem], strict=True)}
    return {method: error for method, error in zip(METHODS, ERRORS[stem], strict=True) if error is not None}


def pair(stem: str) -> tuple[str, str]:
    """Returns the names of student and teacher in a file's stem, `cifar10-wrn-16-1-from-40-1`."""
    student, teacher = stem.split("-", 1)[1].split("-from-")
    family = student.split("-")[0]
    return student, f"{family}-{teacher}" if teacher[0].isdigit() else teacher
