"""A SavedModel under load, and exports that are killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from architectures import randomize

from spkd_keras import models
from spkd_keras.export import export_student, load_runner, placing

REQUESTS, THREADS, MOST_GROWTH = 1000, 4, 20 * 2**20

# A server that has only TensorFlow. Memory that the first requests take is kept by TensorFlow and counted before.
SERVER = f"""
import concurrent.futures, numpy as np, tensorflow as tf
requests = np.load("requests.npz")
sizes, starts, pixels, expected = (requests[name] for name in ("sizes", "starts", "pixels", "expected"))
loaded = tf.saved_model.load("saved_model")
classify = loaded.signatures["serving_default"]

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * {os.sysconf("SC_PAGE_SIZE")}

def answer(number):
    part = slice(starts[number], starts[number] + sizes[number])
    outputs = classify(image=tf.constant(pixels[part]))
    return np.abs(outputs["logits"].numpy() - expected[part]).max()

with concurrent.futures.ThreadPoolExecutor({THREADS}) as pool:
    warm = list(pool.map(answer, range({REQUESTS}, len(sizes))))
    before = resident()
    worst = np.max(list(pool.map(answer, range({REQUESTS}))))  # NaN stays NaN
    print(worst, resident() - before)
"""


@pytest.mark.slow
def test_a_thousand_requests_from_four_threads(tmp_path):
    network = randomize(models.wide_resnet(16, 1))
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (256, 32, 32, 3), dtype=np.uint8)
    warm_up = np.tile(np.arange(1, 33), 8)
    sizes = np.concatenate([random.integers(1, 33, REQUESTS), warm_up])
    starts = random.integers(0, len(pixels) - 32, len(sizes))
    expected = network.predict(pixels, verbose=0)
    np.savez(tmp_path / "requests.npz", sizes=sizes, starts=starts, pixels=pixels, expected=expected)
    export_student(network, tmp_path / "saved_model", "saved_model", images=pixels)
    done = subprocess.run([sys.executable, "-c", SERVER], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    worst, growth = done.stdout.split()
    assert float(worst) < 1e-4
    assert int(growth) <= MOST_GROWTH


# Exports again and again, first one network, then another, and says when it has begun.
EXPORTER = """
import keras
from spkd_keras.export import export_student
networks = [keras.saving.load_model(f"{name}.keras") for name in ("first", "second")]
print("begun", flush=True)
while True:
    for network in networks:
        for path, kind in (("saved", "saved_model"), ("a.tflite", "litert"), ("a.onnx", "onnx")):
            export_student(network, path, kind)
"""


@pytest.mark.slow
def test_a_kill_leaves_whole_exports_or_none(tmp_path):
    files = {"saved": "saved_model", "a.tflite": "litert", "a.onnx": "onnx"}
    networks = {
        name: randomize(models.wide_resnet(10, 0.25, image_shape=(8, 8, 1)), seed)
        for seed, name in enumerate(("first", "second"))
    }
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    for name, network in networks.items():
        network.save(tmp_path / f"{name}.keras")
    expected = [network.predict_on_batch(pixels) for network in networks.values()]
    tested = 0
    for delay, replacing in ((0.4, False), (1.3, True), (3.1, True)):
        command = [sys.executable, "-c", EXPORTER]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout.readline() == b"begun\n"
            end = time.monotonic() + 60
            while replacing and not all((tmp_path / f"{file}.json").exists() for file in files):
                assert time.monotonic() < end
                time.sleep(0.01)
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
        for left in tmp_path.glob(".partial-*"):
            with pytest.raises(ValueError, match="is not whole"):
                load_runner(left)
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                told = json.loads((tmp_path / f"{file}.json").read_text(encoding="utf-8"))
                assert told["sha256"] == placing.digest(tmp_path / file)
            if (tmp_path / file).exists() or (tmp_path / f".partial-old-{file}").exists():
                logits = load_runner(tmp_path / file).predict(pixels)["logits"]
                assert min(np.abs(logits - one).max() for one in expected) < 1e-5
                tested += 1
            else:
                assert not replacing, "what was there before the kill is gone"
    assert tested >= 2 * len(files)
    # What was left over is in nobody's way.
    for file, kind in files.items():
        export_student(networks["first"], tmp_path / file, kind)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*files, *(f"{file}.json" for file in files), "first.keras", "second.keras"}
