"""What a result may depend on beside the experiment, and what a run takes of the machine."""

import contextlib
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import tensorflow as tf

import spkd_keras

PACKAGES = ("tensorflow", "keras", "numpy", "scikit-learn", "tensorflow-datasets")
# A change of these may change bits.
DECIDING = ("versions", "commit", "devices", "processor", "accelerators", "intra_op_threads", "onednn", "replicas")
# Instructions of a processor by which TensorFlow chooses its kernels.
INSTRUCTIONS = re.compile(r"\b(?:avx|amx|fma|sse4|f16c|asimd|sve|bf16|i8mm)\w*")


def environment() -> dict[str, Any]:
    """Returns versions, commit, platform, devices, what these are, and numbers of threads."""
    return {
        "versions": versions(PACKAGES),
        "commit": _commit(),
        "platform": platform.platform(),
        "devices": [device.name for device in tf.config.list_physical_devices()],
        "processor": _processor(),
        "accelerators": [_kind(device) for device in tf.config.list_physical_devices("GPU")],
        "intra_op_threads": intra_op_threads(),
        "onednn": os.environ.get("TF_ENABLE_ONEDNN_OPTS", "as TensorFlow chooses"),
        "inter_op_threads": _threads(tf.config.threading.get_inter_op_parallelism_threads(), "TF_NUM_INTEROP_THREADS"),
    }


def intra_op_threads() -> int:
    """Returns how many threads TensorFlow uses for one operation, on which the bits of a result depend."""
    return _threads(tf.config.threading.get_intra_op_parallelism_threads(), "TF_NUM_INTRAOP_THREADS")


def _threads(configured: int, variable: str) -> int:
    """TensorFlow takes what is configured, else its environment variable, else all cores."""
    asked = os.environ.get(variable, "")
    return configured or (int(asked) if asked.isdecimal() else 0) or len(os.sched_getaffinity(0))


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of Python, of this package and of those among the others that are installed."""
    found = {"python": platform.python_version(), "spkd_keras": spkd_keras.__version__}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Says what differs between two environments that may change the bits of a result."""
    before = {"replicas": 1, **before}  # what runs of before there were several had
    # What was not recorded then may have been the same.
    known = [key for key in DECIDING if key in before]
    return [_change(key, before[key], now.get(key)) for key in known if before[key] != now.get(key)]


def _change(key: str, before: Any, now: Any) -> str:
    if key == "processor":  # the instructions that are gone and those that are new
        before, now = set(before), set(now)
        signs = [*(f"-{name}" for name in sorted(before - now)), *(f"+{name}" for name in sorted(now - before))]
        return f"{key}: {' '.join(signs)}"
    return f"{key}: {before} -> {now}"


def peak_memory() -> int:
    """Returns the most memory that the process held since `reset_peak_memory`, in bytes (resident set)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0])


def reset_peak_memory() -> None:
    """Forgets the peak so far, so that a run does not report that of the one before."""
    with contextlib.suppress(OSError):  # a container may forbid it; the peak is then the process' own
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _processor() -> list[str]:
    """Returns the instructions that the processor has of those that matter, in alphabetical order."""
    flags = re.search(r"^(?:flags|Features)\s*:.*", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.M)
    return sorted(set(INSTRUCTIONS.findall(flags[0]))) if flags else []


def _kind(accelerator: Any) -> str:
    details = tf.config.experimental.get_device_details(accelerator)
    return str(details.get("device_name", accelerator.name))


def _commit() -> str | None:
    """Returns the commit of the package's own checkout; None where it is installed, in another repository too."""
    package = Path(spkd_keras.__file__).parent
    command = ["git", "-C", str(package), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        top, commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None
    return commit if Path(top) == package.parent else None
