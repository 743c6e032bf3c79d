"""What the compiled training step is: traced once, wholly compiled under jit, and never waiting for the host."""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from networks import assert_same_weights, images, small_network
from test_distiller import KD, SP, distiller

from spkd_keras import Distiller, Term, TermWeightSchedule, WeightSchedule, models


def sp_and_kd(**compile_arguments):
    keras.utils.set_random_seed(3)
    student = models.fused(small_network())
    terms = [Term(SP(), 30.0), Term(KD(), 0.9)]
    return distiller(models.fused(small_network(8)), student, terms, {"optimizer": "sgd", **compile_arguments})


@pytest.mark.parametrize("jit_compile", [False, True])
def test_no_step_is_traced_after_the_first_epoch(jit_compile, monkeypatch):
    """With a smaller last batch, and learning rate and weights of terms that change."""
    traces, by_epoch = [], []
    train_step = Distiller.train_step

    def counted(self, data):
        traces.append(data)
        return train_step(self, data)

    monkeypatch.setattr(Distiller, "train_step", counted)
    x, y = images(20)
    sp_and_kd(jit_compile=jit_compile).fit(
        tf.data.Dataset.from_tensor_slices((x, y)).batch(8),
        shuffle=False,
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
            TermWeightSchedule({"similarity_preserving": WeightSchedule(warm_up=3)}),
            keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: by_epoch.append(len(traces))),
        ],
    )
    assert by_epoch[0] >= 1
    assert by_epoch == by_epoch[:1] * 4


def graph_of(model, data):
    """The graph of the function that `fit` calls for a step."""
    model._maybe_symbolic_build(data_batch=data)
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(data))
    function = inspect.getclosurevars(model.train_function).nonlocals["multi_step_on_iterator"]
    return function.get_concrete_function(batches).graph.as_graph_def()


def test_jit_compiles_the_whole_step():
    """Outside of what XLA must compile there is the data's iterator and nothing that computes."""
    definition = graph_of(sp_and_kd(jit_compile=True), images(8))
    functions = {function.signature.name: function for function in definition.library.function}

    def outside(nodes):
        kinds = set()
        for node in nodes:
            if node.attr["_XlaMustCompile"].b:
                kinds.add("compiled")
            elif node.op in ("PartitionedCall", "StatefulPartitionedCall"):
                kinds |= outside(functions[node.attr["f"].func.name].node_def)
            else:
                kinds.add(node.op)
        return kinds

    kinds = outside(definition.node)
    assert "compiled" in kinds
    assert not {kind for kind in kinds if "Conv" in kind or "MatMul" in kind or "Resource" in kind}


def test_jit_makes_the_same_step():
    x, y = images(16)
    jitted, plain = sp_and_kd(jit_compile=True), sp_and_kd(jit_compile=False)
    for model in (jitted, plain):
        model.fit(x, y, batch_size=8, verbose=0, shuffle=False)
    assert_same_weights(jitted, plain, tolerance=1e-5)


def test_no_step_waits_for_the_host(monkeypatch):
    """No operation calls Python, and values are read once an epoch however many steps it has."""
    definition = graph_of(sp_and_kd(), images(8))
    nodes = [node.op for function in definition.library.function for node in function.node_def]
    assert not {"PyFunc", "EagerPyFunc", "PyFuncStateless"} & {*nodes, *(node.op for node in definition.node)}

    reads = []
    (kind,) = (base for base in type(tf.constant(0)).__mro__ if "_numpy" in vars(base))
    read = kind._numpy
    monkeypatch.setattr(kind, "_numpy", lambda self: reads.append(self.dtype) or read(self))
    counts = []
    for batches in (2, 10):
        x, y = images(8 * batches)
        model = sp_and_kd()
        dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
        model.fit(dataset, verbose=0, shuffle=False)  # traces
        reads.clear()
        model.fit(dataset, verbose=0, shuffle=False)
        # Keras asks its iterator after each step whether there was a batch, which is a bool that the host has.
        counts.append(len([dtype for dtype in reads if dtype != tf.bool]))
    assert counts[0] == counts[1] > 0
    assert np.isfinite(model.get_metrics_result()["loss"])
