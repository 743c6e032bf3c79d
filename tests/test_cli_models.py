"""`spkd models`: the families, and what one network costs and where it can be tapped."""

import json

import keras
import pytest
from test_cli import call, words

from spkd_keras.models import BUILDERS, mobilenet, multiply_adds, wide_resnet


def test_the_families_are_listed_with_their_taps():
    result = call("models", "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    assert list(answer["families"]) == list(BUILDERS)
    assert answer["families"]["mobilenet_v2"]["taps"] == [*(f"stage{n}" for n in range(1, 6)), "head", "logits"]
    assert answer["families"]["resnet"]["arguments"]["widths"] == [16, 16, 32, 64]
    assert "EfficientNetV2B0" in answer["keras_applications"]
    said = words(call("models").stdout)
    for name in BUILDERS:
        assert name in said
    assert "depth=20, widths=(16, 16, 32, stage1, stage2, stage3, 64) logits" in said  # a cell over two lines
    assert "keras_applications.<Name>" in said


def test_one_network_is_shown():
    # The paper's MobileNet-0.25 for 47 classes.
    result = call("models", "mobilenet", "--width", 0.25, "--classes", 47)
    assert result.exit_code == 0
    said = words(result.stdout)
    assert "images 224x224x3, 47 classes" in said
    assert "parameters 230,623 (225,151 trainable)" in said
    assert "multiply-adds 40,786,304" in said
    assert "float32 size 0.88 MiB" in said  # 4 * 230,623 / 1,048,576
    assert "stage1 112x112x16 stage2 56x56x32" in said
    assert "stage5 7x7x256 default" in said


def test_every_argument_reaches_the_builder():
    result = call(
        "models", "wide_resnet", "--depth", 10, "--width", 0.5, "--image", "28x24x1", "--classes", 3, "--json"
    )
    answer = json.loads(result.stdout)
    network = wide_resnet(10, 0.5, image_shape=(28, 24, 1), num_classes=3)
    assert answer["image_shape"] == [28, 24, 1]
    assert (answer["parameters"], answer["multiply_adds"]) == (network.count_params(), multiply_adds(network))
    assert answer["float32_bytes"] == 4 * network.count_params()
    assert answer["taps"] == {
        **{"stage1": [28, 24, 8], "stage2": [14, 12, 16], "stage3": [7, 6, 32]},
        **{"head": [7, 6, 32], "logits": [3]},
    }
    assert answer["default_tap"] == "stage3"
    fixed = call("models", "mobilenet_v2", "--width", 0.35, "--set", "head=fixed", "--json")
    assert json.loads(fixed.stdout)["trainable_parameters"] == 456_335


def test_a_network_of_keras_and_one_of_the_user(tmp_path):
    result = call("models", "keras_applications.MobileNet", "--image", "32x32x3", "--set", "alpha=0.25", "--json")
    answer = json.loads(result.stdout)
    assert answer["default_tap"] == "input of pooling"
    assert answer["taps"] == {"logits": [1000], "input of pooling": [1, 1, 256]}
    assert answer["parameters"] == 475_544  # keras.applications.MobileNet(alpha=0.25) with its own top
    network = mobilenet(0.25, image_shape=(32, 32, 3))
    network.save(tmp_path / "mine.keras")
    (tmp_path / "run").mkdir()
    network.save(tmp_path / "run" / "student.keras")
    for place in ("mine.keras", "run"):
        answer = json.loads(call("models", tmp_path / place, "--json").stdout)
        assert answer["parameters"] == network.count_params()


def test_a_network_without_a_default_tap_is_listed_layer_by_layer(tmp_path):
    layers = keras.layers
    image = keras.Input((4, 4, 1))
    inside = keras.Input((4, 4, 2))
    inner = keras.Model(inside, layers.ReLU(name="rectified")(layers.Conv2D(3, 3, name="narrow")(inside)), name="inner")
    twice = layers.ReLU(name="twice")  # ambiguous, so that no term can name it
    x = inner(twice(twice(layers.Conv2D(2, 3, padding="same", name="wide")(image))))
    logits = layers.Dense(5, name="last")(layers.Reshape((12,), name="flat")(x))
    keras.Model(image, logits).save(tmp_path / "mine.keras")
    answer = json.loads(call("models", tmp_path / "mine.keras", "--json").stdout)
    assert answer["default_tap"] is None
    assert answer["taps"] == {
        **{"wide": [4, 4, 2], "inner": [2, 2, 3], "inner/narrow": [2, 2, 3], "inner/rectified": [2, 2, 3]},
        **{"flat": [12], "last": [5]},
    }
    said = words(call("models", tmp_path / "mine.keras").stdout)
    assert "inner/narrow 2x2x3" in said
    assert "no default here: name one of these in the term" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mobilnet"], "unknown network `mobilnet`. Did you mean `mobilenet`?"),
        (["keras_applications.MobilNet"], "no network 'MobilNet'. Did you mean 'MobileNet'?"),
        (["keras_applications.MobileNet", "--width", 1], "keras.applications.MobileNet takes no 'width' here."),
        (["keras_applications.MobileNet", "--set", "alpha=a"], "keras.applications.MobileNet refuses"),
        (["resnet", "--width", 2], "unknown key `width`. Did you mean `widths`?"),
        (["mobilenet", "--image", "20x20x3"], "`image_shape` must be at least 32x32"),
        (["mobilenet", "--image", "224"], "--image takes HEIGHTxWIDTHxCHANNELS, for example 96x96x3. Received: 224."),
        (["mobilenet", "--set", "head"], "--set takes KEY=VALUE"),
        (["--width", 1], "Give the network's NAME with width"),
        (["missing.keras"], "the file does not exist: missing.keras"),
        (["photos/"], "network.path: photos is a folder. Give a .keras file"),
        (
            ["legacy.h5"],
            "legacy.h5 is not a .keras file. Convert it: keras.saving.load_model('legacy.h5').save('legacy.keras').",
        ),
        (["missing.keras", "--width", 1], "missing.keras is a file and takes no arguments. Received: width."),
    ],
)
def test_wrong_use_is_told_in_one_line(tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "legacy.h5").write_bytes(b"\x89HDF")
    result = call("models", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr.replace("\n", " ")
    assert result.stderr.count("spkd: ") == 1
