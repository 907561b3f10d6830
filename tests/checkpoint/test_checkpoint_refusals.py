"""What is refused, with the reason: files, strategies and moments; nothing is changed by it, and no old file lost."""

import contextlib
import os
import pickle
import resource
import signal
import threading
import zipfile

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EWCPlugin, ReplayPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from helpers.hostile import nodes_of
from helpers.resuming import METHODS, build, classifier, common, differing, ending, go_on, sgd
from helpers.streams import Images, make_benchmark, make_encoder
from torch import nn

from avalanche_contrastive import SSIL, BatchAugmentation, ContrastiveModel, CSDPlugin, checkpoint
from avalanche_contrastive.checkpoint import CheckpointError, MismatchError
from avalanche_contrastive.metrics import retrieval_metrics


def stream(**named):
    return make_benchmark("A", per_class=6, **named)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of each method after two experiences."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    for name in METHODS:
        go_on(build(name), stream(), 0, 2, folder / f"{name}.pt")
    return folder


def refused(strategy, path, error, match, **named):
    """Restoring fails with these words and leaves the strategy as it was."""
    before = ending(strategy)
    state = torch.get_rng_state()
    plugins = list(strategy.plugins)
    with pytest.raises(error, match=match) as caught:
        checkpoint.restore(strategy, path, **named)
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    after = ending(strategy)
    assert [key for key in differing(before, after) if key != "draws"] == []
    assert strategy.plugins == plugins
    return str(caught.value)


# ---- files


def test_a_file_that_is_cut_short(saved, tmp_path):
    data = (saved / "SSIL.pt").read_bytes()
    for share in (0.999, 0.9, 0.5, 0.1, 0.001):
        (tmp_path / "cut.pt").write_bytes(data[: int(share * len(data))])
        refused(build("SSIL"), tmp_path / "cut.pt", CheckpointError, "cut short or damaged")


def test_a_file_with_a_broken_byte(saved, tmp_path):
    data = bytearray((saved / "SSIL.pt").read_bytes())
    with zipfile.ZipFile(saved / "SSIL.pt") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    data[largest.header_offset + 400] ^= 1
    (tmp_path / "broken.pt").write_bytes(bytes(data))
    refused(build("SSIL"), tmp_path / "broken.pt", CheckpointError, f"damaged .*{largest.filename}")


def test_files_that_are_none(tmp_path):
    strategy, path = build("CSD"), tmp_path / "a.pt"
    with pytest.raises(FileNotFoundError, match=r"a\.pt"):
        checkpoint.restore(strategy, path)
    path.write_bytes(b"")
    refused(strategy, path, CheckpointError, "the file is empty")
    path.write_text("a text")
    refused(strategy, path, CheckpointError, "not a checkpoint: it is no file that torch.save writes")
    path.unlink()
    path.mkdir()
    refused(strategy, path, CheckpointError, "this is a folder")
    with pytest.raises(CheckpointError, match="this is a folder"):
        checkpoint.save(strategy, path)
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    refused(strategy, tmp_path / "b.zip", CheckpointError, "not a checkpoint")


class Trap:
    """A pickle that would leave a trace if anyone read it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


@pytest.mark.parametrize("kind", ["pickle", "torch", "within"])
def test_code_in_a_file_is_never_run(saved, tmp_path, kind):
    trap, path = Trap(tmp_path / "trace"), tmp_path / "trap.pt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(trap))
    elif kind == "torch":
        torch.save({"format": checkpoint.FORMAT, "version": 1, "state": trap}, path)
    else:
        torch.save(torch.load(saved / "CSD.pt", weights_only=True) | {"extra": trap}, path)
    words = refused(build("CSD"), path, CheckpointError, "not a checkpoint")
    assert "Nothing in it was run" in words
    with pytest.raises(CheckpointError):
        checkpoint.extra_of(path)
    assert not (tmp_path / "trace").exists()


def test_plain_data_that_is_no_checkpoint(tmp_path):
    strategy = build("CSD")
    torch.save(strategy.model.state_dict(), tmp_path / "model.pt")
    refused(strategy, tmp_path / "model.pt", CheckpointError, "Is it a model's state dict")
    torch.save([1, 2], tmp_path / "list.pt")
    refused(strategy, tmp_path / "list.pt", CheckpointError, "it is no checkpoint of avalanche_contrastive")


def test_a_newer_format(saved, tmp_path):
    content = torch.load(saved / "CSD.pt", weights_only=True)
    torch.save(content | {"version": checkpoint.VERSION + 1}, tmp_path / "new.pt")
    refused(build("CSD"), tmp_path / "new.pt", CheckpointError, f"of format {checkpoint.VERSION + 1}.* Update it")


@pytest.mark.parametrize("layout", ["the same fields", "other fields", "only the version"])
def test_an_older_format_is_named_whatever_else_is_in_the_file(saved, tmp_path, layout):
    """Its fields may be other ones, and that is no damage."""
    content = torch.load(saved / "CSD.pt", weights_only=True) | {"version": checkpoint.VERSION - 1}
    if layout == "other fields":
        content = {name: value for name, value in content.items() if name not in ("state", "optimizers")} | {"root": 0}
    elif layout == "only the version":
        content = {name: content[name] for name in ("format", "version")}
    torch.save(content, tmp_path / "old.pt")
    words = f"of format {checkpoint.VERSION - 1}, written by.*reads format {checkpoint.VERSION}. Go on with that one"
    refused(build("CSD"), tmp_path / "old.pt", CheckpointError, words)


@pytest.mark.parametrize("target", ["a folder", "a pipe", "a link to a pipe"])
def test_save_replaces_files_only(target, tmp_path):
    path = tmp_path / "here"
    if target == "a folder":
        path.mkdir()
    else:
        os.mkfifo(path)
        if target == "a link to a pipe":
            path = tmp_path / "link"
            path.symlink_to(tmp_path / "here")
    kind = path.stat().st_mode
    with pytest.raises(CheckpointError, match=r"a checkpoint is a file, and this is a (folder|device or a pipe)"):
        checkpoint.save(build("CSD"), path)
    assert path.stat().st_mode == kind


def test_arguments_in_the_wrong_places(saved, tmp_path):
    strategy, path = build("CSD"), saved / "CSD.pt"
    for wrong in (strategy.model, path, None):
        with pytest.raises(TypeError, match=r"a strategy of Avalanche's comes first, then a path; got \w+ first"):
            checkpoint.save(wrong, strategy)
        with pytest.raises(TypeError, match="comes first, then a path"):
            checkpoint.restore(wrong, path)
    for wrong in (make_benchmark("A"), 3, [make_benchmark("A").train_stream]):
        with pytest.raises(MismatchError, match=r"stream= is no stream: \w+\. .*benchmark\.train_stream"):
            checkpoint.restore(strategy, path, stream=wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", ["no such kind", "no such class", "a function of os", "a part is missing", "a loop"])
def test_forged_content(saved, tmp_path, change):
    """Names of classes outside the known packages, and what no ``save`` writes."""
    content = torch.load(saved / "CSD.pt", weights_only=True)
    (plugin,) = (n for n in nodes_of(content["state"], "object") if n[2].endswith(":CSDPlugin"))
    plugin[3]["terms"] = {
        "no such kind": ["call", 10**6, "os:system", "true"],
        "no such class": ["object", 10**6, "subprocess:Popen", {"args": "true"}],
        "a function of os": ["iterator", 10**6, "os:walk", [["list", 10**6 + 1, ["/"]]], 1],
        "a part is missing": ["same", 10**6],
        "a loop": ["list", 10**6, [["same", 10**6]]],  # that holds itself
    }[change]
    torch.save(content, tmp_path / "forged.pt")
    refused(build("CSD"), tmp_path / "forged.pt", CheckpointError, ".")


# ---- strategies

OTHERS = {
    "method": (lambda: build("CSD"), r"another strategy: \S*SSIL there, \S*CSD here"),
    "width": (lambda: build("SSIL", model=classifier(width=16)), r"model.*weight is \(8, 1, 3, 3\).*\(16, 1, 3, 3\)"),
    "head": (lambda: build("SSIL", model=classifier(nn.Linear(8, 10))), "IncrementalClassifier in the file, Linear"),
    "model": (lambda: build("SSIL", model=ContrastiveModel(make_encoder(8), 8)), "another model: .*Sequential there"),
    "layers": (lambda: build("SSIL", model=nn.Sequential(*classifier(), nn.ReLU())), "only in this model"),
    "precision": (lambda: build("SSIL", model=classifier().double()), "float32 in the file.*float64 here"),
    "plugin": (lambda: build("SSIL", plugins=[EWCPlugin(1.0)]), "another plugin: .*EWCPlugin.* here"),
    "metrics": (lambda: build("SSIL", **common_with_recall()), "another metric: .* here"),
    "temperature": (lambda: build("SSIL", temperature=3.0), r"plugins\[0\].temperature is 2.0 in the file, 3.0 here"),
    "memory": (lambda: build("SSIL", mem_size=13), r"mem_size is 12 in the file, 13 here"),
    "storage": (
        lambda: build("SSIL", storage_policy=ReservoirSamplingBuffer(12)),
        "ClassBalancedBuffer in the file, ReservoirSamplingBuffer here",
    ),
    "batch": (lambda: build("SSIL", train_mb_size=16), r"strategy.train_mb_size is 8 in the file, 16 here"),
    "criterion": (lambda: build("SSIL", criterion=nn.MSELoss()), "CrossEntropyLoss in the file, MSELoss here"),
    "rate": (lambda: build("SSIL", optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9)), "lr is"),
    "optimiser": (lambda: build("SSIL", optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=0.05)), "SGD.*Adam"),
}


def common_with_recall():
    from helpers.resuming import evaluator

    return {"evaluator": evaluator(retrieval_metrics(ks=(1,)))}


@pytest.mark.parametrize("other", OTHERS)
def test_another_strategy(saved, other):
    make, words = OTHERS[other]
    refused(make(), saved / "SSIL.pt", MismatchError, words)


def test_an_augmentation_more_or_less(saved, tmp_path):
    other = build("Co2L", augmentation=BatchAugmentation(scale=(0.5, 1.0)))
    refused(
        other, saved / "Co2L.pt", MismatchError, r"augmentation.scale is \(0\..*, 1.0\) in the file, \(0.5, 1.0\) here"
    )
    refused(build("Co2L", augmentation=None), saved / "Co2L.pt", MismatchError, "augmentation is given in the file")


def test_several_differences_are_named_together(saved):
    words = refused(build("SSIL", temperature=3.0, weight=2.0), saved / "SSIL.pt", MismatchError, "other options")
    assert "temperature" in words
    assert "weight" in words


def test_a_strategy_that_has_been_trained(saved):
    strategy = build("SSIL")
    strategy.train(stream().train_stream[0])
    refused(strategy, saved / "SSIL.pt", CheckpointError, "has not been trained, this one has seen 1 experiences")


def test_the_same_file_still_works_afterwards(saved):
    strategy = build("SSIL")
    refused(strategy, saved / "CSD.pt", MismatchError, "another strategy")
    assert checkpoint.restore(strategy, saved / "SSIL.pt") == 2
    go_on(strategy, stream(), 2)
    assert len(strategy.method.ledger) == 5


# ---- streams


def test_another_stream_at_once(saved):
    words = "are not of this stream"
    for other in (stream(order=range(10)), make_benchmark("A", per_class=7)):
        if other.train_stream[0].dataset.targets.uniques == {3, 8}:
            refused(build("SSIL"), saved / "SSIL.pt", MismatchError, words, stream=other.train_stream)
    darker = stream(transform=lambda x: x / 2)
    refused(build("SSIL"), saved / "SSIL.pt", MismatchError, words, stream=darker.train_stream)


def test_another_stream_when_training_goes_on(saved):
    strategy = build("SSIL")
    done = checkpoint.restore(strategy, saved / "SSIL.pt")
    with pytest.raises(MismatchError, match="Is it the same benchmark, with the same seed and transforms"):
        strategy.train(make_benchmark("A", per_class=7).train_stream[done])


# ---- moments and what cannot be saved


class Saving(SupervisedPlugin):
    """Saves from within training, or evaluation."""

    def __init__(self, path, hook):
        super().__init__()
        self.caught = []
        setattr(self, hook, lambda strategy, **kwargs: self.attempt(strategy, path))

    def attempt(self, strategy, path):
        with pytest.raises(CheckpointError, match="works between experiences"):
            checkpoint.save(strategy, path)
        self.caught.append(strategy.clock.train_exp_counter)


@pytest.mark.parametrize(
    "hook", ["before_training", "after_training_exp", "after_training", "after_eval_exp", "after_eval"]
)
def test_within_training_or_evaluation(tmp_path, hook):
    plugin = Saving(tmp_path / "a.pt", hook)
    strategy = build("CSD", plugins=[plugin])
    go_on(strategy, stream(), 0, 1)
    assert plugin.caught
    assert not list(tmp_path.iterdir())


def test_after_an_error_within_an_experience(tmp_path):
    strategy = build("CSD")
    strategy.train_mb_size = 0
    with pytest.raises(ValueError, match="mb_size"):
        strategy.train(stream().train_stream[0])
    with pytest.raises(CheckpointError, match="or an error ended one of them"):
        checkpoint.save(strategy, tmp_path / "a.pt")


class Sub(torch.Tensor):
    pass


UNSAVABLE = {
    "generator": (lambda: started(), r"strategy.plugins\[0\].kept, a generator: it has been drawn from"),
    "tensor": (lambda: torch.zeros(3).as_subclass(Sub), r"plugins\[0\].kept, a Sub: it is a subclass of tensor"),
    "list": (lambda: type("Bag", (list,), {})(), r"plugins\[0\].kept, a Bag: it is a subclass of list"),
    "deep": (lambda: {"a": [None, started()]}, r"plugins\[0\].kept\['a'\]\[1\], a generator"),
    "iterator": (lambda: iter([1, 2]), r"plugins\[0\].kept, a list_iterator: it has been drawn from, or nothing"),
    "array": (lambda: __import__("numpy").array(["a"]), "its values are of type <U1"),
}


def started():
    generator = (number for number in range(3))
    next(generator)
    return generator


@pytest.mark.parametrize("kind", UNSAVABLE)
def test_what_cannot_be_saved_exactly_is_named(tmp_path, kind):
    make, words = UNSAVABLE[kind]
    plugin = SupervisedPlugin()
    plugin.kept = make()
    strategy = build("CSD", plugins=[])
    strategy.plugins[0] = plugin
    with pytest.raises(CheckpointError, match=words):
        checkpoint.save(strategy, tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_samples_that_are_not_of_the_stream(tmp_path):
    model = classifier(nn.Linear(8, 10))
    replay = ReplayPlugin(8)
    strategy = Naive(model=model, optimizer=sgd(model), plugins=[replay], **common())
    other = make_benchmark("A", per_class=5)
    strategy.train(other.train_stream[0])
    checkpoint.save(strategy, tmp_path / "a.pt", stream=other.train_stream)
    with pytest.raises(CheckpointError, match="the stored samples are not of this stream"):
        checkpoint.save(strategy, tmp_path / "a.pt", stream=stream().train_stream)


def test_a_parameter_that_nothing_holds(tmp_path):
    strategy = build("CSD")
    hidden = nn.Parameter(torch.zeros(2))
    hidden.grad = torch.ones(2)
    strategy.optimizer.add_param_group({"params": [hidden]})
    with pytest.raises(CheckpointError, match=r"trains a parameter of shape \(2,\) that no attribute"):
        checkpoint.save(strategy, tmp_path / "a.pt")
    hidden.grad = None  # as what Avalanche leaves behind when a head grows
    checkpoint.save(strategy, tmp_path / "a.pt")


def test_data_sets_that_cannot_be_distinguished(tmp_path):
    """Two data sets that look alike but are not: no index would be sure."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline
    from avalanche.benchmarks.utils import _make_taskaware_classification_dataset as task_aware

    class Hidden(Images):
        def __init__(self, x, y):
            super().__init__(x, y)
            self._secret, self.tensors = x, (torch.zeros(len(y)),)

        def __getitem__(self, index):
            return self._secret[index], self.targets[index]

    parts = [Hidden(torch.rand(10, 1, 8, 8), torch.arange(10)) for _ in range(2)]
    benchmark = with_classes_timeline(
        benchmark_from_datasets(train=[task_aware(part) for part in parts], test=[task_aware(parts[0])])
    )
    model = classifier(nn.Linear(8, 10))
    strategy = Naive(model=model, optimizer=sgd(model), plugins=[ReplayPlugin(8)], **common())
    strategy.train(benchmark.train_stream[0])
    with pytest.raises(MismatchError, match="2 data sets that look alike"):
        checkpoint.save(strategy, tmp_path / "a.pt", stream=benchmark.train_stream)


# ---- whole or not at all


@contextlib.contextmanager
def file_sizes_limited(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_leaves_the_old_file(saved, tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes((saved / "CSD.pt").read_bytes())
    strategy = build("CSD")
    go_on(strategy, stream(), 0, 3)
    with file_sizes_limited(4096), pytest.raises(OSError, match=r"could not write .*a\.pt: File too large"):
        checkpoint.save(strategy, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == (saved / "CSD.pt").read_bytes()
    assert checkpoint.restore(build("CSD"), path) == 2


def test_a_link_stays_one_and_old_remains_are_removed(tmp_path):
    target, link = tmp_path / "folder" / "a.pt", tmp_path / "link.pt"
    target.parent.mkdir()
    link.symlink_to(target)
    young, old = (target.parent / f".a.pt.{name}.part" for name in ("x", "y"))
    young.write_text("being written")
    old.write_text("of a process that was killed")
    os.utime(old, (0, 0))
    checkpoint.save(build("CSD"), link)
    assert link.is_symlink()
    assert checkpoint.restore(build("CSD"), target) == 0
    assert sorted(target.parent.iterdir()) == sorted([target, young])


def test_a_lock_or_a_thread_of_a_logger_is_no_obstacle(tmp_path):
    """What connects to the outside is the fresh strategy's own."""
    plugin = CSDPlugin()
    plugin.lock, plugin.print = threading.Lock(), print
    model = classifier()
    strategy = Naive(model=model, optimizer=sgd(model), plugins=[plugin], **common())
    go_on(strategy, stream(), 0, 1, tmp_path / "a.pt")
    other = CSDPlugin()
    other.lock, other.print = threading.Lock(), print
    model = classifier()
    fresh = Naive(model=model, optimizer=sgd(model), plugins=[other], **common())
    lock = other.lock
    assert checkpoint.restore(fresh, tmp_path / "a.pt") == 1
    assert other.lock is lock
    assert other.ledger == plugin.ledger


def test_the_objects_that_the_user_holds_are_the_restored_ones(saved):
    model = classifier()
    optimizer = sgd(model)
    strategy = SSIL(model=model, optimizer=optimizer, **common(mem_size=12, batch_size_mem=4))
    method, policy, parameter = strategy.method, strategy.method.storage_policy, model[0][0].weight
    checkpoint.restore(strategy, saved / "SSIL.pt")
    assert strategy.model is model
    assert strategy.optimizer is optimizer
    assert strategy.plugins[1] is method or strategy.plugins[0] is method
    assert method.storage_policy is policy
    assert model[0][0].weight is parameter
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert method.teacher is not model
    assert not any(p.requires_grad for p in method.teacher.parameters())
