"""What is kept of a Distiller in files: the student and the training state, nothing of the teacher."""

from typing import Any

import keras

from spkd_keras import models
from spkd_keras.distiller.guard import GuardedTrainer
from spkd_keras.distiller.term import Term


class StudentKeeper(GuardedTrainer):
    """A model whose attribute `teacher`, a property of the subclass, is neither trained nor saved with it.

    Keras 3.12 to 3.15 track every layer that is assigned to an attribute before a property's setter runs, save
    every layer that is found in `dir()`, and leave the state of random generators out of what they save. A subclass
    has `student`, the model that is exported, and `term_weights`, variables that are saved with it, by name.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "teacher":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name != "teacher"]

    def export(self, *args: Any, **kwargs: Any) -> Any:
        """Exports the student: `student.export(...)`."""
        return self.student.export(*args, **kwargs)

    def save_own_variables(self, store: dict[str, Any]) -> None:
        """Saves the terms' weights and the state of the student's random generators, which Keras 3.15 leaves out."""
        for index, variable in enumerate(self._own_state()):
            store[str(index)] = variable

    def load_own_variables(self, store: dict[str, Any]) -> None:
        """Loads what `save_own_variables` saved."""
        state = self._own_state()
        if len(store.keys()) != len(state):
            raise ValueError(
                f"The file holds {len(store.keys())} variables of a Distiller and this one has {len(state)}: "
                f"{', '.join(variable.path for variable in state)}. "
                "Load it into a Distiller with the same terms and student."
            )
        for index, variable in enumerate(state):
            variable.assign(store[str(index)])

    def _own_state(self) -> list[Any]:
        weights = {id(weight) for weight in self.weights}
        random_state = [variable for variable in self.variables if id(variable) not in weights]
        return [*self.term_weights.values(), *random_state]

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration: the student and the terms, and of the teacher its fingerprint alone."""
        return {
            "name": self.name,
            "student": keras.saving.serialize_keras_object(self.student),
            "fused_layers": models.fused_layers(self.student),
            "terms": [term.get_config() for term in self.terms],
            "student_loss_weight": self.student_loss_weight,
            "teacher_dtype": self.teacher_dtype,
            "evaluate_terms": self.evaluate_terms,
            "teacher_fingerprint": self.teacher_fingerprint,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "StudentKeeper":
        """Returns a Distiller without its teacher."""
        config = dict(config)
        student = keras.saving.deserialize_keras_object(config["student"])
        # Its file has Keras' layers; the same kernels as before make the same steps.
        config["student"] = models.fused(student, names=config.pop("fused_layers", ()))
        config["terms"] = [Term.from_config(term) for term in config["terms"]]
        return cls(teacher=None, **config)
