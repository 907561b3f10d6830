"""Every plugin and strategy of Avalanche as a partner of ours: how it is made, and how to see that it does its work."""

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from avalanche.benchmarks.utils.data_loader import ReplayDataLoader
from avalanche.models import IncrementalClassifier, MlpVAE, NCMClassifier, TrainEvalModel, VAE_loss
from avalanche.models.base_model import BaseModel
from avalanche.models.fecam import FeCAMClassifier
from avalanche.models.packnet import PackNetModel, PackNetPlugin
from avalanche.models.utils import FeatureExtractorModel
from avalanche.training import plugins as shipped
from avalanche.training.losses import ICaRLLossPlugin, MaskedCrossEntropy
from avalanche.training.plugins import SupervisedPlugin
from avalanche.training.supervised import VAETraining
from torch import nn

from avalanche_contrastive import (
    BatchAugmentation,
    Co2LPlugin,
    ContrastiveModel,
    CSDPlugin,
    ExperienceSchedule,
    SSILPlugin,
)
from avalanche_contrastive.losses import (
    asymmetric_supcon,
    batch_hard_triplet,
    contrastive_distillation,
    relation_distillation,
    separated_softmax,
    taskwise_distillation,
)
from helpers.streams import make_encoder

COLUMNS = {"co2l": "Co2L", "ssil": "SS-IL", "csd": "CSD"}
WIDTH, RATE, BATCH = 8, 0.05, 12


# ---- ours


def make_method(name, **options):
    if name == "co2l":
        augmentation = BatchAugmentation(scale=(0.6, 1.0), flip=0.0)
        return Co2LPlugin(**{"mem_size": 20, "augmentation": augmentation, "readout_lr": 0.1, **options})
    if name == "ssil":
        return SSILPlugin(**{"mem_size": 20, "batch_size_mem": 8, **options})
    return CSDPlugin(**options)


class Plain(BaseModel, nn.Module):
    """A body and a head, fixed or growing, with the features that LFL asks for."""

    def __init__(self, *, growing=False):
        super().__init__()
        self.body = make_encoder(WIDTH)
        self.head = IncrementalClassifier(WIDTH) if growing else nn.Linear(WIDTH, 10)

    def forward(self, x):
        return self.head(self.body(x))

    def get_features(self, x):
        return self.body(x)


MODELS = {
    "plain": Plain,
    "growing": partial(Plain, growing=True),
    "class means": lambda: TrainEvalModel(make_encoder(WIDTH), nn.Linear(WIDTH, 10), NCMClassifier()),
    "covariances": lambda: TrainEvalModel(make_encoder(WIDTH), nn.Linear(WIDTH, 10), FeCAMClassifier()),
    "last features": lambda: FeatureExtractorModel(make_encoder(WIDTH), nn.Linear(WIDTH, 10)),
    "packed": lambda: PackNetModel(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))),
}


class Contrastive(BaseModel, ContrastiveModel):
    """Co2L's model with the features that LFL asks for."""

    def get_features(self, x):
        return self.embed(x)


def make_model(method, kind="plain"):
    return Contrastive(make_encoder(WIDTH), WIDTH, 12) if method == "co2l" else MODELS[kind]()


def body_and_head(model):
    """What gives features, and what makes training outputs of them."""
    if isinstance(model, ContrastiveModel):
        return model.encoder, model.projector
    if isinstance(model, Plain):
        return model.body, model.head
    return model.feature_extractor, model.train_classifier


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- the terms of the objectives, worked out again from a step


def groups(*classes):
    index = torch.full((10,), -1)
    for number, group in enumerate(classes):
        index[list(group)] = number
    return index


def ssil_objective(watch, x, features, logits, y):
    old = [c for c in watch.old if c not in watch.current]
    terms = {"cross_entropy": separated_softmax(logits, y, groups(old, watch.current)[: logits.shape[1]])}
    if watch.teacher is not None:
        _, taught = watch.taught(x)
        tasks = groups(*watch.seen)[: taught.shape[1]]
        terms["distillation"] = taskwise_distillation(logits, taught, tasks, temperature=2.0)
    return terms


def csd_objective(watch, x, features, logits, y):
    new = torch.isin(y, torch.tensor(watch.current))
    terms = {
        "cross_entropy": F.cross_entropy(logits[new], y[new]) if new.any() else torch.zeros(()),
        "triplet": batch_hard_triplet(features, y, margin=1.0),
    }
    if watch.teacher is not None:
        taught_features, taught = watch.taught(x)
        old = groups(watch.old)[: taught.shape[1]]
        terms["distillation"] = taskwise_distillation(logits, taught, old, temperature=2.0) / 4
        terms["contrast"] = contrastive_distillation(features, taught_features, y, temperature=0.07)
    return terms


def co2l_objective(watch, views, features, z, y):
    current = torch.isin(y, torch.tensor(watch.current))
    terms = {"contrast": asymmetric_supcon(z, y, current, temperature=0.5, base_temperature=0.07, reduction="all")}
    if watch.teacher is not None:
        _, taught = watch.taught(views.flatten(0, 1))
        taught = F.normalize(taught, dim=-1).unflatten(0, views.shape[:2])
        terms["distillation"] = relation_distillation(z, taught, temperature=0.2, teacher_temperature=0.01)
    return terms


OBJECTIVES = {"ssil": ssil_objective, "csd": csd_objective, "co2l": co2l_objective}


class Watch(SupervisedPlugin):
    """First in the list: holds the loss of every step to the documented objective, and notes what happens.

    Args:
        method: key of OBJECTIVES.
        plugin: ours.
        whole: whether the objective is the whole loss before other plugins add theirs.
    """

    def __init__(self, method, plugin, *, whole=True):
        super().__init__()
        self.method, self.plugin, self.whole = method, plugin, whole
        self.seen, self.teacher, self.evaluations = [], None, 0
        # By experience; below that by step, where there are several.
        self.labels, self.added, self.rates, self.loaders = [], [], [], []
        self.starts, self.bodies, self.epochs = [], [], []

    @property
    def old(self):
        return [c for classes in self.seen for c in classes]

    def before_train_dataset_adaptation(self, strategy, **kwargs):
        if self.seen:
            strategy.model.features = None  # FeatureExtractorModel keeps a part of the graph there
            self.teacher = copy.deepcopy(strategy.model).eval()

    def before_training_exp(self, strategy, **kwargs):
        self.current = sorted(strategy.experience.classes_in_this_experience)
        self.epochs.append(0)
        for record in (self.labels, self.added, self.rates, self.loaders):
            record.append([])

    def before_training_epoch(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs == 0:
            self.starts.append(weights(strategy.model))
            self.bodies.append(weights(body_and_head(strategy.model)[0]))

    def before_forward(self, strategy, **kwargs):
        def keep_input(module, args, output):
            self.x = args[0]

        def keep_features(module, args, output):
            self.features = output

        body, _ = body_and_head(strategy.model)
        self.hooks = [strategy.model.register_forward_hook(keep_input), body.register_forward_hook(keep_features)]

    def after_forward(self, strategy, **kwargs):
        for hook in self.hooks:
            hook.remove()
        self.step = (self.x, self.features, strategy.mb_output, strategy.mb_y)

    def before_backward(self, strategy, **kwargs):
        expected = {name: term.detach() for name, term in OBJECTIVES[self.method](self, *self.step).items()}
        torch.testing.assert_close(self.plugin.terms, expected, rtol=1e-5, atol=1e-9)
        if self.whole:  # all weights are 1
            torch.testing.assert_close(strategy.loss.detach().squeeze(), sum(expected.values()), rtol=1e-5, atol=1e-6)
        self.before = strategy.loss.item()

    def after_backward(self, strategy, **kwargs):
        assert strategy.loss.isfinite().all()
        loader = strategy.dataloader
        self.added[-1].append(strategy.loss.item() - self.before)
        self.labels[-1].append(strategy.mb_y.tolist())
        self.loaders[-1].append(type(getattr(loader, "loader", loader)))

    def after_update(self, strategy, **kwargs):
        self.rates[-1].append(strategy.optimizer.param_groups[0]["lr"])

    def after_training_epoch(self, strategy, **kwargs):
        self.epochs[-1] += 1

    def after_training_exp(self, strategy, **kwargs):
        self.seen.append([c for c in self.current if c not in self.old])

    def before_eval(self, strategy, **kwargs):
        self.evaluations += 1

    def taught(self, x):
        """Features and training outputs of the model before, by hand, in evaluation mode."""
        body, head = body_and_head(self.teacher)
        with torch.no_grad():
            features = body(x)
            return features, head(features)


class Gradients(SupervisedPlugin):
    """The gradients that the optimiser gets, after all plugins have had them."""

    def before_update(self, strategy, **kwargs):
        parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in strategy.model.parameters())
        self.last = torch.cat([part.flatten() for part in parts])


# ---- what a partner does, seen from outside


@dataclass
class Run:
    """A finished run of three experiences of two classes, for a partner's check."""

    method: str
    strategy: Any
    watch: Watch
    partner: Any
    gradients: torch.Tensor
    evaluated: Mapping[str, float]  # the metrics of an evaluation after it
    stream: Any  # that it was evaluated on


def leaves_the_loss(run):
    assert all(abs(a) < 1e-6 for added in run.watch.added for a in added)


def adds_to_the_loss(run):
    assert all(abs(a) < 1e-6 for a in run.watch.added[0])
    assert min(max(added) for added in run.watch.added[1:]) > 1e-6


def brings_rows(run):
    """Its loader is in use from the second experience on, and gives every batch rows of earlier classes."""
    for number in (1, 2):
        old = {c for classes in run.watch.seen[:number] for c in classes}
        assert all(old & set(labels) for labels in run.watch.labels[number])
        assert set(run.watch.loaders[number]) == {ReplayDataLoader}


def replay(run):
    leaves_the_loss(run)
    brings_rows(run)
    assert len(run.partner.storage_policy.buffer) == 20


def weighs_parameters(find):
    def works(run):
        adds_to_the_loss(run)
        assert all(sum(v.data.abs().sum() for v in parts.values()) > 0 for parts in find(run.partner))

    return works


def opposes_no(references):
    """The gradients that remain point against no reference gradient."""

    def works(run):
        leaves_the_loss(run)
        kept = references(run.partner)
        assert (kept.norm(dim=1) > 0).all()
        assert (F.cosine_similarity(kept, run.gradients[None]) > -0.01).all()

    return works


def gss(run):
    leaves_the_loss(run)
    brings_rows(run)
    assert run.partner.ext_mem_list_current_index == len(run.partner.ext_mem_list_y)
    assert set(run.partner.ext_mem_list_y.tolist()) <= set(run.watch.old)


def mir(run):
    """It replays more than 8 images of classes that were not in the last batch of the experience before, or none."""
    for number, each in ((1, 10), (2, 5)):  # of its 20 images
        left = set(run.watch.seen[0] + run.watch.seen[1] * (number - 1)) - set(run.watch.labels[number - 1][-1])
        assert (max(run.watch.added[number]) > 1e-6) == (each * len(left) > 8)
    assert (max(run.watch.added[2]) > 1e-6) == (run.method == "csd")


def rar(run):
    adds_to_the_loss(run)
    brings_rows(run)


def lfl(run):
    adds_to_the_loss(run)
    assert not any(p.requires_grad for p in run.strategy.model.head.parameters())


def from_scratch(run):
    leaves_the_loss(run)
    assert all(torch.equal(run.watch.starts[0], start) for start in run.watch.starts)


def gdumb(run):
    """From the first weights, on its 20 images of all classes so far: 5 of a class, then 3 or 4."""
    from_scratch(run)
    for number, most in ((1, 5), (2, 4)):
        counts = Counter(c for labels in run.watch.labels[number] for c in labels)
        assert all(3 <= counts[c] <= most for c in run.watch.seen[number])


def generates(run):
    """The second half of every later batch is generated, with labels that the model gives before the experience."""
    leaves_the_loss(run)
    generator = next(p for p in run.strategy.plugins if isinstance(p, shipped.GenerativeReplayPlugin))
    assert generator.generator_strategy.clock.train_exp_counter == 3
    for number in (1, 2):
        known = {c for classes in run.watch.seen[: number + 1] for c in classes}
        halves = [(labels[: len(labels) // 2], labels[len(labels) // 2 :]) for labels in run.watch.labels[number]]
        assert all(set(generated) <= known and len(real) == len(generated) for real, generated in halves)
        assert sum(c in run.watch.seen[number] for real, _ in halves for c in real) == 24


def cwr(run):
    leaves_the_loss(run)
    bodies = run.watch.bodies
    assert not torch.equal(bodies[0], bodies[1])
    assert torch.equal(bodies[1], bodies[2])
    assert set(run.strategy.model.saved_weights) == set(run.watch.old)


def class_means(run):
    leaves_the_loss(run)
    means = run.strategy.model.eval_classifier.class_means_dict
    assert all(means[c].abs().sum() > 0 for c in run.watch.old)


def covariances(run):
    class_means(run)
    assert set(run.watch.old) <= set(run.strategy.model.eval_classifier.class_cov_dict)


def steps_the_rate(run):
    leaves_the_loss(run)
    for rates in run.watch.rates:
        assert rates[0] == RATE
        assert sorted({round(rate, 6) for rate in rates}) == [RATE / 10, RATE]


def schedules(run):
    leaves_the_loss(run)
    assert run.watch.epochs == [2, 1, 1]
    assert [set(rates) for rates in run.watch.rates] == [{RATE}, {RATE / 2}, {RATE / 3}]


def stops_early(run):
    """No epoch is better by its margin: two of four are trained, and the weights are those from before them."""
    leaves_the_loss(run)
    assert run.watch.epochs == [2, 2, 2]
    names = {name for name, _ in run.strategy.model.named_parameters()}
    assert all(
        torch.equal(v, run.partner.best_state[k]) for k, v in run.strategy.model.state_dict().items() if k in names
    )
    if run.method == "co2l":  # the read-out is of those weights, but knows the new classes
        assert run.strategy.model.readout.fitted.nonzero()[:, 0].tolist() == sorted(run.watch.old)


def counts(run):
    leaves_the_loss(run)
    assert run.strategy.clock.train_iterations == sum(len(labels) for labels in run.watch.labels)
    assert run.strategy.clock.train_exp_counter == 3


def measures(run):
    leaves_the_loss(run)
    assert 0 <= run.evaluated["Top1_Acc_Stream/eval_phase/test_stream"] <= 1


def evaluates(run):
    leaves_the_loss(run)
    assert run.watch.evaluations > 3 * 2


def masks(run):
    """Training has the method's objective, evaluation the masked cross-entropy."""
    leaves_the_loss(run)
    model, data = run.strategy.model.eval(), [e.dataset.eval() for e in run.stream]
    x, y = (torch.stack([torch.as_tensor(d[i][k]) for d in data for i in range(len(d))]) for k in (0, 1))
    seen = sorted(run.watch.old)
    masked = F.cross_entropy(model(x)[:, seen], torch.tensor([seen.index(c) for c in y.tolist()]))
    assert abs(run.evaluated["Loss_Stream/eval_phase/test_stream"] - masked.item()) < 1e-4


# ---- the catalogue


@dataclass(frozen=True)
class Partner:
    """A plugin of Avalanche beside ours.

    Args:
        make: gives the plugins, the one of this name last, for a model and its optimiser.
        works: checks that it did its work.
        model: which of MODELS it needs.
        stream: options of the stream.
        options: of the strategy; ``criterion`` is the plugin itself where it is a criterion.
        says: by method, or "all": what the cell says where it is not "yes".
        error: by method, or "all": type and words of the error that goes with it.
        alone: whether that error comes without ours, too.
        behind: words of the error of a method that refuses the plugin behind its own in the list.
    """

    make: Callable[[Any, Any], list[Any]]
    works: Callable[[Run], None] = leaves_the_loss
    model: str = "plain"
    stream: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    criterion: bool = False
    says: Mapping[str, str] = field(default_factory=dict)
    error: Mapping[str, tuple[type[Exception], str]] = field(default_factory=dict)
    alone: bool = False
    behind: Mapping[str, str] = field(default_factory=dict)

    def cell(self, method):
        return self.says.get(method, self.says.get("all", "yes"))

    def expected_error(self, method):
        return self.error.get(method, self.error.get("all"))


def refused(words, *methods):
    """Keywords of a partner that the methods refuse, all of them if none is named."""
    names = methods or ("all",)
    error = (ValueError, f"has no meaning beside this method: it {words}")
    return {"says": dict.fromkeys(names, f"refused: it {words}"), "error": dict.fromkeys(names, error)}


def make_generator():
    model = MlpVAE((1, 8, 8), nhid=2)
    return VAETraining(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        criterion=VAE_loss,
        train_mb_size=BATCH,
        eval_mb_size=50,
        plugins=[shipped.GenerativeReplayPlugin()],
        evaluator=None,
    )


def generative(*_):
    return [shipped.TrainGeneratorAfterExpPlugin(), shipped.GenerativeReplayPlugin(make_generator())]


OUTPUTS = refused("takes training outputs for class logits", "co2l")
READOUT = refused("needs the loss of class logits within an experience", "co2l")
MEANS = refused("sets the class means of model.eval_classifier", "co2l")
LOSS = refused("is a training loss of its own")
MIR = "yes: it replays only classes that the last batch of the experience before, with SS-IL's rows, has left out"
SI = "void by itself: on a CPU its importances are 0, as it takes the weights from themselves"
BIC = "fails by itself: it passes MultiStepLR an argument that torch has dropped"

PARTNERS = {
    "AGEMPlugin": Partner(
        lambda *_: [shipped.AGEMPlugin(10, 10)], opposes_no(lambda p: p.reference_gradients[None]), **OUTPUTS
    ),
    "BiCPlugin": Partner(
        lambda *_: [shipped.BiCPlugin(20)],
        stream={"flavour": "C"},
        says={**OUTPUTS["says"], "all": BIC},
        error={**OUTPUTS["error"], "all": (TypeError, "unexpected keyword argument 'verbose'")},
        alone=True,
    ),
    "Clock": Partner(lambda *_: [], counts),
    "CoPEPlugin": Partner(lambda *_: [shipped.CoPEPlugin(20, 10, 10)], **LOSS),
    "CurrentDataFeCAMUpdate": Partner(
        lambda *_: [shipped.CurrentDataFeCAMUpdate()], covariances, model="covariances", **MEANS
    ),
    "CurrentDataNCMUpdate": Partner(
        lambda *_: [shipped.CurrentDataNCMUpdate()], class_means, model="class means", **MEANS
    ),
    "CWRStarPlugin": Partner(
        lambda model, _: [shipped.CWRStarPlugin(model, None)],
        cwr,
        **refused("treats rows of the last linear layer as classes", "co2l"),
    ),
    "EarlyStoppingPlugin": Partner(
        lambda *_: [shipped.EarlyStoppingPlugin(2, "test_stream", margin=2.0)],
        stops_early,
        options={"train_epochs": 4, "eval_every": 1},
    ),
    "EvaluationPlugin": Partner(lambda *_: [], measures),
    "EWCPlugin": Partner(lambda *_: [shipped.EWCPlugin(1e4)], weighs_parameters(lambda p: p.importances.values())),
    "FeatureDistillationPlugin": Partner(
        lambda *_: [shipped.FeatureDistillationPlugin()],
        adds_to_the_loss,
        model="last features",
        **refused("reads model.features", "co2l"),
    ),
    "FeCAMOracle": Partner(lambda *_: [shipped.FeCAMOracle()], covariances, model="covariances", **MEANS),
    "FromScratchTrainingPlugin": Partner(lambda *_: [shipped.FromScratchTrainingPlugin()], from_scratch),
    "GDumbPlugin": Partner(
        lambda *_: [shipped.GDumbPlugin(20)],
        gdumb,
        says={"co2l": "yes: before Co2LPlugin in the list; refused behind it"},
        behind={"co2l": "GDumbPlugin puts its memory in the place of the dataset"},
    ),
    "GEMPlugin": Partner(lambda *_: [shipped.GEMPlugin(10, 0.5)], opposes_no(lambda p: p.G), **OUTPUTS),
    "GenerativeReplayPlugin": Partner(generative, generates, model="growing"),
    "GSS_greedyPlugin": Partner(
        # It fails on batches (current rows, 32 of its own, ours) larger than what it stores, and replays empty places.
        lambda *_: [shipped.GSS_greedyPlugin(48, 1, [1, 8, 8])],
        gss,
        stream={"per_class": 24},
        options={"train_mb_size": 6},
        **READOUT,
    ),
    "ICaRLLossPlugin": Partner(lambda *_: [ICaRLLossPlugin()], criterion=True, **LOSS),
    "LFLPlugin": Partner(
        lambda *_: [shipped.LFLPlugin(1.0)], lfl, **refused("trains with the model in evaluation mode", "co2l")
    ),
    "LRSchedulerPlugin": Partner(
        lambda _, optimizer: [shipped.LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))],
        steps_the_rate,
        options={"train_epochs": 2},
    ),
    "LwFPlugin": Partner(lambda *_: [shipped.LwFPlugin(1.0, 2.0)], adds_to_the_loss, **OUTPUTS),
    "MASPlugin": Partner(
        lambda *_: [shipped.MASPlugin(1.0)],
        weighs_parameters(lambda p: [p.importance]),
        **refused("weighs parameters by the length of training outputs", "co2l"),
    ),
    "MaskedCrossEntropy": Partner(
        lambda *_: [MaskedCrossEntropy()], masks, criterion=True, says={"all": "yes: in evaluation"}
    ),
    "MemoryFeCAMUpdate": Partner(lambda *_: [shipped.MemoryFeCAMUpdate(20)], covariances, model="covariances", **MEANS),
    "MemoryNCMUpdate": Partner(lambda *_: [shipped.MemoryNCMUpdate(20)], class_means, model="class means", **MEANS),
    "MIRPlugin": Partner(
        lambda *_: [shipped.MIRPlugin(8, 20)], mir, says={**OUTPUTS["says"], "ssil": MIR}, error=OUTPUTS["error"]
    ),
    "NCMOracle": Partner(lambda *_: [shipped.NCMOracle()], class_means, model="class means", **MEANS),
    "PackNetPlugin": Partner(
        lambda *_: [PackNetPlugin(1, 0.5)],
        model="packed",
        stream={"flavour": "C"},
        options={"train_epochs": 2},
        says={"all": "refused: its model runs the weights of one task at a time"},
        error={
            "all": (ValueError, "PackNetPlugin has no meaning beside this method: its model runs the weights of one")
        },
    ),
    "PeriodicEval": Partner(lambda *_: [], evaluates, options={"train_epochs": 2, "eval_every": 1}),
    "RARPlugin": Partner(lambda *_: [shipped.RARPlugin(8, 20)], rar, **OUTPUTS),
    "ReplayPlugin": Partner(lambda *_: [shipped.ReplayPlugin(20)], replay),
    "RWalkPlugin": Partner(
        lambda *_: [shipped.RWalkPlugin(1.0, delta_t=2)], weighs_parameters(lambda p: [p.exp_penalties]), **READOUT
    ),
    "SynapticIntelligencePlugin": Partner(
        lambda *_: [shipped.SynapticIntelligencePlugin(1e4)], leaves_the_loss, says={"all": SI}
    ),
    "TrainGeneratorAfterExpPlugin": Partner(lambda *_: generative()[::-1], generates, model="growing"),
    "ExperienceSchedule": Partner(
        lambda *_: [ExperienceSchedule("constant", epochs=(2, 1), by_experience=True)], schedules
    ),
}
