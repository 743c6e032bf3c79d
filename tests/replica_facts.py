"""Trains on 1, 2 and 4 logical devices in this process, and prints as JSON what came of it.

    python tests/replica_facts.py

TensorFlow takes logical devices before it starts alone, so that the tests run this in a process of its own.
"""

import contextlib
import functools
import json
import pathlib
import sys
import tempfile
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from networks import CLASSES, IMAGE_SHAPE, cross_entropy, images, small_network
from test_step_guard import Spoiled, marking_teacher
from tiny_experiment import assert_same_run, tiny, untrained_teacher, weights_of

from spkd_keras import Distiller, Term, losses, models, optimizers
from spkd_keras.distiller import NotFiniteError, loss_parts, replicas
from spkd_keras.models import blocks
from spkd_keras.training import Devices, RunsFailedError, run_experiment
from spkd_keras.training.checkpoints import Checkpointer

BATCH, COUNT, ODD = 16, 48, 53
TERMS = {
    "similarity_preserving": lambda: Term(losses.SimilarityPreserving(), 30.0),
    "soft_targets": lambda: Term(losses.SoftTargets(), 0.9),
    "relational_distance": lambda: Term(losses.RelationalDistance(), 5.0),
}
CLIPPING = {"clipnorm": 0.05, "clipvalue": 0.01, "global_clipnorm": 0.5}
OTHER_TERMS = {
    "hint": lambda: Term(losses.Hint(), 1.0),  # with an adapter, which has a BatchNormalization
    "relational_angle": lambda: Term(losses.RelationalAngle(), 5.0),
    "pkt": lambda: Term(losses.PKT(), 300.0),
    "correlation_congruence": lambda: Term(losses.CorrelationCongruence(), 3.0),
    "dist": lambda: Term(losses.DIST(), 1.0),
}


def network(channels=4, regularizer=None, policy="float32", synchronized=None):
    """Two convolutions with this package's BatchNormalization, synchronised under a strategy unless told."""
    image = keras.Input(IMAGE_SHAPE, name="image")
    x = layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocessing")(image)
    for stage in (1, 2):
        convolution = layers.Conv2D(
            channels, 3, stage, padding="same", kernel_regularizer=regularizer, name=f"conv{stage}"
        )
        x = blocks.batch_normalization(convolution(x), synchronized=synchronized, name=f"bn{stage}")
        x = layers.ReLU(name=f"stage{stage}")(x)
    x = layers.GlobalAveragePooling2D(name="pooling")(x)
    student = keras.Model(image, layers.Dense(CLASSES, dtype="float32", name="logits")(x))
    return student if policy == "float32" else models.in_precision(student, policy)


@functools.cache
def mirrored(count):
    """One strategy for each number of devices, with its own keys for their messages: a process should have but one."""

    class Mirrored(tf.distribute.MirroredStrategy):
        _collective_key_base = 1000 * count  # "only set this in tests"

    return Mirrored([f"CPU:{index}" for index in range(count)])


def scope(strategy):
    return strategy.scope() if strategy else contextlib.nullcontext()


def build(strategy, terms=None, policy="float32", optimizer=None, synchronized=None, regularizer="l2", **compiled):
    keras.utils.set_random_seed(3)
    with scope(strategy):
        teacher, student = network(8), network(4, regularizer, policy, synchronized)
        terms = [make() for make in (TERMS if terms is None else terms).values()]
        distiller = Distiller(teacher, student, terms, evaluate_terms=True)
        optimizer = optimizer() if optimizer else optimizers.CoupledSGD(0.05, 0.9, weight_decay=5e-4)
        distiller.compile(optimizer, cross_entropy(), metrics=["accuracy"], **compiled)
    return distiller


def trained(strategy, count=COUNT, as_dataset=False, fitted=None, validated=False, **built):
    """Returns the student's weights, the logs of training and evaluation, and the Distiller."""
    distiller = build(strategy, **built)
    x, y = images(ODD)
    data = (x[:count], y[:count])
    held_out = {"validation_data": (x, y), "validation_batch_size": BATCH}
    if as_dataset:
        data = (tf.data.Dataset.from_tensor_slices(data).batch(BATCH),)
        held_out = {"validation_data": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)}
    if not validated:
        held_out = {}
    if not as_dataset:
        held_out["batch_size"] = BATCH
    logs = distiller.fit(*data, shuffle=False, verbose=0, **held_out, **(fitted or {})).history
    weights = distiller.student.get_weights()
    return weights, {name: values[0] for name, values in logs.items()}, distiller


def weights_apart(one, other):
    """The largest difference between weights."""
    return max(float(np.abs(a - b).max()) for a, b in zip(one[0], other[0], strict=True))


def difference(one, other):
    """The largest of the weights, of the logs relative to their size, and whether the accuracies are the same."""
    assert set(one[1]) == set(other[1])
    logs = max(abs(one[1][name] - other[1][name]) / max(1.0, abs(one[1][name])) for name in one[1])
    same = all(one[1][name] == other[1][name] for name in one[1] if "accuracy" in name)
    return {"weights": weights_apart(one, other), "logs": logs, "same_accuracy": same}


def message(do, *kinds):
    """What an error says, or that there was none."""
    try:
        do()
    except Exception as error:
        if kinds and not isinstance(error, kinds):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return text if len(text) < 600 else f"{text[:200]} ... {text[-200:]}"
    return None


def one_answer():
    alone = trained(None, validated=True)
    several = {count: trained(mirrored(count), validated=True) for count in (1, 2, 4)}
    found = {f"replicas_{count}": difference(alone, one) for count, one in several.items()}
    two, x = several[2], images(ODD)[0]
    found["predictions"] = float(np.abs(two[2].predict(x, batch_size=BATCH, verbose=0) - two[2].student(x)).max())
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
    alone, four = (
        trained(strategy, ODD, terms=few, as_dataset=True, validated=True) for strategy in (None, mirrored(4))
    )
    return {
        "dataset": difference(alone, four),
        "arrays": difference(trained(None, 47, terms=few), trained(mirrored(4), 47, terms=few)),
        "arrays_with_none": message(lambda: trained(mirrored(4), ODD)),
        # 54 and 64 images, of which Keras trains on 48 and on 53.
        "split": message(lambda: build(mirrored(4), terms={}).fit(*images(54), BATCH, 1, 0, None, 0.1)),
        "split_with_none": message(lambda: build(mirrored(4)).fit(*images(64), BATCH, validation_split=0.17)),
        "too_few": message(lambda: trained(mirrored(4), 51, terms=few, as_dataset=True)),
        "generated": message(lambda: build(mirrored(4), terms=few).fit(Batches(), shuffle=False, verbose=0)),
        "indivisible": message(lambda: build(mirrored(4)).fit(*images(12), batch_size=6, verbose=0)),
    }


def weighted():
    weights = {index: 0.5 + index for index in range(CLASSES)}
    few = {"soft_targets": TERMS["soft_targets"]}
    alone = trained(None, 47, terms=few, fitted={"class_weight": weights})
    return difference(alone, trained(mirrored(2), 47, terms=few, fitted={"class_weight": weights}))


def clipped():
    """Bounds that the gradient of the batch is far above, and that those of the replicas are not added up in."""
    few = {"similarity_preserving": TERMS["similarity_preserving"]}
    found = {}

    def scaled():
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, clipvalue=0.01), initial_scale=64.0)

    def fixed():
        return keras.optimizers.SGD(0.1, clipvalue=0.01, loss_scale_factor=8.0)

    def bounded(**bounds):
        return lambda: optimizers.CoupledSGD(0.1, 0.9, **bounds)

    cases = {name: bounded(**{name: bound}) for name, bound in CLIPPING.items()} | {"scaled": scaled, "fixed": fixed}
    for name, optimizer in cases.items():
        alone, two = (trained(strategy, terms=few, optimizer=optimizer) for strategy in (None, mirrored(2)))
        found[name] = weights_apart(alone, two)
    free = trained(None, terms=few, optimizer=bounded())
    clipping = trained(None, terms=few, optimizer=bounded(global_clipnorm=CLIPPING["global_clipnorm"]))
    return found | {"without": weights_apart(free, clipping)}


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


def refused():
    def compiled(**arguments):
        return message(lambda: build(mirrored(2), **arguments))

    def outside():
        with mirrored(2).scope():
            distiller = Distiller(None, network())
        optimizer = keras.optimizers.SGD(0.1)
        distiller.compile(optimizer, cross_entropy())

    def student_outside():
        student = network()
        with mirrored(2).scope():
            Distiller(None, student).compile("sgd", cross_entropy())

    def distiller_outside():
        with mirrored(2).scope():
            student = network()
        Distiller(None, student).compile("sgd", cross_entropy())

    def dropping():
        with mirrored(2).scope():
            Distiller(None, small_network(dropout=0.5)).compile("sgd", cross_entropy())

    def summed():
        with mirrored(2).scope():
            Distiller(None, network()).compile(
                "sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction="sum")
            )

    def summing():
        with mirrored(2).scope():
            image = keras.Input(IMAGE_SHAPE)
            layer = layers.Dense(CLASSES, activity_regularizer="l2", name="logits")
            Distiller(None, keras.Model(image, layer(layers.Flatten()(image)))).compile("sgd", cross_entropy())

    several = build(mirrored(2), terms={})
    return {
        "summing_layer": message(summing),
        "one_batch": [
            message(lambda: several.train_on_batch(*images(4))),
            message(lambda: several.test_on_batch(*images(4))),
            message(lambda: several.predict_on_batch(images(4)[0])),
        ],
        "student_outside": message(student_outside),
        "distiller_outside": message(distiller_outside),
        "dropping": message(dropping),
        "jit": compiled(jit_compile=True),
        "steps": compiled(steps_per_execution=2),
        "accumulation": compiled(optimizer=lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)),
        "ema": compiled(optimizer=lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=2)),
        "moving_average_without": compiled(optimizer=lambda: keras.optimizers.SGD(0.1, use_ema=True)),
        "optimizer_outside": message(outside),
        "summed": message(summed),
    }


def plain_keras(strategy, optimizer="sgd", **compiled):
    with strategy.scope():
        model = keras.Sequential([keras.Input(IMAGE_SHAPE), layers.Flatten(), layers.Dense(CLASSES)])
        model.compile(optimizer() if callable(optimizer) else optimizer, cross_entropy(), **compiled)
    return model


def still_needed():
    """What plain Keras and TensorFlow still fail at: the errors, which are None once they do it."""
    strategy = mirrored(2)
    x, y = images(16)

    def fit(count=16, optimizer="sgd", **compiled):
        return message(
            lambda: plain_keras(strategy, optimizer, **compiled).fit(x[:count], y[:count], batch_size=8, verbose=0)
        )

    @tf.function
    def gather():
        return strategy.run(
            lambda: tf.distribute.get_replica_context().all_gather(tf.zeros([2, 2], tf.bfloat16), axis=0)
        )

    @tf.function
    def empty():
        pixels, kernel = tf.zeros([tf.random.uniform([], 0, 1, tf.int32), 8, 8, 1]), tf.zeros([3, 3, 1, 4])
        return tf.nn.conv2d(pixels, kernel, 1, "SAME")

    def inside_a_condition():
        with strategy.scope():
            variable = tf.Variable(0.0, aggregation=tf.VariableAggregation.SUM)

        @tf.function
        def step():
            strategy.run(lambda: tf.cond(variable < 1, lambda: variable.assign_add(1.0), lambda: variable + 0.0))

        step()

    class Overflowing(keras.Sequential):
        def train_step(self, data):
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            gradients = [tf.ones_like(weight) * tf.where(number == 1, np.inf, 1.0) for weight in self.trainable_weights]
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {"loss": tf.zeros(())}

    def overflow():
        with strategy.scope():
            model = Overflowing([keras.Input((2,)), layers.Dense(1)])
            model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=4.0))
        model.fit(np.zeros((4, 2)), batch_size=4, verbose=0)
        return bool(np.isfinite(model.get_weights()[0]).all())

    class Pulling(keras.Sequential):
        def train_step(self, data):
            self.optimizer.apply_gradients([(tf.ones_like(weight), weight) for weight in self.trainable_weights])
            return {"loss": tf.zeros(())}

    def clipped_twice():
        """What a sum of 2, clipped to 1, takes from weights of 0."""
        with strategy.scope():
            model = Pulling([keras.Input((2,)), layers.Dense(1, kernel_initializer="zeros", use_bias=False)])
            model.compile(keras.optimizers.SGD(1.0, clipvalue=1.0))
        model.fit(np.zeros((4, 2)), batch_size=4, verbose=0)
        return float(model.get_weights()[0][0, 0])

    def draws():
        with strategy.scope():
            layer = layers.Dropout(0.5)

        @tf.function
        def dropped():
            return strategy.run(lambda: layer(tf.ones([64]), training=True))

        return [value.numpy().tolist() for value in strategy.experimental_local_results(dropped())]

    class Partly(keras.Sequential):
        """Logs one of its two metrics."""

        def train_step(self, data):
            self.value.update_state(data)
            self.other.update_state(data)
            return {"value": self.value.result()}

    def logged():
        """The mean of six zeros and a one, of which the second replica has three."""
        with strategy.scope():
            model = Partly([keras.Input((1,)), layers.Dense(1)])
            model.value, model.other = keras.metrics.Mean("value"), keras.metrics.Mean("other")
            model.compile("sgd")
        logs = model.fit(np.array([[0], [0], [0], [0], [0], [0], [1.0]]), batch_size=4, shuffle=False, verbose=0)
        return logs.history["value"][0]

    def summed():
        return keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)

    def averaged():
        return keras.optimizers.SGD(0.1, use_ema=True, ema_overwrite_frequency=1)

    return {
        "odd_first_batch": fit(5, metrics=["accuracy"]),
        "jit": fit(jit_compile=True),
        "steps": fit(steps_per_execution=2),
        "accumulation": fit(optimizer=summed),
        "ema": fit(optimizer=averaged),
        "bfloat16": message(gather),
        "logs": logged(),
        "clipped": clipped_twice(),
        "draws": draws(),
        "empty_channels": int(empty().shape[-1]),
        "condition": message(inside_a_condition),
        "second_replicas_overflow_is_skipped": overflow(),
    }


def runs():
    """Runs of an experiment on two replicas. The last: they make the operations of the process deterministic."""
    devices, found = Devices(mirrored(2), "mirrored"), {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        few = [f"teacher={{path: '{untrained_teacher(folder)}'}}", "methods={sp: [{loss: similarity_preserving}]}"]
        few += ["schedule.epochs=1"]
        bad = tiny(folder, *few, "schedule.learning_rate=1.0e+30", "data.validation=0")
        found["not_finite"] = message(lambda: run_experiment(bad, folder / "bad", devices=devices), RunsFailedError)
        failure = folder / "bad" / "tiny" / "sp-seed0" / "failure.json"
        found["failure"] = json.loads(failure.read_text()) if failure.exists() else None
        cached = f"teacher={{path: '{untrained_teacher(folder)}', cache: {{}}}}"
        good = tiny(folder, *few, cached, "data.validation=0.1", "checkpoints={steps: 1}")
        for name, on in {"alone": None, "whole": devices, "killed": devices}.items():
            with killed_after_two_steps() if name == "killed" else contextlib.nullcontext():
                run_experiment(good, folder / name, devices=on)
        alone, whole, killed = (folder / name / "tiny" / "sp-seed0" for name in ("alone", "whole", "killed"))
        found["left_by_the_kill"] = [file.name for file in (killed / "backup").glob("epoch-0-batch-2*")]
        run_experiment(good, folder / "killed", devices=devices)
        found["after_a_kill"] = message(lambda: assert_same_run(whole, killed))
        found["cached"] = weights_apart([weights_of(alone)], [weights_of(whole)])
    return found


@contextlib.contextmanager
def killed_after_two_steps():
    """Ends a run, as nothing that it could catch, right behind the checkpoint of its second step."""

    class Killed(BaseException):
        pass

    original = Checkpointer._write

    def write(self, position, state):
        original(self, position, state)
        if position.batch == 2:
            raise Killed

    Checkpointer._write = write
    try:
        with contextlib.suppress(Killed):
            yield
    finally:
        Checkpointer._write = original


TRAINING = (one_answer, other_losses, uneven, weighted, clipped, half_precision, parts_apart, guarded)
PARTS = (*TRAINING, refused, still_needed, runs)


def main():
    warnings.simplefilter("error", UserWarning)
    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * 4)
    wanted = sys.argv[1:] or [part.__name__ for part in PARTS]
    print("RESULT", json.dumps({part.__name__: part() for part in PARTS if part.__name__ in wanted}))


if __name__ == "__main__":
    main()
