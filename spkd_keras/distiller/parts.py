"""What each part of the loss is worth on a batch, and how strongly it pulls."""

from typing import Any, NamedTuple

import tensorflow as tf

from spkd_keras.distiller.guard import ForwardState
from spkd_keras.distiller.model import Distiller


class LossPart(NamedTuple):
    """A part of the loss on one batch.

    Attributes:
        value: unweighted.
        weight: of the part in the loss.
        gradient_norm: of weight * value, over the student's trainable variables; 0 where nothing depends on it.
    """

    value: float
    weight: float
    gradient_norm: float


def loss_parts(distiller: Distiller, x: Any, y: Any) -> dict[str, LossPart]:
    """Returns the parts of the loss, as a training step would see them, and changes nothing.

    Args:
        distiller: compiled, with its teacher if it has terms.
        x: images.
        y: labels.

    Returns:
        `student_loss` and every term's name with its part.
    """
    variables = distiller.student.trainable_variables
    before = ForwardState([distiller.student, *distiller.adapters.values()], distiller.trainable_variables)
    scale = float(distiller.optimizer.scale_loss(tf.ones(())))  # as in training, so that float16 does not underflow
    teacher_taps = distiller._wiring.run_teacher(x) if distiller.terms else []
    with tf.GradientTape(persistent=True) as tape:
        y_pred, student_taps = distiller._wiring.run_student(x, training=True, with_taps=bool(distiller.terms))
        losses = distiller._compiled_loss(y, y_pred, None)
        if distiller.terms:
            losses |= distiller._term_values(teacher_taps, student_taps, y, training=True)
        scaled = {name: scale * tf.cast(value, tf.float32) for name, value in losses.items()}
    parts = {}
    for name, value in losses.items():
        weight = float(distiller.term_weights.get(name, distiller.student_loss_weight))
        gradients = [gradient for gradient in tape.gradient(scaled[name], variables) if gradient is not None]
        norm = float(tf.linalg.global_norm(gradients)) if gradients else 0.0
        parts[name] = LossPart(float(value), weight, weight * norm / scale)
    before.restore()
    return parts


def tap_values(distiller: Distiller, x: Any) -> dict[str, tuple[Any, Any]]:
    """Returns what each term compares on some images, both networks in inference mode: teacher's and student's side.

    A side is a tensor, or a list of them for a term over several layers.
    """
    if not distiller.terms:
        return {}
    _, student_taps = distiller._wiring.run_student(x, training=False, with_taps=True)
    pairs = distiller._wiring.pairs(distiller._wiring.run_teacher(x), student_taps)
    return {name: (teacher, student) for name, teacher, student in pairs}


def compared_layers(distiller: Distiller) -> dict[str, tuple[str, str]]:
    """Returns the names of the layers that each term compares: teacher's and student's, separated by commas."""
    wiring = distiller._wiring
    pairs = zip(wiring.terms, wiring.teacher_taps, wiring.student_taps, strict=True)
    return {name: (", ".join(map(str, teacher)), ", ".join(map(str, student))) for name, teacher, student in pairs}
