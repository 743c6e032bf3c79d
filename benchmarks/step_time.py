"""What a step of distillation costs, beside Keras' own Distiller and a hand-written PyTorch loop.

    python benchmarks/step_time.py compare wrn-16-1-from-16-2 --precision float32
    python benchmarks/step_time.py growth
    python benchmarks/step_time.py memory wrn-16-1-from-16-2
    python benchmarks/step_time.py plot

`compare` makes one step of each contender in turn (A B C A B C ...) and gives minimum, median, ratios; `growth` shows
how a step and the similarity matrices grow with the batch; `memory` gives the peak of each kind of step in a process of
its own. All write into `benchmarks/results/step_time.json`, from which `plot` draws. Only ratios carry over to another
machine. PyTorch takes part where it is installed, as a process that waits while others make their steps.

    a        the plain student step                     c  our step: cross-entropy and similarity-preserving term
    b        the teacher's forward pass                 d  keras.distillation.Distiller, same loss, layers and networks
    e        PyTorch, channels_last, same precision        with Keras' BatchNormalization
                                                       f  our step from a cache of the teacher on the disk
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # off by default on processors without AVX-512, where it pays too

import matplotlib
import numpy as np
import tensorflow as tf
from contenders import CASES, CONTENDERS, PRECISIONS, Torch, build, contender

from spkd_keras import losses

COLORS = {"a": "0.7", "b": "0.7", "c": "C0", "d": "C1", "e": "C2", "f": "C9"}
RESULTS = Path(__file__).parent / "results" / "step_time.json"


def timed(step: Callable[[], Any]) -> float:
    """Returns the seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(name: str, precision: str, steps: int, warm_up: int, letters: str) -> dict[str, Any]:
    """Times the contenders of a case in turn."""
    case, threads = CASES[name], len(os.sched_getaffinity(0))
    counts = [
        sum(int(np.prod(weight.shape)) for weight in build(case, role, precision).trainable_weights)
        for role in ("teacher", "student")
    ]
    stepping: dict[str, Callable[[], float]] = {}
    torch = Torch(case, precision, threads) if "e" in letters and importlib.util.find_spec("torch") else None
    if torch is not None:
        assert torch.parameters == counts, f"PyTorch's networks have {torch.parameters} parameters, ours {counts}"
    for letter in letters.replace("e", ""):
        step = contender(letter, case, precision)
        stepping[letter] = lambda step=step: timed(step)
    if torch is not None:
        stepping["e"] = torch.step
    seconds: dict[str, list[float]] = {letter: [] for letter in stepping}
    for round_ in range(warm_up + steps):
        for letter, step in stepping.items():
            taken = step()
            if round_ >= warm_up:
                seconds[letter].append(taken)
    if torch is not None:
        torch.close()
    return {
        "case": name,
        "precision": precision,
        "parameters": counts,
        "steps": steps,
        **summary(seconds),
        **machine(torch.version if torch else None),
    }


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Returns minimum and median in milliseconds, and the ratios of each that are the claims."""
    answer: dict[str, Any] = {}
    for name, reduce in (("median", np.median), ("minimum", np.min)):
        taken = {letter: float(reduce(values)) for letter, values in seconds.items()}
        ratios = {}
        if {"a", "b", "c"} <= set(taken):
            ratios["c/(a+b)"] = taken["c"] / (taken["a"] + taken["b"])
        ratios |= {f"c/{other}": taken["c"] / taken[other] for other in "ade" if {"c", other} <= set(taken)}
        if {"a", "f"} <= set(taken):
            ratios["f/a"] = taken["f"] / taken["a"]
        answer[f"{name}_ms"] = {letter: round(value * 1e3, 1) for letter, value in taken.items()}
        answer[f"{name}_ratios"] = {ratio: round(value, 3) for ratio, value in ratios.items()}
    return answer


def machine(torch_version: str | None = None) -> dict[str, Any]:
    """Returns what the times depend on."""
    flags: set[str] = set()
    if Path("/proc/cpuinfo").exists():
        line = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags"))
        flags = set(line.split()) & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_tile"}
    versions = {name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")}
    return {
        "machine": f"{len(os.sched_getaffinity(0))} cores, CPU, {platform.machine()}, {', '.join(sorted(flags))}",
        "onednn": os.environ["TF_ENABLE_ONEDNN_OPTS"],
        "versions": versions | ({"torch": torch_version} if torch_version else {}),
        "date": date.today().isoformat(),
    }


def growth(name: str, precision: str, steps: int, sizes: list[int]) -> dict[str, Any]:
    """Times the student's, the teacher's and the distillation step, and the loss with its gradient, by batch size."""
    case, rows = CASES[name], []
    teacher_shape, student_shape = (
        build(case, role, precision).get_layer(case["tap"]).output.shape[1:] for role in ("teacher", "student")
    )
    for size in sizes:
        loss = losses.SimilarityPreserving()
        taps = tf.random.normal((size, *teacher_shape)), tf.random.normal((size, *student_shape))

        @tf.function
        def loss_and_gradient(teacher: Any, student: Any, loss: Any = loss) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(student)
                value = loss(teacher, student)
            return tape.gradient(value, student)

        stepping = {letter: contender(letter, case, precision, size) for letter in "abc"}
        stepping["loss"] = lambda taps=taps, run=loss_and_gradient: float(run(*taps)[0, 0, 0, 0])
        seconds: dict[str, list[float]] = {letter: [] for letter in stepping}
        for round_ in range(2 + steps):
            for letter, step in stepping.items():
                taken = timed(step)
                if round_ >= 2:
                    seconds[letter].append(taken)
        rows.append({"batch_size": size, **summary(seconds)})
        print(json.dumps(rows[-1]), flush=True)
    return {"case": name, "precision": precision, "steps": steps, "rows": rows, **machine()}


def memory(name: str, precision: str) -> dict[str, Any]:
    """Measures what each kind of step needs beside what its process holds before it, each in its own process."""
    mebibytes = {}
    for letter in "abcd":
        command = [sys.executable, __file__, "peak", name, "--precision", precision, "--contenders", letter]
        mebibytes[letter] = float(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
        )
    excess = mebibytes["c"] - mebibytes["a"] - mebibytes["b"]
    return {
        "case": name,
        "precision": precision,
        "peak_mib": mebibytes,
        "c-(a+b)_mib": round(excess, 1),
        **machine(),
    }


def peak(name: str, precision: str, letter: str) -> float:
    """Returns the peak of ten steps in MiB above the memory of the process before the first one."""

    def status(field: str) -> int:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
        return int(line.split()[1])

    step = contender(letter, CASES[name], precision)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    for _ in range(10):
        step()
    return (status("VmHWM") - before) / 1024


def plot(results: dict[str, Any], path: Path) -> None:
    """Draws the medians of every case, and the growth with the batch."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    compared, grown = list(results.get("compare", {}).values()), list(results.get("growth", {}).values())
    figure, axes = pyplot.subplots(1, len(compared) + len(grown), figsize=(3.2 * (len(compared) + len(grown)), 3.4))
    for axis, entry in zip(np.atleast_1d(axes), compared + grown, strict=True):
        axis.set_title(f"{entry['case']}\n{entry['precision']}", fontsize=8)
        axis.set_ylabel("ms a step")
        if "rows" not in entry:
            names = [CONTENDERS[letter] for letter in entry["median_ms"]]
            axis.bar(names, list(entry["median_ms"].values()), color=[COLORS[letter] for letter in entry["median_ms"]])
            axis.tick_params(axis="x", rotation=60, labelsize=7)
            continue
        sizes = [row["batch_size"] for row in entry["rows"]]
        for letter, label in (*CONTENDERS.items(), ("loss", "similarity loss and gradient")):
            if letter in entry["rows"][0]["median_ms"]:
                axis.loglog(sizes, [row["median_ms"][letter] for row in entry["rows"]], marker="o", label=label)
        axis.set_xlabel("batch")
        axis.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measures, prints JSON and adds it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=["compare", "growth", "memory", "peak", "plot"])
    parser.add_argument("case", nargs="?", choices=CASES, default="wrn-16-1-from-16-2")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--steps", type=int, default=20, help="that are counted")
    parser.add_argument("--warm-up", type=int, default=3, help="steps before them")
    parser.add_argument("--contenders", default="abcdef", help="letters of those to time")
    parser.add_argument("--batches", type=int, nargs="*", default=[32, 64, 128, 256, 512, 1024])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    results = json.loads(given.results.read_text()) if given.results.exists() else {}
    if given.measure == "plot":
        plot(results, given.results.with_suffix(".png"))
        return
    if given.measure == "peak":
        print(peak(given.case, given.precision, given.contenders))
        return
    if given.measure == "compare":
        answer = compare(given.case, given.precision, given.steps, given.warm_up, given.contenders)
    elif given.measure == "growth":
        answer = growth(given.case, given.precision, given.steps, given.batches)
    else:
        answer = memory(given.case, given.precision)
    print(json.dumps(answer, indent=2))
    results.setdefault(given.measure, {})[f"{given.case} {given.precision}"] = answer
    given.results.parent.mkdir(exist_ok=True)
    given.results.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
