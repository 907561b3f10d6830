"""What test_distributed has two processes do: ``torchrun distributed_worker.py FOLDER`` writes what each has found."""

import io
import sys
import traceback
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import torch
from avalanche.benchmarks import nc_benchmark, ni_benchmark
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.models import IncrementalClassifier, MultiHeadClassifier, MultiTaskModule, as_multitask
from avalanche.training import ER_ACE, Cumulative, Naive
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins import (
    EvaluationPlugin,
    EWCPlugin,
    LwFPlugin,
    MIRPlugin,
    ReplayPlugin,
    SupervisedPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from avalanche_contrastive import CSD, SSIL, Co2L, ContrastiveModel, MTContrastiveModel, TwoViews, checkpoint
from avalanche_contrastive._torch import digest
from avalanche_contrastive.parallel.collectives import Rows, average_gradients, processes, rank, split
from avalanche_contrastive.parallel.joining import is_main_process
from avalanche_contrastive.parallel.plugin import DataParallel
from helpers.streams import ORDER, Images, digits, make_benchmark, make_encoder

METHODS = ("co2l", "ssil", "csd", "naive", "replay", "ewc", "lwf", "si")


# ---- pieces


class Cast(nn.Module):
    """Digits come in float32."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def forward(self, x):
        return x.to(self.dtype)


class Net(nn.Module):
    """Batch norm and a head that grows."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.encoder = nn.Sequential(Cast(dtype), make_encoder(8))
        self.head = IncrementalClassifier(8)

    def forward(self, x):
        return self.head(self.encoder(x))


class Heads(MultiTaskModule):
    """A head per task."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.encoder = nn.Sequential(Cast(dtype), make_encoder(8))
        self.head = MultiHeadClassifier(8)

    def forward(self, x, task_labels):
        return self.head(self.encoder(x), task_labels)


class InTurn(Heads):
    """Batch norm, too, gets the rows of one task after the other."""

    forward = MultiTaskModule.forward

    def forward_single_task(self, x, task_label):
        return self.head(self.encoder(x), task_label)


class Halves(Net):
    """Runs its batch in parts of its own."""

    def forward(self, x):
        return torch.cat([super(Halves, self).forward(part) for part in (x[:1], x[1:])])


def wrapped_in_heads():
    net = Net(torch.float64)
    net.head = nn.Linear(8, 2)
    return as_multitask(net, "head")


class Record(SupervisedPlugin):
    """The batches of training by epoch, as plugins see them: the label and a number of each image."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def before_training_epoch(self, strategy, **kwargs):
        self.epochs.append([])

    def after_training_iteration(self, strategy, **kwargs):
        weights = torch.arange(1, strategy.mb_x[0].numel() + 1, dtype=strategy.mb_x.dtype)
        images = [round(float(row.flatten() @ weights), 2) for row in strategy.mb_x]
        self.epochs[-1].append(list(zip(strategy.mb_y.tolist(), images, strict=True)))


class At(SupervisedPlugin):
    """Do something at a hook."""

    def __init__(self, hook, action):
        super().__init__()
        setattr(self, hook, lambda strategy, **kwargs: action(strategy))


class Batches:
    """A loader that nothing is known of."""

    def __init__(self, loader):
        self.batches = loader

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        yield from self.batches


def stream(flavour="A", **options):
    """A few images of two classes per experience; "domains" and "tasks" beside the flavours of make_benchmark."""
    if flavour in ("A", "B", "C"):
        return make_benchmark(flavour, per_class=4, **options)
    train, test = (Images(*part) for part in digits(8 if flavour == "domains" else 4))
    if flavour == "domains":
        return ni_benchmark(train, test, n_experiences=8, task_labels=True, seed=0)
    return nc_benchmark(train, test, n_experiences=5, task_labels=True, fixed_class_order=ORDER)


def build(kind, *, parallel, dtype, plugins=(), model=None, batch=7, evaluator=None, **options):
    """A small strategy; a batch of 7 of 8 images cannot be halved, and leaves one of which a process has none."""
    if model is not None:
        model = model()
    else:
        encoder = nn.Sequential(Cast(dtype), make_encoder(8))
        model = (ContrastiveModel(encoder, 8, 8) if kind == "co2l" else Net(dtype)).to(dtype)
    penalties = {
        "replay": lambda: [ReplayPlugin(10, batch_size=batch, batch_size_mem=3)],
        "ewc": lambda: [EWCPlugin(10.0)],
        "lwf": lambda: [LwFPlugin(1.0)],
        "si": lambda: [SynapticIntelligencePlugin(1.0)],
    }
    common = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        "train_mb_size": batch,
        "eval_mb_size": 64,
        "criterion": nn.CrossEntropyLoss(),
        "evaluator": evaluator or EvaluationPlugin(loggers=[]),
        "plugins": [*penalties.get(kind, list)(), *plugins, *([DataParallel()] if parallel else [])],
    }
    if kind == "co2l":
        own = {"augmentation": partial(torch.flip, dims=[-1]), "mem_size": 10}
        return Co2L(**common, **{**own, "readout_epochs": 5, **options})
    if kind == "ssil":
        return SSIL(**common, **{"mem_size": 10, "batch_size_mem": 3, **options})
    if kind == "csd":
        return CSD(**common, **options)
    return {"cumulative": Cumulative, "er_ace": ER_ACE}.get(kind, Naive)(**common, **options)


def train(kind, *, parallel, dtype=torch.float32, **options):
    """Train on some experiences and evaluate on all."""
    torch.set_default_dtype(dtype)  # a head that grows knows no other
    try:
        return _train(kind, parallel, dtype=dtype, **options)
    finally:
        torch.set_default_dtype(torch.float32)


def _train(kind, parallel, *, flavour="A", benchmark=None, seed=3, keywords=None, experiences=2, **options):
    RNGManager.set_random_seeds(seed)
    benchmark = benchmark or stream(flavour)
    strategy = build(kind, parallel=parallel, **options)
    first = {name: x.detach().clone() for name, x in strategy.model.named_parameters()}
    for experience in list(benchmark.train_stream)[:experiences]:
        strategy.train(experience, **(keywords or {}))
    trained = strategy.evaluator.get_last_metrics()
    assert processes() == (2 if parallel else 1)
    return {
        "first": first,
        "weights": {name: x.detach().clone() for name, x in strategy.model.named_parameters()},
        "metrics": {**trained, **strategy.eval(benchmark.test_stream)},
        "buffers": {name: x.clone() for name, x in strategy.model.named_buffers()},
        "random": digest([torch.get_rng_state()]),
    }


# ---- what two processes must do as one does: a name, and how it is done


def shaded(x):
    """Views of an image without a random number."""
    shaded.turn = not getattr(shaded, "turn", False)
    return x * (0.5 if shaded.turn else 1.0)


def metrics():
    return EvaluationPlugin(
        accuracy_metrics(minibatch=True, epoch=True, stream=True), loss_metrics(epoch=True, stream=True), loggers=[]
    )


def replaced(strategy):
    strategy.dataloader = Batches(strategy.dataloader)


def with_heads(kind, model, **options):
    """Three tasks; batches of 7 and of 1, in which a process has rows of some of the tasks only."""
    return train(kind, flavour="tasks", model=model, experiences=3, dtype=torch.float64, **options)


def memory():
    return ReplayPlugin(10, batch_size=7, batch_size_mem=3)


def compiled(kind, *, in_place, **options):
    """A model that runs compiled code, and has run before on batches of the same shape and mode."""

    def model():
        torch.compiler.reset()
        plain = Net(torch.float64)
        if kind == "co2l":
            plain = ContrastiveModel(plain.encoder, 8, 8).double()
        if not in_place:
            return torch.compile(plain, backend="eager")
        plain.compile(backend="eager")
        return plain

    def run_before(strategy):
        strategy.model(torch.rand((4, 2, 1, 8, 8) if kind == "co2l" else (4, 1, 8, 8)))

    record = Record()
    plugins = [record, At("before_training_epoch", run_before)]
    short = {"experiences": 1, "batch": 8, "train_epochs": 2}  # to compile takes seconds
    found = train(kind, model=model, plugins=plugins, dtype=torch.float64, **short, **options)
    return {**found, "batches": [[sorted(batch) for batch in epoch] for epoch in record.epochs]}


COMPARED = {
    **{f"{kind}-float32": partial(train, kind) for kind in METHODS},
    **{f"{kind}-float64": partial(train, kind, dtype=torch.float64) for kind in METHODS},
    **{
        f"{kind}-{flavour}": partial(train, kind, flavour=flavour, dtype=torch.float64)
        for kind in ("co2l", "ssil", "csd", "replay")
        for flavour in ("B", "C", "domains")
        if (kind, flavour) != ("replay", "B")  # of Avalanche's own
    },
    **{
        f"{kind}-teacher_in_train_mode": partial(train, kind, teacher_mode="train", dtype=torch.float64)
        for kind in ("co2l", "ssil", "csd")
    },
    "co2l-rows": partial(train, "co2l", batch_size_mem=3, dtype=torch.float64),
    "co2l-domain_labels": partial(train, "co2l", flavour="domains", domains=True, dtype=torch.float64),
    "co2l-reservoir": lambda **k: train("co2l", storage_policy=ReservoirSamplingBuffer(10), dtype=torch.float64, **k),
    "co2l-two_views": lambda **k: train(
        "co2l", benchmark=stream(transform=TwoViews(shaded)), augmentation=None, dtype=torch.float64, **k
    ),
    "cumulative-C": partial(train, "cumulative", flavour="C", dtype=torch.float64),
    "ewc-heads_by_task": lambda **k: train("ewc", flavour="tasks", model=Heads, **k),
    "co2l-heads": partial(with_heads, "co2l", lambda: MTContrastiveModel(Net(torch.float64).encoder, 8, 8).double()),
    "ssil-heads": partial(with_heads, "ssil", partial(Heads, torch.float64)),
    "csd-heads": partial(with_heads, "csd", partial(Heads, torch.float64)),
    "ssil-heads_in_turn": partial(with_heads, "ssil", partial(InTurn, torch.float64)),
    "csd-heads_in_turn": lambda **k: with_heads("csd", partial(InTurn, torch.float64), plugins=[memory()], **k),
    "replay-heads_in_turn": partial(with_heads, "replay", wrapped_in_heads),
    "co2l-compiled_in_place": partial(compiled, "co2l", in_place=True),
    "naive-compiled": partial(compiled, "naive", in_place=False),
    "csd-one_step": partial(train, "csd", batch=8, dtype=torch.float64),
    "ssil-single_rows": partial(train, "ssil", batch=1, batch_size_mem=1, dtype=torch.float64),
    "ssil-workers": partial(train, "ssil", keywords={"num_workers": 2}, dtype=torch.float64),
    "naive-persistent_workers": partial(
        train, "naive", flavour="C", keywords={"num_workers": 1, "persistent_workers": True}, train_epochs=2
    ),
    "csd-loader_of_another_kind": lambda **k: train("csd", plugins=[At("before_training_exp", replaced)], **k),
    "csd-metrics": lambda **k: train("csd", evaluator=metrics(), eval_every=1, train_epochs=2, **k),
    "co2l-metrics": lambda **k: train("co2l", evaluator=metrics(), eval_every=1, train_epochs=2, **k),
}


# ---- what only several processes do


def unseeded():
    """Process 1 starts from other weights and random numbers."""
    return train("ssil", parallel=True, seed=3 + rank())


def shuffles(kind="naive", **options):
    """Three epochs of each of two experiences, and what this process loaded of them."""
    loaded = []
    benchmark = stream(transform=lambda x: loaded.append(float(torch.rand(()))) or x)
    record = Record()
    train(kind, parallel=True, benchmark=benchmark, plugins=[record], train_epochs=3, **options)
    return {"epochs": record.epochs, "draws": loaded}


def augmentations():
    """The draws of an augmentation of the batch, in two runs of the same seed."""
    runs = []
    for _ in range(2):
        drawn = []

        def draw(strategy, drawn=drawn):
            drawn.append(float(torch.rand(())))

        train("naive", parallel=True, plugins=[At("before_forward", draw)], train_epochs=2)
        runs.append(drawn)
    return runs


def gathered(dtype):
    """Gradients of a loss of a whole batch of 5 rows, here and as in one process."""
    found = {}
    for sizes in ((3, 2), (5, 0), (0, 5)):
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((5, 4), (4, 3)))
        used, unused, mine = (nn.Parameter(weight.clone()) for _ in range(3))
        rows = Rows(sizes, rank())

        def loss(whole, used=used):
            return (whole @ whole.T).tanh().sum() + used.square().sum()

        whole = rows.whole(rows.own(x) @ used + (rows.own(x) @ mine if rank() == 0 else 0))
        loss(whole).backward()
        average_gradients([used, unused, mine])
        alone, alone_mine = weight.clone().requires_grad_(), weight.clone().requires_grad_()
        first = (torch.arange(5) < sizes[0])[:, None]
        loss(x @ alone + (x @ alone_mine) * first, alone).backward()
        found[sizes] = (used.grad, alone.grad, mine.grad, alone_mine.grad, unused.grad, rows.whole(rows.own(x)) - x)
    return found


def said(function, *arguments, **options):
    """The error that a scenario ends in."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def resumed(folder):
    """The endings of a run and of the same run that was saved and restored half-way, and the order of its plugins."""
    RNGManager.set_random_seeds(3 + rank())
    experiences, path = list(stream().train_stream)[:3], Path(folder) / "run.pt"
    strategy = build("ssil", parallel=True, dtype=torch.float32)
    order = [type(plugin).__name__ for plugin in strategy.plugins]
    strategy.train(experiences[0])
    checkpoint.save(strategy, path)
    endings = []
    for _ in range(2):
        for experience in experiences[1:]:
            strategy.train(experience)
        endings.append(digest([*strategy.model.parameters(), torch.get_rng_state()]))
        strategy = build("ssil", parallel=True, dtype=torch.float32)
        checkpoint.restore(strategy, path)
    kept = [type(plugin).__name__ for plugin in strategy.plugins if type(plugin).__name__ != "LookUp"]
    return {"endings": endings, "orders": [order, kept], "unwritable": said(checkpoint.save, strategy, path / "no.pt")}


def only_in_one(action):
    return lambda strategy: action(strategy) if rank() == 1 else None


def add_a_row(strategy):
    strategy.mbatch = [torch.cat([x, x[:1]]) for x in strategy.mbatch]


def forget_a_row(strategy):
    group = next(iter(strategy.method.storage_policy.buffer_groups.values()))
    group.buffer = group.buffer.subset(range(len(group.buffer) - 1))


def own_sampler(strategy):
    data = strategy.adapted_dataset
    strategy.dataloader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data))


def reversed_order():
    return stream(order=ORDER if rank() == 0 else ORDER[::-1])


def errors():
    """What is refused, and what is found out."""
    run = partial(said, train, parallel=True)
    draw = only_in_one(lambda strategy: torch.rand(()))
    return {
        "other data": run("naive", benchmark=reversed_order()),
        "other settings": run("naive", batch=7 + rank()),
        "a draw": run("naive", plugins=[At("after_training_iteration", draw)]),
        "other batches": run("naive", plugins=[At("after_training_iteration", draw)], train_epochs=2),
        "other exemplars": run("ssil", plugins=[At("after_training_exp", only_in_one(forget_a_row))]),
        "other weights": run(
            "naive", plugins=[At("after_update", only_in_one(lambda s: s.model.head.classifier.bias.data.add_(1)))]
        ),
        "own loop": run("er_ace"),
        "own gradients": run("naive", plugins=[MIRPlugin(3, mem_size=10, subsample=5)], flavour="C"),
        "more rows": run("naive", plugins=[At("before_forward", add_a_row)]),
        "no plugin": said(train, "ssil", parallel=False),
        "own sampler": run("naive", plugins=[At("before_training_exp", own_sampler)]),
        "parts": run("naive", model=Halves),
        "wrapped": run("naive", model=lambda: DistributedDataParallel(make_encoder(8))),
    }


def readme():
    """The script of the guide, on digits in MNIST's place; what it prints."""
    import avalanche.benchmarks

    from helpers.pages import marked, split_digits

    script = marked("docs/guides/processes.md", "several processes")
    avalanche.benchmarks.SplitMNIST, scope, printed = split_digits, {}, io.StringIO()
    with redirect_stdout(printed):
        exec(script.replace("torch.distributed.destroy_process_group()", ""), scope)
    return {
        "printed": printed.getvalue(),
        "main": is_main_process(),
        "weights": digest(scope["strategy"].model.parameters()),
        "processes": processes(),
    }


def main(folder):
    """All of it; the first scenario is the one that joins the processes."""
    torch.set_num_threads(1)
    scenarios = {
        "readme": readme,
        **{name: partial(scenario, parallel=True) for name, scenario in COMPARED.items()},
        "unseeded": unseeded,
        "shuffles": shuffles,
        "shuffles of replay": partial(shuffles, "replay"),
        "shuffles of ssil": partial(shuffles, "ssil"),
        "augmentations": augmentations,
        "gathered float32": partial(gathered, torch.float32),
        "gathered float64": partial(gathered, torch.float64),
        "split": lambda: [split(rows, parts) for rows, parts in ((5, 2), (1, 2), (6, 3), (2, 4))],
        "resumed": partial(resumed, folder),
        "errors": errors,
    }
    found = {}
    for name, scenario in scenarios.items():
        try:
            found[name] = scenario()
        except Exception as error:
            error.add_note(f"in scenario {name!r}")
            traceback.print_exc()
            raise
    torch.save(found, Path(folder) / f"{rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
