"""Which tensor operations a piece of code runs, and which of them make the host wait for a GPU."""

from torch.utils._python_dispatch import TorchDispatchMode


class Names(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


WAITING = {"item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "unique_dim", "masked_select"}
