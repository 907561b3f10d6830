"""Files that were forged by hand: what a stranger may put into a checkpoint, and what has become of the strategy."""

import copy

import pytest
import torch
from avalanche.training.plugins import SupervisedPlugin
from helpers.hostile import attempt, content_of, nodes_of
from helpers.resuming import METHODS, build, go_on, saved_files
from helpers.streams import make_benchmark
from torch import nn

from avalanche_contrastive import checkpoint

NEW = 10**6  # a number that no node of a file has


@pytest.fixture(scope="module")
def contents(tmp_path_factory):
    """The content of a checkpoint of each method, after two experiences."""
    return {name: content_of(path) for name, path in saved_files(tmp_path_factory.mktemp("saved")).items()}


def object_of(content, name):
    """The attributes of the first object of a class in a file."""
    return next(node[3] for node in nodes_of(content["state"], "object") if node[2].endswith(f":{name}"))


def refuse(contents, name, forge, tmp_path):
    content = copy.deepcopy(contents[name])
    forge(content)
    torch.save(content, tmp_path / "forged.pt")
    error = attempt(build(name), tmp_path / "forged.pt")
    assert error is not None, "it was restored"
    assert str(tmp_path / "forged.pt") in str(error) or "the checkpoint is of" in str(error)


# ---- the header

WRONG = {"missing": ..., "None": None, "number": 7, "flag": True, "text": "x", "list": [], "dict": {}, "float": 0.5}
FIELDS = [
    *("format", "version", "versions", "strategy", "model", "plugins", "metrics", "device", "done", "random"),
    "state",
]


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("field", [*FIELDS, "optimizers", "extra"])
def test_a_header_that_is_missing_or_of_another_type(contents, field, wrong, tmp_path):
    def forge(content):
        if wrong == "missing":
            del content[field]
        else:
            content[field] = copy.deepcopy(WRONG[wrong])

    if (field, wrong) in {("device", "text"), ("extra", "list")}:
        pytest.skip("as it may be")
    refuse(contents, "CSD", forge, tmp_path)


HEADERS = {
    "versions without ours": lambda c: c["versions"].pop("avalanche-contrastive"),
    "a version that is no text": lambda c: c["versions"].update(torch=2),
    "an older format": lambda c: c.update(version=checkpoint.VERSION - 1),
    "a newer format": lambda c: c.update(version=checkpoint.VERSION + 1),
    "a format of 2^1900": lambda c: c.update(version=2**1900),
    "less done": lambda c: c.update(done=1),
    "more done": lambda c: c.update(done=3),
    "done is negative": lambda c: c.update(done=-2),
    "done is 2^70": lambda c: c.update(done=2**70),
    "the clock is less": lambda c: object_of(c, "Clock").update(train_exp_counter=1),
    "the clock is a text": lambda c: object_of(c, "Clock").update(train_iterations="x"),
    "the clock is negative": lambda c: object_of(c, "Clock").update(total_iterations=-1),
    "a plugin more": lambda c: c["plugins"].append("avalanche.training.plugins.ewc:EWCPlugin"),
    "a plugin less": lambda c: c["plugins"].pop(),
    "a plugin that is no text": lambda c: c["plugins"].__setitem__(0, ["x"]),
    "plugins in another order": lambda c: c["plugins"].reverse() or c["plugins"].append(c["plugins"][0]),
    "a metric more": lambda c: c["metrics"].append("avalanche.evaluation.metrics.loss:EpochLoss"),
    "no random state": lambda c: c.update(random=[]),
    "random states of two processes": lambda c: c["random"].append(c["random"][0]),
    "a random state that is nothing": lambda c: c.update(random=[None]),
    "a random state that is no dict": lambda c: c.update(random=[["list", 0, []]]),
}


def of_random(content, package, change):
    """Change the state of one of the random generators."""
    pairs = content["random"][0][3]
    kept = next(node for name, node in pairs if name == package)
    kept[3][0][1] = change(kept[3][0][1])


HEADERS |= {
    "a random state is missing": lambda c: c["random"][0][3].pop(),
    "torch's random state is cut": lambda c: of_random(c, "torch", lambda n: [*n[:2], n[2][:-1].clone(), *n[3:]]),
    "torch's random state is of ones": lambda c: of_random(
        c, "torch", lambda n: [*n[:2], torch.ones_like(n[2]) * 255, *n[3:]]
    ),
    "torch's random state is of floats": lambda c: of_random(c, "torch", lambda n: [*n[:2], n[2].float(), *n[3:]]),
    "numpy would read beyond its numbers": lambda c: of_random(
        c, "numpy", lambda n: [*n[:2], [*n[2][:2], 10**6, *n[2][3:]]]
    ),
    "numpy's state is of another kind": lambda c: of_random(c, "numpy", lambda n: [*n[:2], ["PCG64", *n[2][1:]]]),
    "Python's random state is cut": lambda c: of_random(c, "random", lambda n: [*n[:2], n[2][:2]]),
    "Python's random state is a text": lambda c: of_random(c, "random", lambda n: "x"),
}


@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_does_not_fit(contents, what, tmp_path):
    refuse(contents, "CSD", HEADERS[what], tmp_path)


# ---- classes, and attributes that the code calls

DATAPIPES = "torch.utils.data.datapipes.dataframe.dataframes"
CLASSES = [
    *(
        f"{DATAPIPES}:{name}"
        for name in ("Capture", "CaptureVariable", "CaptureCall", "CaptureA", "CaptureF", "CaptureGetItem")
    ),
    *("os:system", "subprocess:Popen", "builtins:eval", "builtins:type", "builtins:object", "pathlib:PosixPath", ""),
    *("torch.nn.modules.container:Sequential", "torch.nn.modules.lazy:LazyModuleMixin", "functools:partial"),
    *("torch.optim.lr_scheduler:LambdaLR", "torch.optim.adam:Adam", "torch.utils.data.dataloader:DataLoader"),
    *("avalanche.training.plugins.ewc:EWCPlugin", "avalanche.training.plugins.evaluation:EvaluationPlugin"),
    *("avalanche.logging.csv_logger:CSVLogger", "avalanche_contrastive.parallel.plugin:DataParallel"),
    *(
        "avalanche_contrastive.plugins.csd:CSDPlugin",
        "avalanche_contrastive.checkpoint.samples:LookUp",
        5,
        None,
        ["list"],
    ),
]


@pytest.mark.parametrize("cls", CLASSES, ids=str)
@pytest.mark.parametrize("where", ["plugin", "param_groups", "params", "results", "memory"])
def test_an_object_of_a_class_that_is_not_on_the_list(contents, cls, where, tmp_path):
    def forge(content):
        new = [
            "object",
            NEW,
            cls,
            {"ctx": {"calls": [], "schema_df": None}, "name": "x", "args": "touch /tmp/avalanche_contrastive.trap"},
        ]
        if where == "plugin":
            object_of(content, "SSILPlugin")["kept"] = new
        elif where == "results":
            object_of(content, "EvaluationPlugin")["all_metric_results"][3].append(["x", new])
        elif where == "memory":
            object_of(content, "ClassBalancedBuffer")["buffer_groups"][3][0][1] = new
        else:
            groups = content["optimizers"][0][3]
            if where == "param_groups":
                content["optimizers"][0][3] = new
            else:
                pairs = groups[2][0][3]
                pairs[[name for name, _ in pairs].index("params")][1] = new

    refuse(contents, "SSIL", forge, tmp_path)


NAMES = {
    "SSIL": [
        *("plugins", "plugins[9]", "forward", "criterion", "experience", "is_training", "mbatch", "mb_output", "loss"),
        *("dataloader", "adapted_dataset", "current_eval_stream", "_eval_streams", "train", "__class__", "__dict__"),
        *("_stop_training", "_before_training_exp", "device.type", "a b", "", "__deepcopy__", "__getstate__"),
    ],
    "SSILPlugin": [
        "before_training",
        "after_training_exp",
        "objective",
        "__class__",
        "__call__",
        "forward_pass",
        "teacher_of",
    ],
    "EvaluationPlugin": [
        "before_eval",
        "get_all_metrics",
        "publish_metric_value",
        "__class__",
        "reset_last_metrics",
    ],
    "Sequential": [
        *("forward", "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_compiled_call_impl", "_call_impl"),
        *("_state_dict_hooks", "_load_state_dict_pre_hooks", "__class__", "__call__", "to", "eval", "requires_grad_"),
        *("call_super_init", "dump_patches", "T_destination", "_version", "__annotations__"),
    ],
    "Conv2d": ["forward", "_conv_forward", "_forward_pre_hooks", "__constants__"],
    "Mean": ["update", "__class__", "reset"],
    "ClassBalancedBuffer": ["update", "buffer", "post_adapt", "__class__", "get_group_lengths"],
}
VALUES = {
    "function": ["configuration", "torch:zeros"],
    "text": "touch /tmp/avalanche_contrastive.trap",
    "hooks": ["dict", NEW, "OrderedDict", [[0, ["configuration", "torch:zeros"]]], None],
    "list": ["list", NEW, [["configuration", "torch:zeros"]]],
}


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls, names in NAMES.items() for name in names])
@pytest.mark.parametrize("value", VALUES)
def test_an_attribute_that_the_code_would_call_or_go_through(contents, cls, name, value, tmp_path):
    def forge(content):
        attributes = content["state"] if cls == "SSIL" else object_of(content, cls)
        attributes[name] = copy.deepcopy(VALUES[value])

    refuse(contents, "SSIL", forge, tmp_path)


# ---- what stands at a place of the strategy


def at(content, *path):
    """A part of a file by attributes."""
    node = ["object", 0, "", content["state"]]
    for name in path:
        node = node[3][name] if node[0] == "object" else next(n for key, n in node[3] if key == name)
    return node


def groups_of(content):
    return content["optimizers"][0][3]


def set_in_group(content, name, value):
    pair = next(pair for pair in groups_of(content)[2][0][3] if pair[0] == name)
    pair[1] = value(pair[1]) if callable(value) else value


def set_samples(content, place, change):
    node = next(node for node in nodes_of(content["state"], "samples") if len(node[place]) > 0)
    node[place] = change(node[place])


def state_of_first(content):
    """The state that the optimiser has of its first parameter, by name."""
    return content["optimizers"][0][4][2][0][2][1][3]


PLACES = {
    "groups are a dict": lambda c: c["optimizers"][0].__setitem__(3, ["dict", NEW, "dict", [], None]),
    "groups are a text": lambda c: c["optimizers"][0].__setitem__(3, "touch"),
    "groups are empty": lambda c: groups_of(c).__setitem__(2, []),
    "a group too many": lambda c: groups_of(c)[2].append(
        ["dict", NEW, "dict", [["params", ["list", NEW + 1, []]]], None]
    ),
    "a group is a list": lambda c: groups_of(c)[2].__setitem__(0, ["list", NEW, [1]]),
    "a group without params": lambda c: groups_of(c)[2][0][3].pop(0),
    "a group with an option more": lambda c: groups_of(c)[2][0][3].append(["step", 1]),
    "a rate that is a text": lambda c: set_in_group(c, "lr", "0.1"),
    "a rate that is a list": lambda c: set_in_group(c, "lr", ["list", NEW, []]),
    "parameters are a dict": lambda c: set_in_group(c, "params", lambda n: ["dict", NEW, "dict", [["x", n]], None]),
    "parameters twice": lambda c: set_in_group(c, "params", lambda n: [*n[:2], n[2] * 2]),
    "parameters are numbers": lambda c: set_in_group(c, "params", lambda n: [*n[:2], [1, 2]]),
    "parameters are a tensor": lambda c: set_in_group(c, "params", ["list", NEW, torch.zeros(2)]),
    "momentum of another shape": lambda c: state_of_first(c)[0].__setitem__(
        1, ["tensor", NEW, torch.zeros(7), False, False]
    ),
    "momentum is a deque": lambda c: state_of_first(c)[0].__setitem__(1, ["deque", NEW, [], None]),
    "states are a text": lambda c: c["optimizers"][0].__setitem__(4, "x"),
    "an optimiser less": lambda c: c["optimizers"].clear(),
    "an optimiser twice": lambda c: c["optimizers"].append(copy.deepcopy(c["optimizers"][0])),
    "another method of the optimiser": lambda c: c["optimizers"][0][1].update(step=["configuration", "torch:zeros"]),
    "the optimiser's step is data": lambda c: c["optimizers"][0][1].update(step=5),
    "the criterion is a text": lambda c: c["state"].update(_criterion="x"),
    "the criterion is None": lambda c: c["state"].update(_criterion=None),
    "the criterion is a function": lambda c: c["state"].update(_criterion=["configuration", "torch:zeros"]),
    "the criterion is a Mean": lambda c: c["state"].update(
        _criterion=["object", NEW, "avalanche.evaluation.metrics.mean:Mean", {}]
    ),
    "the model is None": lambda c: c["state"].update(model=None),
    "the model is data": lambda c: c["state"].update(model=["list", NEW, []]),
    "the model's parts are a list": lambda c: at(c, "model")[3].update(_modules=["list", NEW, []]),
    "the model has no parts": lambda c: at(c, "model", "_modules").__setitem__(3, []),
    "the model's parts twice": lambda c: at(c, "model", "_modules")[3].append(["2", ["same", at(c, "model")[1]]]),
    "a part is a function": lambda c: at(c, "model", "_modules")[3].append(["2", ["configuration", "torch:zeros"]]),
    "a part is a tensor": lambda c: at(c, "model", "_modules")[3].append(
        ["2", ["tensor", NEW, torch.zeros(1), False, False]]
    ),
    "the evaluator's metrics are fewer": lambda c: object_of(c, "EvaluationPlugin")["metrics"][2].pop(),
    "the evaluator's metrics are swapped": lambda c: object_of(c, "EvaluationPlugin")["metrics"][2].reverse(),
    "a plugin is another one": lambda c: c["state"].update({"plugins[0]": c["state"]["plugins[1]"]}),
    "a plugin is missing": lambda c: c["state"].pop("plugins[0]"),
    "a counter is a text": lambda c: object_of(c, "SSILPlugin").update(mem_size="x"),
    "an option is another": lambda c: object_of(c, "SSILPlugin").update(temperature=3.0),
    "an option is None": lambda c: object_of(c, "SSILPlugin").update(temperature=None),
    "samples beyond their source": lambda c: set_samples(c, 6, lambda x: torch.full_like(x, 100)),
    "samples before their source": lambda c: set_samples(c, 6, lambda x: -torch.ones(len(x), dtype=torch.int64)),
    "samples of no source": lambda c: set_samples(c, 5, lambda x: x + 9),
    "samples in two dimensions": lambda c: set_samples(c, 6, lambda x: x[:, None].clone()),
    "fewer positions": lambda c: set_samples(c, 6, lambda x: x[:-1].clone()),
    "sources of 2^33 samples": lambda c: set_samples(c, 4, lambda sizes: dict.fromkeys(sizes, 2**70)),
    "sources of -1 samples": lambda c: set_samples(c, 4, lambda sizes: dict.fromkeys(sizes, -1)),
    "sources of a text": lambda c: set_samples(c, 4, lambda sizes: dict.fromkeys(sizes, "x")),
    "samples of a class of torch": lambda c: set_samples(c, 2, lambda _: "torch.utils.data.dataset:TensorDataset"),
    "a group of transforms that is no text": lambda c: set_samples(c, 3, lambda _: 5),
    "attributes of samples are a list": lambda c: set_samples(c, 8, lambda _: ["list", NEW, []]),
}


def first_attribute(content):
    return next(node for node in nodes_of(content["state"], "samples") if len(node[5]) > 1)[8][3][0]


PLACES |= {
    "an attribute of samples hides a method": lambda c: first_attribute(c).__setitem__(0, "subset"),
    "an attribute of samples hides its class": lambda c: first_attribute(c).__setitem__(0, "__class__"),
    "an attribute of samples is too short": lambda c: first_attribute(c)[1][2].__setitem__(0, ["list", NEW, [1]]),
}


@pytest.mark.parametrize("what", PLACES)
def test_a_place_with_something_else(contents, what, tmp_path):
    refuse(contents, "SSIL", PLACES[what], tmp_path)


@pytest.mark.parametrize("name", METHODS)
def test_parameters_and_buffers_of_another_shape_or_type(contents, name, tmp_path):
    """Each of a model that does not grow, one by one."""
    count = len([n for kind in ("parameter", "tensor") for n in nodes_of(at(contents[name], "model"), kind)])
    for number in range(count):
        for change in (
            lambda x: x[None].clone(),
            lambda x: x.double(),
            lambda x: x.new_zeros(0, 7, 7),
            lambda x: x.to(torch.int64),
        ):

            def forge(content, number=number, change=change):
                found = [n for kind in ("parameter", "tensor") for n in nodes_of(at(content, "model"), kind)]
                old = found[number][2]
                found[number][2] = (
                    change(old) if change(old).dtype != old.dtype or change(old).shape != old.shape else None
                )

            refuse(contents, name, forge, tmp_path)


# ---- data that would take for ever


def colliding(count):
    return [[i * (2**61 - 1), None] for i in range(count)]


def shared(depth):
    """A list of two lists that are one, of two lists that are one, ..."""
    node = ["list", NEW, [1]]
    for number in range(1, depth):
        node = ["list", NEW + number, [node, ["same", NEW + number - 1]]]
    return node


ENDLESS = {
    "keys that collide": ["dict", NEW, "dict", colliding(20_000), None],
    "a set that collides": ["set", NEW, [key for key, _ in colliding(20_000)]],
    "a list in itself": ["list", NEW, [["same", NEW]]],
    "a dict in itself": ["dict", NEW, "dict", [["a", ["same", NEW]]], None],
    "an object in itself by a list": ["list", NEW, [["list", NEW + 1, [["same", NEW]]]]],
    "shared halves": shared(60),
    "a number twice": ["list", NEW, [["list", NEW, []]]],
    "a number that is none": ["list", "x", []],
    "an array of 2^33": ["array", NEW, torch.zeros(8, dtype=torch.uint8), "<f4", [2**33]],
    "an array of -1": ["array", NEW, torch.zeros(8, dtype=torch.uint8), "<f4", [-3]],
    "an array of objects": ["array", NEW, torch.zeros(8, dtype=torch.uint8), "|O", [1]],
    "a deque of 2^70": ["deque", NEW, [], 2**70],
    "a key that cannot be one": ["dict", NEW, "dict", [[["list", NEW + 1, []], 1]], None],
    "a set of lists": ["set", NEW, [["list", NEW + 1, []]]],
    "a kind of list that there is not": ["dict", NEW, "builtins:type", [], None],
    "an iterator over numbers": ["iterator", NEW, "cycle", [5], 1],
    "an iterator that there is not": ["iterator", NEW, "os:walk", [], 1],
    "a generator that there is not": ["random", NEW, "os", None],
    "a generator with a state that is none": ["random", NEW, "random", 5],
    "a parameter of whole numbers": ["parameter", NEW, torch.zeros(2, dtype=torch.int64), True, False],
    "a tensor that is none": ["tensor", NEW, 5, False, False],
    "an optimiser without a state": ["optimizer", NEW, "torch.optim.sgd:SGD"],
    "an enum that there is not": ["enum", "os:P_NOWAIT", "x"],
    "a type that there is not": ["dtype", "os"],
    "a kind that there is not": ["call", "os:system"],
    "a list of a text": ["list", NEW, "object"],
    "a list of a dict": ["list", NEW, {"a": 1}],
    "a node that is none": ["list", NEW],
    "a node that is empty": [],
    "a node that is a dict": {"list": 1},
    "a node that is a tuple": ("list", NEW, []),
    "a tensor as it is": torch.zeros(3),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_data_that_makes_no_sense_or_takes_for_ever(contents, what, tmp_path):
    refuse(contents, "CSD", lambda c: object_of(c, "CSDPlugin").update(kept=ENDLESS[what]), tmp_path)


class Prompt(SupervisedPlugin):
    """A plugin with a parameter that is in no model."""

    def __init__(self):
        super().__init__()
        self.prompt = nn.Parameter(torch.zeros(3))


IN_ITS_PLACE = {
    "integers": lambda node: [*node[:2], torch.zeros(3, dtype=torch.int64), False, False],
    "truths": lambda node: [*node[:2], torch.zeros(3, dtype=torch.bool), False, False],
    "complex numbers": lambda node: [*node[:2], torch.zeros(3, dtype=torch.complex64), True, False],
    "nothing": lambda node: None,
    "a number": lambda node: 0.5,
    "a tensor": lambda node: ["tensor", *node[1:]],
    "an array": lambda node: ["array", NEW, torch.zeros(12, dtype=torch.uint8), "<f4", [3]],
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_a_parameter_of_the_users_stays_one_of_its_type(what, tmp_path):
    """Its type is not asked before torch fails on it, when half of the state is restored."""
    path = tmp_path / "forged.pt"
    go_on(build("CSD", plugins=[Prompt()]), make_benchmark("A", per_class=6), 0, 1, path)
    content = content_of(path)
    own = object_of(content, "Prompt")
    own["prompt"] = IN_ITS_PLACE[what](own["prompt"])
    torch.save(content, path)
    assert attempt(build("CSD", plugins=[Prompt()]), path) is not None
