"""Losses on the logits."""

import math
import numbers
from typing import Any

import keras
from keras import ops

from spkd_keras.losses.base import DistillationLoss, Tap, at_least_float32, check_same_size


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
        reduction, name, dtype: those of `DistillationLoss`.

    Raises:
        ValueError: if the temperature is not finite and above 0.

    Reference: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015. T^2 is there to keep
    the gradient's size when T changes.
    """

    default_tap: Tap = "logits"

    def __init__(self, temperature: float = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
        if not number or not 0 < temperature < math.inf:
            raise ValueError(
                f"`temperature` must be finite and above 0, for example 4.0. Received: temperature={temperature!r}."
            )
        self.temperature = float(temperature)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns one value per example, shape `(batch,)`."""
        return soft_targets(y_true, y_pred, self.temperature)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {**super().get_config(), "temperature": self.temperature}
