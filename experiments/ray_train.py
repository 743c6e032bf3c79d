"""Runs an experiment on the workers of Ray Train, which share every batch.

    pip install "ray[train]==2.60.*"
    python experiments/ray_train.py experiments/digits.yaml --workers 2 --out /shared/runs

Ray starts the workers, on the machines of its cluster or on this one, and tells each of the others by `TF_CONFIG`. What
follows is the training of `spkd run --strategy multiworker`: the first worker writes the runs' folders, and the same
command continues what was interrupted. `spkd check` before it says what cannot work, and `spkd report` behind it makes
the tables. `--out` should be a place that any machine can be the first of, such as a shared folder.
"""

import argparse
from pathlib import Path
from typing import Any

from ray.train import RunConfig, ScalingConfig, report
from ray.train.tensorflow import TensorflowTrainer

from spkd_keras.experiment import ExperimentError, load_experiment


def work(config: dict[str, Any]) -> None:
    """What every worker does."""
    from spkd_keras.training import devices_for, run_experiment

    devices = devices_for("multiworker")  # before TensorFlow does anything else
    experiment = load_experiment(config["experiment"], config["overrides"])
    run_experiment(experiment, config["out"], devices=devices)
    report({"replicas": devices.replicas})


def main() -> None:
    """Starts the workers and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--gpus", action="store_true", help="one GPU for each worker")
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--storage", type=Path, default=Path("ray_results"), help="of Ray's own files")
    arguments = parser.parse_args()
    try:
        load_experiment(arguments.experiment, arguments.overrides)
    except ExperimentError as error:
        parser.error(str(error))  # before any worker is started
    trainer = TensorflowTrainer(
        work,
        train_loop_config={
            "experiment": str(arguments.experiment.absolute()),
            "overrides": arguments.overrides,
            "out": str(arguments.out.absolute()),
        },
        scaling_config=ScalingConfig(num_workers=arguments.workers, use_gpu=arguments.gpus),
        run_config=RunConfig(storage_path=str(arguments.storage.absolute())),
    )
    trainer.fit()
    print(f"Students: {arguments.out}/<experiment>/<method>-seed<k>/student.keras")


if __name__ == "__main__":
    main()
