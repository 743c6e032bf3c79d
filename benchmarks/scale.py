"""What the global similarity matrix costs as the batch and the number of replicas grow.

    python benchmarks/scale.py exchange                # gather and loss on 1 to 8 logical devices of this processor
    python benchmarks/scale.py pairs wrn mobilenet     # a step without the loss, and the loss, for pairs of networks
    python benchmarks/scale.py page                    # writes benchmarks/scale.md from both

The first two write into `benchmarks/results/scale.json`. The loss of a batch b, D_T and D_S values an image at the two
taps, on R replicas that compute b / R rows each, takes 2 b^2 (D_T + 3 D_S) / R operations (two products forward, two
for the student's gradient); the rest of a step grows as b / R. Their ratio is that of one device at the same b.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

RESULTS = Path(__file__).parent / "results" / "scale.json"
PAGE = Path(__file__).parent / "scale.md"
REPLICAS, BATCHES = (1, 2, 4, 8), (128, 256, 512, 1024)
FEATURES = {"teacher": 8 * 8 * 128, "student": 8 * 8 * 64}  # WideResNet-16-2 and 16-1, last stage
NETWORKS = {"10 gigabit": 1.25e9, "100 gigabit": 12.5e9}  # bytes a second
SHARE = 0.05
WRN, MOBILE, MOBILE2, SHUFFLE = "wide_resnet", "mobilenet", "mobilenet_v2", "shufflenet_v2"


def _pairs() -> dict[str, tuple[Any, Any, int, int]]:
    """Student, teacher, side of the images and batch that is timed; the pairs of the paper's tables."""

    def wide(depth: int, width: int) -> Any:
        return WRN, {"depth": depth, "width": width, "num_classes": 10}

    def other(kind: str, width: float, classes: int) -> Any:
        return kind, {"width": width, "num_classes": classes}

    pairs = {}
    for student, teacher in (
        ((16, 1), (40, 1)),
        ((16, 1), (16, 2)),
        ((16, 2), (40, 2)),
        ((16, 2), (16, 8)),
        ((40, 2), (16, 8)),
    ):
        pairs[f"wrn {student[0]}-{student[1]} < {teacher[0]}-{teacher[1]}"] = (wide(*student), wide(*teacher), 32, 32)
    for kind, name, sizes, classes, side, batch in (
        (MOBILE, "mobilenet", ((0.25, 0.5), (0.25, 1.0), (0.5, 1.0)), 47, 224, 8),
        (MOBILE2, "mobilenet_v2", ((0.35, 1.0), (0.35, 1.4), (1.0, 1.4)), 47, 224, 8),
        (SHUFFLE, "shufflenet_v2", ((0.5, 1.0), (0.5, 2.0), (1.0, 2.0)), 10, 32, 32),
    ):
        for student, teacher in sizes:
            pairs[f"{name} {student} < {teacher}"] = (
                other(kind, student, classes),
                other(kind, teacher, classes),
                side,
                batch,
            )
    return pairs


def fastest(do: Callable[[], Any], times: int = 3) -> float:
    """Seconds of the fastest of a few calls after a first one, which compiles."""
    do()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        do()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def exchange_on(replicas: int) -> dict[str, Any]:
    """Times the gather alone, and the gather, loss and gradient, on logical devices."""
    import tensorflow as tf

    processor = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * replicas)
    from spkd_keras.distiller.replicas import Share, of_term
    from spkd_keras.losses import SimilarityPreserving

    strategy, loss = (
        tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(replicas)]),
        SimilarityPreserving(),
    )
    found = {}
    for batch in BATCHES:
        local = batch // replicas
        teacher, student = (tf.random.normal([local, size]) for size in FEATURES.values())

        def gather() -> Any:
            share = Share(local)  # noqa: B023
            return [tf.reduce_sum(part) for part in share.gather((teacher, student), "float32")]  # noqa: B023

        def whole() -> Any:
            with tf.GradientTape() as tape:
                tape.watch(student)  # noqa: B023
                value = of_term(loss, teacher, student, True, Share(local))  # noqa: B023
            return tf.reduce_sum(tape.gradient(value, student))  # noqa: B023

        run = {name: tf.function(lambda do=do: strategy.run(do)) for name, do in (("gather", gather), ("whole", whole))}
        found[batch] = {name: fastest(lambda do=do: _wait(strategy, do())) for name, do in run.items()}
    return found


def _wait(strategy: Any, results: Any) -> None:
    for part in results if isinstance(results, list) else [results]:
        for value in strategy.experimental_local_results(part):
            value.numpy()


def pair(name: str) -> dict[str, Any]:
    """Times a step without the loss, and the loss with its gradient at batches that grow."""
    import keras
    import numpy as np
    import tensorflow as tf

    from spkd_keras import Distiller, Term, losses, models

    (student_kind, student_arguments), (teacher_kind, teacher_arguments), side, batch = _pairs()[name]
    shape = (side, side, 3)
    teacher = models.BUILDERS[teacher_kind](image_shape=shape, **teacher_arguments)
    student = models.BUILDERS[student_kind](image_shape=shape, **student_arguments)
    distiller = Distiller(teacher, student, [Term(losses.SimilarityPreserving(), 3000.0)])
    distiller.compile(
        keras.optimizers.SGD(0.1, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    x, y = np.random.default_rng(0).integers(0, 256, (batch, *shape)).astype("uint8"), np.zeros(batch, "int32")
    step = fastest(lambda: distiller.train_on_batch(x, y))
    from spkd_keras.distiller import tap_values

    sizes = [int(np.prod(part.shape[1:])) for part in tap_values(distiller, x[:2])["similarity_preserving"]]

    def loss_at(images: int) -> float:
        one, other = (tf.random.normal([images, size]) for size in sizes)

        @tf.function
        def gradient(one: Any, other: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(other)
                value = tf.reduce_mean(losses.similarity_preserving(one, other))
            return tf.reduce_sum(tape.gradient(value, other))

        return fastest(lambda: gradient(one, other).numpy())

    measured = {images: loss_at(images) for images in (batch, 256, 512)}
    return {"step": step, "batch": batch, "teacher": sizes[0], "student": sizes[1], "loss": measured}


def update(part: str, content: dict[str, Any]) -> None:
    """Writes a part of the results."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results.setdefault(part, {}).update(content)
    results["date"] = date.today().isoformat()
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def largest(found: dict[str, Any]) -> tuple[int, float]:
    """Returns the largest batch whose loss is under the share of the step, and the operations a second of the loss.

    By the largest batch that was timed: seconds = b^2 * rate. The rest of the step takes b * (step - loss) / batch.
    """
    operations = 2 * (found["teacher"] + 3 * found["student"])  # of b^2
    images = max(found["loss"], key=int)
    speed = operations * int(images) ** 2 / found["loss"][images]
    rest = (found["step"] - found["loss"][str(found["batch"])]) / found["batch"]
    return int(SHARE / (1 - SHARE) * rest * speed / operations), speed


def page() -> str:
    """Returns the page of the results."""
    results = json.loads(RESULTS.read_text())
    lines = [_HEAD.format(date=results["date"], **{k: f"{v:,}" for k, v in FEATURES.items()})]
    lines += [
        "| batch | " + " | ".join(f"R = {count}" for count in REPLICAS) + " |",
        "| --- |" + " --- |" * len(REPLICAS),
    ]
    for batch in map(str, BATCHES):
        cells = [results["exchange"][str(count)][batch] for count in REPLICAS]
        lines.append(
            f"| {batch} | " + " | ".join(f"{1000 * c['gather']:.1f} / {1000 * c['whole']:.1f}" for c in cells) + " |"
        )
    numbers = FEATURES["teacher"] + 3 * FEATURES["student"]
    flops = 2 * numbers
    one = results["exchange"]["1"][str(BATCHES[-1])]
    speed = flops * BATCHES[-1] ** 2 / (one["whole"] - one["gather"])
    lines += [_BEYOND.format(speed=speed / 1e9)]
    lines += [
        "| batch | R | sent a step, MB | "
        + " | ".join(f"{name}, ms" for name in NETWORKS)
        + " | loss of a replica, ms |"
    ]
    lines += ["| --- |" + " --- |" * (3 + len(NETWORKS))]
    for batch, count in ((1024, 8), (4096, 32), (8192, 64), (32768, 256)):
        sent = 4 * batch * numbers
        arriving = sent * (count - 1) / count
        times = [f"{1000 * arriving / rate:.0f}" for rate in NETWORKS.values()]
        loss = 1000 * flops * batch**2 / count / speed
        lines.append(f"| {batch} | {count} | {sent / 1e6:.0f} | {' | '.join(times)} | {loss:.0f} |")
    _, again = largest(results["pairs"]["wrn 16-1 < 16-2"])  # the loss whose speed is above
    lines += [_PAIRS.format(share=f"{SHARE:.0%}", again=again / 1e9, speed=speed / 1e9)]
    lines += [
        "| student < teacher | values an image, teacher / student | ms an image without the loss "
        "| GFLOP/s of the loss | largest batch |"
    ]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name in _pairs():
        if name not in results["pairs"]:
            lines.append(f"| {name} | not measured | | | |")
            continue
        found = results["pairs"][name]
        images, pace = largest(found)
        rest = 1000 * (found["step"] - found["loss"][str(found["batch"])]) / found["batch"]
        mark = " \\*" if "doubt" in found else ""
        values = f"{found['teacher']:,} / {found['student']:,}"
        lines.append(f"| {name} | {values} | {rest:.2f}{mark} | {pace / 1e9:.0f} | {images:,} |")
    # Written beside a measurement by hand, and gone with it when it is measured again.
    doubts = [found["doubt"] for found in results["pairs"].values() if "doubt" in found]
    lines += [f"\n\\* {doubt}" for doubt in doubts]
    return "\n".join(lines) + "\n"


_HEAD = """# The similarity matrix of many devices

Measured {date} on 2 cores, CPU, float32, with what else ran there. `python benchmarks/scale.py page` wrote this page.

Every replica gathers the activations of the whole batch at the two taps, computes its own rows of the two matrices, and
sums the student's gradients over all: b (D_T + 3 D_S) numbers cross the network (a sum passes twice), and the work of
the products, which grows with b², is shared. `spkd check` prints the bytes of an experiment, and `summary.json` of a
run on several devices has them (`gathered_bytes_a_step`).

## Gather and loss, measured

Logical devices of one processor: they share the two cores, and the gather is a copy in memory. WideResNet-16-1 from
16-2, last stage: {teacher} and {student} values an image. Milliseconds of the gather alone / of gather, loss and
gradient, fastest of 3:
"""
_BEYOND = """
The rows are shared out, not repeated: if each device computed the whole matrices, R = 8 would take eight times R = 1.
What more devices on the same cores take is for the copies, there and back, and for more that was not found out.

## Beyond, computed

The same pair where every device is a machine as fast as this one ({speed:.0f} GFLOP/s in the loss) and receives, over a
network of its own, (R - 1) / R of what is sent, with nothing else in its way:
"""
_PAIRS = """
The gradients of the weights, which any such training sends, come on top. The batch of a replica is the same in all
rows: the gather grows with the whole batch, as the loss does.

## The largest batch, for each pair of networks

Until the loss takes {share} of a step. The loss of a replica grows as b² / R, the rest of its step as b / R, so that
the largest global batch is the same for any R. From a step at a small batch (32, at 224 pixels 8) and the loss at 512;
without the network. The ratio of convolutions to matrix products differs between kinds of devices: `pairs` measures it.
Good to a factor of two or three: the loss of wrn 16-1 < 16-2 ran at {again:.0f} GFLOP/s here, at {speed:.0f} above.
"""


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    exchange = commands.add_parser("exchange")
    exchange.add_argument("--replicas", type=int)
    pairs = commands.add_parser("pairs")
    pairs.add_argument("names", nargs="*")
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "page":
        PAGE.write_text(page(), encoding="utf-8")
    elif arguments.command == "pairs":
        for name in _pairs():
            if not arguments.names or any(name.startswith(f"{kind} ") for kind in arguments.names):
                update("pairs", {name: pair(name)})
                print(name, flush=True)
    elif arguments.replicas:
        update("exchange", {str(arguments.replicas): exchange_on(arguments.replicas)})
    else:
        for count in REPLICAS:  # each in a process of its own: logical devices are made before TensorFlow starts
            subprocess.run([sys.executable, __file__, "exchange", "--replicas", str(count)], check=True)
            print(count, flush=True)


if __name__ == "__main__":
    main()
