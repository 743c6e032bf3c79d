"""Values of the published PyTorch code, recorded once with PyTorch 2.13 in float64, on numbers easy to repeat."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from spkd_keras.losses import LOSSES


def wave(step, *shape):
    """sin(step), sin(2 step), ... in the order of NumPy; teachers have step 1, students 0.7."""
    return np.sin(step * np.arange(1, 1 + np.prod(shape))).reshape(shape)


LOGITS = 4 * wave(1.0, 5, 6), 4 * wave(0.7, 5, 6)
EMBEDDINGS = wave(1.0, 6, 5), wave(0.7, 6, 4)
PROJECTED = wave(1.0, 6, 5), wave(0.7, 6, 5)
ACTIVATIONS = wave(1.0, 3, 4, 2, 6), wave(0.7, 3, 4, 2, 6)
STAGES = [wave(1.0, 3, 4, 4, 5), wave(1.0, 3, 4, 4, 6)], [wave(0.7, 3, 4, 4, 3), wave(0.7, 3, 8, 8, 2)]
LABELLED = (LOGITS[0], np.arange(5)), LOGITS[1]
HEAD = ACTIVATIONS[0], np.concatenate([ACTIVATIONS[1], np.full(ACTIVATIONS[1].shape, 5.0)], axis=-1)


@pytest.mark.parametrize(
    ("key", "inputs", "arguments", "published"),
    [
        # sunshangquan/logit-standardization-KD 6083e2d, mdistiller/distillers/KD.py, kd_loss
        ("soft_targets", LOGITS, {}, 6.417202176190493),
        ("soft_targets", LOGITS, {"temperature": 2.0, "standardize": True}, 0.7348732390000643),
        # megvii-research/mdistiller e8c5bb3, mdistiller/distillers/DKD.py, dkd_loss(alpha=1, beta=8, temperature=4)
        ("decoupled_distillation", LABELLED, {}, 47.055776667607724),
        # hunto/DIST_KD 6d93ca0, segmentation/losses/dist_kd.py; with temperature: of softmax(z / tau), times tau^2
        ("dist", LOGITS, {}, 1.9017844354915412),
        ("dist", LOGITS, {"beta": 2.0, "gamma": 0.5, "temperature": 4.0}, 38.38643413759941),
        # HobbitLong/RepDistiller 1e2f816, distiller_zoo/AT.py and NST.py, sums of the two stages
        ("attention_transfer", STAGES, {}, 0.019457946474914303),
        ("neuron_selectivity", STAGES, {}, 2.449182528092855),
        # distiller_zoo/RKD.py with weights (1, 0) and (0, 1), and PKT.py
        ("relational_distance", EMBEDDINGS, {}, 0.15612672345019835),
        ("relational_angle", EMBEDDINGS, {}, 0.15779212138812926),
        ("pkt", EMBEDDINGS, {}, 0.18461427540330766),
        # distiller_zoo/VID.py, its last four lines with a variance of 5
        ("variational_information", HEAD, {}, 0.9064532975450363),
        # JDAI-CV/FaceX-Zoo, addition_module/face_lightning/KDF/loss/cc.py, CC(0.4, 2); RepDistiller's is another loss
        ("correlation_congruence", EMBEDDINGS, {}, 0.11724682955575469),
        # ADLab-AutoDrive/ICKD 04e1d3e, Cifar100/distiller_zoo/ICKD.py, batch_loss without its embedding
        ("inter_channel_correlation", ACTIVATIONS, {}, 0.4515850282858862),
        # torch.nn.functional.mse_loss
        ("hint", ACTIVATIONS, {}, 1.017343413279861),
        # chenyd7/PEFD 2f5dbbc, helper/loops.py, of a projected student
        ("projection", PROJECTED, {}, 0.9871430512392946),
    ],
)
@pytest.mark.parametrize(("dtype", "relative"), [("float32", 1e-5), ("float64", 1e-6)])
def test_equals_the_published_code(key, inputs, arguments, published, dtype, relative):
    assert_allclose(LOSSES[key](**arguments, dtype=dtype)(*inputs), published, rtol=relative)
