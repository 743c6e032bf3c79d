"""The devices and processes that share a training: how they are found, and what the processes tell each other."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from spkd_keras.experiment import ClearError, Data, ExperimentError
from spkd_keras.messages import one_line

STRATEGIES = ("mirrored", "multiworker")
EXAMPLE = '{"cluster": {"worker": ["host1:port", "host2:port"]}, "task": {"type": "worker", "index": 0}}'
SLURM_PORTS = 20000  # the first of a range of 10,000, in which a job has its own


class WorkerLostError(ClearError, RuntimeError):
    """Another process of the same training is gone. The message is one clear line."""


class Devices:
    """What a training runs on: one device, several, or several processes, of which the first is the chief.

    Only the chief writes a run's folder. The others have temporary ones, and get from it what they need. All must ask
    the same in the same order, since each answer is a message between them.

    Args:
        strategy: None for one device.
        name: of the strategy, one of `STRATEGIES`.

    Attributes:
        strategy: as given.
        replicas: how many share a batch.
        workers: how many processes there are.
        chief: whether this process is the first.
    """

    def __init__(self, strategy: tf.distribute.Strategy | None = None, name: str | None = None) -> None:
        self.strategy, self.name = strategy, name
        self.replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        cluster = _cluster() if name == "multiworker" else {}
        self.workers = len(cluster.get("cluster", {}).get("worker", [None]))
        self.chief = cluster.get("task", {}).get("index", 0) == 0

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """Within, variables belong to the strategy."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def described(self) -> dict[str, Any]:
        """Returns what a run records of it."""
        return {"strategy": self.name, "replicas": self.replicas, "workers": self.workers}

    def check(self, spec: Data, images: int) -> None:
        """Checks that every batch can be shared out.

        Args:
            spec: with the batch size, which is that of all replicas together.
            images: how many there are to train on.

        Raises:
            ExperimentError: if not.
        """
        if spec.batch_size % self.replicas:
            raise ExperimentError(
                f"data.batch_size must be a multiple of {self.replicas}, the number of replicas that share a batch. "
                f"Received: {spec.batch_size}."
            )
        if 0 < images % spec.batch_size < self.replicas:
            raise ExperimentError(
                f"The last batch of an epoch must have an image for each of the {self.replicas} replicas. Received: "
                f"{images % spec.batch_size}, of {images} training images in batches of {spec.batch_size}. Choose "
                "another data.batch_size."
            )

    @contextlib.contextmanager
    def folder(self, out: str | Path) -> Iterator[Path]:
        """Gives the folder to write runs to: the one that is asked for, or one that goes when it is left."""
        if self.chief:
            yield Path(out)
            return
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Turns what TensorFlow says when another process is gone into one clear line.

        Raises:
            WorkerLostError: if so.
        """
        try:
            yield
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
            if self.workers == 1:
                raise
            raise WorkerLostError(
                f"Another of the {self.workers} processes of this training ended or cannot be reached "
                f"({type(error).__name__}). The last checkpoint is kept: start all of them again with the same command."
            ) from error

    # --- between the processes ---------------------------------------------------------------------------------------

    def counts(self, values: Sequence[int]) -> list[int]:
        """Returns the sums over all processes; the same values where there is one."""
        return [int(value) for value in self._sum(np.array(values, np.int32), by_all=True)]

    def share(self, path: Path) -> None:
        """Makes a file, or a folder of files, of every process what it is for the chief: its content, or not there."""
        if self.workers == 1:
            return
        names = sorted(file.name for file in path.iterdir() if not file.name.startswith(".")) if path.is_dir() else None
        kind = json.loads(self._from_chief(json.dumps({"names": names, "exists": path.exists()}).encode()))
        if kind["names"] is not None:
            self._share_folder(path, kind["names"])
        elif kind["exists"]:
            content = self._from_chief(path.read_bytes() if self.chief else b"")
            if not self.chief:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        elif not self.chief:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _share_folder(self, path: Path, names: list[str]) -> None:
        if not self.chief:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
        for name in names:
            self.share(path / name)

    def _from_chief(self, content: bytes) -> bytes:
        """Returns the chief's bytes."""
        (length,) = self._sum(np.array([len(content)], np.int32))
        words = np.zeros(-(-int(length) // 4), np.int32)
        if self.chief:
            words = np.frombuffer(content + bytes(-len(content) % 4), np.int32)
        return self._sum(words).tobytes()[: int(length)]

    def _sum(self, values: np.ndarray, by_all: bool = False) -> np.ndarray:
        """Returns the sum of what the processes have; of what the chief has unless `by_all`."""
        strategy = self.strategy
        if self.workers == 1 or strategy is None or not len(values):
            return values
        here = strategy.num_replicas_in_sync // self.workers

        def of_replica() -> Any:
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            counts = number % here == 0 if by_all else number == 0  # once, whatever devices a process has
            return tf.where(counts, values, tf.zeros_like(values))

        @tf.function
        def whole() -> Any:
            return strategy.reduce(tf.distribute.ReduceOp.SUM, strategy.run(of_replica), axis=None)

        return whole().numpy()


def processes_for(name: str | None) -> int:
    """Returns how many processes share a training, this one among them: `devices_for` waits for all of them.

    Args:
        name: as in `devices_for`.

    Raises:
        ExperimentError: if nothing names them.
    """
    if name != "multiworker":
        return 1
    _find_cluster()
    return len(_cluster()["cluster"]["worker"])


def devices_for(name: str | None, count: int | None = None) -> Devices:
    """Finds the devices of a strategy. To be called before TensorFlow does anything else.

    Args:
        name: "mirrored": the GPUs of this machine, or logical devices on its processor where it has none;
            "multiworker": those of all processes that `TF_CONFIG` or SLURM's variables name; None: one device.
        count: how many devices of this machine; default are all its GPUs, or one where there are none.

    Raises:
        ExperimentError: if they are not there.
    """
    if name is None:
        return Devices()
    if name not in STRATEGIES:
        raise ExperimentError(f"--strategy must be one of {', '.join(STRATEGIES)}. Received: {name}.")
    if name == "multiworker":
        if count is not None and not tf.config.list_physical_devices("GPU"):
            raise ExperimentError(f"--devices is for GPUs with --strategy multiworker. Received: {count}, and no GPU.")
        _find_cluster()
    kind = _use(count)
    if name == "mirrored":
        used = [device.name.removeprefix("/device:") for device in tf.config.list_logical_devices(kind)]
        return Devices(tf.distribute.MirroredStrategy(used), name)
    return Devices(_between_workers(), name)


def _between_workers() -> tf.distribute.Strategy:
    """Connects the processes.

    Raises:
        ExperimentError: if this one cannot have its address.
    """
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except (tf.errors.UnknownError, tf.errors.InvalidArgumentError) as error:
        cluster = _cluster()
        own = cluster["cluster"]["worker"][cluster["task"]["index"]]
        raise ExperimentError(
            f"TF_CONFIG must give this process an address HOST:PORT of this machine that is free. Received: {own} "
            f"({one_line(error)[:200]}). Choose another port, or end what has it."
        ) from error


def _use(count: int | None) -> str:
    """Makes so many devices visible, and returns their kind."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        if count is not None and count > len(gpus):
            raise ExperimentError(f"--devices must be at most {len(gpus)}, the number of GPUs. Received: {count}.")
        tf.config.set_visible_devices(gpus[:count], "GPU")
        return "GPU"
    if count is not None and count > 1:
        (processor,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * count)
    return "CPU"


def _cluster() -> dict[str, Any]:
    return json.loads(os.environ.get("TF_CONFIG") or "{}")


def _find_cluster() -> None:
    """Checks `TF_CONFIG`, or writes it from SLURM's variables, by TensorFlow's own resolver.

    Raises:
        ExperimentError: if there is neither, or it is not one of workers alone.
    """
    try:
        if "TF_CONFIG" not in os.environ and "SLURM_PROCID" in os.environ:
            os.environ["TF_CONFIG"] = json.dumps(_slurm_cluster())
        config = _cluster()
        whole = set(config["cluster"]) == {"worker"} and config["task"]["type"] == "worker"
        whole = whole and 0 <= config["task"]["index"] < len(config["cluster"]["worker"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ExperimentError(
            f"--strategy multiworker needs the environment variable TF_CONFIG, such as {EXAMPLE}, or SLURM's "
            f"variables. Received: {os.environ.get('TF_CONFIG') or 'neither'} ({type(error).__name__}: {error}). To "
            "try it on this machine: --workers 2."
        ) from error
    if not whole:
        raise ExperimentError(
            "TF_CONFIG must name workers alone, and this one among them; the first is the chief. Received: "
            f"{os.environ['TF_CONFIG']}."
        )


def _slurm_cluster() -> dict[str, Any]:
    arguments: dict[str, Any] = {"port_base": SLURM_PORTS + int(os.environ.get("SLURM_JOB_ID", 0)) % 10000}
    if not os.environ.get("CUDA_VISIBLE_DEVICES") and shutil.which("nvidia-smi") is None:
        # The resolver of TensorFlow 2.21 hands out GPUs and fails without any.
        arguments |= {"gpus_per_node": 2**10, "gpus_per_task": 1, "auto_set_gpu": False}
    resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(**arguments)
    cluster = resolver.cluster_spec().as_dict()
    kind, index = resolver.get_task_info()
    return {"cluster": cluster, "task": {"type": kind, "index": index}}
