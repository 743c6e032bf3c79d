"""Figures: what is in the files, and what is drawn where."""

from xml.etree import ElementTree

import matplotlib.axes
import matplotlib.image
import numpy as np
import pytest

from spkd_keras import plots

LABELS = np.array([0, 0, 0, 0, 1, 3, 3])


def matrices(count=3):
    random = np.random.default_rng(0)
    return {f"network {index}": random.uniform(-0.2 * index, 0.5 + index, (7, 7)) for index in range(count)}


@pytest.fixture
def shown(monkeypatch):
    """The images that are drawn."""
    images = []
    imshow = matplotlib.axes.Axes.imshow

    def keeping_imshow(self, *args, **kwargs):
        images.append(imshow(self, *args, **kwargs))
        return images[-1]

    monkeypatch.setattr(matplotlib.axes.Axes, "imshow", keeping_imshow)
    return images


def test_similarity_figure_files(tmp_path):
    paths = plots.similarity_matrices(matrices(), LABELS, tmp_path / "v1.5-similarity")
    assert paths == [tmp_path / "v1.5-similarity.png", tmp_path / "v1.5-similarity.svg"]
    pixels = matplotlib.image.imread(paths[0])
    assert pixels.shape[0] > 100
    assert pixels.std() > 0.1, "not an empty page"
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")


def test_the_same_matrices_give_the_same_files(tmp_path):
    first, second = (
        [path.read_bytes() for path in plots.similarity_matrices(matrices(), LABELS, tmp_path / name)]
        for name in ("first", "second")
    )
    assert first == second


@pytest.mark.parametrize("count", [1, 2, 5])
def test_panels_share_one_scale_and_are_named(tmp_path, shown, count):
    given = matrices(count)
    plots.similarity_matrices(given, LABELS, tmp_path / "figure")
    assert [image.axes.get_title() for image in shown] == list(given)
    low = min(matrix.min() for matrix in given.values())
    high = max(matrix.max() for matrix in given.values())
    assert {image.get_clim() for image in shown} == {(low, high)}
    for image, matrix in zip(shown, given.values(), strict=True):
        np.testing.assert_array_equal(image.get_array(), matrix)


def test_labels_are_at_the_centres_of_their_classes(tmp_path, shown):
    plots.similarity_matrices(matrices(1), LABELS, tmp_path / "figure")
    axes = shown[0].axes
    for axis in (axes.xaxis, axes.yaxis):
        # Rows 0 to 3, row 4, rows 5 and 6.
        np.testing.assert_array_equal(axis.get_majorticklocs(), [1.5, 4.0, 5.5])
        assert [label.get_text() for label in axis.get_majorticklabels()] == ["0", "1", "3"]


def test_a_confusion_matrix_is_drawn_as_shares_of_the_class(tmp_path, shown, monkeypatch):
    texts = []
    text = matplotlib.axes.Axes.text

    def keeping_text(self, x, y, said, **kwargs):
        texts.append((x, y, said))
        return text(self, x, y, said, **kwargs)

    monkeypatch.setattr(matplotlib.axes.Axes, "text", keeping_text)
    names = ("cat", "dog", "owl")
    paths = plots.confusion_matrix(np.array([[2, 1, 0], [1, 1, 0], [1, 0, 0]]), names, tmp_path / "v1.5-confusion")
    np.testing.assert_allclose(shown[0].get_array(), [[2 / 3, 1 / 3, 0], [1 / 2, 1 / 2, 0], [1, 0, 0]])
    assert shown[0].get_clim() == (0, 1)
    assert texts == [(0, 0, "2"), (1, 0, "1"), (0, 1, "1"), (1, 1, "1"), (0, 2, "1")]
    axes = shown[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(names)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "class")
    assert paths == [tmp_path / "v1.5-confusion.png", tmp_path / "v1.5-confusion.svg"]
    assert matplotlib.image.imread(paths[0]).std() > 0.1
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")


def test_a_class_without_images_and_many_classes(tmp_path, shown):
    matrix = np.eye(100, dtype=int)
    matrix[3, 3] = 0
    plots.confusion_matrix(matrix, [f"class {number}" for number in range(100)], tmp_path / "many")
    assert np.isfinite(shown[0].get_array()).all()
    labels = [label.get_text() for label in shown[0].axes.get_yticklabels()]
    assert not any("class" in label for label in labels), "they could not be read"


def test_errors_by_seed(tmp_path, monkeypatch):
    drawn = []
    plot = matplotlib.axes.Axes.plot
    monkeypatch.setattr(matplotlib.axes.Axes, "plot", lambda self, *a, **k: drawn.append(a) or plot(self, *a, **k))
    paths = plots.errors_by_seed(
        {"student alone": [3.0, 1.0, 8.0], "$x$": [2.0]}, "test error, %", tmp_path / "v1.5-errors"
    )
    assert [path.name for path in paths] == ["v1.5-errors.png", "v1.5-errors.svg"]
    (line, dots, other_line, other_dots) = drawn
    assert line[0] == [3.0, 3.0], "the median"
    assert dots == ([3.0, 1.0, 8.0], [0, 0, 0])
    assert (other_line[0], other_dots) == ([2.0, 2.0], ([2.0], [1]))
    assert matplotlib.image.imread(paths[0]).std() > 0.05
