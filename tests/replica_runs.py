"""Runs of an experiment on two replicas, one of them killed and taken up again."""

import contextlib
import json
import pathlib
import tempfile

from replica_trainings import message, mirrored, weights_apart
from tiny_experiment import assert_same_run, tiny, untrained_teacher, weights_of

from spkd_keras.training import Devices, RunsFailedError, run_experiment
from spkd_keras.training.checkpoints import Checkpointer


def runs():
    """Runs of an experiment on two replicas. The last: they make the operations of the process deterministic."""
    devices, found = Devices(mirrored(2), "mirrored"), {}
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        few = [f"teacher={{path: '{untrained_teacher(folder)}'}}", "methods={sp: [{loss: similarity_preserving}]}"]
        few += ["schedule.epochs=1"]
        bad = tiny(folder, *few, "schedule.learning_rate=1.0e+30", "data.validation=0")
        found["not_finite"] = message(lambda: run_experiment(bad, folder / "bad", devices=devices), RunsFailedError)
        failure = folder / "bad" / "tiny" / "sp-seed0" / "failure.json"
        found["failure"] = json.loads(failure.read_text()) if failure.exists() else None
        cached = f"teacher={{path: '{untrained_teacher(folder)}', cache: {{}}}}"
        good = tiny(folder, *few, cached, "data.validation=0.1", "checkpoints={steps: 1}")
        for name, on in {"alone": None, "whole": devices, "killed": devices}.items():
            with killed_after_two_steps() if name == "killed" else contextlib.nullcontext():
                run_experiment(good, folder / name, devices=on)
        alone, whole, killed = (folder / name / "tiny" / "sp-seed0" for name in ("alone", "whole", "killed"))
        found["left_by_the_kill"] = [file.name for file in (killed / "backup").glob("epoch-0-batch-2*")]
        run_experiment(good, folder / "killed", devices=devices)
        found["after_a_kill"] = message(lambda: assert_same_run(whole, killed))
        found["cached"] = weights_apart([weights_of(alone)], [weights_of(whole)])
    return found


@contextlib.contextmanager
def killed_after_two_steps():
    """Ends a run, as nothing that it could catch, right behind the checkpoint of its second step."""

    class Killed(BaseException):
        pass

    original = Checkpointer._write

    def write(self, position, state):
        original(self, position, state)
        if position.batch == 2:
            raise Killed

    Checkpointer._write = write
    try:
        with contextlib.suppress(Killed):
            yield
    finally:
        Checkpointer._write = original
