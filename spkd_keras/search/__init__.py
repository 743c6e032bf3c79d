"""Searching what varies in an experiment, with KerasTuner, on one machine or many."""

try:
    import keras_tuner as _  # noqa: F401
except ImportError as error:
    from spkd_keras.experiment import ExperimentError

    raise ExperimentError(
        f"{error.name} is not installed. For searches: pip install '.[tune]' in the folder of spkd_keras."
    ) from error

from spkd_keras.search.chief import SearchFailedError
from spkd_keras.search.hypermodel import DistillationHyperModel
from spkd_keras.search.results import TrialResult
from spkd_keras.search.search import Search, SearchResult
from spkd_keras.search.tuner import DistillationTuner

__all__ = [
    "DistillationHyperModel",
    "DistillationTuner",
    "Search",
    "SearchFailedError",
    "SearchResult",
    "TrialResult",
]
