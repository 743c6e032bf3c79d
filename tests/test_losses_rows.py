"""The values of some of a batch's images, as the replicas that share it compute them."""

import pathlib

import numpy as np
import pytest
from keras import ops

from spkd_keras import losses

RELATIONAL = {name: kind for name, kind in losses.LOSSES.items() if getattr(kind, "batch_relational", False)}
ROWS = slice(2, 5)


def embeddings(seed):
    return np.random.default_rng(seed).normal(size=(7, 4)).astype("float32")


@pytest.mark.parametrize("name", RELATIONAL)
def test_rows_are_those_of_the_whole(name):
    loss = RELATIONAL[name]()
    teacher, student = embeddings(0), embeddings(1)
    whole = np.asarray(loss.call(teacher, student))
    assert whole.shape == (7,)
    np.testing.assert_allclose(loss.call_rows(teacher, student, ROWS), whole[ROWS], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(loss.call_rows(teacher, student, None), whole)


def test_all_that_compare_images_are_tried():
    assert set(RELATIONAL) == {
        "similarity_preserving", "relational_distance", "relational_angle", "pkt", "correlation_congruence", "dist"
    }  # fmt: skip


def test_other_rows_are_not_computed(monkeypatch):
    """A row of the matrix costs a product with all images: that work is shared between replicas, not repeated."""
    shapes = []
    original = ops.matmul
    monkeypatch.setattr(ops, "matmul", lambda one, other: shapes.append(one.shape) or original(one, other))
    for kind in (losses.SimilarityPreserving, losses.RelationalAngle, losses.PKT, losses.CorrelationCongruence):
        kind().call_rows(embeddings(0), embeddings(1), ROWS)
    assert len(shapes) == 8
    assert {shape[0] for shape in shapes} == {3}


def test_those_that_compute_all_on_every_device_are_named():
    """They need the whole batch: the mean distance, and the correlations of the classes."""
    own = losses.DistillationLoss.call_rows
    whole = {name for name, kind in RELATIONAL.items() if kind.call_rows is own}
    assert whole == {"relational_distance", "dist"}
    readme = (pathlib.Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert "of `relational_distance` and `dist`, whose values need the whole batch's, all of it" in readme
    for name in whole:
        assert "each compute" in RELATIONAL[name].__doc__
        assert RELATIONAL[name].__name__ in own.__doc__


def test_a_batch_of_one_row_each_has_pairs():
    """Four replicas with an image each have six pairs to compare; one image alone has none."""
    teacher, student = embeddings(0)[:4], embeddings(1)[:4]
    loss = losses.SimilarityPreserving()
    assert float(loss.call_rows(teacher, student, slice(1, 2))[0]) > 0
    assert float(loss.call(teacher[:1], student[:1])[0]) == 0
