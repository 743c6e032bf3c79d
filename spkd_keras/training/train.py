"""One run: a student trained into its folder, from wherever an earlier attempt came to."""

import contextlib
import math
from typing import Any

import keras
import numpy as np

from spkd_keras import data, models
from spkd_keras.cache import TeacherCache
from spkd_keras.distiller import Distiller, NotFiniteError, compared_layers, gathered_bytes, loss_parts
from spkd_keras.experiment import Experiment, ExperimentError, read_record
from spkd_keras.observer import Observer
from spkd_keras.storage import write_json
from spkd_keras.training import build, cached_teacher
from spkd_keras.training.callbacks import Recorder, Reporter
from spkd_keras.training.checkpoints import Checkpointer, Position
from spkd_keras.training.devices import Devices
from spkd_keras.training.environment import changes, environment
from spkd_keras.training.folder import DATA_DIGEST, LAYERS, START_DIGEST, RunFolder, save_network, start_digest
from spkd_keras.training.interruption import Interruption
from spkd_keras.training.results import EVALUATION_BATCH, summarise, write_similarities

SHOWN_IMAGES = 8  # in a message; the file has them all
STATISTICS_BATCHES = 200  # of which batch normalisation takes its statistics once weights were averaged


def train(
    folder: RunFolder,
    splits: data.Splits,
    observer: Observer,
    interruption: Interruption,
    teacher: keras.Model | None = None,
    teacher_fingerprint: str | None = None,
    devices: Devices | None = None,
) -> None:
    """Trains one student into its folder, or goes on where an earlier attempt stopped.

    Raises:
        ExperimentError: if another process is at it, or the folder holds another run by now.
        Interrupted: if a signal came; the state is written.
        FloatingPointError: if the loss or the gradient of a step is not finite.
        StorageError: if a file cannot be written.
    """
    devices = devices or Devices()
    with folder.locked():
        # Another process may have made the folder, or finished the run, since this one looked.
        folder.check_owner()
        folder.check_data(digest := splits.digest())
        if folder.finished:
            return
        folder.create()
        name, experiment = folder.path.name, folder.experiment
        observer.started(name, experiment.schedule.epochs)
        surroundings = {
            **environment(),
            **devices.described(),
            "teacher_fingerprint": teacher_fingerprint,
            "data": splits.origin,
            DATA_DIGEST: digest,
            START_DIGEST: start_digest(experiment.student),
            "class_names": list(splits.train.class_names),
        }
        keras.utils.set_random_seed(folder.seed)
        cache = None
        if spec := experiment.teacher_cache:
            cache = cached_teacher.opened(experiment, spec, folder.path.parent, splits, teacher_fingerprint)
        source = teacher if cache is None else cache.stand_in
        with devices.scope():
            student = build.build_student(experiment, splits.train)
            if devices.replicas > 1:
                student = models.synchronized(student)
            distiller = build.build_distiller(source, student, experiment, folder.method)
        surroundings[LAYERS] = compared_layers(distiller)
        _record(folder, surroundings, observer)
        if devices.replicas > 1:
            surroundings["gathered_bytes_a_step"] = gathered_bytes(distiller, experiment.data.batch_size)
        training = Training(folder, splits, distiller, observer, interruption, cache, devices)
        with interruption.deferred(), devices.together():
            training.run()
        save_network(folder.student, student)
        if not devices.chief:
            write_json(folder.summary, {})
            return
        if devices.strategy:  # the rest is for one device
            student = models.fused(keras.saving.load_model(folder.student, compile=False))
        if experiment.schedule.ema:
            training.renew_statistics(student)
            save_network(folder.student, student)
        write_similarities(folder, teacher, student, splits.test)
        progress = training.recorder.progress()
        summary = summarise(folder, student, splits, surroundings, progress)
        write_json(folder.summary, summary)
        training.checkpointer.remove()
        observer.completed(name, summary)


def _record(folder: RunFolder, surroundings: dict[str, Any], observer: Observer) -> None:
    """Writes what the run depends on; tells if an interrupted run goes on under other conditions.

    Raises:
        ExperimentError: if it compared other layers until now, which another version may find where none are named.
    """
    before = None
    with contextlib.suppress(ExperimentError):  # damaged: it is written anew
        before = read_record(folder.environment)
    if before is not None:
        goes_on = folder.has_checkpoint
        layers = before.get(LAYERS)
        if goes_on and layers not in (None, surroundings[LAYERS]):
            raise ExperimentError(
                f"{folder.path} compared the layers {layers} until now. This version would compare "
                f"{surroundings[LAYERS]}. Nothing was changed. Go on with the version that is in "
                f"{folder.environment}, or choose another folder with --out."
            )
        differing = changes(before, surroundings) if goes_on else []
        earlier = (before.get("earlier_conditions") or []) if goes_on else []
        surroundings["earlier_conditions"] = [*earlier, *differing]
        if differing:
            observer.noticed(
                f"{folder.path.name} goes on under other conditions than it began ({'; '.join(differing)}): its "
                "numbers may differ in their last bits from an uninterrupted run's."
            )
    folder.failure.unlink(missing_ok=True)
    write_json(folder.environment, surroundings)


class Training:
    """The epochs of a run: whole ones, and the rest of one that was interrupted.

    Args:
        folder: where its state is.
        splits: the data.
        distiller: compiled.
        observer: is told how it goes.
        interruption: is looked at before each batch.
        cache: of the teacher; None to run it.
        devices: that share the training; None for one.
        epochs: where to stop; None for all of the schedule.
    """

    def __init__(
        self,
        folder: RunFolder,
        splits: data.Splits,
        distiller: Distiller,
        observer: Observer,
        interruption: Interruption,
        cache: TeacherCache | None,
        devices: Devices | None = None,
        epochs: int | None = None,
    ) -> None:
        self.cache, self.devices = cache, devices or Devices()
        self.epochs = epochs or folder.experiment.schedule.epochs
        self.folder, self.splits, self.distiller, self.observer = folder, splits, distiller, observer
        self.experiment: Experiment = folder.experiment
        self.augmentation = build.augmentation(self.experiment.data)
        self.clock = data.EpochClock()
        self.steps = -(-len(splits.train) // self.experiment.data.batch_size)
        self.recorder = Recorder(folder)
        self.checkpointer = Checkpointer(
            folder.backup,
            self.experiment.checkpoints,
            self.steps,
            interruption,
            self.recorder.progress,
            observer.noticed,
            self.devices,
        )
        self.validation = splits.validation and data.evaluation_batches(
            splits.validation, EVALUATION_BATCH, one_hot=self.augmentation.mixes_labels
        )
        self.callbacks = [
            *build.schedules(distiller, self.experiment, folder.method, self.clock),
            self.recorder,
            self.checkpointer,
            Reporter(observer, folder.path.name, self.steps, lambda: self.checkpointer.begun),
        ]

    def run(self) -> None:
        """Trains up to the last epoch. The rest of an epoch has a `fit` of its own; what follows begins from its end.

        Each `fit` begins from a checkpoint, so that what Keras does at the end of one, such as putting a moving average
        of the weights into their place, is done once, after the last.
        """
        while True:
            position = self._restore()
            if position.batch < self.steps:
                self._fit(position)
            else:
                self._finish_epoch(position.epoch)
            if not position.batch:
                return

    def renew_statistics(self, student: keras.Model) -> None:
        """Gives a student of averaged weights the statistics that these have on images as in the last epoch."""
        self.clock.epoch.assign(self.epochs - 1)
        size, seed = self.experiment.data.batch_size, self.folder.seed
        batches = data.training_batches(self.splits.train, size, seed, self.clock, self.augmentation)
        models.renew_statistics(student, (pixels for pixels, _ in batches.take(STATISTICS_BATCHES)))

    def _restore(self) -> Position:
        position, progress = self.checkpointer.restore(self.distiller)
        self.recorder.resume(progress)
        self.observer.progressed(
            self.folder.path.name, position.epoch, self.recorder.rows[-1] if position.epoch else {}
        )
        if position.batch:  # the metrics must be there before their sums can be put back
            classes = len(self.splits.train.class_names)
            labels = np.zeros((1, classes) if self.augmentation.mixes_labels else (1,), "int32")
            if self.devices.strategy:
                pixels = np.zeros((1, *self.splits.train.image_shape), "uint8")
                self.distiller.build_metrics((pixels, labels))
            else:
                self.distiller.compute_metrics(None, labels, np.zeros((1, classes)))
        return position

    def _batches(self, skip: int) -> Any:
        seed, size = self.folder.seed, self.experiment.data.batch_size
        if self.cache is not None:
            return self.cache.batches(self.splits.train, size, seed, self.clock, skip)
        return data.training_batches(self.splits.train, size, seed, self.clock, self.augmentation, skip)

    def _fit(self, position: Position) -> None:
        try:
            self.distiller.fit(
                self._batches(position.batch),
                epochs=self.epochs,
                initial_epoch=position.epoch,
                verbose=0,
                shuffle=False,  # the data shuffle themselves
                validation_data=self.validation,
                callbacks=self.callbacks,
            )
        except NotFiniteError as error:
            raise self._failure(error, position.batch + error.batch) from error

    def _finish_epoch(self, epoch: int) -> None:
        """Does what is left of an epoch that was interrupted behind its last batch."""
        callbacks = keras.callbacks.CallbackList(self.callbacks, model=self.distiller, epochs=self.epochs)
        callbacks.on_train_begin()
        callbacks.on_epoch_begin(epoch)
        results = self.checkpointer.restored_metrics(self.distiller)
        logs = {name: value for name, value in results.items() if name != "images"}
        if self.validation:
            found = self.distiller.evaluate(self.validation, return_dict=True, verbose=0, callbacks=callbacks)
            logs |= {f"val_{name}": value for name, value in found.items()}
        callbacks.on_epoch_end(epoch, logs)
        callbacks.on_train_end()

    def _failure(self, error: NotFiniteError, batch: int) -> FloatingPointError:
        """Says which images were in the batch that could not be trained on, and writes it to `failure.json`."""
        places = data.batch_places(
            len(self.splits.train), self.experiment.data.batch_size, self.folder.seed, error.epoch, batch
        ).tolist()
        # The weights are still those before the step, so that it can be looked at again, term by term.
        self.clock.epoch.assign(error.epoch)
        parts = loss_parts(self.distiller, *next(iter(self._batches(batch))))
        found = {
            "epoch": error.epoch + 1,
            "batch": batch + 1,
            "not_finite": list(error.parts),
            "parts": {
                name: {key: repr(value) for key, value in part._asdict().items()} for name, part in parts.items()
            },
            "images": places,
        }
        write_json(self.folder.failure, found)
        pulling = [name for name, part in parts.items() if not math.isfinite(part.gradient_norm)]
        shown = ", ".join(map(str, places[:SHOWN_IMAGES])) + (", ..." if len(places) > SHOWN_IMAGES else "")
        text = str(NotFiniteError(error.epoch, batch, error.parts))
        if error.parts == ("gradient",) and pulling:
            text += f" The gradient is that of {', '.join(pulling)}."
        return FloatingPointError(
            f"{text} The batch is the training images {shown} (all in {self.folder.failure}). The last good checkpoint "
            "is kept."
        )
