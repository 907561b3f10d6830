"""Co2L: the authors' two training scripts, their losses, their schedule and their network."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any
from unittest import mock

import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.training import Naive
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from checkouts import Checkout, no_gpu_needed
from replay import Images, Part, Playback, Recorder, copied, difference, largest, seeded, stream_of, values_of
from scripts import STUBS, called_with, parsed, targets_only
from torch import Tensor, nn

from avalanche_contrastive import Co2LPlugin, ContrastiveModel, ExperienceSchedule, TwoViews
from avalanche_contrastive.bench.methods.networks import make_encoder
from avalanche_contrastive.losses import asymmetric_supcon

METHOD = "Co2L"
EXPERIENCES = 3


def parts(checkout: Checkout) -> Iterator[Part]:
    """The contrast, the schedule, the network, and both kinds of training."""
    names = ("main", "main_domain", "losses_negative_only", "util")
    with checkout.modules(*names, stubs=STUBS) as (main, domain, losses, util):
        yield _loss(losses)
        yield _schedule(main, util)
        yield _network(main)
        yield _classes(main)
        yield _domains(domain)


def _views(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


# ---- losses and schedule


def _loss(losses: Any) -> Part:
    """The contrast by itself, and its gradient, over batches with and without old classes."""
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    temperature = 0.5
    for seed, current in enumerate(([0, 1], [2, 3], [4, 5])):
        draws = torch.Generator().manual_seed(seed)
        z = nn.functional.normalize(torch.randn(24, 2, 16, generator=draws), dim=-1)
        y = torch.randint(0, current[1] + 1, (24,), generator=draws)
        y[:8] = torch.arange(8) % (current[1] + 1)  # an image of each class
        anchors = torch.isin(y, torch.tensor(current))
        options: dict[str, Any] = {"temperature": temperature, "base_temperature": 0.07, "reduction": "all"}
        criterion = losses.SupConLoss(temperature=temperature)
        sides: Sequence[tuple[list[Tensor], Callable[[Tensor], Tensor]]] = (
            (ours, lambda z, y=y, a=anchors, o=options: asymmetric_supcon(z, y, a, **o)),  # type: ignore[misc]
            (theirs, lambda z, y=y, c=criterion, t=current: c(z, y, target_labels=t)),  # type: ignore[misc]
        )
        for kept, loss_of in sides:
            leaf = z.clone().requires_grad_()
            loss = loss_of(leaf)
            kept += [loss.detach(), *torch.autograd.grad(loss, leaf)]
    return Part(
        METHOD,
        "contrast",
        "losses_negative_only.SupConLoss",
        "losses.asymmetric_supcon",
        "loss and gradient of 3 batches of 24 images",
        *difference(ours, theirs),
    )


def _schedule(main: Any, util: Any) -> Part:
    """The rate of every step of Seq-CIFAR-10: 500 epochs and then 100, at 3 steps an epoch."""
    options = ["--batch_size", "512", "--learning_rate", "0.5", "--epochs", "100", "--start_epoch", "500", "--cosine"]
    opt, ours, theirs = parsed(main, options), [], []
    schedule = ExperienceSchedule("cosine", epochs=(500, 100), warmup_epochs=10, warmup_peak="later")
    optimizer, steps = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5), 3
    for experience, epochs in enumerate((500, 100)):
        opt.epochs = epochs
        for epoch in range(1, epochs + 1):
            util.adjust_learning_rate(opt, optimizer, epoch)
            for step in range(steps):
                util.warmup_learning_rate(opt, epoch, step, steps, optimizer)
                theirs.append(optimizer.param_groups[0]["lr"])
                ours.append(schedule.rate(0.5, experience, epoch, epochs, step / steps))
    return Part(
        METHOD,
        "schedule",
        "main.parse_option, util.adjust_learning_rate, util.warmup_learning_rate",
        'ExperienceSchedule("cosine", warmup_peak="later")',
        f"{len(ours)} learning rates, of 500 and 100 epochs; the warm-up ends at {opt.warmup_to:.4f}",
        *difference([torch.tensor(ours)], [torch.tensor(theirs)]),
    )


# ---- the two training scripts


def _classes(main: Any) -> Part:
    """``main.main()``: class-incremental, with warm-up, batch norm and the teacher's batch statistics."""
    seeded(0)
    encoder = make_encoder("small_cnn", (3, 8, 8))
    model = ContrastiveModel(encoder, encoder.features, 128)
    theirs = main.SupConResNet(name="resnet18")
    theirs.encoder, theirs.head = copy.deepcopy(encoder), copy.deepcopy(model.projector)  # a network for seconds
    images = Images((3, 8, 8), classes=6, per_class=8, seed=1)
    stream = stream_of(images, EXPERIENCES, train_transform=TwoViews(_views))
    plugin = Co2LPlugin(mem_size=8, teacher_mode="train", readout_epochs=1)
    schedule = ExperienceSchedule("cosine", epochs=(14, 12), warmup_epochs=10, warmup_peak="later")
    recorder = _trained(model, theirs, stream, [plugin, schedule], lr=0.2)
    options = ["--learning_rate", "0.2", "--temp", "0.5", "--epochs", "12", "--start_epoch", "14", "--cosine"]
    options += ["--warm", "--mem_size", "8", "--end_task", str(EXPERIENCES - 1)]
    weights = _replayed(main, options, theirs, recorder, lambda x, y, t: ((x[:, 0], x[:, 1]), y))
    return Part(
        METHOD,
        "training, class-incremental",
        "main.main(): train, SupConLoss, relation distillation, schedule, optimiser",
        'Co2LPlugin(teacher_mode="train") under Naive, ExperienceSchedule',
        f"weights after each of {EXPERIENCES} experiences, {recorder.steps} steps",
        *largest(recorder.weights, weights),
    )


def _network(main: Any) -> Part:
    """ResNet-18 and projector: projections in training and evaluation, gradients, batch statistics."""
    seeded(0)
    theirs = main.SupConResNet(name="resnet18")
    encoder = make_encoder("resnet18", (3, 16, 16))
    model = ContrastiveModel(encoder, encoder.features, 128)
    copied([model.encoder, model.projector], values_of(theirs))
    x, toward = torch.randn(8, 3, 16, 16), torch.randn(8, 128)
    sides = []
    for project, network in ((model.project, model), (theirs, theirs)):
        z = project(x)
        (z * toward).sum().backward()
        layers = [model.encoder, model.projector] if network is model else [theirs]
        gradients = [p.grad for layer in layers for p in layer.parameters() if p.grad is not None]
        network.eval()
        sides.append([z.detach(), project(x).detach(), *gradients, *values_of(*layers)])
    return Part(
        METHOD,
        "network",
        "networks.resnet_big.SupConResNet",
        'ContrastiveModel with the network "resnet18"',
        "projections, gradients and batch statistics of 8 images, the same weights",
        *difference(*sides),
    )


def _domains(domain: Any) -> Part:
    """``main_domain.main()``: the same classes under three rotations, projections of any length."""
    seeded(0)
    theirs = domain.SupConMLP()
    encoder = make_encoder("mnist_cnn", (1, 28, 28))
    model = ContrastiveModel(encoder, encoder.features, 500, hidden_size=500, normalize=False)
    turned = [Images((1, 28, 28), classes=5, per_class=6, seed=seed) for seed in range(EXPERIENCES)]
    stream = nc_benchmark(
        turned,
        turned,
        n_experiences=EXPERIENCES,
        task_labels=True,
        shuffle=False,
        class_ids_from_zero_in_each_exp=True,
        one_dataset_per_exp=True,
        train_transform=TwoViews(_views),
    )
    plugin = Co2LPlugin(
        mem_size=12,
        temperature=0.1,
        domains=True,
        readout_epochs=1,
        storage_policy=ReservoirSamplingBuffer(12),
    )
    recorder = _trained(model, theirs, stream, [plugin, ExperienceSchedule("cosine", epochs=(6, 4))], lr=0.01)
    options = ["--learning_rate", "0.01", "--temp", "0.1", "--epochs", "4", "--start_epoch", "6", "--cosine"]
    options += ["--mem_size", "12", "--n_task", str(EXPERIENCES)]
    weights = _replayed(domain, options, theirs, recorder, lambda x, y, t: (t, ((x[:, 0], x[:, 1]), y)))
    return Part(
        METHOD,
        "training, domain-incremental",
        "main_domain.main(): train, SupConLoss, relation distillation, schedule, optimiser; networks.mlp",
        'Co2LPlugin(domains=True) under Naive, ContrastiveModel(normalize=False), network "mnist_cnn"',
        f"weights after each of {EXPERIENCES} experiences, {recorder.steps} steps",
        *largest(recorder.weights, weights),
    )


def _trained(model: ContrastiveModel, theirs: nn.Module, stream: Any, plugins: list[Any], *, lr: float) -> Recorder:
    """Our training from the weights of their model."""
    copied([model.encoder, model.projector], values_of(theirs))
    recorder = Recorder(model.encoder, model.projector)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    options: dict[str, Any] = {"train_mb_size": 12, "eval_mb_size": 12, "evaluator": None}
    strategy = Naive(model=model, optimizer=optimizer, plugins=[*plugins, recorder], **options)
    for experience in stream.train_stream:
        strategy.train(experience)
    return recorder


def _replayed(
    script: Any, options: list[str], model: nn.Module, recorder: Recorder, form: Callable[..., Any]
) -> list[list[Tensor]]:
    """The values of their model after each experience, as ``script.main()`` saves it."""
    loaders = [
        (Playback([[form(*batch) for batch in epoch] for epoch in experience]), 0) for experience in recorder.batches
    ]
    weights: list[list[Tensor]] = []

    def save_model(model: nn.Module, *args: Any) -> None:
        weights.append(values_of(model))

    def set_model(opt: Any) -> tuple[nn.Module, nn.Module]:
        return copy.deepcopy(model), script.SupConLoss(temperature=opt.temp)

    with ExitStack() as stack:
        for name, stand_in in (("save_model", save_model), ("set_model", set_model)):
            stack.enter_context(mock.patch.object(script, name, stand_in))
        stack.enter_context(mock.patch.object(script, "set_loader", side_effect=loaders))
        stack.enter_context(targets_only(script, [c for c in range(10) for _ in range(8)]))
        stack.enter_context(called_with(options))
        stack.enter_context(no_gpu_needed(pretend=True))
        script.main()
    return weights
