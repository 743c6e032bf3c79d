"""The steps that `step_time.py` compares, each built from a case."""

import atexit
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

WEIGHT = 3000.0
PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
CONTENDERS = {
    "a": "plain student step",
    "b": "teacher forward",
    "c": "spkd_keras",
    "d": "keras.distillation",
    "e": "PyTorch",
    "f": "spkd_keras, cached teacher",
}


def _case(model: str, teacher: dict[str, Any], student: dict[str, Any], batch: int, side: int, classes: int) -> Any:
    return {
        "teacher": {"model": model, **teacher, "num_classes": classes},
        "student": {"model": model, **student, "num_classes": classes},
        "batch_size": batch,
        "image_shape": [side, side, 3],
        "classes": classes,
        "tap": {"wide_resnet": "stage3", "mobilenet": "stage5", "shufflenet_v2": "stage4"}[model],
    }


WIDE = "wide_resnet"
CASES = {
    "wrn-16-1-from-16-2": _case(WIDE, {"depth": 16, "width": 2}, {"depth": 16, "width": 1}, 128, 32, 10),
    "wrn-16-1-from-40-2": _case(WIDE, {"depth": 40, "width": 2}, {"depth": 16, "width": 1}, 128, 32, 10),
    "mobilenet-0.25-from-1.0": _case("mobilenet", {"width": 1.0}, {"width": 0.25}, 32, 224, 47),
    "shufflenet-0.5-from-2.0": _case("shufflenet_v2", {"width": 2.0}, {"width": 0.5}, 96, 32, 10),
}


def build(case: dict[str, Any], role: str, precision: str, standard: bool = False) -> Any:
    """Builds a network of ours; `standard`: with Keras' own layers, as its file has them."""
    import keras

    from spkd_keras import models

    arguments = dict(case[role])
    keras.config.set_dtype_policy(PRECISIONS[precision])
    network = models.BUILDERS[arguments.pop("model")](image_shape=case["image_shape"], **arguments)
    if standard:
        network = type(network).from_config(network.get_config())
        assert models.fused_layers(network) == []
    keras.config.set_dtype_policy("float32")
    return network


def compiled(model: Any) -> Any:
    """Compiles as the published recipes train."""
    import keras

    from spkd_keras import optimizers

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizers.CoupledSGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-4), loss)
    return model


def batch(case: dict[str, Any], size: int | None = None) -> tuple[Any, Any]:
    """Random pixels and labels."""
    import numpy as np
    import tensorflow as tf

    random, size = np.random.default_rng(0), size or case["batch_size"]
    pixels = random.integers(0, 256, (size, *case["image_shape"]), dtype="uint8")
    return tf.constant(pixels), tf.constant(random.integers(0, case["classes"], size))


def training_step(model: Any, data: tuple[Any, Any]) -> Callable[[], Any]:
    """Returns what makes one step of `fit`, on one batch again and again."""
    import tensorflow as tf

    return training_steps(model, tf.data.Dataset.from_tensors(data))


def training_steps(model: Any, dataset: Any) -> Callable[[], Any]:
    """Returns what makes one step of `fit`."""
    batches = iter(dataset.repeat())
    model._maybe_symbolic_build(data_batch=next(batches))
    model.make_train_function()
    return lambda: float(model.train_function(batches)["loss"])


def contender(letter: str, case: dict[str, Any], precision: str, size: int | None = None) -> Callable[[], Any]:
    """Builds one of a, b, c, d and returns what makes a step of it."""
    import keras
    import tensorflow as tf

    from spkd_keras import Distiller, Term, losses

    data = batch(case, size)
    if letter == "a":
        return training_step(compiled(build(case, "student", precision)), data)
    if letter == "b":
        teacher = build(case, "teacher", precision)
        forward = tf.function(lambda x: teacher(x, training=False))
        return lambda: float(forward(data[0])[0, 0])
    if letter == "f":
        return cached_step(case, precision, size)
    standard = letter == "d"
    teacher, student = (build(case, role, precision, standard) for role in ("teacher", "student"))
    if letter == "c":
        terms = [Term(losses.SimilarityPreserving(), WEIGHT, case["tap"], case["tap"])]
        return training_step(compiled(Distiller(teacher, student, terms)), data)
    keras_own = keras.distillation.Distiller(
        teacher,
        student,
        distillation_losses=[
            keras.distillation.FeatureDistillation(losses.SimilarityPreserving(), case["tap"], case["tap"])
        ],
        distillation_loss_weights=[WEIGHT],
        student_loss_weight=0.5,  # half of our objective: it adds w * labels + (1 - w) * sum of weight * term
    )
    return training_step(compiled(keras_own), data)


def cached_step(case: dict[str, Any], precision: str, size: int | None) -> Callable[[], Any]:
    """Returns what makes our step without the teacher: shuffled batches of 1,024 images from a cache on the disk."""
    import numpy as np

    from spkd_keras import Distiller, Term, cache, data, losses

    random, size = np.random.default_rng(0), size or case["batch_size"]
    count = 1024 // size * size
    pixels = random.integers(0, 256, (count, *case["image_shape"]), dtype="uint8")
    names = tuple(map(str, range(case["classes"])))
    images = data.Images(pixels, random.integers(0, case["classes"], count), names)
    terms = [Term(losses.SimilarityPreserving(), WEIGHT, case["tap"], case["tap"])]
    folder = Path(tempfile.mkdtemp()) / "cache"
    atexit.register(shutil.rmtree, folder.parent, ignore_errors=True)
    kept = cache.compute(folder, build(case, "teacher", precision), terms, images, batch_size=size)
    student = compiled(Distiller(kept.stand_in, build(case, "student", precision), terms))
    return training_steps(student, kept.batches(images, size, 0, data.EpochClock()))


class Torch:
    """The PyTorch loop in its own process."""

    def __init__(self, case: dict[str, Any], precision: str, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).with_name("torch_step.py"))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        answer = json.loads(self._ask(json.dumps(case | {"precision": precision, "threads": threads})))
        self.parameters, self.version = answer["parameters"], answer["version"]

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        return self.process.stdout.readline()

    def step(self) -> float:
        """Makes a step and returns its seconds."""
        return float(self._ask("step"))

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
