"""MobileNet, MobileNetV2, ShuffleNetV2 and ResNet: published counts, taps and their shapes, and what they refuse."""

import inspect
import math
import re

import keras
import numpy as np
import pytest
from architectures import SMALL, each_family, pixels, taps
from keras import layers

from spkd_keras.models import BUILDERS, mobilenet, mobilenet_v2, multiply_adds, resnet, shufflenet_v2

WIDE = (32, 64, 128, 256)


def trainable(model):
    return sum(math.prod(weight.shape) for weight in model.trainable_weights)


# Counted from the papers' tables: convolutions without bias, each followed by BatchNormalization (its gamma and beta,
# and among all parameters its two moving averages), and a dense layer with bias; 47, or 10, classes.
@pytest.mark.parametrize(
    ("build", "arguments", "name", "counts"),
    [
        (mobilenet, {"width": 0.25}, "mobilenet_0.25", (225_151, 230_623, 40_786_304)),
        (mobilenet, {"width": 0.5}, "mobilenet_0.5", (842_703, 853_647, 149_009_152)),
        (mobilenet, {"width": 0.75}, "mobilenet_0.75", (1_852_703, 1_869_119, 324_668_544)),
        (mobilenet, {}, "mobilenet_1", (3_255_151, 3_277_039, 567_764_480)),
        (mobilenet_v2, {"width": 0.35}, "mobilenet_v2_0.35", (322_383, 334_799, 53_460_848)),
        (mobilenet_v2, {"width": 0.5}, "mobilenet_v2_0.5", (614_127, 631_391, 90_864_320)),
        (mobilenet_v2, {}, "mobilenet_v2_1", (2_284_079, 2_318_191, 299_554_432)),
        (mobilenet_v2, {"width": 1.4}, "mobilenet_v2_1.4", (4_400_047, 4_447_983, 580_488_048)),
        (mobilenet_v2, {"width": 0.35, "head": "fixed"}, "mobilenet_v2_0.35", (456_335, 470_415, 58_065_968)),
        (mobilenet_v2, {"width": 0.5, "head": "fixed"}, "mobilenet_v2_0.5", (747_887, 766_431, 95_912_000)),
        (shufflenet_v2, {"width": 0.5}, "shufflenet_v2_0.5", (352_042, 359_994, 10_902_016)),
        (shufflenet_v2, {}, "shufflenet_v2_1", (1_263_854, 1_280_034, 45_002_112)),
        (shufflenet_v2, {"width": 2}, "shufflenet_v2_2", (5_365_486, 5_399_202, 187_811_200)),
        (resnet, {}, "resnet_20", (272_474, 274_042, 40_813_184)),
        (resnet, {"depth": 32}, "resnet_32", (466_906, 469_370, 69_124_736)),
        (resnet, {"depth": 56}, "resnet_56", (855_770, 860_026, 125_747_840)),
        (resnet, {"depth": 110}, "resnet_110", (1_730_714, 1_739_002, 253_149_824)),
        (resnet, {"depth": 8, "widths": WIDE}, "resnet_8_32_64_128_256", (1_210_410, 1_213_162, 177_048_064)),
        (resnet, {"depth": 32, "widths": WIDE}, "resnet_32_32_64_128_256", (7_410_730, 7_420_650, 1_083_017_728)),
    ],
)
def test_published_counts(build, arguments, name, counts):
    model = build(**arguments)
    assert model.name == name
    assert (trainable(model), model.count_params(), multiply_adds(model)) == counts


# What `keras.applications` has at the same alpha, and torchvision's `shufflenet_v2_x1_5`, all with ImageNet's classes.
@pytest.mark.parametrize(
    ("build", "arguments", "count", "parameters"),
    [
        (mobilenet, {"width": 0.25}, keras.Model.count_params, 475_544),
        (mobilenet, {"width": 0.5}, keras.Model.count_params, 1_342_536),
        (mobilenet, {}, keras.Model.count_params, 4_253_864),
        (mobilenet_v2, {"width": 0.35, "head": "fixed"}, keras.Model.count_params, 1_691_208),
        (mobilenet_v2, {"width": 0.5, "head": "fixed"}, keras.Model.count_params, 1_987_224),
        (mobilenet_v2, {}, keras.Model.count_params, 3_538_984),
        (mobilenet_v2, {"head": "fixed"}, keras.Model.count_params, 3_538_984),
        (mobilenet_v2, {"width": 1.4}, keras.Model.count_params, 6_156_712),
        (mobilenet_v2, {"width": 1.4, "head": "fixed"}, keras.Model.count_params, 6_156_712),
        (shufflenet_v2, {"width": 1.5}, trainable, 3_503_624),
    ],
)
def test_counts_of_the_public_networks(build, arguments, count, parameters):
    assert count(build(num_classes=1000, **arguments)) == parameters


@pytest.mark.parametrize(
    ("build", "arguments", "shapes"),
    [
        (mobilenet, {}, [(112, 112, 64), (56, 56, 128), (28, 28, 256), (14, 14, 512), (7, 7, 1024)]),
        (mobilenet, {"width": 0.3}, [(112, 112, 19), (56, 56, 38), (28, 28, 76), (14, 14, 153), (7, 7, 307)]),
        (mobilenet_v2, {}, [(112, 112, 16), (56, 56, 24), (28, 28, 32), (14, 14, 96), (7, 7, 320), (7, 7, 1280)]),
        # 16k, 24k, 32k, 96k and 320k are 5.6, 8.4, 11.2, 33.6 and 112: 8 would be more than 10% below 11.2.
        (
            *(mobilenet_v2, {"width": 0.35}),
            [(112, 112, 8), (56, 56, 8), (28, 28, 16), (14, 14, 32), (7, 7, 112), (7, 7, 448)],
        ),
        (
            *(mobilenet_v2, {"width": 0.35, "head": "fixed"}),
            [(112, 112, 8), (56, 56, 8), (28, 28, 16), (14, 14, 32), (7, 7, 112), (7, 7, 1280)],
        ),
        # 22.4, 33.6, 44.8, 134.4 and 448.
        (
            *(mobilenet_v2, {"width": 1.4, "head": "fixed"}),
            [(112, 112, 24), (56, 56, 32), (28, 28, 48), (14, 14, 136), (7, 7, 448), (7, 7, 1792)],
        ),
        (shufflenet_v2, {"width": 0.5}, [(32, 32, 24), (16, 16, 48), (8, 8, 96), (4, 4, 192), (4, 4, 1024)]),
        (shufflenet_v2, {}, [(32, 32, 24), (16, 16, 116), (8, 8, 232), (4, 4, 464), (4, 4, 1024)]),
        (shufflenet_v2, {"width": 2}, [(32, 32, 24), (16, 16, 244), (8, 8, 488), (4, 4, 976), (4, 4, 2048)]),
        (resnet, {}, [(32, 32, 16), (16, 16, 32), (8, 8, 64)]),
        (resnet, {"depth": 8, "widths": (1, 2, 3, 5)}, [(32, 32, 2), (16, 16, 3), (8, 8, 5)]),
    ],
)
def test_taps_at_the_default_size(build, arguments, shapes):
    model = build(**arguments)
    found = {layer.name: layer.output.shape[1:] for layer in model.layers if re.fullmatch(r"stage\d|head", layer.name)}
    stages = shapes if build in (mobilenet, resnet) else shapes[:-1]
    expected = {f"stage{index}": shape for index, shape in enumerate(stages, start=1)}
    assert found == expected | ({"head": shapes[-1]} if len(shapes) > len(stages) else {})
    side = 224 if build in (mobilenet, mobilenet_v2) else 32
    assert model.input_shape == (None, side, side, 3)
    assert model.output_shape == (None, 47 if side == 224 else 10)


# "same" padding rounds up: 45 -> 23 -> 12 -> 6 -> 3 -> 2.
@pytest.mark.parametrize(
    ("family", "image_shape", "sides"),
    [
        ("mobilenet", (96, 96, 3), [(48, 48), (24, 24), (12, 12), (6, 6), (3, 3)]),
        ("mobilenet", (32, 32, 1), [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]),
        ("mobilenet", (45, 37, 3), [(23, 19), (12, 10), (6, 5), (3, 3), (2, 2)]),
        ("mobilenet_v2", (96, 96, 3), [(48, 48), (24, 24), (12, 12), (6, 6), (3, 3)]),
        ("mobilenet_v2", (32, 32, 3), [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]),
        ("mobilenet_v2", (45, 37, 4), [(23, 19), (12, 10), (6, 5), (3, 3), (2, 2)]),
        ("shufflenet_v2", (224, 224, 3), [(224, 224), (112, 112), (56, 56), (28, 28)]),
        ("shufflenet_v2", (28, 28, 1), [(28, 28), (14, 14), (7, 7), (4, 4)]),
        ("shufflenet_v2", (30, 45, 3), [(30, 45), (15, 23), (8, 12), (4, 6)]),
        ("shufflenet_v2", (8, 8, 3), [(8, 8), (4, 4), (2, 2), (1, 1)]),
        ("resnet", (8, 8, 3), [(8, 8), (4, 4), (2, 2)]),
        ("resnet", (28, 28, 1), [(28, 28), (14, 14), (7, 7)]),
        ("resnet", (30, 45, 3), [(30, 45), (15, 23), (8, 12)]),
        ("resnet", (4, 4, 3), [(4, 4), (2, 2), (1, 1)]),
    ],
)
def test_taps_at_other_sizes(family, image_shape, sides):
    model = SMALL[family](image_shape=image_shape, num_classes=7)
    heads = [] if family in ("mobilenet", "resnet") else ["head"]
    names = [*(f"stage{index}" for index in range(1, len(sides) + 1)), *heads]
    outputs = taps(model, *names, "logits")(pixels(2, model))
    assert outputs.pop("logits").shape == (2, 7)
    expected = dict(zip(names, [*sides, sides[-1]], strict=False))
    assert {name: tuple(output.shape[1:3]) for name, output in outputs.items()} == expected


@pytest.mark.parametrize("width", [0.01, 0.2, 0.625, 1.1, 1.49, 1.5, 1.99, 3])
def test_channels_of_shufflenet_between_the_published_widths(width):
    model = shufflenet_v2(width, image_shape=(8, 8, 3))
    channels = [model.get_layer(f"stage{stage}").output.shape[-1] for stage in (1, 2, 3, 4)]
    # 0 at 0, the published ones at 0.5, 1, 1.5 and 2, and in proportion from there on.
    line = np.interp(width, [0, 0.5, 1, 1.5, 2, 200], [0, 48, 116, 176, 244, 24_400])
    assert channels == [24, channels[1], 2 * channels[1], 4 * channels[1]]
    assert channels[1] % 4 == 0
    assert abs(channels[1] - line) <= 4
    assert model.get_layer("head").output.shape[-1] == (1024 if width < 2 else 2048)


def test_a_narrow_mobilenet_keeps_a_channel_everywhere():
    # int(c * 0.01) of 32 and 64 is 0.
    model = mobilenet(0.01, image_shape=(32, 32, 3))
    assert model.get_layer("stem").output.shape[-1] == 1
    assert [model.get_layer(f"stage{stage}").output.shape[-1] for stage in range(1, 6)] == [1, 1, 2, 5, 10]


@each_family
def test_builders_are_found_by_name_and_share_their_arguments(family):
    assert set(BUILDERS) == set(SMALL)
    assert BUILDERS[family].__name__ == family
    parameters = inspect.signature(BUILDERS[family]).parameters
    shared = ("num_classes", "image_shape", "weights", "skip_head", "mean", "std", "synchronized", "name")
    assert [parameters[name].default for name in shared[2:]] == [None, False, None, None, None, None]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in shared)
    model = SMALL[family](name="mine", mean=(10, 20, 30), std=50, synchronized=True)
    assert model.name == "mine"
    pixel = taps(model, "preprocessing")(np.full((1, *model.input_shape[1:]), 60.0))["preprocessing"][0, 0, 0]
    np.testing.assert_allclose(pixel, [1, 0.8, 0.6], atol=1e-6)
    assert all(layer.synchronized for layer in model.layers if isinstance(layer, layers.BatchNormalization))


@pytest.mark.parametrize(
    ("family", "smallest"),
    [("wide_resnet", 4), ("mobilenet", 32), ("mobilenet_v2", 32), ("shufflenet_v2", 8), ("resnet", 4)],
)
def test_images_have_a_smallest_size(family, smallest):
    SMALL[family](image_shape=(smallest, smallest, 3))
    for shape in ((smallest - 1, 64, 3), (64, smallest - 1, 3)):
        message = rf"must be at least {smallest}x{smallest}.*Received: image_shape={re.escape(str(shape))}"
        with pytest.raises(ValueError, match=message) as caught:
            SMALL[family](image_shape=shape)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        *(
            (build, arguments, message)
            for build in (mobilenet, mobilenet_v2, shufflenet_v2)
            for arguments, message in (
                ({"width": 0}, r"`width` must be finite and above 0.*Received: width=0\."),
                ({"width": -0.5}, r"`width` must be finite and above 0.*Received: width=-0\.5\."),
                ({"width": math.nan}, r"`width` must be finite and above 0.*Received: width=nan"),
                ({"width": math.inf}, r"`width` must be finite and above 0.*Received: width=inf"),
                ({"num_classes": 1}, r"`num_classes` must be an integer of at least 2. Received: num_classes=1\."),
            )
        ),
        (resnet, {"num_classes": 1}, r"`num_classes` must be an integer of at least 2. Received: num_classes=1\."),
        *((resnet, {"depth": depth}, rf"`depth` must be 6n \+ 2.*depth={depth}") for depth in (2, 11, 21, -4, 20.0)),
        (resnet, {"widths": (16, 32, 64)}, r"`widths`.*Received: widths=\(16, 32, 64\)"),
        (resnet, {"widths": (16, 16, 32, 0)}, r"`widths`.*Received: widths=\(16, 16, 32, 0\)"),
        (resnet, {"widths": (16, 16, 32, 6.5)}, r"`widths`.*Received: widths=\(16, 16, 32, 6\.5\)"),
        (resnet, {"widths": 16}, r"`widths`.*Received: widths=16"),
        (mobilenet_v2, {"head": "large"}, r"`head` must be .*scaled.*fixed.*Received: head='large'"),
        (mobilenet_v2, {"head": None}, r"`head` must be .*scaled.*fixed.*Received: head=None"),
    ],
)
def test_wrong_arguments(build, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(**arguments)
    assert "\n" not in str(caught.value)
