"""The state of optimisers, filled through their own ``load_state_dict``."""

import copy
from typing import Any

from torch import nn

from avalanche_contrastive.checkpoint.decoding import Decoder
from avalanche_contrastive.checkpoint.kinds import MismatchError, Node, family, set_attribute
from avalanche_contrastive.checkpoint.places import differs

__all__ = ["OptimizerState"]

# Those whose state of a parameter has the parameter's shape, or is a number.
PLAIN = ("SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "ASGD", "Rprop")


class OptimizerState:
    """What a file has of one optimiser: a copy of it loads it, and `apply` takes it from the copy.

    Args:
        decoder: that has read all else.
        node: from the file.

    Raises:
        MismatchError: it is of another optimiser.
    """

    def __init__(self, decoder: Decoder, node: Node) -> None:
        number, others, *parts = node
        at = decoder.optimizers.pop(number)
        self.optimizer, self.path, self.values = at.there, at.path, decoder.values
        self.defaults, groups, states = (decoder.place(part, at.new()) for part in parts)
        self.others = decoder.attributes(others, self.optimizer, at)
        for name, value in {} if at.is_made else self.defaults.items():
            decoder.compare(f"{self.path}.{name}", value, self.optimizer.defaults[name])
        self.loaded = self._load(groups, dict(states))

    def _load(self, groups: list[dict[str, Any]], states: dict[Any, Any]) -> Any:
        """A copy of the optimiser with the groups and states of the file."""
        parameters = [parameter for group in groups for parameter in group["params"]]
        numbers = {parameter: number for number, parameter in enumerate(parameters)}
        if not all(isinstance(parameter, nn.Parameter) for parameter in parameters) or len(numbers) < len(parameters):
            raise MismatchError(f"strategy.{self.path} trains what is no parameter, or one twice, in the file")
        loaded, ours = copy.copy(self.optimizer), self.optimizer.param_groups
        copies = [nn.Parameter(self.values[p], requires_grad=p.requires_grad) for p in parameters]  # as they will be
        loaded.param_groups = [
            {**ours[min(n, len(ours) - 1)], "params": [copies[numbers[p]] for p in group["params"]]}
            for n, group in enumerate(groups)
        ]
        self._check(groups, loaded.param_groups, states)
        loaded.load_state_dict(
            {
                "state": {numbers[parameter]: state for parameter, state in states.items()},
                "param_groups": [{**group, "params": [numbers[p] for p in group["params"]]} for group in groups],
            }
        )
        for group, own in zip(loaded.param_groups, groups, strict=True):
            group["params"] = list(own["params"])
        originals = dict(zip(copies, parameters, strict=True))
        loaded.state = {originals[parameter]: state for parameter, state in loaded.state.items()}
        return loaded

    def _check(self, groups: list[dict[str, Any]], ours: list[dict[str, Any]], states: dict[Any, Any]) -> None:
        """The same options in each group, of the same kinds; states of the right shapes."""
        for number, (group, own) in enumerate(zip(groups, ours, strict=True)):
            if own.keys() != group.keys():
                raise MismatchError(f"strategy.{self.path}: group {number} has {[*group]} in the file, {[*own]} here")
            for name, value in group.items():
                if family(value) != family(own[name]) and {family(value), family(own[name])} != {"number", "tensor"}:
                    raise differs(f"{self.path}.param_groups[{number}][{name!r}]", family(value), own[name])
        cls = type(self.optimizer)
        for parameter, state in states.items() if cls.__name__ in PLAIN and cls.__module__.startswith("torch.") else ():
            for name, value in state.items():
                if tuple(getattr(value, "shape", ())) not in ((), tuple(self.values[parameter].shape)):
                    raise MismatchError(
                        f"strategy.{self.path}: {name:.40} has not the shape of its parameter in the file"
                    )

    def apply(self) -> None:
        """Take what the copy has loaded."""
        self.optimizer.param_groups[:] = self.loaded.param_groups
        self.optimizer.state.clear()
        self.optimizer.state.update(self.loaded.state)
        self.optimizer.defaults.update(self.defaults)
        for name, value in self.others.items():
            set_attribute(self.optimizer, name, value)
