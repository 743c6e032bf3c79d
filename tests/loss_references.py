"""Every loss in float64 NumPy, from its paper and its authors' PyTorch code: one image, pair or triple at a time.

Each function returns the published value of a batch. Where a vector is normalised, a dead one (all zeros) stays zero.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np


def log_softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, "float64") / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)


def divergence(teacher_log, student_log):
    """Kullback-Leibler, from log-probabilities."""
    return float(np.sum(np.exp(teacher_log) * (teacher_log - student_log)))


def unit(vector):
    length = math.sqrt(np.sum(vector**2))
    return vector / length if length > 0 else 0 * vector


def pearson(one, other):
    """0 where one of the two does not vary, 1 where neither does: they agree."""
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        return 1.0
    return float(np.sum(unit(one - np.mean(one)) * unit(other - np.mean(other))))


def smooth_l1(one, other):
    difference = abs(one - other)
    return 0.5 * difference**2 if difference < 1 else difference - 0.5


def block_mean(image, height, width):
    """Average pooling of an (h, w, c) image to (height, width, c)."""
    rows, columns = image.shape[0] // height, image.shape[1] // width
    pooled = np.zeros((height, width, image.shape[2]))
    for i, j in np.ndindex(height, width):
        pooled[i, j] = image[i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean(axis=(0, 1))
    return pooled


def same_sides(teacher, student):
    """Yields pairs of images, the larger one pooled to the sides of the smaller."""
    for one, other in zip(teacher, student, strict=True):
        height, width = min(one.shape[0], other.shape[0]), min(one.shape[1], other.shape[1])
        yield block_mean(one, height, width), block_mean(other, height, width)


def soft_targets(teacher, student, temperature=4.0, standardize=False):
    """Hinton et al. 2015. Standardised: Sun et al. 2024, algorithm 1, with torch.std's n - 1 as in their code."""
    values = []
    for logits in zip(teacher, student, strict=True):
        if standardize:
            logits = [(z - np.mean(z)) / (np.std(z, ddof=1) + 1e-7) for z in logits]
        values.append(temperature**2 * divergence(*(log_softmax(z, temperature) for z in logits)))
    return np.mean(values)


def decoupled_distillation(teacher, student, alpha=1.0, beta=8.0, temperature=4.0):
    """Zhao et al. 2022: the target class against the rest, and the classes of the rest among themselves."""
    teacher, labels = teacher
    values = []
    for one, other, label in zip(teacher, student, labels, strict=True):
        label = label if np.ndim(label) == 0 else np.argmax(label)
        binary, within = [], []
        for logits in (one, other):
            log_probability = log_softmax(logits, temperature)
            rest = np.logaddexp.reduce(np.delete(log_probability, label))
            binary.append(np.array([log_probability[label], rest]))
            within.append(log_softmax(np.delete(logits, label), temperature))
        values.append(temperature**2 * (alpha * divergence(*binary) + beta * divergence(*within)))
    return np.mean(values)


def dist(teacher, student, beta=1.0, gamma=1.0, temperature=1.0):
    """Huang et al. 2022; T^2 as in their code for classification, where what varies in neither correlates by 0."""
    one, other = (np.exp(log_softmax(logits, temperature)) for logits in (teacher, student))
    inter = np.mean([1 - pearson(*rows) for rows in zip(one, other, strict=True)])
    intra = np.mean([1 - pearson(*columns) for columns in zip(one.T, other.T, strict=True)])
    return temperature**2 * (beta * inter + gamma * intra)


def attention_transfer(teacher, student, power=2.0):
    """Zagoruyko & Komodakis 2017, with the means over channels and pixels of their code."""
    total = 0.0
    for stages in zip(teacher, student, strict=True):
        for pair in same_sides(*stages):
            one, other = (unit(np.mean(np.abs(image) ** power, axis=-1)) for image in pair)
            total += np.mean((one - other) ** 2) / len(stages[0])
    return total


def relational_distance(teacher, student):
    """Park et al. 2019, section 3.2.1. The mean distance is that of all pairs of two examples, equal ones too.

    So it is in their code: squared distances are clamped to 1e-12 before the mean of the positive ones is taken.
    """
    matrices = []
    for embeddings in (teacher, student):
        distances = np.array([[math.sqrt(np.sum((x - y) ** 2)) for y in embeddings] for x in embeddings])
        mean = np.sum(distances) / max(len(distances) * (len(distances) - 1), 1)
        matrices.append(distances / mean if mean > 0 else distances)
    return np.mean([smooth_l1(*pair) for pair in zip(*(matrix.ravel() for matrix in matrices), strict=True)])


def relational_angle(teacher, student):
    """Park et al. 2019, section 3.2.2; the mean is over all b^3 triples, as in their code."""
    values = []
    for i, j, k in itertools.product(range(len(teacher)), repeat=3):
        cosines = [np.sum(unit(e[j] - e[i]) * unit(e[k] - e[i])) for e in (teacher, student)]
        values.append(smooth_l1(*cosines))
    return np.mean(values)


def pkt(teacher, student, epsilon=1e-7):
    """Passalis & Tefas 2018, cosine kernel; images are their own neighbours, mean over b^2, as in their code."""
    total = 0.0
    for i in range(len(teacher)):
        one, other = ([(unit(e[i]) @ unit(row) + 1) / 2 for row in e] for e in (teacher, student))
        for p, q in zip(np.array(one) / sum(one), np.array(other) / sum(other), strict=True):
            total += p * math.log((p + epsilon) / (q + epsilon))
    return total / len(teacher) ** 2


def correlation_congruence(teacher, student, gamma=0.4, order=2):
    """Peng et al. 2019: Taylor series of the Gaussian kernel exp(-gamma |f_i - f_j|^2) of unit vectors."""
    total = 0.0
    for i, j in itertools.product(range(len(teacher)), repeat=2):
        one, other = (
            sum((2 * gamma) ** p / math.factorial(p) * (unit(e[i]) @ unit(e[j])) ** p for p in range(order + 1))
            for e in (teacher, student)
        )
        total += (math.exp(-2 * gamma) * (one - other)) ** 2
    return total / len(teacher) ** 2


def inter_channel_correlation(teacher, student):
    """Liu et al. 2021 (ICKD-C), over c instead of c^2 and with unit rows, as in their code."""
    values = []
    for images in zip(teacher, student, strict=True):
        matrices = []
        for image in images:
            channels = image.reshape(-1, image.shape[-1]).T
            matrices.append(np.array([unit(np.array([a @ b for b in channels])) for a in channels]))
        values.append(np.sum((matrices[0] - matrices[1]) ** 2) / len(matrices[0]))
    return np.mean(values)


def hint(teacher, student):
    """Romero et al. 2015, as a mean."""
    return np.mean([np.mean((one - other) ** 2) for one, other in zip(teacher, student, strict=True)])


def neuron_selectivity(teacher, student):
    """Huang & Wang 2017 with the kernel (a . b)^2: squared maximum mean discrepancy of the channels' maps."""
    total = 0.0
    for stages in zip(teacher, student, strict=True):
        for pair in same_sides(*stages):
            one, other = ([unit(channel) for channel in image.reshape(-1, image.shape[-1]).T] for image in pair)
            kernel = [
                np.mean([(a @ b) ** 2 for a in left for b in right])
                for left, right in ((one, one), (other, other), (one, other))
            ]
            total += (kernel[0] + kernel[1] - 2 * kernel[2]) / len(stages[0])
    return total


def variational_information(teacher, student):
    """Ahn et al. 2019: negative logarithm of a Gaussian without its constant, as a mean.

    The student's last axis holds the means, then the variances.
    """
    values = []
    for image, prediction in zip(teacher, student, strict=True):
        channels = image.shape[-1]
        target = block_mean(image, *prediction.shape[:2])
        mean, variance = prediction[..., :channels], prediction[..., channels:]
        values.append(np.mean(0.5 * ((mean - target) ** 2 / variance + np.log(variance))))
    return np.mean(values)


def projection(teacher, student):
    """Chen et al. 2022, of the projected student."""
    return np.mean([1 - unit(one) @ unit(other) for one, other in zip(teacher, student, strict=True)])


SHAPES = {
    "logits": [((6, 7), (6, 7))],
    "embeddings": [((6, 5), (6, 4))],
    "projected": [((6, 5), (6, 5))],
    "activations": [((6, 3, 2, 4), (6, 3, 2, 4))],
    "stages": [((6, 2, 2, 3), (6, 4, 4, 2)), ((6, 4, 2, 2), (6, 2, 1, 3))],  # larger in the student, in the teacher
}
VARIANTS = ("random", "outlier", "dead", "dead_on_one_side", "duplicate", "two")
DEAD = {"dead": (1, 1), "dead_on_one_side": (0, 2)}  # rows of the teacher and of the student


def sample(seed, shape, variant, side):
    values = np.random.default_rng((seed, side)).normal(size=shape)
    if variant == "outlier":
        values[(0, 2)[side]] *= 20
    if variant in DEAD:
        values[DEAD[variant][side]] = 0
        values[3, ..., 0] = 0
    if variant == "duplicate":
        values[4] = values[5]
        values[(1, 0)[side]] = values[(3, 2)[side]]
    return values[:2] if variant == "two" else values


@dataclasses.dataclass(frozen=True)
class Case:
    """A loss by its name, its arguments, its reference and what it compares."""

    key: str
    reference: Callable[..., Any]
    kind: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self):
        return "-".join([self.key, *(f"{name}={value}" for name, value in self.arguments.items())])

    def expected(self, teacher, student):
        return self.reference(teacher, student, **self.arguments)

    def inputs(self, variant="random", seed=0):
        """What the loss gets from the teacher and from the student."""
        kind = "activations" if self.kind == "gaussian" else self.kind
        pairs = [
            [sample((seed, index), shape, variant, side) for side, shape in enumerate(shapes)]
            for index, shapes in enumerate(SHAPES[kind])
        ]
        teacher, student = [one for one, _ in pairs], [other for _, other in pairs]
        if self.kind == "stages":
            return teacher, student
        if self.kind == "logits":
            teacher, student = [3 * teacher[0]], [3 * student[0]]
        if self.key == "decoupled_distillation":
            teacher = [(teacher[0], np.array([2, 0, 6, 3, 3, 1])[: len(teacher[0])])]
        if self.kind == "gaussian":
            variance = np.random.default_rng(seed + 1).uniform(0.2, 3.0, student[0].shape)
            student = [np.concatenate([student[0], variance], axis=-1)]
        return teacher[0], student[0]


CASES = [
    Case("soft_targets", soft_targets, "logits"),
    Case("soft_targets", soft_targets, "logits", {"temperature": 2.0, "standardize": True}),
    Case("decoupled_distillation", decoupled_distillation, "logits"),
    Case("decoupled_distillation", decoupled_distillation, "logits", {"alpha": 2.0, "beta": 0.5, "temperature": 1.0}),
    Case("dist", dist, "logits"),
    Case("dist", dist, "logits", {"beta": 2.0, "gamma": 0.5, "temperature": 4.0}),
    Case("attention_transfer", attention_transfer, "stages"),
    Case("attention_transfer", attention_transfer, "stages", {"power": 4.0}),
    Case("relational_distance", relational_distance, "embeddings"),
    Case("relational_angle", relational_angle, "embeddings"),
    Case("pkt", pkt, "embeddings"),
    Case("correlation_congruence", correlation_congruence, "embeddings"),
    Case("correlation_congruence", correlation_congruence, "embeddings", {"gamma": 1.5, "order": 4}),
    Case("inter_channel_correlation", inter_channel_correlation, "activations"),
    Case("hint", hint, "activations"),
    Case("neuron_selectivity", neuron_selectivity, "stages"),
    Case("variational_information", variational_information, "gaussian"),
    Case("projection", projection, "projected"),
]
