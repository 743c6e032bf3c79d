"""What an export says of itself, beside it and inside it."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

OUTPUTS = ("logits", "probabilities")


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a program must know to use an export.

    Attributes:
        image_shape: (height, width, channels) of the input `image`, pixels 0..255.
        class_names: one for each logit.
        input_dtype: of the input `image`.
        resize: how a picture of another size is brought to `image_shape`, as the student was evaluated: "crop" takes
            the middle of a photo (the shorter side at 256/224 of the size), "stretch" scales both sides.
        quantize: None, "float16" or "int8".
        weights: digest of the student's weights and layers, `spkd_keras.models.fingerprint`.
        name: of the network.
        licence: under which the weights may be used, as their owner says.
    """

    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    input_dtype: str
    resize: str
    quantize: str | None
    weights: str
    name: str
    licence: str

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields, and the names of input and outputs, as plain data."""
        fields = dataclasses.asdict(self)
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}
        return {**lists, "input": "image", "outputs": list(OUTPUTS)}

    def as_texts(self) -> dict[str, str]:
        """Returns each field as JSON, for formats whose metadata are pairs of texts."""
        return {key: json.dumps(value) for key, value in self.as_dict().items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Metadata | None":
        """Returns the metadata of plain data; None if these are not whole, as in another program's file."""
        names = [field.name for field in dataclasses.fields(cls)]
        if any(name not in plain for name in names):
            return None
        fields: dict[str, Any] = {
            name: tuple(plain[name]) if isinstance(plain[name], list) else plain[name] for name in names
        }
        return cls(**fields)

    @classmethod
    def from_texts(cls, texts: Mapping[str, str]) -> "Metadata | None":
        """Returns the metadata of pairs of texts; None as `from_dict`."""
        try:
            return cls.from_dict({key: json.loads(texts[key]) for key in texts if key in _NAMES})
        except ValueError:
            return None


_NAMES = {field.name for field in dataclasses.fields(Metadata)}
