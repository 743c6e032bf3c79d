"""What a step minimises: the values of the terms, and the sum of all losses by their weights."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from spkd_keras.distiller import replicas
from spkd_keras.distiller.labels import one_array
from spkd_keras.distiller.replicas import Share
from spkd_keras.distiller.wiring import Wiring


def term_values(
    wiring: Wiring,
    adapters: Mapping[str, keras.layers.Layer],
    taps: tuple[list[Any], list[Any]],
    y: Any,
    training: bool,
    share: Share | None = None,
) -> dict[str, Any]:
    """Returns each term's unweighted value by its name.

    Args:
        wiring: with the terms.
        adapters: what is put on the student's tap, by the name of the term.
        taps: what the teacher and the student gave at their taps.
        y: the labels, or None.
        training: whether adapters are trained.
        share: of the replica, if there are several.
    """
    values = {}
    for name, teacher, student in wiring.pairs(*taps):
        if name in adapters:
            student = adapters[name](student, training=training)
        term = wiring.terms[name]
        target = (teacher, one_array(y, name)) if term.needs_labels else teacher
        values[name] = replicas.of_term(term.loss, target, student, term.batch_relational, share)
    return values


def weighted_sum(
    losses: Mapping[str, Any], weights: Mapping[str, Any], added_losses: Sequence[Any], share: Share | None
) -> Any:
    """Weights and adds the losses, and those that layers added themselves (regularisers)."""
    total = ops.zeros(())
    for name, value in losses.items():
        weight = weights[name]
        # A weight of 0 that will stay 0 must not turn a loss that is not finite into NaN.
        if not (isinstance(weight, float) and weight == 0):
            total = total + ops.cast(weight, total.dtype) * ops.cast(value, total.dtype)
    for added in added_losses:
        added = ops.sum(ops.cast(added, total.dtype))
        total = total + (share.of_same(added) if share else added)
    return total
