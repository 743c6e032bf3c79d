"""How long an export takes for a batch, on the machine at hand."""

import platform
import time
from pathlib import Path
from typing import Any

import numpy as np

from spkd_keras.export.runners import Runner

BATCHES = (1, 32)
WARM_UPS = 5
FEWEST, MOST = 20, 200  # repetitions
SECONDS = 2.0  # for those between the fewest and the most


def measure(runner: Runner, pixels: np.ndarray) -> dict[str, Any]:
    """Measures the time from pixels in memory to logits in memory.

    Args:
        runner: the export.
        pixels: some images for it; they are repeated to fill a batch.

    Returns:
        `threads`, `machine`, and for each of the `BATCHES` the median and the 95th percentile in milliseconds, and of
        how many.
    """
    return {
        "threads": runner.threads,
        "machine": machine(),
        "batches": {str(size): _of_batch(runner, np.resize(pixels, (size, *pixels.shape[1:]))) for size in BATCHES},
    }


def _of_batch(runner: Runner, batch: np.ndarray) -> dict[str, float | int]:
    batch = runner.checked(batch)
    for _ in range(WARM_UPS):
        runner.run(batch)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < FEWEST or (len(times) < MOST and time.perf_counter() < end):
        start = time.perf_counter()
        runner.run(batch)
        times.append(time.perf_counter() - start)
    median, high = np.percentile(times, [50, 95])
    return {
        "median_ms": round(1000 * float(median), 3),
        "p95_ms": round(1000 * float(high), 3),
        "repetitions": len(times),
    }


def machine() -> str:
    """Returns the processor's name, as the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
