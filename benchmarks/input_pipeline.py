"""How fast the images come, beside how fast a training uses them.

    python benchmarks/input_pipeline.py cifar10 --augmentation cifar
    python benchmarks/input_pipeline.py dtd/fold1 --augmentation imagenet --image-size 224 --student mobilenet

Prints, as JSON, images a second of the pipeline alone and of training the student on one batch again and again, their
ratio, and the memory that loading and one epoch of the pipeline took beside TensorFlow's own. Medians of rounds that
alternate in one process; only the ratio carries over to another machine.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import psutil

from spkd_keras import data, models, optimizers

BATCH = 128
ROUNDS = 5
PIPELINE_BATCHES, TRAINING_STEPS = 100, 5  # a round


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the data set")
    parser.add_argument("--augmentation", default="none")
    parser.add_argument("--randaugment", type=float, default=0.0)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--student", default="wide_resnet", choices=models.BUILDERS)
    arguments = parser.parse_args()

    process = psutil.Process()
    before = process.memory_info().rss
    train = data.load(arguments.name, image_size=arguments.image_size).train
    augmentation = data.Augmentation(arguments.augmentation, randaugment=arguments.randaugment)
    batches = data.training_batches(train, BATCH, 0, data.EpochClock(), augmentation)
    for _ in batches:
        pass
    memory = process.memory_info().rss - before

    student = models.BUILDERS[arguments.student](num_classes=len(train.class_names), image_shape=train.image_shape)
    student.compile(
        optimizers.CoupledSGD(0.1, momentum=0.9, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    pixels, labels = next(iter(batches))
    student.train_on_batch(pixels, labels)  # traces

    stream = iter(batches.repeat())
    pipeline, training = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        images = sum(len(next(stream)[1]) for _ in range(PIPELINE_BATCHES))
        pipeline.append(images / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(TRAINING_STEPS):
            student.train_on_batch(pixels, labels)
        training.append(TRAINING_STEPS * len(labels) / (time.perf_counter() - start))
    answer = {
        "data": arguments.name,
        "images": list(train.image_shape),
        "augmentation": augmentation._asdict(),
        "student": student.name,
        "pipeline_images_per_second": round(float(np.median(pipeline))),
        "training_images_per_second": round(float(np.median(training))),
        "ratio": round(float(np.median(np.divide(pipeline, training))), 1),
        "memory_mib": round(memory / 2**20),
        "cores": len(os.sched_getaffinity(0)),
    }
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
