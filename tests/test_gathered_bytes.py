"""What a step sends between replicas, by hand."""

import keras
import pytest
from networks import NeedsAdapter, small_network

from spkd_keras import Distiller, Term, losses
from spkd_keras.distiller import gathered_bytes


@pytest.mark.parametrize(
    ("terms", "numbers"),
    [
        ([], 0),
        ([Term(losses.SoftTargets()), Term(NeedsAdapter())], 0),  # compare no images
        # stage2 is 4x4 with 8 and 4 channels; the student's gradients come back as a sum, which passes twice.
        ([Term(losses.SimilarityPreserving())], 16 * 8 + 3 * 16 * 4),
        ([Term(losses.SimilarityPreserving(), teacher=("stage1", "stage2"), student=("stage1", "stage2"))],
         64 * 8 + 16 * 8 + 3 * (64 * 4 + 16 * 4)),
        ([Term(losses.SimilarityPreserving()), Term(losses.DIST())], 16 * 8 + 3 * 16 * 4 + 4 + 3 * 4),
        ([Term(losses.RelationalDistance(), adapter=keras.layers.Dense(6))], 8 + 3 * 6),
    ],
)  # fmt: skip
def test_bytes_of_a_step(terms, numbers):
    distiller = Distiller(small_network(8), small_network(4), terms)
    assert gathered_bytes(distiller, 32) == 32 * numbers * 4


def test_doubles():
    distiller = Distiller(small_network(8), small_network(4), [Term(losses.PKT(dtype="float64"))])
    assert gathered_bytes(distiller, 2) == 2 * (8 + 3 * 4) * 8
