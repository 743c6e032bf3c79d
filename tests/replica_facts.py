"""Trains on 1, 2 and 4 logical devices in this process, and prints as JSON what came of it.

    python tests/replica_facts.py [part ...]

TensorFlow takes logical devices before it starts alone, so that the tests run this in a process of its own.
"""

import json
import sys
import warnings

import keras
import numpy as np
import tensorflow as tf
from networks import CLASSES, cross_entropy, images
from replica_refusals import refused
from replica_runs import runs
from replica_trainings import (
    BATCH,
    COUNT,
    ODD,
    TERMS,
    build,
    difference,
    message,
    mirrored,
    network,
    scope,
    trained,
    weights_apart,
)
from replica_workarounds import still_needed
from test_step_guard import Spoiled, marking_teacher

from spkd_keras import Distiller, Term, losses, optimizers
from spkd_keras.distiller import NotFiniteError, loss_parts, replicas

CLIPPING = {"clipnorm": 0.05, "clipvalue": 0.01, "global_clipnorm": 0.5}
OTHER_TERMS = {
    "hint": lambda: Term(losses.Hint(), 1.0),  # with an adapter, which has a BatchNormalization
    "relational_angle": lambda: Term(losses.RelationalAngle(), 5.0),
    "pkt": lambda: Term(losses.PKT(), 300.0),
    "correlation_congruence": lambda: Term(losses.CorrelationCongruence(), 3.0),
    "dist": lambda: Term(losses.DIST(), 1.0),
}


def one_answer():
    alone = trained(None, validated=True)
    several = {count: trained(mirrored(count), validated=True) for count in (1, 2, 4)}
    found = {f"replicas_{count}": difference(alone, one) for count, one in several.items()}
    two, x = several[2], images(ODD)[0]
    predicted = [
        two[2].predict(data, BATCH, verbose=0) for data in (x, tf.data.Dataset.from_tensor_slices(x).batch(BATCH))
    ]
    found["predictions"] = [float(np.abs(rows - two[2].student(x)).max()) for rows in predicted]
    found["keys"] = sorted(alone[1])
    original = replicas.of_term
    replicas.of_term = lambda loss, teacher, student, relational, share: original(loss, teacher, student, False, share)
    found["local_gram"] = weights_apart(alone, trained(mirrored(2)))
    replicas.of_term = original
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        found["local_statistics"] = weights_apart(alone, trained(mirrored(2), synchronized=False))
    found["warned"] = [str(warning.message) for warning in caught if "normalises" in str(warning.message)]
    return found


def other_losses():
    alone = trained(None, terms=OTHER_TERMS)
    return difference(alone, trained(mirrored(2), terms=OTHER_TERMS))


class Batches(keras.utils.PyDataset):
    """Batches of 16, 16, 16 and 5, which Keras itself shares out."""

    def __init__(self):
        super().__init__()
        self.images = images(ODD)

    def __len__(self):
        return -(-ODD // BATCH)

    def __getitem__(self, index):
        return tuple(part[index * BATCH : (index + 1) * BATCH] for part in self.images)


def uneven():
    """Batches of 16, 16, 16 and 5, over four replicas: of arrays the last one leaves two without."""
    few = {"similarity_preserving": TERMS["similarity_preserving"]}
    datasets = {"dataset": None, "weighted_dataset": {0: 0.5, 1: 2.0, 3: 0.0}}
    found = {}
    for name, weights in datasets.items():
        given = {"terms": few, "as_dataset": True, "validated": True, "fitted": {"class_weight": weights}}
        found[name] = difference(*(trained(strategy, ODD, **given) for strategy in (None, mirrored(4))))
    return found | {
        "arrays": difference(trained(None, 47, terms=few), trained(mirrored(4), 47, terms=few)),
        "shuffled_arrays": message(lambda: build(mirrored(4), terms=few).fit(*images(ODD), BATCH, verbose=0)),
        "too_few_shuffled_arrays": message(lambda: build(mirrored(4), terms=few).fit(*images(51), BATCH, verbose=0)),
        "arrays_with_none": message(lambda: trained(mirrored(4), ODD, terms={})),
        # 54 and 64 images, of which Keras trains on 48 and on 53.
        "split": message(lambda: build(mirrored(4), terms={}).fit(*images(54), BATCH, 1, 0, None, 0.1)),
        "split_with_none": message(lambda: build(mirrored(4), terms={}).fit(*images(64), BATCH, validation_split=0.17)),
        "held_out_apart": message(
            lambda: build(mirrored(4), terms={}).fit(*images(64), BATCH, 1, 0, None, 0.17, images(16))
        ),
        "too_few": message(lambda: trained(mirrored(4), 51, terms=few, as_dataset=True)),
        "generated": message(lambda: build(mirrored(4), terms=few).fit(Batches(), shuffle=False, verbose=0)),
        "indivisible": message(lambda: build(mirrored(4), terms={}).fit(*images(12), batch_size=6, verbose=0)),
    }


def inside_the_scope():
    """The whole `fit` within the scope, as TensorFlow's guides have it, with the arrays in new orders."""
    losses = []
    for strategy in (None, mirrored(2)):
        with scope(strategy):
            distiller = build(strategy, terms={"similarity_preserving": TERMS["similarity_preserving"]})
            x, y = images(COUNT)
            keras.utils.set_random_seed(4)
            logs = distiller.fit(x, y, BATCH, 2, 0, class_weight={0: 2.0}, validation_split=0.34).history
        losses.append(logs["loss"] + logs["val_loss"])
    return float(np.abs(np.subtract(*losses)).max())


def weighted():
    weights = {index: 0.5 + index for index in range(CLASSES)}
    few = {"soft_targets": TERMS["soft_targets"]}
    alone = trained(None, 47, terms=few, fitted={"class_weight": weights})
    return difference(alone, trained(mirrored(2), 47, terms=few, fitted={"class_weight": weights}))


def averaged_and_eager():
    """The moving average of the weights, which `fit` ends with, and steps that are not compiled."""
    few = {"similarity_preserving": TERMS["similarity_preserving"]}
    averaging = {"optimizer": lambda: keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.8)}
    found = {}
    for name, built in {"averaged": averaging, "eager": {"run_eagerly": True}}.items():
        alone, two = (trained(strategy, terms=few, **built) for strategy in (None, mirrored(2)))
        found[name] = difference(alone, two)
    return found


def clipped():
    """Bounds that the gradient of the batch is far above, and that those of the replicas are not added up in."""
    few = {"similarity_preserving": TERMS["similarity_preserving"]}

    def scaled():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, clipvalue=0.01), initial_scale=64.0)

    def fixed():
        return keras.optimizers.SGD(0.1, clipvalue=0.01, loss_scale_factor=8.0)

    def bounded(**bounds):
        return lambda: optimizers.CoupledSGD(0.1, 0.9, **bounds)

    found = {}
    cases = {name: bounded(**{name: bound}) for name, bound in CLIPPING.items()} | {"scaled": scaled, "fixed": fixed}
    for name, optimizer in cases.items():
        alone, two = (trained(strategy, terms=few, optimizer=optimizer) for strategy in (None, mirrored(2)))
        found[name] = weights_apart(alone, two)
        if name == "global_clipnorm":
            found["without"] = weights_apart(alone, trained(None, terms=few, optimizer=bounded()))
    return found


def half_precision():
    few = {"similarity_preserving": TERMS["similarity_preserving"]}
    found = {}
    for policy in ("mixed_bfloat16", "mixed_float16"):
        alone, two = (
            trained(strategy, terms=few, policy=policy.removeprefix("mixed_")) for strategy in (None, mirrored(2))
        )
        found[policy] = difference(alone, two)
        found[policy]["scales"] = isinstance(two[2].optimizer, keras.optimizers.LossScaleOptimizer)
    return found


def spoiled(bad, how="value", optimizer=None, replicas_of=2):
    """A training on two replicas in which one image of some batches makes the loss not finite."""
    x, y = images(4 * 8)
    for batch in bad:
        x[batch * 8 + 5] = 255  # on the second replica alone
    with mirrored(replicas_of).scope():
        student = network()
        distiller = Distiller(marking_teacher(), student, [Term(Spoiled(how), name="spoiled")])
        distiller.compile(optimizer() if optimizer else keras.optimizers.SGD(0.1, momentum=0.9), cross_entropy())
    return distiller, lambda: distiller.fit(x, y, batch_size=8, shuffle=False, verbose=0)


def state(distiller):
    variables = [*distiller.student.variables, *distiller.optimizer.variables]
    return [tf.convert_to_tensor(variable.value).numpy() for variable in variables]


def parts_apart():
    """How far the parts of the loss after a step on two replicas are from those after one of one device."""
    few = {name: make for name, make in (TERMS | OTHER_TERMS).items() if name in ("similarity_preserving", "hint")}
    x, y = images(BATCH)
    distillers = [trained(strategy, BATCH, terms=few)[2] for strategy in (None, mirrored(2))]
    for distiller in distillers:
        distiller.term_weights["hint"].assign(0.5)
    before = state(distillers[1])
    alone, two = (loss_parts(distiller, x, y) for distiller in distillers)
    assert list(alone) == list(two)
    pairs = [(a, b) for name in alone for a, b in zip(alone[name], two[name], strict=True)]
    return {
        "parts": max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs),
        "weight": two["hint"].weight,
        "changed": max(float(np.abs(a - b).max()) for a, b in zip(before, state(distillers[1]), strict=True)),
    }


def guarded():
    found = {}
    for how in ("value", "gradient"):
        keras.utils.set_random_seed(3)
        distiller, fit = spoiled([2], how)
        found[how] = message(fit, NotFiniteError)
        keras.utils.set_random_seed(3)
        other, _ = spoiled([], how)
        x, y = images(4 * 8)
        other.fit(x[:16], y[:16], batch_size=8, shuffle=False, verbose=0)
        pairs = zip(state(distiller), state(other), strict=True)
        found[f"{how}_difference"] = max(float(np.abs(a - b).max()) for a, b in pairs)
    # An overflow on the second replica alone: its step is skipped and the scale halved, on both.
    scaled = lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.01), initial_scale=1024.0)  # noqa: E731
    distiller, fit = spoiled([1], "gradient", scaled)
    found["overflow"] = message(fit, NotFiniteError)
    found["scale"] = float(tf.convert_to_tensor(distiller.optimizer.dynamic_scale.value))
    found["finite"] = all(np.isfinite(weight).all() for weight in distiller.student.get_weights())
    return found


TRAINING = (one_answer, other_losses, uneven, inside_the_scope, weighted, averaged_and_eager, clipped, half_precision)
PARTS = (*TRAINING, parts_apart, guarded, refused, still_needed, runs)


def main():
    warnings.simplefilter("error", UserWarning)
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 4)
    wanted = sys.argv[1:] or [part.__name__ for part in PARTS]
    print("RESULT", json.dumps({part.__name__: part() for part in PARTS if part.__name__ in wanted}))


if __name__ == "__main__":
    main()
