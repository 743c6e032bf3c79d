"""SavedModel: what TensorFlow Serving loads."""

import json
from pathlib import Path
from typing import Any

import tensorflow as tf

from spkd_keras.export.metadata import Metadata
from spkd_keras.export.serving import Serving

METADATA = Path("assets.extra") / "metadata.json"  # the folder that TensorFlow leaves to its users


def write_saved_model(serving: Serving, folder: Path) -> None:
    """Writes the signatures, each variable once, and the metadata.

    `serving_default` takes pixels of the dtype in the metadata, `serving_uint8` and `serving_float32` those of theirs,
    `serving_bytes` takes `image_bytes`, a batch of JPEG or PNG files.

    Raises:
        OSError: if the folder cannot be written to.
    """
    signatures = serving.signatures()
    try:
        # Keras' own `model.export` (3.15) saves the variables under two names, which doubles the file.
        tf.saved_model.save(serving.module, str(folder), signatures=signatures)
    except tf.errors.OpError as error:  # what TensorFlow makes of a full disk
        raise OSError(error.message.rpartition("; ")[2].partition(" [Op:")[0]) from error
    (folder / METADATA.parent).mkdir()
    (folder / METADATA).write_text(json.dumps(serving.metadata.as_dict(), indent=2) + "\n", encoding="utf-8")


def read_metadata(folder: Path) -> Metadata | None:
    """Returns what `write_saved_model` wrote; None for another program's SavedModel."""
    file = folder / METADATA
    return Metadata.from_dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def sizes(folder: Path) -> dict[str, Any]:
    """Returns the bytes of the whole folder, of its variables and of its graph."""

    def total(files: Any) -> int:
        return sum(file.stat().st_size for file in files if file.is_file())

    return {
        "bytes": total(folder.rglob("*")),
        "variables_bytes": total((folder / "variables").iterdir()),
        "graph_bytes": (folder / "saved_model.pb").stat().st_size,
    }
