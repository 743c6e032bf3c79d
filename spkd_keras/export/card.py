"""The model card: what a student is, where it comes from, and what its exports weigh and take."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from spkd_keras.export.check import Check
from spkd_keras.export.latency import BATCHES
from spkd_keras.export.metadata import Metadata
from spkd_keras.export.placing import digest, lock_of
from spkd_keras.storage import alone, write_json, write_text
from spkd_keras.training.environment import versions

JSON, MARKDOWN = "model_card.json", "model_card.md"
SECONDS = 30.0  # to wait for another export into the same folder to write its line
KEPT = {"file", "bytes", "sha256", "quantize", "input_dtype", "licence", "check", "latency", "versions"}
PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert", "onnx", "tf2onnx", "onnxruntime")


def write_card(
    folder: Path, story: dict[str, Any], metadata: Metadata, export: dict[str, Any], float32_bytes: int
) -> dict[str, Any]:
    """Writes `model_card.json` and `model_card.md` into the folder of the exports, or adds an export to them.

    Exports of the same weights that a card in the folder tells of, and that are still there as they were, stay in it,
    with the licence, the comparison, the latency and the versions that were theirs.

    Args:
        folder: of the exports.
        story: of `FinishedRun.story`.
        metadata: of the export.
        export: as `Export.as_dict` gives it, with `latency` as `measure` gives it.
        float32_bytes: of the student's parameters.

    Returns:
        The card, as it is in `model_card.json`.
    """
    with _held(folder):
        _, earlier = _earlier(folder, metadata.weights)
        kept = [other for other in earlier if other["file"] != export["file"]]
        card = {
            "name": f"{story['experiment']}: {story['method']}, seed {story['seed']}",
            "licence": metadata.licence,
            "weights": metadata.weights,
            "float32_bytes": float32_bytes,
            "input": {"name": "image", "shape": list(metadata.image_shape), "pixels": "0 to 255"},
            "resize": metadata.resize,
            "class_names": list(metadata.class_names),
            **story,
            "exports": [*kept, {**export, "versions": versions(PACKAGES)}],
        }
        write_json(folder / JSON, card)
        write_text(folder / MARKDOWN, markdown(card))
    return card


def forget(folder: Path, file: str) -> None:
    """Takes a file that is about to be replaced out of a card that is there, whatever weights it is of.

    Args:
        folder: of the exports.
        file: its name.
    """
    with _held(folder):
        try:
            card = json.loads((folder / JSON).read_text(encoding="utf-8"))
            left = [export for export in card["exports"] if export["file"] != file and _is_whole(export)]
            if len(left) == len(card["exports"]):
                return
            card["exports"] = left
            page = markdown(card)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not one of ours
            return
        write_json(folder / JSON, card)
        write_text(folder / MARKDOWN, page)


def _held(folder: Path) -> AbstractContextManager[None]:
    busy = f"The model card in {folder} is being written by another process. Wait for it, and export again."
    return alone(lock_of(folder / JSON), SECONDS, busy)


def earlier_licence(folder: Path, weights: str) -> str | None:
    """Returns the licence in a card that is there, if it is of the same weights."""
    return _earlier(folder, weights)[0]


def _earlier(folder: Path, weights: str) -> tuple[str | None, list[dict[str, Any]]]:
    """Returns the licence and the exports of a card that is there, if it is of the same weights."""
    try:
        card = json.loads((folder / JSON).read_text(encoding="utf-8"))
        if card["weights"] != weights:
            return None, []
        exports = [export for export in card["exports"] if _is_whole(export)]
        there = [e for e in exports if (folder / e["file"]).exists() and digest(folder / e["file"]) == e["sha256"]]
        return card["licence"], there
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or not one of ours
        return None, []


def _is_whole(export: dict[str, Any]) -> bool:
    """Whether it has all that a card tells of an export, which one of an earlier version may lack."""
    return export.keys() >= KEPT and export["check"].keys() >= set(Check._fields)


def markdown(card: dict[str, Any]) -> str:
    """Returns a card as a Markdown page."""
    height, width, channels = card["input"]["shape"]
    exports = card["exports"]
    exported_with = _by_file(exports, lambda export: _pairs(export["versions"])) or "nothing"
    sections = [
        f"# {card['name']}",
        f"An image classifier of {card['parameters']:,} parameters ({card['float32_bytes']:,} bytes in float32) and "
        f"{card['multiply_adds']:,} multiply-adds an image. It takes raw pixels, `image`, {height}x{width}x{channels}, "
        f"0 to 255, and gives `logits` and `probabilities` of {len(card['class_names'])} classes. "
        f"A picture of another size is brought to this one by: {card['resize']}.",
        "## How it was trained",
        "\n".join(_training(card)),
        "## Accuracy",
        _accuracy(card["accuracy"]),
        "## Exports",
        _exports(exports) if exports else "None that was compared.",
        "## Details",
        "\n".join(
            [
                f"- Licence: {_by_file(exports, lambda export: export['licence']) or card['licence']}.",
                f"- Digest of the student's weights: `{card['weights']}`.",
                f"- Classes: {', '.join(card['class_names'])}.",
                f"- Trained with: {_pairs(card['trained_with'])}.",
                f"- Exported with: {exported_with}.",
            ]
        ),
    ]
    return "\n\n".join(sections) + "\n"


def _training(card: dict[str, Any]) -> list[str]:
    data, schedule = card["data"], card["schedule"]
    origin = data.get("origin") or {}
    lines = [
        f"- Student: {_pairs(card['student'])}.",
        f"- Teacher: {_pairs(_without(card['teacher'], 'schedule'))}; fingerprint `{card['teacher_fingerprint']}`."
        if card["teacher"]
        else "- Teacher: none, it was trained on the labels alone.",
        f"- Method: `{card['method']}`, weight of the labels {card['student_loss_weight']:g}.",
    ]
    for term in card["terms"]:
        rest = _without(term, "loss", "weight", "teacher", "student")
        told = f"; {_pairs(rest)}" if rest else ""
        lines.append(
            f"- Term: `{term['loss']}`, weight (gamma) {term['weight']:g}, between {_layers(term['teacher'])} of the "
            f"teacher and {_layers(term['student'])} of the student{told}."
        )
    return [
        *lines,
        f"- Seed {card['seed']}; {schedule['epochs']} epochs of batches of {data['batch_size']}, "
        f"{schedule['optimizer']}, learning rate {schedule['learning_rate']:g}, momentum {schedule['momentum']:g}, "
        f"weight decay {schedule['weight_decay']:g}.",
        f"- Data: {data['name']}, augmentation {data['augmentation']}; {_pairs(origin) or 'parts not recorded'}.",
    ]


def _accuracy(accuracy: dict[str, Any]) -> str:
    rows = ["| on the test images | seeds | median, % | lowest to highest, % |", "| --- | --- | --- | --- |"]
    for title, over in accuracy["over_seeds"].items():
        rows.append(
            f"| {title} | {len(over['seeds'])} | {100 * over['median']:.2f} | "
            f"{100 * over['lowest']:.2f} to {100 * over['highest']:.2f} |"
        )
    return f"This student: {100 * accuracy['this_run']:.2f}%.\n\n" + "\n".join(rows)


def _exports(exports: Sequence[dict[str, Any]]) -> str:
    columns = ["file", "bytes", "pixels", "largest difference of logits", "of probabilities", "same class, %"]
    columns += ["accuracy, student and export, %"]
    columns += [f"batch {size}: median, 95th percentile, ms" for size in BATCHES]
    rows = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for export in exports:
        check, latency = export["check"], export["latency"]
        times = [latency["batches"][str(size)] for size in BATCHES]
        cells = [
            f"`{export['file']}`",
            f"{export['bytes']:,}" + (f" (graph {export['graph_bytes']:,})" if "graph_bytes" in export else ""),
            export["input_dtype"],
            f"{check['largest_difference']:.1e}",
            f"{check['probability_difference']:.1e}",
            f"{100 * check['agreement']:.2f}",
            f"{percent(check['student_accuracy'])}, {percent(check['export_accuracy'])}",
            *(f"{time['median_ms']:.2f}, {time['p95_ms']:.2f}" for time in times),
        ]
        rows.append(f"| {' | '.join(cells)} |")

    def compared(export: dict[str, Any]) -> str:
        return f"{export['check']['images']:,} images ({export['check']['of']})"

    def measured(export: dict[str, Any]) -> str:
        return f"{export['latency']['threads']} threads of {export['latency']['machine']}"

    return (
        "\n".join(rows)
        + f"\n\nCompared with the student in float32 on {_by_file(exports, compared)}. "
        + f"Latency from pixels to logits, measured with {_by_file(exports, measured)}."
    )


def _by_file(exports: Sequence[dict[str, Any]], told: Callable[[dict[str, Any]], str]) -> str:
    """Returns what is told of all exports, or, where it differs, of which file what."""
    files: dict[str, list[str]] = {}
    for export in exports:
        files.setdefault(told(export), []).append(f"`{export['file']}`")
    if len(files) == 1:
        return next(iter(files))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in files.items())


def percent(fraction: float | None) -> str:
    """Returns a fraction in percent, or `unknown`."""
    return "unknown" if fraction is None else f"{100 * fraction:.2f}"


def _layers(layers: Any) -> str:
    return ", ".join(f"`{layer}`" for layer in ([layers] if isinstance(layers, str) else layers))


def _without(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in keys}


def _pairs(plain: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (plain or {}).items() if value is not None)
