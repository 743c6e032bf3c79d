"""Weights from a file: `weights=<path>` and `skip_head` of every builder, and what is refused."""

import shutil

import numpy as np
import pytest
from architectures import SMALL, each_family, pixels, randomize
from networks import cross_entropy, small_network
from numpy.testing import assert_array_equal

each_format = pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])


def saved(model, path):
    model.save(path) if path.suffix == ".keras" else model.save_weights(path)
    return path


def assert_holds(model, other, head=True):
    for weight, expected in zip(model.weights, other.weights, strict=True):
        same = np.array_equal(weight, expected) if weight.shape == expected.shape else False
        assert same is (head or "logits" not in weight.path), weight.path


@each_format
@each_family
def test_a_file_gives_its_weights_bit_for_bit(family, suffix, tmp_path):
    model = randomize(SMALL[family]())
    path = saved(model, tmp_path / f"network{suffix}")
    images = pixels(3, model)
    loaded = SMALL[family](weights=path if suffix == ".keras" else str(path), name="student")
    assert_array_equal(loaded(images), model(images))
    assert_holds(loaded, model)
    assert loaded.name == "student"


@each_family
@pytest.mark.parametrize(("suffix", "classes"), [(".keras", 4), (".weights.h5", 10)])
def test_all_but_the_head(family, suffix, classes, tmp_path):
    model = randomize(SMALL[family](num_classes=10))
    path = saved(model, tmp_path / f"network{suffix}")
    loaded = SMALL[family](num_classes=classes, weights=path, skip_head=True)
    assert_holds(loaded, model, head=False)
    assert loaded.output_shape == (None, classes)
    assert_array_equal(loaded.get_layer("logits").bias, np.zeros(classes))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]


@each_format
def test_a_trained_network_of_another_name_or_size_and_its_optimizer(suffix, tmp_path):
    model = SMALL["resnet"](name="teacher")
    model.compile("adam", cross_entropy())
    model.fit(pixels(8, model), np.arange(8), verbose=0)
    path = saved(model, tmp_path / f"trained{suffix}")
    assert_holds(SMALL["resnet"](weights=path), model)
    assert_holds(SMALL["resnet"](weights=path, image_shape=(12, 9, 3)), model)
    assert_holds(SMALL["resnet"](weights=path, num_classes=3, skip_head=True), model, head=False)


def assert_refused(message, path, family="wide_resnet", **arguments):
    with pytest.raises(ValueError, match=message) as caught:
        SMALL[family](weights=path, **arguments)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text


@pytest.mark.parametrize(("family", "suffix"), [("resnet", ".keras"), ("mobilenet", ".weights.h5")])
def test_another_number_of_classes_names_the_way_out(family, suffix, tmp_path):
    path = saved(SMALL[family](num_classes=7), tmp_path / f"network{suffix}")
    assert_refused(r"7.*4.*skip_head=True", path, family, num_classes=4)


@each_format
@pytest.mark.parametrize("skip_head", [False, True])
@pytest.mark.parametrize(
    ("build", "arguments"),
    [
        ("wide_resnet", {"depth": 16}),  # holds all that a WideResNet-10 needs, and more
        ("wide_resnet", {"width": 0.5}),
        ("wide_resnet", {"image_shape": (8, 8, 1)}),
        ("resnet", {}),
        (small_network, {}),
    ],
)
def test_a_file_of_another_network(build, arguments, suffix, skip_head, tmp_path):
    if build == "wide_resnet":
        full = {"depth": 10, "width": 0.25, **SMALL[build].keywords, **arguments}
        model = SMALL[build].func(**full)
    else:
        model = SMALL[build]() if isinstance(build, str) else build()
    path = saved(model, tmp_path / f"other{suffix}")
    assert_refused(r"is not of the network wide_resnet_10_0\.25", path, skip_head=skip_head)


@each_format
@pytest.mark.parametrize("skip_head", [False, True])
def test_a_smaller_network_does_not_fill_a_larger_one(suffix, skip_head, tmp_path):
    path = saved(SMALL["resnet"](), tmp_path / f"small{suffix}")
    builder, (_, widths) = SMALL["resnet"].func, SMALL["resnet"].args
    with pytest.raises(ValueError, match=r"small.* is not of the network resnet_14_4_4_8_12"):
        builder(14, widths, image_shape=(8, 8, 3), weights=path, skip_head=skip_head)


@each_format
@pytest.mark.parametrize("skip_head", [False, True])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_file(suffix, skip_head, kept, tmp_path):
    path = saved(SMALL["wide_resnet"](), tmp_path / f"cut{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    assert_refused("cannot be read", path, skip_head=skip_head)


def test_damaged_bytes(tmp_path):
    path = saved(SMALL["wide_resnet"](), tmp_path / "damaged.keras")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(255 - byte for byte in content[middle : middle + 100])
    path.write_bytes(content)
    assert_refused("cannot be read", path)


@each_format
def test_something_else_under_a_right_name(suffix, tmp_path):
    path = tmp_path / f"text{suffix}"
    path.write_text("weights of the network\n" * 50)
    assert_refused("cannot be read", path)
    archive = saved(SMALL["wide_resnet"](), tmp_path / ("a.weights.h5" if suffix == ".keras" else "a.keras"))
    assert_refused("cannot be read", shutil.copy(archive, tmp_path / f"renamed{suffix}"))


@each_format
def test_a_file_that_is_not_there(suffix, tmp_path):
    assert_refused("does not exist", tmp_path / f"missing{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    assert_refused("`weights`", tmp_path / f"folder{suffix}")


@pytest.mark.parametrize("name", ["network.h5", "network.txt", "network", "imagenet.npz"])
@pytest.mark.parametrize("exists", [False, True])
def test_another_kind_of_file(name, exists, tmp_path):
    if exists:
        (tmp_path / name).write_bytes(b"bytes")
    assert_refused(r"\.keras.*\.weights\.h5", tmp_path / name)


@pytest.mark.parametrize("weights", [3, True, ["a.keras"]])
def test_weights_of_no_known_kind(weights):
    with pytest.raises(ValueError, match=r"`weights` must be .*Received: weights=") as caught:
        SMALL["wide_resnet"](weights=weights)
    assert "\n" not in str(caught.value)


def test_a_head_to_skip_needs_weights():
    with pytest.raises(ValueError, match=r"`skip_head` says how .*Received: skip_head=True without weights"):
        SMALL["resnet"](skip_head=True)
    with pytest.raises(ValueError, match=r"`skip_head` must be True or False\. Received: skip_head='no'"):
        SMALL["resnet"](skip_head="no")
