"""From run folders to tables, sentences and figures. Reads files only, and no TensorFlow."""

from spkd_keras.report.results import (
    Comparison,
    ExperimentResult,
    MethodResult,
    figure_name,
    sign_test,
    similarities,
    summarise,
)
from spkd_keras.report.settings import loss_in_words, settings
from spkd_keras.report.weight_curves import WeightCurve, weight_curves
from spkd_keras.report.wording import (
    COLUMNS,
    EXPLANATION,
    cells,
    columns_of,
    compared,
    comparisons,
    costs,
    errors_in_percent,
    medians,
    published,
    remarks,
    table,
    tell_weights,
    verdicts,
)
from spkd_keras.report.write import as_json, markdown, write_report
from spkd_keras.run_files import read_runs, read_trials

__all__ = [
    "COLUMNS",
    "EXPLANATION",
    "Comparison",
    "ExperimentResult",
    "MethodResult",
    "WeightCurve",
    "as_json",
    "cells",
    "columns_of",
    "compared",
    "comparisons",
    "costs",
    "errors_in_percent",
    "figure_name",
    "loss_in_words",
    "markdown",
    "medians",
    "published",
    "read_runs",
    "read_trials",
    "remarks",
    "settings",
    "sign_test",
    "similarities",
    "summarise",
    "table",
    "tell_weights",
    "verdicts",
    "weight_curves",
    "write_report",
]
