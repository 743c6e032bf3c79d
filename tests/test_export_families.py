"""Every family of networks in every format, run in a process that has not our package."""

import functools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from architectures import randomize

from spkd_keras import models
from spkd_keras.export import FORMATS, export_student

SMALL = {"num_classes": 10, "image_shape": (32, 32, 3)}
NETWORKS = {
    "wide_resnet-0.5": functools.partial(models.wide_resnet, 10, 0.5, **SMALL),
    "wide_resnet-2": functools.partial(models.wide_resnet, 10, 2, **SMALL),
    "resnet-16": functools.partial(models.resnet, 8, (16, 16, 32, 64), **SMALL),
    "resnet-32": functools.partial(models.resnet, 8, (32, 32, 64, 128), **SMALL),
    "mobilenet-0.25": functools.partial(models.mobilenet, 0.25, **SMALL),
    "mobilenet-0.5": functools.partial(models.mobilenet, 0.5, **SMALL),
    "mobilenet_v2-0.35": functools.partial(models.mobilenet_v2, 0.35, **SMALL),
    "mobilenet_v2-0.5": functools.partial(models.mobilenet_v2, 0.5, **SMALL),
    "shufflenet_v2-0.5": functools.partial(models.shufflenet_v2, 0.5, **SMALL),
    "shufflenet_v2-1": functools.partial(models.shufflenet_v2, 1.0, **SMALL),
}
# Beside whose few weights an int8 file's graph counts most.
NARROWEST = ("wide_resnet-0.5", "resnet-16", "mobilenet-0.25", "mobilenet_v2-0.35", "shufflenet_v2-0.5")
SUFFIXES = {"saved_model": "", "litert": ".tflite", "onnx": ".onnx"}
# A stranger's program: reads the files with the runtimes alone, and could not import our package.
STRANGER = """
import json, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "spkd_keras":
            raise ImportError("spkd_keras is not installed")
sys.meta_path.insert(0, Blocked())
import numpy as np, onnxruntime, tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
pixels = np.load("pixels.npy")
worst = {}
for name in json.load(open("names.json")):
    found = []
    for count in (1, 7, 32):
        batch, expected = pixels[:count], np.load(name + ".npy")[:count]
        session = onnxruntime.InferenceSession(name + ".onnx")
        found += [np.abs(session.run(["logits"], {"image": batch})[0] - expected).max()]
        found += [np.abs(Interpreter(name + ".tflite").get_signature_runner()(image=batch)["logits"] - expected).max()]
        saved = tf.saved_model.load(name)
        found += [np.abs(saved.signatures["serving_default"](image=tf.constant(batch))["logits"] - expected).max()]
        as_float = tf.constant(batch.astype("float32"))
        found += [np.abs(saved.signatures["serving_float32"](image=as_float)["logits"] - expected).max()]
        as_png = tf.constant([tf.io.encode_png(image).numpy() for image in batch])
        found += [np.abs(saved.signatures["serving_bytes"](image_bytes=as_png)["logits"] - expected).max()]
    worst[name] = float(max(found))
assert not any(module.split(".")[0] == "spkd_keras" for module in sys.modules)
print(json.dumps(worst))
"""


def smooth_images(count):
    """Blobs of colour, which tell classes apart better than noise."""
    coarse = np.random.default_rng(0).uniform(0, 256, (count, 3, 3, 3))
    return np.asarray(tf.image.resize(coarse, (32, 32))).astype("uint8")


def with_usual_logits(network, pixels):
    """Makes the largest logit 10 at most; a random network's may be in the hundreds, where float32 rounds to 1e-4."""
    head = network.get_layer("logits")
    factor = min(1.0, 10 / np.abs(network.predict_on_batch(pixels)).max())
    head.set_weights([factor * weight for weight in head.get_weights()])
    return network


def assert_holds_the_student_alone(network, export):
    """Nothing of a teacher fits beside the student into what is allowed."""
    float32_bytes = 4 * network.count_params()
    allowed = 1.1 * float32_bytes + 100_000
    files = [export.path] if export.path.is_file() else [file for file in export.path.rglob("*") if file.is_file()]
    assert not [file for file in files if b"spkd" in file.read_bytes()]
    if export.format == "saved_model":
        assert export.sizes["variables_bytes"] <= 1.1 * float32_bytes
        assert 0 < export.sizes["graph_bytes"] < export.sizes["bytes"]
        variables = dict(tf.train.list_variables(str(export.path / "variables" / "variables")))
        values = sum(int(np.prod(shape)) for name, shape in variables.items() if "OBJECT_GRAPH" not in name)
        assert values <= network.count_params()
    elif export.metadata.quantize is None:
        assert export.sizes["bytes"] <= allowed
    else:
        assert export.sizes["bytes"] < allowed / 3


@pytest.mark.slow
def test_every_family_leaves_in_every_format_as_the_student(tmp_path):
    pixels = smooth_images(64)
    np.save(tmp_path / "pixels.npy", pixels)
    for name, build in NETWORKS.items():
        network = with_usual_logits(randomize(build()), pixels)
        logits = network.predict_on_batch(pixels)
        np.save(tmp_path / f"{name}.npy", logits)
        labels = logits.argmax(axis=1)
        for kind in FORMATS:
            export = export_student(network, tmp_path / (name + SUFFIXES[kind]), kind, images=pixels, labels=labels)
            assert_holds_the_student_alone(network, export)
            assert export.check.agreement == export.check.export_accuracy == 1.0
            assert export.check.largest_difference < 1e-4
        for kind in FORMATS[1:] if name in NARROWEST else ():
            path = tmp_path / f"{name}-int8{SUFFIXES[kind]}"
            # Of random weights the size alone is judged: their classes are near to each other.
            given = {"images": pixels, "labels": labels, "calibration": pixels, "largest_drop": 1.0}
            export = export_student(network, path, kind, quantize="int8", **given)
            assert_holds_the_student_alone(network, export)
            assert 0 <= export.check.export_accuracy <= 1
    (tmp_path / "names.json").write_text(json.dumps(list(NETWORKS)), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    differences = json.loads(done.stdout)
    assert list(differences) == list(NETWORKS)
    assert max(differences.values()) < 1e-4
