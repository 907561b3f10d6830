"""Which tensor operations a piece of code runs, and which of them make the host wait for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """The operations of a piece of code, each with the shapes of what it gives."""

    def __init__(self):
        super().__init__()
        self.made = []

    @property
    def names(self):
        return [func.overloadpacket.__name__ for func, _ in self.made]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.made.append((func, [tuple(x.shape) for x in tree_leaves(result) if isinstance(x, torch.Tensor)]))
        return result


WAITING = {"item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "masked_select"}
