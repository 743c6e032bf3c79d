"""The optimiser of the published recipes."""

import math
import numbers
import warnings
from typing import Any

import keras
from keras import ops


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


@keras.saving.register_keras_serializable("spkd_keras")
class CoupledSGD(keras.optimizers.Optimizer):
    """Stochastic gradient descent whose weight decay is part of the gradient, as in PyTorch.

        g = gradient + weight_decay * w
        m = momentum * m + g
        w = w - learning_rate * (g + momentum * m  if nesterov else  m)

    Keras' own `SGD(weight_decay=)` shrinks the weights beside the gradient step instead. At momentum 0.9 that is
    about ten times weaker, so a published weight decay of 5e-4 means something else there. The learning rate
    multiplies the velocity rather than being stored in it, so that a drop of the rate acts at once.

    Args:
        learning_rate: a float or a `keras.optimizers.schedules.LearningRateSchedule`; default 0.1.
        momentum: in [0, 1); default 0.9.
        nesterov: whether to look ahead; default False. Needs momentum above 0.
        weight_decay: at least 0; default 0. Acts on every trainable variable, BatchNormalization and biases
            included, but for those given to `exclude_from_weight_decay`, of which names are saved too.
        **kwargs: clipping, moving averages, loss scale, gradient accumulation and name of
            `keras.optimizers.Optimizer`. Clipping sees the gradient without the decay.

    Raises:
        ValueError: if an argument has the wrong type or is out of range, or nesterov is set without momentum.

    Reference: `torch.optim.SGD` with dampening 0.
    """

    def __init__(
        self,
        learning_rate: Any = 0.1,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float | None = 0.0,
        **kwargs: Any,
    ) -> None:
        weight_decay = 0.0 if weight_decay is None else weight_decay  # Keras' own optimizers write None for none
        if not _is_number(momentum) or not 0 <= momentum < 1:
            raise ValueError(f"`momentum` must be in [0, 1), for example 0.9. Received: momentum={momentum!r}.")
        if not _is_number(weight_decay) or not 0 <= weight_decay < math.inf:
            raise ValueError(
                "`weight_decay` must be finite and at least 0, for example 5e-4. Received: "
                f"weight_decay={weight_decay!r}."
            )
        super().__init__(learning_rate=learning_rate, weight_decay=weight_decay, **kwargs)
        if not isinstance(nesterov, bool):
            raise ValueError(f"`nesterov` must be True or False. Received: nesterov={nesterov!r}.")
        if nesterov and momentum == 0:
            raise ValueError("`nesterov=True` needs a momentum above 0, for example 0.9. Received: momentum=0.")
        self.momentum = float(momentum)
        self.nesterov = nesterov
        self._velocities: list[Any] = []
        self._excluded_names: list[str] = []
        self._excluded_variables = False

    def exclude_from_weight_decay(self, var_list: Any = None, var_names: Any = None) -> None:
        """Excludes variables from weight decay as Keras does, before `build`; of the two, names alone are saved."""
        super().exclude_from_weight_decay(var_list, var_names)
        self._excluded_names, self._excluded_variables = sorted(var_names or ()), bool(var_list)

    def build(self, variables: list[Any]) -> None:
        """Creates a velocity for each variable, unless the momentum is 0."""
        if self.built:
            return
        super().build(variables)
        if self.momentum > 0:
            self._velocities = self.add_optimizer_variables(variables, "velocity")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Applies one step to one variable."""
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = gradient + self.weight_decay * variable
        if self.momentum > 0:
            velocity = self._velocities[self._get_variable_index(variable)]
            self.assign(velocity, self.momentum * velocity + gradient)
            gradient = gradient + self.momentum * velocity if self.nesterov else velocity
        self.assign_sub(variable, learning_rate * gradient)

    def _apply_weight_decay(self, variables: list[Any]) -> None:
        """Does nothing: Keras 3 would decay the weights here, beside the gradient."""

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration."""
        if self._excluded_variables:
            warnings.warn(
                "What `var_list` excluded from weight decay will not be when the optimizer is loaded. Exclude it by "
                "`var_names`.",
                stacklevel=2,
            )
        config = {**super().get_config(), "momentum": self.momentum, "nesterov": self.nesterov}
        return config | ({"excluded_names": self._excluded_names} if self._excluded_names else {})

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "CoupledSGD":
        """Returns the optimizer of a configuration."""
        config = dict(config)
        names = config.pop("excluded_names", [])
        optimizer: CoupledSGD = super().from_config(config, custom_objects)
        if names:
            optimizer.exclude_from_weight_decay(var_names=names)
        return optimizer
