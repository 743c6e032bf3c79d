"""The model card: what a student is, where it comes from, and what its exports weigh and take."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spkd_keras.export.latency import BATCHES
from spkd_keras.export.metadata import Metadata
from spkd_keras.training.environment import versions
from spkd_keras.training.folder import write_json, write_text

JSON, MARKDOWN = "model_card.json", "model_card.md"
PACKAGES = ("tensorflow", "keras", "numpy", "ai-edge-litert", "onnx", "tf2onnx", "onnxruntime")


def write_card(
    folder: Path, story: dict[str, Any], metadata: Metadata, exports: Sequence[dict[str, Any]], float32_bytes: int
) -> dict[str, Any]:
    """Writes `model_card.json` and `model_card.md` into the folder of the exports.

    Exports of the same weights that a card in the folder tells of, and that are still there, stay in it.

    Args:
        folder: of the exports.
        story: of `FinishedRun.story`.
        metadata: of any of the exports.
        exports: each as `Export.as_dict` gives it, with `latency` as `measure` gives it.
        float32_bytes: of the student's parameters.

    Returns:
        The card, as it is in `model_card.json`.
    """
    new = [export["file"] for export in exports]
    kept = [export for export in _earlier(folder, metadata) if export["file"] not in new]
    card = {
        "name": f"{story['experiment']}: {story['method']}, seed {story['seed']}",
        "licence": metadata.licence,
        "weights": metadata.weights,
        "float32_bytes": float32_bytes,
        "input": {"name": "image", "shape": list(metadata.image_shape), "pixels": "0 to 255"},
        "resize": metadata.resize,
        "class_names": list(metadata.class_names),
        **story,
        "exports": [*kept, *exports],
        "versions": versions(PACKAGES),
    }
    write_json(folder / JSON, card)
    write_text(folder / MARKDOWN, markdown(card))
    return card


def _earlier(folder: Path, metadata: Metadata) -> list[dict[str, Any]]:
    """Returns the exports of a card that is there, if it is of the same weights."""
    file = folder / JSON
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        exports = card["exports"] if card["weights"] == metadata.weights else []
        return [export for export in exports if (folder / export["file"]).exists()]
    except (OSError, ValueError, KeyError, TypeError):  # none, or not one of ours
        return []


def markdown(card: dict[str, Any]) -> str:
    """Returns a card as a Markdown page."""
    height, width, channels = card["input"]["shape"]
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
        _exports(card["exports"]),
        "## Details",
        "\n".join(
            [
                f"- Licence: {card['licence']}.",
                f"- Digest of the student's weights: `{card['weights']}`.",
                f"- Classes: {', '.join(card['class_names'])}.",
                f"- Trained with: {_pairs(card['trained_with'])}.",
                f"- Exported with: {_pairs(card['versions'])}.",
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
    columns = ["file", "bytes", "largest difference of logits", "same class, %", "accuracy, student and export, %"]
    columns += [f"batch {size}: median, 95th percentile, ms" for size in BATCHES]
    rows = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for export in exports:
        check, latency = export["check"], export["latency"]
        times = [latency["batches"][str(size)] for size in BATCHES]
        cells = [
            f"`{export['file']}`",
            f"{export['bytes']:,}" + (f" (graph {export['graph_bytes']:,})" if "graph_bytes" in export else ""),
            f"{check['largest_difference']:.1e}",
            f"{100 * check['agreement']:.2f}",
            f"{percent(check['student_accuracy'])}, {percent(check['export_accuracy'])}",
            *(f"{time['median_ms']:.2f}, {time['p95_ms']:.2f}" for time in times),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    compared = exports[-1]["check"]
    where = {f"{export['latency']['threads']} threads of {export['latency']['machine']}" for export in exports}
    return (
        "\n".join(rows)
        + f"\n\nCompared with the student in float32 on {compared['images']:,} images: {compared['of']}. "
        + f"Latency from pixels to logits, measured with {'; '.join(sorted(where))}."
    )


def percent(fraction: float | None) -> str:
    """Returns a fraction in percent, or `unknown`."""
    return "unknown" if fraction is None else f"{100 * fraction:.2f}"


def _layers(layers: Any) -> str:
    return ", ".join(f"`{layer}`" for layer in ([layers] if isinstance(layers, str) else layers))


def _without(plain: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in keys}


def _pairs(plain: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (plain or {}).items() if value is not None)
