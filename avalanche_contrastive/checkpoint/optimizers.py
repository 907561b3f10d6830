"""The state of optimisers: groups and what they keep of each parameter."""

from torch import nn

from avalanche_contrastive.checkpoint.decoding import Decoder
from avalanche_contrastive.checkpoint.kinds import MismatchError, Node, family
from avalanche_contrastive.checkpoint.places import differs

__all__ = ["OptimizerState"]

# Those whose state of a parameter has the parameter's shape, or is a number.
PLAIN = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


class OptimizerState:
    """What a file has of one optimiser, checked when all else has been read; `apply` gives it."""

    def __init__(self, decoder: Decoder, node: Node) -> None:
        number, others, *parts = node
        at = decoder.optimizers.pop(number)
        self.optimizer, self.path = at.there, at.path
        self.defaults, self.groups, states = (decoder.place(part, at.new()) for part in parts)
        self.others, self.state = decoder.attributes(others, self.optimizer, at), dict(states)
        for name, value in {} if at.is_made else self.defaults.items():
            decoder.compare(f"{self.path}.{name}", value, self.optimizer.defaults[name])
        self._check_groups()
        self._check_state(decoder)

    def _check_groups(self) -> None:
        """The same options in each group, of the same kinds; parameters, each once."""
        ours = self.optimizer.param_groups
        if type(self.groups) is not list or len(self.groups) < len(ours):
            raise MismatchError(f"strategy.{self.path} has fewer groups of parameters in the file")
        for number, group in enumerate(self.groups):
            own = ours[min(number, len(ours) - 1)]
            if type(group) is not dict or own.keys() != group.keys() or type(group["params"]) is not list:
                raise MismatchError(f"strategy.{self.path}: group {number} has {[*group]} in the file, {[*own]} here")
            for name, value in group.items():
                if family(value) != family(own[name]) and {family(value), family(own[name])} != {"number", "tensor"}:
                    raise differs(f"{self.path}.param_groups[{number}][{name!r}]", family(value), own[name])
        parameters = [parameter for group in self.groups for parameter in group["params"]]
        if not all(isinstance(each, nn.Parameter) for each in parameters) or len({*parameters}) < len(parameters):
            raise MismatchError(f"strategy.{self.path} trains what is no parameter, or one twice, in the file")

    def _check_state(self, decoder: Decoder) -> None:
        """Dicts by name for parameters that it trains, with values of the right shapes."""
        trained = {parameter for group in self.groups for parameter in group["params"]}
        is_plain = type(self.optimizer).__name__ in PLAIN and type(self.optimizer).__module__.startswith("torch.")
        for parameter, state in self.state.items():
            if parameter not in trained or type(state) is not dict or not all(type(name) is str for name in state):
                raise MismatchError(f"strategy.{self.path} has a state of something that it does not train in the file")
            values = [value for value in state.values() if is_plain and not isinstance(value, (int, float, type(None)))]
            if any(tuple(value.shape) not in ((), tuple(decoder.values[parameter].shape)) for value in values):
                raise MismatchError(f"strategy.{self.path}: a state has not the shape of its parameter in the file")

    def apply(self) -> None:
        """Give the optimiser its groups, in place, and its state."""
        groups = self.optimizer.param_groups
        for own, group in zip(groups, self.groups, strict=False):
            own.clear()
            own.update(group)
        groups.extend(self.groups[len(groups) :])
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        self.optimizer.defaults.update(self.defaults)
        for name, value in self.others.items():
            object.__setattr__(self.optimizer, name, value)
