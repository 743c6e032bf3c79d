"""What a Distiller logs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from spkd_keras.distiller.replicas import Share
from spkd_keras.distiller.strategies import ReplicatedTrainer, logs_for_keras


class LoggedTrainer(ReplicatedTrainer):
    """A model that logs its losses by name, weighted by the number of images, beside the compiled metrics."""

    _trackers: dict[str, keras.metrics.Metric]

    def _logs(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, losses: dict[str, Any], share: Share | None
    ) -> dict[str, Any]:
        """Updates the metrics, weighting the losses by the number of images, and returns those that have a value."""
        images = ops.shape(keras.tree.flatten(x)[0])[0]
        self._trackers["images"].update_state(share.total if share else images)
        for name, value in losses.items():
            (self._loss_tracker if name == "loss" else self._trackers[name]).update_state(value, sample_weight=images)
        logs = self._valued(x, y, y_pred, sample_weight, set(losses))
        return logs_for_keras(logs)

    def _valued(self, x: Any, y: Any, y_pred: Any, sample_weight: Any, valued: set[str]) -> dict[str, Any]:
        own = {"loss", *self._trackers}
        if y is None:
            results = self.get_metrics_result()
            return {name: results[name] for name in valued}
        results = self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        taken = own & {metric.name for metric in getattr(self._compile_metrics, "metrics", ())}
        if taken:
            raise ValueError(
                f"A term and a compiled metric must have different names. Received: {', '.join(sorted(taken))} "
                "for both. Give the term another `name`."
            )
        return {name: value for name, value in results.items() if name in valued or name not in own}

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """All metrics, without the compiled ones as long as no labels were seen."""
        return [m for m in super().metrics if m is not self._compile_metrics or m.built]

    @contextmanager
    def counting_apart(self) -> Iterator[None]:
        """Keeps the count of the batches that were trained on, for an evaluation within an epoch."""
        variables = self._trackers["images"].variables
        before = [np.array(variable) for variable in variables]
        yield
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

    def images_a_batch(self) -> float:
        """Returns the mean number of images in the batches trained on since the epoch began; 0 for none."""
        return float(self._trackers["images"].result())
