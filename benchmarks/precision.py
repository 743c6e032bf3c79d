"""What a teacher in half precision does to the similarity-preserving loss, on networks that were trained.

    spkd run experiments/digits.yaml --methods sp
    python benchmarks/precision.py runs/digits digits

Prints, as JSON, for each dtype the loss between the student and the teacher in it, its ratio to float32's, and the loss
between the teacher and itself in that dtype. On batches of test images.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import keras
import numpy as np

from spkd_keras import data, losses, models
from spkd_keras.distiller import taps

BATCH = 128
BATCHES = 4


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder of an experiment with teacher-seed0 and sp-seed0")
    parser.add_argument("data", help="name of the data set")
    given = parser.parse_args()
    teacher, student = (
        keras.saving.load_model(given.runs / name / "student.keras") for name in ("teacher-seed0", "sp-seed0")
    )
    images, loss = data.load(given.data).test, losses.SimilarityPreserving()
    batches = [images.pixels[start : start + BATCH] for start in range(0, BATCH * BATCHES, BATCH)]

    def stages(network: keras.Model) -> list[Any]:
        place = taps.resolve(network, None, "last_stage", "network")
        tapped = taps.tapped(network, place)
        return [tapped(batch, training=False)["taps"][0] for batch in batches]

    def mean_loss(first: list[Any], second: list[Any]) -> float:
        return float(np.mean([loss(one, other) for one, other in zip(first, second, strict=True)]))

    of_student, of_teacher = stages(student), stages(teacher)
    exact = mean_loss(of_teacher, of_student)
    answer: dict[str, Any] = {"float32": {"loss": exact}}
    for dtype in ("bfloat16", "float16"):
        rounded = stages(models.in_precision(teacher, dtype))
        value = mean_loss(rounded, of_student)
        answer[dtype] = {"loss": value, "ratio": value / exact, "teacher_to_itself": mean_loss(of_teacher, rounded)}
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
