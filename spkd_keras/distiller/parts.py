"""What each part of the loss is worth on a batch, and how strongly it pulls."""

import math
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from spkd_keras.distiller import taps
from spkd_keras.distiller.guard import ForwardState
from spkd_keras.distiller.model import Distiller
from spkd_keras.distiller.objective import term_values
from spkd_keras.models.copying import copied


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
        distiller: compiled, with its teacher if it has terms. Under a strategy one device computes them.
        x: images.
        y: labels.

    Returns:
        `student_loss` and every term's name with its part.

    Raises:
        ValueError: if it is not compiled.
    """
    if not distiller.compiled:
        raise ValueError("`loss_parts` needs a compiled Distiller. Call distiller.compile(optimizer, loss) before it.")
    scale = float(distiller.optimizer.scale_loss(tf.ones(())))  # as in training, so that float16 does not underflow
    weights = {name: float(tf.convert_to_tensor(weight.value)) for name, weight in distiller.term_weights.items()}
    if distiller._distribute_strategy is not None:
        distiller = _on_one_device(distiller)
    variables = distiller.student.trainable_variables
    before = ForwardState([distiller.student, *distiller.adapters.values()], distiller.trainable_variables)
    teacher_taps = distiller._wiring.run_teacher(x) if distiller.terms else []
    with tf.GradientTape(persistent=True) as tape:
        y_pred, student_taps = distiller._wiring.run_student(x, training=True, with_taps=bool(distiller.terms))
        losses = distiller._compiled_loss(y, y_pred, None)
        if distiller.terms:
            losses |= term_values(distiller._wiring, distiller.adapters, (teacher_taps, student_taps), y, training=True)
        scaled = {name: scale * tf.cast(value, tf.float32) for name, value in losses.items()}
    parts = {}
    for name, value in losses.items():
        weight = weights.get(name, distiller.student_loss_weight)
        gradients = [gradient for gradient in tape.gradient(scaled[name], variables) if gradient is not None]
        norm = float(tf.linalg.global_norm(gradients)) if gradients else 0.0
        parts[name] = LossPart(float(value), weight, weight * norm / scale)
    before.restore()
    return parts


def _on_one_device(distiller: Distiller) -> Distiller:
    """Returns a copy whose variables belong to no strategy; its weights of terms are the first ones.

    TensorFlow 2.21 lets the replicas alone update variables of a strategy, as normalisation does in training.
    """
    student = copied(distiller.student, lambda layer: type(layer).from_config(layer.get_config()), "one device")
    arguments = distiller.student_loss_weight, distiller.teacher_dtype
    alone = Distiller(distiller.teacher, student, distiller.terms, *arguments)
    alone._compile_loss = distiller._compile_loss
    copies, layers = [student, *alone.adapters.values()], [distiller.student, *distiller.adapters.values()]
    for copy, layer in zip(copies, layers, strict=True):
        for variable, original in zip(copy.variables, layer.variables, strict=True):
            variable.assign(tf.convert_to_tensor(original.value))
    return alone


def tap_values(distiller: Distiller, x: Any) -> dict[str, tuple[Any, Any]]:
    """Returns the outputs of each term's layers on some images, in inference mode: teacher's and student's side.

    A side is a tensor, or a list of them for a term over several layers. An adapter, through which a term sees the
    student's, is not run.
    """
    if not distiller.terms:
        return {}
    _, student_taps = distiller._wiring.run_student(x, training=False, with_taps=True)
    pairs = distiller._wiring.pairs(distiller._wiring.run_teacher(x), student_taps)
    return {name: (teacher, student) for name, teacher, student in pairs}


def gathered_bytes(distiller: Distiller, batch_size: int) -> int | None:
    """Returns what a training step sends between replicas for its terms that compare images.

    That is the activations of the whole batch at their taps, teacher's and student's, in the dtype of the loss, and
    on the way back the student's gradients twice: each replica has some for every image, and TensorFlow gives all of
    them the sum. Of R replicas each has 1/R of it already. The gradients of the weights, which any training of several
    replicas sends, are not counted.

    Args:
        distiller: with its teacher, or what stands in for it.
        batch_size: of all replicas.

    Returns:
        Bytes; None where the sizes of the taps depend on the images.
    """
    wiring = distiller._wiring
    relational = [name for name, term in wiring.terms.items() if term.batch_relational]
    if not relational:
        return 0
    teacher_values, student_values = taps.zeros(wiring._tapped_teacher), taps.zeros(wiring._tapped_student)
    if teacher_values is None or student_values is None:
        return None
    total = 0
    for name, teacher, student in wiring.pairs(teacher_values, student_values):
        if name in relational:
            student = distiller.adapters[name](student) if name in distiller.adapters else student
            sides = [teacher, student, student, student]  # there, there, and back
            numbers = sum(math.prod(part.shape[1:]) for side in sides for part in keras.tree.flatten(side))
            total += batch_size * numbers * tf.as_dtype(wiring.terms[name].loss.dtype).size
    return total


def compared_layers(distiller: Distiller) -> dict[str, dict[str, list[str]]]:
    """Returns the names of the layers that each term compares, of the `teacher` and of the `student`."""
    wiring = distiller._wiring
    pairs = zip(wiring.terms, wiring.teacher_taps, wiring.student_taps, strict=True)
    return {
        name: {"teacher": list(map(str, teacher)), "student": list(map(str, student))}
        for name, teacher, student in pairs
    }
