"""What is said of a network that cannot be taken from its file, or not for an export."""

import keras
import pytest
from keras import layers
from networks import cross_entropy, small_network

from spkd_keras import Distiller
from spkd_keras.experiment import ExperimentError, Network
from spkd_keras.export import export_student
from spkd_keras.export.run import FinishedRun
from spkd_keras.training import build


class Doubling(layers.Layer):
    def call(self, x):
        return x * 2


def doubled(x):
    return x * 2


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Doubling(), "its class 'Doubling' is of your own code. Mark it by keras.saving.register_keras_serializable, "),
        (layers.Lambda(lambda x: x * 2), "it has a Lambda layer, which is code that a file may not bring. Put a "),
        (
            layers.Activation(doubled),
            "its function 'doubled' is of your own code. Mark it by keras.saving.",
        ),
    ],
    ids=["class", "lambda", "function"],
)
def test_code_that_a_file_does_not_bring(tmp_path, layer, said):
    file = tmp_path / "network.keras"
    small_network(before=[layer]).save(file)
    with pytest.raises(ExperimentError) as caught:
        build.construct(Network(path=str(file)), "teacher")
    message = str(caught.value)
    assert message.startswith(f"teacher.path: {file} cannot be loaded as a Keras network: {said}")
    assert "spkd_keras.training.run_experiment in Python" in message
    assert "\n" not in message


def test_a_folder_is_no_file_of_a_network(tmp_path):
    with pytest.raises(ExperimentError, match=r"^teacher\.path: .* is a folder\. Give a \.keras file, for example"):
        build.construct(Network(path=str(tmp_path)), "teacher")


def test_a_network_of_ones_own_is_exported_in_python(tmp_path):
    small_network().save(tmp_path / "own.keras")
    with pytest.raises(
        ExperimentError, match=r"own\.keras is a network's file and not a run's .*export_student\(model"
    ):
        FinishedRun(tmp_path / "own.keras")


def test_the_student_of_a_distiller_is_exported(tmp_path):
    distiller = Distiller(None, small_network())
    distiller.compile("sgd", cross_entropy())
    with pytest.raises(ValueError, match=r"Received: Distiller .*\. Give its `student`\.$"):
        export_student(distiller, tmp_path / "a.onnx", "onnx")
    unreachable = keras.Sequential([layers.Flatten(), layers.Dense(3)])
    with pytest.raises(ValueError, match=r"Received: Sequential .*\. Wrap it in a functional model\.$"):
        export_student(unreachable, tmp_path / "a.onnx", "onnx")
