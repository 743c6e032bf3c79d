"""Losses on the logits."""

from typing import Any

import keras
from keras import ops

from spkd_keras.losses.base import (
    DistillationLoss,
    at_least_float32,
    centered,
    check_positive,
    check_same_size,
    unit,
)


def soft_targets(teacher_logits: Any, student_logits: Any, temperature: float = 4.0) -> Any:
    """Kullback-Leibler divergence of the softened class probabilities, times the squared temperature.

        l_i = T^2 * sum_c p_c (log p_c - log q_c),  p = softmax(z_T / T),  q = softmax(z_S / T)

    From log-softmax, not from the logarithm of clipped probabilities: that one has no gradient where the student
    is confidently wrong.

    Args:
        teacher_logits: shape `(b, classes)`.
        student_logits: shape `(b, classes)`.
        temperature: above 0, default 4.

    Returns:
        Shape `(b,)`, at least 0.

    Raises:
        ValueError: if the numbers of images or classes differ.

    Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """
    teacher_logits, student_logits = at_least_float32(teacher_logits, student_logits)
    check_same_size(teacher_logits, student_logits, 0, "images")
    check_same_size(teacher_logits, student_logits, -1, "classes")
    teacher_log = ops.log_softmax(teacher_logits / temperature, axis=-1)
    student_log = ops.log_softmax(student_logits / temperature, axis=-1)
    return temperature**2 * ops.sum(ops.exp(teacher_log) * (teacher_log - student_log), axis=-1)


@keras.saving.register_keras_serializable("spkd_keras")
class SoftTargets(DistillationLoss):
    """Traditional knowledge distillation: the student matches the teacher's softened probabilities.

        L_KD = T^2 * KL(softmax(z_T / T) || softmax(z_S / T))

    The usual total is (1 - alpha) cross-entropy + alpha L_KD with T = 4 and alpha = 0.9: a `student_loss_weight` of 0.1
    and a term of weight 0.9.

    Args:
        temperature: above 0, default 4.
        standardize: whether to standardise each image's logits first, so that the student matches their relations and
            not their range; see `standardized`.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if the temperature is not finite and above 0.

    Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015. T^2 is there to keep
    the gradient's size when T changes. Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024.
    """

    compares_classes = True

    def __init__(self, temperature: float = 4.0, standardize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(temperature=temperature)
        self.temperature = float(temperature)
        self.standardize = bool(standardize)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""
        if self.standardize:
            y_true, y_pred = standardized(y_true), standardized(y_pred)
        return soft_targets(y_true, y_pred, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "temperature": self.temperature, "standardize": self.standardize}


def standardized(logits: Any) -> Any:
    """Each image's logits less their mean, divided by their deviation: (z - mean(z)) / (std(z) + 1e-7).

    The deviation is the unbiased one, as in the published code. Constant logits become zero and pass no gradient.

    Args:
        logits: shape `(b, classes)`, at least two classes.

    Returns:
        Shape `(b, classes)`.

    Reference: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, section 4.
    """
    (logits,) = at_least_float32(logits)
    from_mean = centered(logits, axis=-1)
    variance = ops.sum(ops.square(from_mean), axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    alive = ops.logical_not(variance <= 0)
    deviation = ops.sqrt(ops.where(alive, variance, ops.ones_like(variance)))
    return ops.where(alive, from_mean / (deviation + 1e-7), ops.zeros_like(from_mean))


def decoupled_distillation(
    teacher_logits: Any,
    student_logits: Any,
    labels: Any,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Any:
    """Soft targets split into the target class against the rest, and the rest among themselves.

        l_i = T^2 (alpha KL([p_y, 1 - p_y] || [q_y, 1 - q_y]) + beta KL(p without y || q without y))

    Args:
        teacher_logits: shape `(b, classes)`.
        student_logits: shape `(b, classes)`.
        labels: integers of shape `(b,)` or `(b, 1)`, or shares of classes of shape `(b, classes)`, whose largest
            counts. An integer that is no class, such as -1 for an unknown one, leaves nothing to split: that image's
            value is 0.
        alpha: weight of the first part, default 1.
        beta: weight of the second part, default 8.
        temperature: above 0, default 4.

    Returns:
        Shape `(b,)`, at least 0.

    Raises:
        ValueError: if the numbers of images or classes differ.

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 7.
    """
    teacher_logits, student_logits = at_least_float32(teacher_logits, student_logits)
    check_same_size(teacher_logits, student_logits, 0, "images")
    check_same_size(teacher_logits, student_logits, -1, "classes")
    classes = student_logits.shape[-1]
    labels = ops.convert_to_tensor(labels)
    are_shares = len(labels.shape) == 2 and labels.shape[-1] != 1
    check_same_size(student_logits, labels, 0, "images, as logits and labels,")
    if are_shares:
        check_same_size(student_logits, labels, -1, "classes, as logits and labels,")
        labels = ops.argmax(labels, axis=-1)
    is_target = ops.cast(ops.one_hot(ops.reshape(ops.cast(labels, "int32"), (-1,)), classes), "bool")

    def parts(logits: Any) -> tuple[Any, Any, Any]:
        """Logarithms of the target's probability, of the rest's, and of each other class within the rest."""
        scaled = logits / temperature
        others = ops.where(is_target, ops.full_like(scaled, -1e30), scaled)  # no weight, and no infinity
        total = ops.logsumexp(scaled, axis=-1)
        target = ops.sum(ops.where(is_target, scaled, ops.zeros_like(scaled)), axis=-1)
        rest = ops.logsumexp(others, axis=-1)
        within = ops.where(is_target, ops.zeros_like(scaled), scaled - rest[:, None])
        return target - total, rest - total, within

    teacher, student = parts(teacher_logits), parts(student_logits)
    target_class = sum(ops.exp(teacher[part]) * (teacher[part] - student[part]) for part in (0, 1))
    within_rest = ops.where(is_target, ops.zeros_like(teacher[2]), ops.exp(teacher[2]))
    others = ops.sum(within_rest * (teacher[2] - student[2]), axis=-1)
    values = temperature**2 * (alpha * target_class + beta * others)
    return ops.where(ops.any(is_target, axis=-1), values, ops.zeros_like(values))


@keras.saving.register_keras_serializable("spkd_keras")
class DecoupledDistillation(DistillationLoss):
    """DKD: the part of soft targets about the right class and that about the others, with weights of their own.

    See `decoupled_distillation`. Needs labels: `loss((teacher_logits, labels), student_logits)`.

    Args:
        alpha: weight of the target class' part, above 0, default 1.
        beta: weight of the other classes' part, above 0, default 8.
        temperature: above 0, default 4.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if an argument is not finite and above 0.

    Reference: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022.
    """

    compares_classes = True
    needs_labels = True

    def __init__(self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(alpha=alpha, beta=beta, temperature=temperature)
        self.alpha, self.beta, self.temperature = float(alpha), float(beta), float(temperature)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""
        if not isinstance(y_true, tuple | list) or len(y_true) != 2:
            raise ValueError("DecoupledDistillation needs labels: loss((teacher_logits, labels), student_logits).")
        teacher, labels = y_true
        return decoupled_distillation(teacher, y_pred, labels, self.alpha, self.beta, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "alpha": self.alpha, "beta": self.beta, "temperature": self.temperature}


@keras.saving.register_keras_serializable("spkd_keras")
class DIST(DistillationLoss):
    """Correlations instead of equality: of each image's class probabilities, and of each class over the batch.

        L = T^2 (beta mean_i (1 - r(p_i, q_i)) + gamma mean_c (1 - r(p[:, c], q[:, c]))),  r: Pearson's correlation

    What varies neither in the teacher nor in the student agrees, so that a batch of one has no second part; in the
    authors' code its correlation is 0. What varies in one of them alone has a correlation of 0.
    Devices that share a batch each compute all of it, which is small: b * classes.

    Args:
        beta: weight of the correlations over classes, above 0, default 1.
        gamma: weight of the correlations over the batch, above 0, default 1.
        temperature: above 0, default 1.
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if an argument is not finite and above 0.

    Reference: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, eq. 9-11.
    """

    compares_classes = True
    batch_relational = True

    def __init__(self, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(beta=beta, gamma=gamma, temperature=temperature)
        self.beta, self.gamma, self.temperature = float(beta), float(gamma), float(temperature)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`; the second part is shared out equally."""
        teacher, student = at_least_float32(y_true, y_pred)
        check_same_size(teacher, student, 0, "images")
        check_same_size(teacher, student, -1, "classes")
        teacher, student = (ops.softmax(logits / self.temperature, axis=-1) for logits in (teacher, student))

        def distance(axis: int) -> Any:
            one, other = (unit(centered(values, axis), axis) for values in (teacher, student))
            vary = ops.any(ops.logical_or(one != 0, other != 0), axis=axis)
            return ops.where(vary, 1 - ops.sum(one * other, axis=axis), 0.0)

        return self.temperature**2 * (self.beta * distance(-1) + self.gamma * ops.mean(distance(0)))

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "beta": self.beta, "gamma": self.gamma, "temperature": self.temperature}
