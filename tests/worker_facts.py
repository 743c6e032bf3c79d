"""Trains as one of several processes, and writes as JSON what came of it. To be started by `launch`.

python tests/worker_facts.py FILE
"""

import json
import pathlib
import sys
import tempfile
import warnings

import numpy as np
import tensorflow as tf

from spkd_keras.training import devices_for


def exchanged(devices):
    """What the processes tell each other: a file and a folder of the first, and counts of all."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        content = bytes(range(251)) * 3
        if devices.chief:
            (folder / "file").write_bytes(content)
            (folder / "folder").mkdir()
            (folder / "folder" / "one").write_bytes(b"1")
        else:
            (folder / "gone").write_bytes(b"of this process alone")
            (folder / "folder").mkdir()
            (folder / "folder" / "other").write_bytes(b"2")
        for name in ("file", "folder", "gone"):
            devices.share(folder / name)
        right = [
            (folder / "file").read_bytes() == content,
            [file.name for file in (folder / "folder").iterdir()] == ["one"],
            not (folder / "gone").exists(),
            devices.counts([1, int(devices.chief)]) == [2, 1],
        ]
    return devices.counts([int(one) for one in right])  # each is right in both processes


def first_batch(devices):
    """Which images `fit` sees first of arrays that it shuffles, where each process has a random state of its own."""
    from replica_trainings import build

    class SeenError(Exception):
        pass

    def keep(batches, options):
        raise SeenError(next(iter(batches))[0].numpy().reshape(8, -1)[:, 0].tolist())

    distiller = build(devices.strategy)
    distiller.for_fit = keep
    np.random.seed(int(devices.chief))
    x = np.arange(64, dtype="uint8").reshape(-1, 1, 1, 1) * np.ones((1, 8, 8, 1), "uint8")
    try:
        distiller.fit(x, np.zeros(64, "int32"), batch_size=8, verbose=0)
    except SeenError as seen:
        return [int(number) for number in seen.args[0]]


def of_files(x, folder):
    """A dataset of two files, which TensorFlow would hand out between the processes: images of one to each."""
    files = [folder / "first", folder / "second"]
    for file, part in zip(files, (x[:20], x[20:]), strict=True):
        file.write_bytes(part.tobytes())
    records = tf.data.FixedLengthRecordDataset([str(file) for file in files], x[0].size)
    records = records.map(lambda record: tf.reshape(tf.io.decode_raw(record, x.dtype), x[0].shape))
    return records.apply(tf.data.experimental.assert_cardinality(len(x)))


def main():
    warnings.simplefilter("error", UserWarning)
    devices = devices_for("multiworker")
    from replica_trainings import ODD, difference, message, trained  # TensorFlow has started by now
    from replica_workarounds import plain_keras

    from spkd_keras.distiller.strategies import agreed_seed

    found = {"replicas": devices.replicas, "exchanged": exchanged(devices)}
    np.random.seed(int(devices.chief))
    own, agreed = np.random.RandomState(int(devices.chief)).randint(2**31), agreed_seed(devices.strategy)
    found["own_seeds"] = devices.counts([int(own == agreed)])  # one of two
    found["agreed_seeds"] = [[2 * (agreed % 1000)], devices.counts([agreed % 1000])]
    first = first_batch(devices)
    found["first_batches"] = [[2 * number for number in first], devices.counts(first)]
    as_dataset = {"count": ODD, "as_dataset": True}
    weighted = as_dataset | {"fitted": {"class_weight": {0: 0.5, 1: 2.0, 3: 0.0}}}
    cases = {"arrays": {}, "dataset": as_dataset, "weighted_dataset": weighted}
    two = {name: trained(devices.strategy, validated=True, **case) for name, case in cases.items()}
    x = np.random.default_rng(0).integers(0, 256, (ODD, 8, 8, 1)).astype("uint8")
    with tempfile.TemporaryDirectory() as folder:
        given = x, of_files(x, pathlib.Path(folder)).batch(16)
        predicted = [two["arrays"][2].predict(data, 16, verbose=0) for data in given]
    if devices.chief:
        for name, case in cases.items():
            found[name] = difference(trained(None, validated=True, **case), two[name])
        alone = two["arrays"][2].student(x).numpy()
        found["predictions"] = [float(np.abs(found - alone).max()) for found in predicted]
    devices.counts([0])
    y = np.zeros(ODD, "int32")
    model = plain_keras(devices.strategy, metrics=["accuracy"])
    found["plain_building"] = message(lambda: model.fit(x[:16], y[:16], batch_size=8, verbose=0))
    with devices.strategy.scope():
        model._symbolic_build(data_batch=(tf.zeros((2, 8, 8, 1), tf.uint8), tf.zeros((2,), tf.int32)))
    model._maybe_symbolic_build = lambda iterator: None  # with the first of the two errors out of the way
    found["plain_logs"] = message(lambda: model.fit(x[:16], y[:16], batch_size=8, verbose=0))
    if devices.chief:
        pathlib.Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
