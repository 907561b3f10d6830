"""Files that no ``save`` has written, and an oracle: a restore that is refused has changed nothing and run nothing."""

import contextlib
import copy
import functools
import io
import sys
import types
import warnings
import zipfile
from collections import deque

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.determinism.rng_manager import RNGManager
from torch.utils.data import Dataset

from avalanche_contrastive import checkpoint

OPAQUE = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.ModuleType,
    type,
    functools.partial,
    Dataset,
)
WATCHED = ("os.", "subprocess.", "shutil.", "socket.", "ctypes.", "code.")
USUAL = ("nvidia", "nvml")  # torch looks for GPUs when random states are set
_watching = []


def _audit(event, arguments):
    if not _watching or any(word in str(arguments) for word in USUAL):
        return
    is_code = event in ("exec", "compile", "import", "marshal.loads", "pickle.find_class") or event.startswith(WATCHED)
    if is_code or (event == "open" and any(letter in str(arguments[1] or "r") for letter in "wax+")):
        _watching[-1].append((event, str(arguments)[:200]))


sys.addaudithook(_audit)
"a".encode("cp437"), repr(torch.zeros(1))  # what zipfile and torch import late


@contextlib.contextmanager
def watched():
    """What Python does in a block beside computing: code that is compiled or imported, commands, files written."""
    events = []
    _watching.append(events)
    try:
        yield events
    finally:
        _watching.remove(events)


def snapshot(root):
    """All that is reached from an object, by path: which object it is, its class and its value; and random states."""
    found, seen, waiting = {}, {}, [("", root), ("random", RNGManager.__getstate__())]
    while waiting:
        path, value = waiting.pop()
        if value is None or isinstance(value, (bool, int, float, str, bytes, complex)):
            found[path] = type(value).__name__, repr(value)
        elif isinstance(value, (torch.Tensor, np.ndarray)):
            found[path] = _of_tensor(value, path)
        elif isinstance(value, (torch.Generator, np.random.Generator)):
            state = value.get_state() if isinstance(value, torch.Generator) else value.bit_generator.state
            waiting.append((f"{path}.state", state))
        else:
            where = "" if path.startswith("random") else id(value)
            found[path] = type(value).__name__, where
            if id(value) not in seen and not (isinstance(value, OPAQUE) and not isinstance(value, AvalancheDataset)):
                seen[id(value)] = value
                waiting += parts(value, path)
    return found


def _of_tensor(value, path):
    array = value.detach().cpu() if isinstance(value, torch.Tensor) else value
    where = "" if path.startswith("random") else (id(value), value.data_ptr() if isinstance(value, torch.Tensor) else 0)
    grad = getattr(value, "requires_grad", False)
    return type(value).__name__, where, str(array.dtype), tuple(array.shape), grad, np.asarray(array).tobytes()


def parts(value, path):
    """The parts of an object with their paths."""
    if isinstance(value, dict):
        return [(f"{path}[{number}:{key!r:.60}]", item) for number, (key, item) in enumerate(value.items())]
    if isinstance(value, (list, tuple, deque)):
        return [(f"{path}[{number}]", item) for number, item in enumerate(value)]
    if isinstance(value, (set, frozenset)):
        return [(f"{path}{{}}", repr(list(value)))]
    return [(f"{path}.{name}", item) for name, item in getattr(value, "__dict__", {}).items()]


def differing(before, after):
    """Paths at which two snapshots differ."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def values_in(state):
    """A snapshot without which object each value is."""
    return {
        path: (value[0], *value[2:]) if isinstance(value[1], (int, tuple)) else value for path, value in state.items()
    }


def users_objects(strategy):
    """What no file may replace."""
    own = [strategy, strategy.model, strategy.optimizer, strategy.evaluator, strategy.clock, strategy._criterion]
    tensors = [*strategy.model.parameters(), *strategy.model.buffers()]
    plugins = [plugin for plugin in strategy.plugins if type(plugin).__name__ != "LookUp"]
    return [*own, *plugins, *strategy.evaluator.metrics, *strategy.model.modules(), *tensors]


def attempt(strategy, path):
    """Restore a file; the error if it was refused.

    Raises:
        AssertionError: a refused file has changed something, a restored one has replaced something, or code was run.
    """
    own, state, error = users_objects(strategy), snapshot(strategy), None
    with watched() as events, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            checkpoint.restore(strategy, path)
        except checkpoint.CheckpointError as caught:
            error = caught
    done = [event for event in events if str(path) not in event[1]]
    assert not done, "\n".join(map(str, done))
    if error is not None:
        assert differing(state, snapshot(strategy)) == []
        return error
    kept = {id(thing) for thing in users_objects(strategy)}
    assert [type(thing) for thing in own if id(thing) not in kept] == []
    assert type(strategy.optimizer.param_groups) is list
    assert all(type(group) is dict and type(group["params"]) is list for group in strategy.optimizer.param_groups)
    return None


# ---- making files


def content_of(path):
    """What is in a checkpoint."""
    return torch.load(path, weights_only=True)


def rezipped(data, change):
    """An archive of torch.save whose members have gone through ``change(name, bytes)``; None leaves one out."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        for member in old.infolist():
            changed = change(member.filename, old.read(member))
            if changed is not None:
                new.writestr(zipfile.ZipInfo(member.filename), changed)
    return made.getvalue()


def places(value, limit=20_000):
    """All containers in plain data with a key of each: (container, key)."""
    found, waiting = [], [value]
    while waiting and len(found) < limit:
        inner = waiting.pop()
        keys = list(inner) if isinstance(inner, dict) else list(range(len(inner))) if isinstance(inner, list) else []
        for key in keys:
            found.append((inner, key))
            if isinstance(inner[key], (dict, list)):
                waiting.append(inner[key])
            elif isinstance(inner[key], tuple):
                waiting.append(list(inner[key]))
    return found


def nodes_of(value, kind):
    """All nodes of a kind in a checkpoint's state."""
    return [c[k] for c, k in places(value, 10**6) if isinstance(c[k], list) and c[k] and c[k][0] == kind]


CLASSES = (
    *("os:system", "subprocess:Popen", "builtins:eval", "builtins:exec", "builtins:open", "builtins:object"),
    *("torch.utils.data.datapipes.dataframe.dataframes:CaptureVariable", "torch.nn.modules.module:Module"),
    *("torch.utils.data.datapipes.dataframe.dataframes:CaptureCall", "torch.utils.data.dataloader:DataLoader"),
    *("torch.nn.modules.container:Sequential", "torch.nn.modules.conv:Conv2d", "torch.nn.parameter:Parameter"),
    *("avalanche.training.plugins.ewc:EWCPlugin", "avalanche.training.templates.base:BaseTemplate"),
    *("avalanche.evaluation.metrics.mean:Mean", "torch.optim.sgd:SGD", "torch.optim.lr_scheduler:LambdaLR"),
    *("avalanche.training.storage_policy:ReservoirSamplingBuffer", "collections:Counter", "pathlib:PosixPath"),
    *("avalanche_contrastive.plugins.csd:CSDPlugin", "avalanche_contrastive.plugins.views:ViewMaker", "", ":", "a"),
)
NAMES = (
    *("forward", "before_training", "after_training_exp", "train", "__class__", "__dict__", "__deepcopy__", "__len__"),
    *("_compiled_call_impl", "_orig_mod", "_forward_hooks", "_parameters", "_modules", "objective", "criterion", "x"),
    *("plugins", "plugins[7]", "experience", "mbatch", "dataloader", "loggers", "default_factory", ""),
)
KINDS = (
    *("same", "tensor", "parameter", "array", "scalar", "tuple", "list", "set", "frozenset", "deque", "dict", "random"),
    *("dtype", "device", "enum", "configuration", "object", "optimizer", "samples", "iterator", "call", ""),
)


def values(draw):
    """Something else to stand anywhere."""
    number = draw.choice([0, 1, -1, 2, 7, 255, 2**31, 2**33, 2**63, -(2**63), 2**70, 10**18])
    tensor = draw.choice(
        [
            *(
                torch.zeros(0),
                torch.zeros(3),
                torch.full((2,), float("nan")),
                torch.tensor(5),
                torch.zeros(2, 3).half(),
            ),
            *(torch.tensor([2**40, -1]), torch.tensor([True]), torch.zeros(1, 1, 1, 1, 1), torch.zeros(0, 4)),
        ]
    ).clone()
    name = draw.choice(
        [*CLASSES, *NAMES, "x" * 10_000, "\ud800".encode("utf8", "surrogatepass").decode("utf8", "replace")]
    )
    kind = draw.choice(KINDS)
    node = draw.choice(
        [
            *(["same", number], ["object", number, name, {}], ["object", 10**6, name, {draw.choice(NAMES): number}]),
            *(
                ["configuration", name],
                ["list", 10**6, [number, name]],
                ["dict", 10**6, "dict", [[name, number]], None],
            ),
            *(
                ["optimizer", 10**6, name],
                ["tensor", 10**6, tensor, True, False],
                ["parameter", 10**6, tensor, True, True],
            ),
            *(["iterator", 10**6, "cycle", [[1]], number], ["set", 10**6, [number] * 3], [kind], [kind, number, name]),
            ["samples", 10**6, name, "train", {"a": 3}, torch.tensor([0]), torch.tensor([9]), False, None],
        ]
    )
    some = [
        None,
        True,
        False,
        number,
        0.5,
        float("inf"),
        float("nan"),
        name,
        kind,
        tensor,
        node,
        [],
        {},
        (),
        [number],
        {name: node},
    ]
    return draw.choice(some)


def mutated(content, draw):
    """A copy of a checkpoint's content with one to three changes."""
    content = copy.deepcopy(content)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        everywhere = places(content)
        container, key = draw.choice(everywhere)
        how = draw.randrange(8)
        if how == 0:
            del container[key]
        elif how in (1, 2):
            container[key] = values(draw)
        elif how == 3:  # a part from elsewhere
            other, there = draw.choice(everywhere)
            container[key] = copy.deepcopy(other[there])
        elif how == 4 and isinstance(container, list):
            container.insert(draw.randrange(len(container) + 1), values(draw))
        elif how == 5 and isinstance(container, dict):
            container[draw.choice(NAMES)] = values(draw)
        elif how == 6:  # near what was there
            container[key] = near(container[key], draw)
        else:
            nodes = [c[k] for c, k in everywhere if isinstance(c[k], list) and c[k] and c[k][0] in KINDS]
            node = draw.choice(nodes)
            place = draw.randrange(len(node))
            node[place] = draw.choice([values(draw), near(node[place], draw)])
    return content


def near(value, draw):
    """A value like another one."""
    if isinstance(value, bool) or value is None:
        return draw.choice([True, False, None, 0])
    if isinstance(value, (int, float)):
        return value + draw.choice([-1, 1, 100, 0.5])
    if isinstance(value, str):
        return draw.choice([value[:-1], value + "x", value.upper(), draw.choice(CLASSES), draw.choice(KINDS)])
    if isinstance(value, torch.Tensor):
        changed = [
            value.reshape(-1),
            value[:-1] if value.ndim else value,
            value.double(),
            value.to(torch.int64),
            value + value,
        ]
        return draw.choice([*changed, value.new_zeros((*value.shape, 2)), value.new_zeros(0)]).clone()
    if isinstance(value, (list, tuple)):
        changed = list(value)
        draw.shuffle(changed)
        return draw.choice([changed, list(value) * 2, list(value)[:-1], tuple(value)])
    return dict(list(value.items())[:-1]) if isinstance(value, dict) else value


def in_bytes(data, draw):
    """A file with some of its bytes changed; sometimes those of its pickle only, with right check sums."""

    def change(name, old):
        return broken(old, draw) if name.endswith("data.pkl") else old

    return broken(data, draw) if draw.random() < 0.4 else rezipped(data, change)


def broken(data, draw):
    """Bytes that are cut, repeated, overwritten or flipped."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 5])):
        place, length = draw.randrange(len(changed)), draw.choice([1, 1, 1, 2, 8, 100])
        how = draw.randrange(5)
        if how == 0:
            changed[place] ^= 1 << draw.randrange(8)
        elif how == 1:
            changed[place : place + length] = draw.randbytes(length)
        elif how == 2:
            del changed[place : place + length]
        elif how == 3:
            changed[place:place] = changed[place : place + length]
        else:
            changed[place] = draw.choice(b"\x00\xff.(]}t)RQcbhqrj\x8a\x85K" + bytes([draw.randrange(256)]))
        if not changed:
            break
    return bytes(changed)
