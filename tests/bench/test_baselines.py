"""The networks, builders and shared plugins of the benchmarks: every method on every kind of stream it claims."""

import inspect
import sys
from importlib import import_module
from types import SimpleNamespace

import avalanche.training.plugins as shipped_plugins
import avalanche.training.supervised as shipped
import pytest
import torch
from avalanche.benchmarks import dataset_benchmark, nc_benchmark
from avalanche.benchmarks.utils import _make_taskaware_classification_dataset
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.models import PNN
from avalanche.models.packnet import PackNetModel
from avalanche.training import PNNStrategy
from avalanche.training.plugins import EvaluationPlugin, SupervisedPlugin
from avalanche.training.storage_policy import ReservoirSamplingBuffer
from avalanche.training.supervised import AR1, ExpertGateStrategy, LearningToPrompt
from helpers.streams import Images, digits
from torch import nn

from avalanche_contrastive import BatchAugmentation
from avalanche_contrastive import _outside as outside
from avalanche_contrastive.bench.config import METHODS, Config, load_rows, method_of, suites
from avalanche_contrastive.bench.listing import unavailable
from avalanche_contrastive.bench.methods import baselines, heads, ours
from avalanche_contrastive.bench.methods.networks import NETWORKS, Built, Setting, make_encoder
from avalanche_contrastive.bench.run.plugins import BatchAugment, ReportProgress, TaskAccuracy
from avalanche_contrastive.metrics import retrieval_metrics
from avalanche_contrastive.registry import SCENARIOS, load

SIZES = [4, 3, 3]
ORDER = [3, 8, 1, 6, 0, 9, 2, 7, 5, 4]
AUGMENTATION = BatchAugmentation(scale=(0.6, 1.0), flip=0.0, rotation=10.0)

pytestmark = [
    # Avalanche's own: deprecated calls within it, and its generator of replay labels.
    pytest.mark.filterwarnings("ignore:Call to deprecated"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept"),
]


def make_stream(scenario="class", per_class=6):
    """Three experiences of digits: new classes, new classes with task labels, or turned images with task labels."""
    train, test = (Images(*part) for part in digits(per_class))
    if scenario != "domain":
        sizes = dict(enumerate(SIZES))
        labels = scenario == "task"
        return nc_benchmark(train, test, 3, task_labels=labels, fixed_class_order=ORDER, per_exp_classes=sizes)

    def turned(images):
        x, y = images.tensors
        parts = [Images(torch.rot90(x, turns, (2, 3)), y) for turns in range(3)]
        return [_make_taskaware_classification_dataset(part, task_labels=turns) for turns, part in enumerate(parts)]

    return dataset_benchmark(turned(train), turned(test))


def make_setting(method="naive", *, memory=30, epochs=1, batch_size=16, network="small_cnn", plugins=(), **config):
    evaluator = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), retrieval_metrics(ks=(1,)), TaskAccuracy(), loggers=[]
    )
    common = {
        "train_mb_size": batch_size,
        "train_epochs": epochs,
        "eval_mb_size": 64,
        "device": "cpu",
        "plugins": list(plugins),
        "evaluator": evaluator,
        "eval_every": -1,
    }
    config = Config(method, memory=memory, epochs=epochs, batch_size=batch_size, **{"lr": 0.03, **config})
    return Setting(config, (1, 8, 8), 10, network, AUGMENTATION, common)


def build(name, setting, **options):
    method = METHODS[name]
    module, _, function = method.build.partition(":")
    built = getattr(import_module(module), function)(setting, **{**method.options, **options})
    assert isinstance(built, Built)
    assert built.readout
    return built.strategy


def trained(name, stream, *, steps=3, options=None, **setting):
    strategy = build(name, make_setting(name, **setting), **(options or {}))
    for experience in list(stream.train_stream)[:steps]:
        strategy.train(experience)
    return strategy


def images_of(dataset):
    return torch.stack([sample[0] for sample in dataset])


# ---- every method, every kind of stream


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_on_every_stream_that_it_claims(name, scenario):
    method = METHODS[name]
    if scenario not in method.scenarios:
        assert len(method.why_not) > 20
        return
    stream = make_stream(scenario, per_class=4)
    steps = [stream.train_stream] if name == "joint" else stream.train_stream
    shares = []
    plugins = [ReportProgress(lambda share, words: shares.append(share), len(steps))]
    plugins += [] if method.own_augmentation else [BatchAugment(AUGMENTATION)]
    setting = make_setting(name, memory=30 if method.has_memory else 0, plugins=plugins)
    strategy = build(name, setting, **({"memory_epochs": 2} if name == "gdumb" else {}))
    assert setting.common["plugins"] == plugins  # what is shared is not written to
    for step in steps:
        strategy.train(step)
        figures = strategy.eval(stream.test_stream)
    values = {key.split("/")[0]: value for key, value in figures.items() if key.endswith("/Exp002")}
    assert 0 <= values["Top1_Acc_Exp"] <= values["TaskAcc_Exp"] <= 1
    assert 0 <= values["Recall@1_Exp"] <= 1
    assert all(parameter.isfinite().all() for parameter in strategy.model.parameters())
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("co2l", {"storage": "reservoir", "domains": True, "readout": "ncm", "base_temperature": 0.0}),
        ("co2l", {"batch_size_mem": 8, "teacher_mode": "train", "hidden_size": 32}),
        ("ssil", {"storage": "reservoir", "separated": False, "distillation": "global"}),
        ("csd", {"head": "cosine", "ce": "masked", "form": "paper"}),
        ("csd", {"feature_layer": "encoder", "teacher_mode": "train"}),
        ("ewc", {"mode": "online", "decay_factor": 0.9}),
        ("bic", {"lamb": 0.5, "stage_2_epochs": 3}),
        ("generative_replay", {"generator_epochs": 2}),
        ("slda", {"streaming_update_sigma": False}),
        ("er_aml", {"same_task_neg": False}),
    ],
)
def test_other_options_train_too(name, options):
    scenario = "domain" if options.get("domains") else "class"
    strategy = trained(name, make_stream(scenario), steps=2, options=options)
    assert all(parameter.isfinite().all() for parameter in strategy.model.parameters())


@pytest.mark.parametrize("name", ["mir", "scr_repaired", "feature_replay", "bic", "er_aml"])
def test_an_evaluation_within_training_hurts_no_method(name):
    stream = make_stream()
    setting = make_setting(name)
    setting.common["eval_every"] = 1
    strategy = build(name, setting)
    for experience in stream.train_stream:
        strategy.train(experience, eval_streams=[stream.test_stream])
    assert strategy.eval(stream.test_stream)


@pytest.mark.parametrize("name", ["naive", "gdumb", "from_scratch", "cwr", "derpp"])
def test_adam_trains_too(name):
    strategy = trained(name, make_stream(), optimizer="adam", lr=0.001, weight_decay=0.01)
    assert type(strategy.optimizer) is torch.optim.Adam
    assert strategy.optimizer.param_groups[0]["weight_decay"] == 0.01


# ---- the catalog


@pytest.mark.parametrize("name", [name for name in METHODS if not METHODS[name].plugin])
def test_the_options_are_those_of_the_builder_with_their_defaults(name):
    """Those of this package's methods are in tests/test_registry.py."""
    parameters = list(inspect.signature(load(METHODS[name].build)).parameters.values())[1:]
    assert {parameter.name: parameter.default for parameter in parameters} == METHODS[name].options
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    assert len(METHODS[name].about) > 10


def test_every_method_has_a_row_on_a_stream_that_it_runs_on():
    rows = [row for suite in suites() for row in load_rows(suite)]
    assert {row.config.method for row in rows if row.config.scenario in row.method.scenarios} == set(METHODS)


def test_every_strategy_of_avalanche_is_built_or_named_with_its_reason():
    known = {method.strategy for method in METHODS.values()} | set(unavailable())
    strategies = {name for name, value in vars(shipped).items() if inspect.isclass(value)}
    assert strategies <= known
    parts = {"SupervisedPlugin", "EvaluationPlugin", "EarlyStoppingPlugin", "LRSchedulerPlugin", "PPPloss"}
    parts |= {"TrainGeneratorAfterExpPlugin"}
    plugins = {name for name, value in vars(shipped_plugins).items() if inspect.isclass(value)} - parts
    assert {name for name in plugins if name.removesuffix("Plugin") not in known} <= known
    assert all(len(reason) > 20 for reason in unavailable().values())


@pytest.mark.parametrize("strategy", [AR1, LearningToPrompt])
def test_strategies_that_take_no_model(strategy):
    assert "model" not in inspect.signature(strategy).parameters
    assert unavailable()[strategy.__name__].startswith("takes no model")


@pytest.mark.filterwarnings("ignore:This strategy is currently in the alpha stage")
def test_what_is_unavailable_cannot_be_had():
    setting = make_setting()
    model = setting.classifier()
    wired = {"model": model, "optimizer": setting.optimizer(model.parameters())}
    with pytest.raises(AssertionError, match="requires an ExpertGate model"):
        ExpertGateStrategy(**wired, device="cpu", evaluator=EvaluationPlugin(loggers=[]))
    with pytest.raises(ValueError, match="does not yet support norms"):
        PackNetModel(model)
    with pytest.raises(ValueError, match="`task_id` must be between 0 and 0"):
        PackNetModel(make_encoder("mlp", (1, 8, 8))).activate_task(1)


def test_an_evaluation_of_tasks_to_come_freezes_a_progressive_network():
    stream = make_stream("task")
    model = PNN(num_layers=1, in_features=64, hidden_features_per_column=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    strategy = PNNStrategy(model=model, optimizer=optimizer, train_mb_size=16, evaluator=EvaluationPlugin(loggers=[]))
    strategy.train(stream.train_stream[0])
    strategy.eval(stream.test_stream)
    columns = model.layers[0].columns
    assert len(columns) == 3
    assert not any(parameter.requires_grad for column in columns[:2] for parameter in column.parameters())


# ---- a method of one's own


OWN = '''
from avalanche.training.plugins import EWCPlugin, ReplayPlugin
from avalanche_contrastive.bench.methods.networks import Built

def ewc(s, *, strength=1.0):
    """Elastic weights, in one line.

    And more.
    """
    return s.naive(EWCPlugin(ewc_lambda=strength))

def both(s, *, rows=8, named="x", on=True): return Built(s.naive(ReplayPlugin(s.config.memory)), "linear")
def without_default(s, *, rows): ...
def of_none(s, *, rows=None): ...
def positional(s, rows=3): ...
def nothing(): ...
number = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_methods.py").write_text(OWN)
    (tmp_path / "own_lacking.py").write_text("import no_such_package\n")
    (tmp_path / "own_unclosed.py").write_text("\n\ndef f(s:\n")
    (tmp_path / "own_failing.py").write_text("import json\n\njson.loads('nothing')\n")
    (tmp_path / "own_script.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_method_of_ones_own_is_one_line(own):
    method = method_of("own_methods:ewc")
    assert method.about == "Elastic weights, in one line"
    assert (method.options, method.has_memory, method.stores_by_default) == ({"strength": 1.0}, True, False)
    assert method.scenarios == SCENARIOS
    assert method_of("own_methods:both").options == {"rows": 8, "named": "x", "on": True}
    strategy = import_module("own_methods").ewc(make_setting(), strength=2.0)
    stream = make_stream()
    for experience in stream.train_stream:
        strategy.train(experience)
    assert strategy.plugins[0].ewc_lambda == 2.0
    assert strategy.eval(stream.test_stream)


@pytest.fixture
def fresh_path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(outside, "_own_folders", [])


def test_a_module_is_looked_for_beside_its_toml_first(tmp_path, monkeypatch, fresh_path):
    for place in ("here", "sub", "other"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "mine_beside.py").write_text(f"def f(s, *, where='{place}'): ...\n")
    monkeypatch.syspath_prepend(tmp_path / "here")
    assert method_of("mine_beside:f", tmp_path / "sub").options == {"where": "sub"}
    assert method_of("mine_beside:f").options == {"where": "sub"}
    assert outside.own_folders() == [str(tmp_path / "sub")]
    with pytest.raises(ValueError, match=r"other.mine_beside.py here, but Python already has .*sub.mine_beside.py"):
        method_of("mine_beside:f", tmp_path / "other")
    with pytest.raises(ValueError, match=f"no module 'mine_nowhere'. .* looked for in {tmp_path / 'sub'}, in the fol"):
        method_of("mine_nowhere:f", tmp_path / "sub")


def test_folders_without_the_module_are_not_looked_into_by_anything(tmp_path, fresh_path):
    before = [*sys.path]
    with pytest.raises(ValueError, match="no module"):
        method_of("mine_absent:f", tmp_path)
    assert sys.path == before
    assert outside.own_folders() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("replya", "no method named 'replya'. Known: co2l, "),
        (
            "no_such:f",
            "no module 'no_such'. .* folder that the command is run in .* no_such.py there",
        ),
        ("own_methods:ewk", "own_methods has no 'ewk'. Its functions: ewc, both, "),
        ("own_methods:number", "must be a function, but it is a int"),
        ("own_methods:", "is named module:function, got 'own_methods:'"),
        ("own_methods:without_default", "option 'rows' must have a default .* but its default is none"),
        ("own_methods:of_none", "option 'rows' must have a default .* but its default is None"),
        (
            "own_methods:positional",
            r"parameter rows=3 is not an option; .* after a \*: def positional\(s, \*, rows",
        ),
        ("own_methods:nothing", "must take a Setting as its first parameter"),
        ("own_lacking:f", "own_lacking imports no_such_package, which is not installed"),
        ("own_unclosed:f", r"own_unclosed cannot be imported: .*own_unclosed.py, line 3: SyntaxError: '\(' was never"),
        ("own_failing:f", "own_failing cannot be imported: .*own_failing.py, line 3: JSONDecodeError: Expecting value"),
        ("own_script:f", "own_script cannot be imported: .*own_script.py, line 2: SystemExit: 3"),
    ],
)
def test_a_wrong_method_of_ones_own_says_what_is_wrong(own, name, message):
    with pytest.raises(ValueError, match=message):
        method_of(name)


# ---- networks and settings


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_gives_its_features_or_says_that_the_images_are_too_small(name, shape):
    if shape[1] < NETWORKS[name].smallest:
        with pytest.raises(ValueError, match=rf"{name}.* at least 16 x 16 pixels, but the stream's are 8 x 8.*: mlp"):
            make_encoder(name, shape)
        return
    encoder = make_encoder(name, shape)
    with torch.no_grad():
        assert encoder(torch.rand(2, *shape)).shape == (2, encoder.features)


def test_the_widths_and_sizes_of_the_networks():
    encoders = {name: make_encoder(name, (3, 32, 32)) for name in NETWORKS}
    widths = {"mlp": 100, "small_cnn": 64, "medium_cnn": 128, "mnist_cnn": 500, "resnet18": 512, "resnet32": 64}
    widths |= {"resnet32_csd": 64, "adapter": 128, "identity": 3 * 32 * 32}
    assert {name: encoder.features for name, encoder in encoders.items()} == widths
    layers = [module for module in encoders["resnet32"].modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == 31  # and the head makes 32
    assert encoders["resnet18"](torch.rand(2, 3, 32, 32)).min() >= 0
    assert make_encoder("mnist_cnn", (1, 28, 28))[7].in_features == 4 * 4 * 50  # the authors' fc1


def test_the_small_network_is_drawn_as_it_always_was():
    torch.manual_seed(3)
    made = make_setting().classifier()
    torch.manual_seed(3)
    widths = [(1, 16), (16, 32), (32, 64)]
    convolutions = [nn.Conv2d(*pair, 3, padding=1, bias=False) for pair in widths]
    head = nn.Linear(64, 10)
    found = [module for module in made.modules() if isinstance(module, nn.Conv2d)]
    for ours_, theirs in zip([*found, made.head], [*convolutions, head], strict=True):
        assert torch.equal(ours_.weight, theirs.weight)


def test_the_cosine_head_has_unit_rows_and_no_bias():
    head = heads.CosineHead(4, 3)
    features = torch.randn(5, 4)
    rows = head.weight / head.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), features @ rows.T)
    assert head.bias is None
    model = trained("csd", make_stream(), steps=1, options={"head": "cosine"}).model
    assert isinstance(model.head, heads.CosineHead)


def test_the_options_of_co2l_reach_its_model_and_memory():
    strategy = build("co2l", make_setting("co2l"), projection_size=7, hidden_size=5, storage="reservoir")
    assert [layer.out_features for layer in strategy.model.projector if isinstance(layer, nn.Linear)] == [5, 7]
    assert isinstance(strategy.method.storage_policy, ReservoirSamplingBuffer)
    default = build("co2l", make_setting("co2l"), base_temperature=0.0)
    assert default.method.base_temperature is None
    assert default.method.batch_size_mem is None
    assert default.model.projector[0].out_features == 64


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("csd", {"head": "square"}, "csd: head must be one of .*'cosine'.*, got 'square'"),
        ("co2l", {"storage": "heap"}, "storage must be one of .*, got 'heap'"),
        ("ewc", {"mode": "online"}, "ewc: mode must be .* got 'online' with 0.0"),
        ("er_aml", {}, "er_aml needs a stored image of each class .* a memory of 5 cannot hold 10"),
        ("scr", {}, "scr as Avalanche ships it .* a memory of 5 cannot hold 10"),
        ("bic", {}, "val_percentage = 0.1 of a memory of 5 is 0"),
    ],
)
def test_options_that_cannot_be_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, make_setting(name, memory=5), **options)


# ---- shared plugins


def test_task_accuracy_looks_at_the_classes_of_the_experience_only():
    metric = TaskAccuracy()
    metric.before_eval_exp(None)
    assert metric.result() is None
    logits = torch.tensor([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0], [0.0, 1.0, 5.0]])
    experience = SimpleNamespace(classes_in_this_experience={1, 2, 7})  # 7 has no logit yet
    strategy = SimpleNamespace(mb_output=logits.clone(), mb_y=torch.tensor([2, 2, 7]), experience=experience)
    metric.after_eval_iteration(strategy)
    assert metric.result() == pytest.approx(1 / 3)
    assert torch.equal(strategy.mb_output, logits)


def test_task_accuracy_is_named_by_experience():
    stream = make_stream("task")
    figures = trained("naive", stream, steps=1).eval(stream.test_stream)
    found = [key for key in figures if key.startswith("TaskAcc_Exp/")]
    assert [key[-7:] for key in found] == ["/Exp000", "/Exp001", "/Exp002"]


def test_progress_rises_to_one():
    said = []
    stream = make_stream()
    plugin = ReportProgress(lambda share, words: said.append((share, words)), steps=3)
    setting = make_setting(plugins=[plugin], epochs=2)
    strategy = build("naive", setting)
    for experience in stream.train_stream:
        plugin._last = 0.0  # however fast this machine is, the first iteration of each is told
        strategy.train(experience)
    shares = [share for share, _ in said]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert 0 < shares[0] < 1 / 3
    assert said[0][1] == "experience 1/3, epoch 1/2"


def test_replay_loaders_behind_the_hooks_are_augmented_once_and_features_not_at_all():
    add = BatchAugment(lambda x: x + 10)
    images = iter([(torch.zeros(2, 1, 1, 1), "y")] * 2)
    features = SimpleNamespace(replay_loader=iter([(torch.zeros(2, 3), "y")]))
    strategy = SimpleNamespace(mbatch=[1, "y"], replay_loader=images, plugins=[features], device=torch.device("cpu"))
    for _ in range(2):  # two epochs
        add.before_training_epoch(strategy)
    x, y = next(strategy.replay_loader)
    assert (float(x.max()), y) == (10.0, "y")
    assert float(next(features.replay_loader)[0].max()) == 0.0
    add.before_forward(strategy)
    assert strategy.mbatch == [11, "y"]


# ---- repaired strategies


class Watch(SupervisedPlugin):
    """Notes what each training iteration looks like; last in the list of plugins."""

    def __init__(self, look, event="after_training_iteration"):
        super().__init__()
        self.seen = []
        setattr(self, event, lambda strategy, **kwargs: self.seen.append(look(strategy)))


def watched(name, stream, look, *, event="after_training_iteration", steps=3, options=None, **setting):
    strategy = build(name, make_setting(name, **setting), **(options or {}))
    watch = Watch(look, event)
    strategy.plugins.append(watch)
    for experience in list(stream.train_stream)[:steps]:
        strategy.train(experience)
    return strategy, watch.seen


@pytest.mark.parametrize("name", ["rwalk", "lfl"])
def test_penalties_leave_the_model_in_training_mode(name):
    _, modes = watched(name, make_stream("domain"), lambda s: s.model.training)
    assert all(modes)


def test_rwalk_survives_experiences_shorter_than_its_interval():
    strategy, losses = watched("rwalk", make_stream(), lambda s: s.loss.item(), options={"delta_t": 1000})
    assert torch.tensor(losses).isfinite().all()
    assert all(penalty.data.isfinite().all() for penalty in strategy.plugins[0].exp_penalties.values())


@pytest.mark.parametrize("scenario", ["class", "task"])
def test_lwf_distils_all_old_classes_whatever_their_task_labels(scenario):
    strategy = trained("lwf", make_stream(scenario), steps=2)
    assert strategy.plugins[0].lwf.prev_classes_by_task[0] == set(ORDER[:7])


@pytest.mark.parametrize("name", ["cumulative", "gdumb", "joint"])
def test_batches_smaller_than_the_number_of_tasks_are_filled_uniformly(name):
    stream = make_stream("domain")
    strategy = build(name, make_setting(name, batch_size=2), **({"memory_epochs": 0} if name == "gdumb" else {}))
    watch = Watch(lambda s: len(s.mb_y))
    strategy.plugins.append(watch)
    for step in [stream.train_stream] if name == "joint" else stream.train_stream:
        strategy.train(step)
    images = {"cumulative": 60 + 120 + 180, "gdumb": 3 * 30, "joint": 180}[name]
    assert sum(watch.seen) == images  # each image once per epoch, none drawn again to balance tasks
    assert max(watch.seen) == 2


def test_gdumb_starts_each_experience_from_the_first_weights():
    _, first = watched(
        "gdumb", make_stream(), lambda s: s.model.head.weight.detach().clone(), event="before_training_exp"
    )
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])


@pytest.mark.parametrize("name", ["agem", "gem"])
def test_gradient_memories_share_one_budget(name):
    strategy = trained(name, make_stream(), memory=10)
    plugin = strategy.plugins[0]
    sizes = [len(part) for part in (plugin.buffers if name == "agem" else plugin.memory_x.values())]
    assert sizes == [3, 3, 3]
    with pytest.raises(ValueError, match="a memory of 2 images cannot keep one of each of the 3 experiences"):
        trained(name, make_stream(), memory=2)


def test_agem_takes_more_experiences_than_its_sample_has_images():
    assert trained("agem", make_stream(), options={"sample_size": 1}).plugins[0].sample_size == 3


def gem_problem(margin):
    setting = make_setting(memory=30)
    plugin = build("gem", setting, memory_strength=margin).plugins[0]
    plugin.G = torch.randn(4, 20)
    return plugin, torch.randn(20)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_gems_projection_opposes_no_past_gradient(margin):
    plugin, gradient = gem_problem(margin)
    projected = plugin.solve_quadprog(gradient)
    assert projected.dtype == torch.float32
    assert (plugin.G @ gradient < 0).any()
    assert (plugin.G @ projected > -1e-2).all()


@pytest.mark.filterwarnings("ignore")
def test_gems_projection_is_that_of_quadprog():
    pytest.importorskip("quadprog")
    for _ in range(20):
        plugin, gradient = gem_problem(0.5)
        expected = shipped_plugins.GEMPlugin.solve_quadprog(plugin, gradient)
        torch.testing.assert_close(plugin.solve_quadprog(gradient), expected, rtol=1e-4, atol=1e-4)


def test_mir_replays_the_experience_before():
    stream = make_stream()
    strategy = trained("mir", stream, steps=1)
    plugin = strategy.plugins[0]
    plugin.before_training_exp(strategy)
    assert set(next(plugin.replay_loader)[1].tolist()) == set(ORDER[:4])


def test_er_aml_ends_where_a_class_has_fewer_images_than_a_batch():
    strategy = trained("er_aml", make_stream(), memory=10, batch_size=16)
    assert len(strategy.storage_policy.buffer) == 10


def test_the_contrast_of_er_aml_against_a_loop():
    setting = make_setting("er_aml")
    strategy = build("er_aml", setting)
    strategy.encoder = nn.Flatten()
    y, stored_y = torch.tensor([0, 1, 1]), torch.tensor([0, 1])  # one candidate each: nothing is left to chance
    x, stored = torch.randn(3, 4), torch.randn(2, 4)
    zeros = torch.zeros(3, dtype=torch.long)
    logits, buffer_y = torch.randn(2, 10), torch.tensor([3, 4])
    got = strategy.loss_with_replay(x, y, zeros, logits, buffer_y, (stored, stored_y, zeros[:2]))
    rows = [0, 1, 1, 1, 0, 0]  # the positives of the batch, then its negatives
    terms = []
    for anchor, label in zip(x, y, strict=True):
        similarity = torch.stack([torch.cosine_similarity(anchor, stored[row], dim=0) for row in rows]) / 0.1
        share = similarity.exp() / similarity.exp().sum()
        terms.append(torch.stack([-share[i].log() for i, row in enumerate(rows) if stored_y[row] == label]).mean())
    expected = nn.functional.cross_entropy(logits, buffer_y) + 0.1 / 0.07 * torch.stack(terms).mean()
    torch.testing.assert_close(got, expected)


def test_gss_stores_each_image_once_and_leaves_no_gradient():
    stream = make_stream()
    strategy, gradients = watched(
        "gss", stream, lambda s: [p.grad for p in s.model.parameters()], event="before_backward", epochs=3, memory=30
    )
    assert all(gradient is None or not gradient.any() for step in gradients for gradient in step)
    plugin = strategy.plugins[0]
    stored = plugin.ext_mem_list_x[: plugin.ext_mem_list_current_index].flatten(1)
    assert len(stored) == 30
    assert len(torch.unique(stored, dim=0)) == 30
    known = images_of(stream.train_stream[0].dataset + stream.train_stream[1].dataset + stream.train_stream[2].dataset)
    assert (torch.cdist(stored, known.flatten(1)).min(dim=1).values < 1e-3).all()  # as they came, not augmented


def test_cope_trains_on_every_batch_and_moves_its_prototypes():
    strategy, batches = watched("cope", make_stream(), lambda s: len(s.mb_y), options={"batch_size_mem": 5})
    plugin = strategy.plugins[0]
    assert len(batches) == 2 + 2 + 2
    assert batches[-2:] == [16 + 5, 2 + 5]
    assert all(prototype.norm().item() == pytest.approx(1, abs=1e-5) for prototype in plugin.p_mem.values())
    scores = plugin._get_nearest_neigbor_distr(plugin.p_mem[4])
    assert scores.argmax().item() == 4


def test_slda_scores_are_avalanches_and_classes_to_come_do_not_win():
    stream = make_stream()
    strategy = trained("slda", stream, steps=1)
    x = images_of(stream.test_stream[0].dataset)
    with torch.no_grad():
        scores, features = strategy.model.eval()(x), strategy.model.encoder(x)
    seen = sorted(ORDER[:4])
    theirs = shipped.StreamingLDA.predict(strategy, features)
    torch.testing.assert_close(scores[:, seen], theirs[:, seen], rtol=1e-3, atol=1e-2)
    assert set(scores.argmax(dim=1).tolist()) <= set(seen)


def test_bic_keeps_within_its_memory_and_leaves_the_stream_alone():
    stream = make_stream()
    before = [len(experience.dataset) for experience in stream.train_stream]
    strategy = trained("bic", stream, memory=30, options={"val_percentage": 0.3, "stage_2_epochs": 40})
    assert before == [len(experience.dataset) for experience in stream.train_stream]
    plugin = strategy.plugins[0]
    held = sum(len(group.buffer) for group in plugin.val_buffer.values())
    assert held == 9
    assert len(plugin.storage_policy.buffer) == 21
    assert sorted(plugin.bias_layer.clss.tolist()) == sorted(ORDER[7:])
    assert plugin.bias_layer.alpha.item() != 1
    assert not plugin.model_old.training
    old = torch.randn(4, 3)
    expected = -(old.div(2).softmax(1) * torch.zeros(4, 3).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(plugin.cross_entropy(torch.zeros(4, 3), old), expected)


def test_repaired_scr_stands_a_memory_smaller_than_its_classes():
    stream = make_stream()
    strategy = trained("scr_repaired", stream, memory=6)
    figures = strategy.eval(stream.test_stream)
    assert len(strategy.model.eval_classifier.class_means_dict) >= 6
    assert strategy.model.eval_classifier.class_means.isfinite().all()
    assert len(strategy.replay_plugin.storage_policy.buffer_groups) == 10  # put back
    assert figures


def test_an_autoencoder_with_batch_norm_stands_a_last_batch_of_one_image():
    stream = make_stream()
    images = len(stream.train_stream[0].dataset)
    model = trained("generative_replay", stream, steps=1, batch_size=images - 1).model
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_evaluation_of_feature_replay_draws_nothing():
    stream = make_stream()
    strategy = trained("feature_replay", stream, memory=6, options={"batch_size_mem": 32})
    strategy.is_training = False
    strategy.mb_output, strategy.mbatch = torch.zeros(2, 10), [None, torch.tensor([0, 1])]
    state = torch.get_rng_state()
    assert strategy.criterion().item() == pytest.approx(torch.tensor(10.0).log().item())
    assert torch.equal(state, torch.get_rng_state())


def test_la_maml_takes_batches_smaller_than_its_inner_updates():
    strategy, losses = watched("la_maml", make_stream(), lambda s: s.loss.item(), batch_size=16)
    assert len(losses) == 3  # parts of 4, 4, 4, 4 and 0 images
    assert torch.tensor(losses).isfinite().all()
    assert len(strategy.buffer) == 30


@pytest.mark.parametrize("name", ["er_ace", "derpp"])
def test_a_replay_batch_larger_than_the_memory_is_made_smaller(name):
    strategy = build(name, make_setting(name, memory=10))
    assert strategy.batch_size_mem == 10


def test_co2l_without_rehearsal_trains_on_the_experience_alone():
    _, seen = watched("co2l", make_stream(), lambda s: set(s.mb_y.tolist()), options={"rehearse": False})
    assert set().union(*seen[-2:]) == set(ORDER[7:])
    _, seen = watched("co2l", make_stream(), lambda s: set(s.mb_y.tolist()))
    assert set().union(*seen[-3:]) > set(ORDER[7:])


def test_the_readouts_are_named():
    assert baselines.icarl(make_setting("icarl")).readout == baselines.NEAREST_MEAN
    assert "refitted" in ours.co2l(make_setting("co2l")).readout
    assert "unit length" in ours.csd(make_setting("csd"), head="cosine").readout
