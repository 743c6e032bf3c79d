"""What a Distiller logs."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from spkd_keras.distiller.replicas import Share
from spkd_keras.distiller.strategies import ReplicatedTrainer, logs_for_keras


def trackers(names: Sequence[str]) -> dict[str, keras.metrics.Metric]:
    """Returns a mean for each name."""
    return {name: keras.metrics.Mean(name=name) for name in names}


class LoggedTrainer(ReplicatedTrainer):
    """A model that logs its losses by name, weighted by the number of images, beside the compiled metrics."""

    _trackers: dict[str, keras.metrics.Metric]
    _batch_sizes: keras.metrics.Metric

    def _logs(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, losses: dict[str, Any], share: Share | None
    ) -> dict[str, Any]:
        """Updates the metrics, weighting the losses by the number of images, and returns those that have a value."""
        images = ops.shape(keras.tree.flatten(x)[0])[0]
        for name, value in losses.items():
            (self._loss_tracker if name == "loss" else self._trackers[name]).update_state(value, sample_weight=images)
        logs = self._valued(x, y, y_pred, sample_weight, set(losses) if len(losses) > 1 else set())
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
        """All metrics, without the compiled ones as long as no labels were seen.

        The batches are counted apart, since Keras begins anew with all others where something is evaluated.
        """
        kept = [metric for metric in super().metrics if metric is not self._batch_sizes]
        return [metric for metric in kept if metric is not self._compile_metrics or metric.built]

    def _count(self, x: Any, share: Share | None) -> None:
        self._batch_sizes.update_state(share.total if share else ops.shape(keras.tree.flatten(x)[0])[0])

    def images_a_batch(self) -> float:
        """Returns the mean number of images in the batches trained on since `count_anew`; 0 for none."""
        return float(self._batch_sizes.result())

    def count_anew(self) -> None:
        """Begins to count the batches that are trained on."""
        self._batch_sizes.reset_state()
