"""The published methods and what is known of the losses, read from `methods.yaml`."""

import copy
import functools
from importlib import resources
from typing import Any

import yaml

from spkd_keras.experiment.problems import ExperimentError, shown, unknown
from spkd_keras.experiment.schema import BASELINE
from spkd_keras.experiment.sections import Method


@functools.cache
def _known() -> dict[str, Any]:
    return yaml.safe_load(resources.files(__package__).joinpath("methods.yaml").read_text(encoding="utf-8"))


def loss_facts() -> dict[str, dict[str, Any]]:
    """Returns, for each loss' name, its formula, published weight, between which networks it works, cost and source."""
    return copy.deepcopy(_known()["losses"])


def presets() -> dict[str, Any]:
    """Returns the published methods by name, as an experiment has them."""
    return copy.deepcopy(_known()["methods"])


def preset_methods() -> dict[str, Method]:
    """Returns the published methods by name, in full."""
    return {name: Method.model_validate(_in_full(name, name)) for name in presets()}


def expand_methods(plain: dict[str, Any]) -> None:
    """Writes in full, in place, an experiment's methods that are names of presets or bare lists of terms.

    Raises:
        ExperimentError: if there is no such preset.
    """
    methods = plain.get("methods")
    if isinstance(methods, list):
        if not all(isinstance(name, str) for name in methods):
            raise ExperimentError(
                f"`methods` as a list must have names of published methods. Received: {shown(methods)}."
            )
        methods = {name: name for name in methods}
    if isinstance(methods, str):
        raise ExperimentError(
            f"`methods` must be a list of names or a mapping. Received: {shown(methods)}. Write "
            f"`methods: [{methods}]`, or `--set methods=[{methods}]`."
        )
    if isinstance(methods, dict):
        plain["methods"] = {name: _in_full(name, method) for name, method in methods.items()}


def _in_full(name: str, method: Any) -> Any:
    if name != BASELINE and _is_empty(method):  # it would be the student alone under another name
        published = f" Write `{name}: {name}` for the published one." if name in presets() else ""
        raise ExperimentError(
            f"methods.{name}: it must have terms, or be the name of a published method. Received: {shown(method)}."
            f"{published} Valid: {', '.join(presets())}."
        )
    if isinstance(method, str):
        if method not in presets():
            raise ExperimentError(f"methods: {unknown('method', method, presets())}")
        method = presets()[method]
    return {"terms": method or []} if method is None or isinstance(method, list) else method


def _is_empty(method: Any) -> bool:
    """Whether a method is without terms. Other keys are checked later; one with all of its keys is a run's record."""
    if isinstance(method, dict):
        return set(method) < set(Method.model_fields) and not method.get("terms")
    return method is None or method == []
