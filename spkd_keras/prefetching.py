"""Batches that are made ahead of their use."""

import tensorflow as tf


def prefetched(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns batches that are made ahead of their use, by a pipeline that an epoch's end does not wait for.

    tf.data's autotuning sleeps for 10 ms, then 20, 40 and so on up to a minute, and TensorFlow 2.21 wakes it before it
    says that the iterator is gone. On busy cores it sees nothing, sleeps on, and whoever deleted the iterator waits:
    each epoch of `fit` for up to as long again as the last one took. `tests/test_workarounds.py` says when this can go.

    Args:
        batches: of any structure.

    Returns:
        The same ones, in the same order. A map with AUTOTUNE has a thread for each core, 16 at most; one without
        `num_parallel_calls` has one.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(tf.data.AUTOTUNE).with_options(options)
