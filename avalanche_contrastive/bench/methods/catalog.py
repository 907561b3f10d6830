"""What each method is called, which options it has, what `tune` may try, where it runs: names and numbers, no torch.

To add a method here: one entry, one function that builds it, one TOML file in bench/configs/<suite>/. A method of
your own needs no entry: `method = "module:function"` in its TOML, see `method_of`.
"""

from collections.abc import Mapping
from pathlib import Path

from avalanche_contrastive.bench.methods.builders import Option as Option
from avalanche_contrastive.bench.methods.builders import find_builder, first_line, options_of
from avalanche_contrastive.bench.methods.method import ALONE, COMMON, CONTRASTIVE, EPOCHS, LATER, RATES, REPLAYED
from avalanche_contrastive.bench.methods.method import SCENARIOS as SCENARIOS
from avalanche_contrastive.bench.methods.method import SCORES as SCORES
from avalanche_contrastive.bench.methods.method import Grid as Grid
from avalanche_contrastive.bench.methods.method import Method as Method

_SCR_OPTIONS: Mapping[str, Option] = {"temperature": 0.1, "batch_size_mem": 32, "projection_size": 64}
_SCR_GRID = {**CONTRASTIVE, "options.temperature": (0.1, 0.2, 0.5), "options.batch_size_mem": (16, 32, 64)}
_OWN_LOOP = "its training loop is its own, and the rows of the processes cannot be put together in it"
_OWN_ROWS = "it works on the batch before the forward pass, where each process has but its own rows"
_OWN_LOADER = "Avalanche gives each process another part of its memory"
_OLD_CLASSES = "it tells old classes from new ones, and there all classes come in every experience"

_OURS: Mapping[str, Method] = {
    "co2l": Method(
        "avalanche_contrastive.bench.methods.ours:co2l",
        "contrastive continual learning: asymmetric SupCon, relation distillation, refitted read-out",
        options={
            "temperature": 0.5,
            "distill_temperature": 0.2,
            "teacher_temperature": 0.01,
            "weight": 1.0,
            "base_temperature": 0.07,
            "reduction": "all",
            "asymmetric": True,
            "domains": False,
            "rehearse": True,
            "batch_size_mem": 0,
            "storage": "class_balanced",
            "views": 2,
            "readout": "linear",
            "readout_lr": 1.0,
            "readout_epochs": 100,
            "readout_batch_size": 256,
            "teacher_mode": "eval",
            "projection_size": 64,
            "hidden_size": 0,
        },
        grid={
            **CONTRASTIVE,
            "batch_size": (32, 64),
            "options.temperature": (0.1, 0.2, 0.5),
            "options.weight": (0.3, 1.0, 3.0),
            "options.readout_lr": (0.1, 0.3, 1.0),
        },
        own_augmentation=True,
    ),
    "ssil": Method(
        "avalanche_contrastive.bench.methods.ours:ssil",
        "separated softmax, task-wise distillation, fixed number of replay rows per step",
        options={
            "batch_size_mem": 32,
            "storage": "class_balanced",
            "separated": True,
            "distillation": "task",
            "temperature": 2.0,
            "weight": 1.0,
            "teacher_mode": "eval",
        },
        grid={**COMMON, "options.batch_size_mem": (8, 16, 32), "options.weight": (0.1, 0.3, 1.0)},
    ),
    "csd": Method(
        "avalanche_contrastive.bench.methods.ours:csd",
        "contrastive supervised distillation for retrieval, without a memory",
        options={
            "temperature": 0.07,
            "weight": 1.0,
            "form": "authors",
            "normalize": True,
            "kd_weight": 1.0,
            "kd_temperature": 2.0,
            "triplet_weight": 1.0,
            "margin": 1.0,
            "ce": "weighted",
            "ce_weight": 1.0,
            "head": "linear",
            "feature_layer": "",
            "teacher_mode": "eval",
        },
        grid={**COMMON, "options.weight": (1.0, 3.0), "options.triplet_weight": (0.3, 1.0)},
        has_memory=False,
        select_by="recall",
    ),
}

_ENDS: Mapping[str, Method] = {
    "naive": Method(
        "avalanche_contrastive.bench.methods.baselines:naive",
        "plain fine-tuning, the lower end",
        "Naive",
        has_memory=False,
    ),
    "from_scratch": Method(
        "avalanche_contrastive.bench.methods.baselines:from_scratch",
        "a new network for every experience, below the lower end",
        "FromScratchTraining",
        has_memory=False,
    ),
}

_REPLAY: Mapping[str, Method] = {
    "replay": Method(
        "avalanche_contrastive.bench.methods.baselines:replay",
        "cross-entropy on the new data and a replay batch (ReplayPlugin)",
        "Replay",
        options={"batch_size_mem": 32},
        grid=REPLAYED,
    ),
    "er_ace": Method(
        "avalanche_contrastive.bench.methods.baselines:er_ace",
        "replay with asymmetric cross-entropy",
        "ER_ACE",
        options={"batch_size_mem": 32},
        grid=REPLAYED,
        alone=_OWN_LOOP,
    ),
    "er_aml": Method(
        "avalanche_contrastive.bench.methods.baselines:er_aml",
        "replay with asymmetric metric learning; repaired: endless loop, axis of the softmax",
        "ER_AML",
        options={"temp": 0.1, "base_temp": 0.07, "same_task_neg": True, "batch_size_mem": 32},
        grid={**REPLAYED, "options.temp": (0.1, 0.2, 0.5)},
        alone=_OWN_LOOP,
    ),
    "der": Method(
        "avalanche_contrastive.bench.methods.baselines:der",
        "dark experience replay: mean squared error to stored logits",
        "DER",
        options={"alpha": 0.1, "batch_size_mem": 32},
        grid={**COMMON, "lr": (0.003, 0.01, 0.03), "options.alpha": (0.1, 0.3, 1.0)},
        alone=_OWN_LOOP,
    ),
    "derpp": Method(
        "avalanche_contrastive.bench.methods.baselines:derpp",
        "dark experience replay with labels",
        "DER",
        options={"alpha": 0.1, "beta": 0.5, "batch_size_mem": 32},
        grid={**COMMON, "lr": (0.003, 0.01, 0.03), "options.alpha": (0.1, 0.3, 1.0), "options.beta": (0.5, 1.0)},
        alone=_OWN_LOOP,
    ),
    "mir": Method(
        "avalanche_contrastive.bench.methods.baselines:mir",
        "replay of what the step would interfere with most; repaired: replays the last experience, too",
        "MIR",
        options={"subsample": 200, "batch_size_mem": 32},
        grid=REPLAYED,
        alone="its trial step takes the gradient of each process's own rows",
    ),
    "gdumb": Method(
        "avalanche_contrastive.bench.methods.baselines:gdumb",
        "a new network on the memory alone, with passes of its own number",
        "GDumb",
        options={"memory_epochs": 60},
        # A pass over the memory is a third of one over an experience of Split-Digits.
        grid={"lr": RATES, "augment": (False, True), "options.memory_epochs": (30, 60, 90)},
    ),
    "gss": Method(
        "avalanche_contrastive.bench.methods.baselines:gss",
        "replay of images with unlike gradients; repaired: chooses from each image once, clean gradients",
        "GSS_greedy",
        options={"mem_strength": 10, "batch_size_mem": 32},
        grid=REPLAYED,
        alone=_OWN_ROWS,
    ),
    "rar": Method(
        "avalanche_contrastive.bench.methods.baselines:rar",
        "replay with adversarial copies of the stored images (RARPlugin)",
        "RARPlugin",
        options={"batch_size_mem": 32, "beta_coef": 0.4, "epsilon_fgsm": 0.0314, "opt_lr": 0.1},
        grid={**COMMON, "options.beta_coef": (0.1, 0.4, 1.0), "options.epsilon_fgsm": (0.03, 0.1)},
    ),
    "mer": Method(
        "avalanche_contrastive.bench.methods.baselines:mer",
        "meta-experience replay: a step per image; slow, and no augmentation reaches it",
        "MER",
        options={"n_inner_steps": 1, "beta": 0.1, "gamma": 1.0, "batch_size_mem": 10},
        # A step per image and stored image: three of its epochs are more steps than thirty of the others.
        grid={
            "lr": RATES,
            "epochs": (1, 2, 3),
            "lr_later": LATER,
            "options.beta": (0.03, 0.1, 0.3),
            "options.gamma": (0.3, 1.0),
        },
        alone=_OWN_LOOP,
    ),
    "la_maml": Method(
        "avalanche_contrastive.bench.methods.baselines:la_maml",
        "look-ahead MAML with a rate per weight; no augmentation reaches it; repaired: batches of any size",
        "LaMAML",
        options={
            "n_inner_updates": 5,
            "second_order": True,
            "alpha_init": 0.1,
            "lr_alpha": 0.25,
            "grad_clip_norm": 1.0,
            "batch_size_mem": 10,
        },
        grid={
            "epochs": EPOCHS,
            "options.alpha_init": (0.03, 0.1, 0.3),
            "options.lr_alpha": (0.1, 0.25),
            "options.batch_size_mem": (10, 32),
        },
        alone=_OWN_LOOP,
    ),
    "feature_replay": Method(
        "avalanche_contrastive.bench.methods.baselines:feature_replay",
        "replay of stored features in the head (PR-ACE); repaired: endless loop, evaluation without draws",
        "FeatureReplay",
        options={"batch_size_mem": 32},
        grid=REPLAYED,
        alone=_OWN_ROWS,
    ),
    "generative_replay": Method(
        "avalanche_contrastive.bench.methods.baselines:generative_replay",
        "replay of images from an autoencoder that is trained along; repaired: takes any number of images",
        "GenerativeReplay",
        options={"latent": 16, "generator_lr": 1e-3, "generator_epochs": 0},
        grid={**COMMON, "options.generator_lr": (1e-3, 3e-3, 1e-2), "options.generator_epochs": (0, 60)},
        has_memory=False,
        alone=_OWN_ROWS,
    ),
}

_PROTOTYPES: Mapping[str, Method] = {
    "icarl": Method(
        "avalanche_contrastive.bench.methods.baselines:icarl",
        "herded exemplars, sigmoid distillation, nearest class mean",
        "ICaRL",
        grid={**COMMON, "lr": (0.03, 0.1, 0.3, 1.0)},
        scenarios=("class", "task"),
        why_not=_OLD_CLASSES,
        alone=_OWN_ROWS,
    ),
    "bic": Method(
        "avalanche_contrastive.bench.methods.baselines:bic",
        "replay, distillation and a bias correction; repaired: today's torch, softmax over classes, size of the memory",
        "BiC",
        options={"val_percentage": 0.1, "T": 2.0, "lamb": 0.0, "stage_2_epochs": 200, "stage_2_lr": 0.1},
        grid={**COMMON, "options.val_percentage": (0.1, 0.2), "options.stage_2_lr": (0.01, 0.03, 0.1)},
        scenarios=("class", "task"),
        why_not=_OLD_CLASSES,
        alone=_OWN_LOADER,
    ),
    "scr": Method(
        "avalanche_contrastive.bench.methods.baselines:scr",
        "supervised contrastive replay as Avalanche ships it",
        "SCR",
        options=_SCR_OPTIONS,
        grid=_SCR_GRID,
        own_augmentation=True,
        alone=_OWN_ROWS,
    ),
    "scr_repaired": Method(
        "avalanche_contrastive.bench.methods.baselines:scr_repaired",
        "the same with fresh class means and a unit-length projection",
        "SCR",
        options=_SCR_OPTIONS,
        grid=_SCR_GRID,
        own_augmentation=True,
        alone=_OWN_ROWS,
    ),
    "cope": Method(
        "avalanche_contrastive.bench.methods.baselines:cope",
        "prototypes that move with every batch; repaired: trains on more than one batch of each experience",
        "CoPE",
        options={"p_size": 100, "alpha": 0.99, "T": 0.1, "batch_size_mem": 32},
        grid={**COMMON, "options.alpha": (0.9, 0.99), "options.T": (0.1, 0.2, 0.5)},
    ),
    "slda": Method(
        "avalanche_contrastive.bench.methods.baselines:slda",
        "streaming linear discriminant analysis on an untrained network; repaired: classes to come do not win",
        "StreamingLDA",
        options={"shrinkage_param": 1e-4, "streaming_update_sigma": True},
        grid={
            "augment": (False, True),
            "options.shrinkage_param": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
            "options.streaming_update_sigma": (False, True),
        },
        has_memory=False,
        alone=_OWN_LOOP,
    ),
    "cwr": Method(
        "avalanche_contrastive.bench.methods.baselines:cwr",
        "CWR*: the network is frozen after the first experience, the head's rows are consolidated",
        "CWRStar",
        has_memory=False,
    ),
}

_PENALTIES: Mapping[str, Method] = {
    "lwf": Method(
        "avalanche_contrastive.bench.methods.penalties:lwf",
        "learning without forgetting: distillation of the old logits, without a memory",
        "LwF",
        options={"alpha": 1.0, "temperature": 2.0},
        grid={**COMMON, "options.alpha": (1.0, 3.0, 10.0)},
        has_memory=False,
    ),
    "feature_distillation": Method(
        "avalanche_contrastive.bench.methods.penalties:feature_distillation",
        "the features keep their direction (FeatureDistillationPlugin)",
        "FeatureDistillationPlugin",
        options={"alpha": 1.0},
        grid={**COMMON, "options.alpha": (1.0, 3.0, 10.0)},
        has_memory=False,
        alone=_OWN_ROWS,
    ),
    "lfl": Method(
        "avalanche_contrastive.bench.methods.penalties:lfl",
        "less-forgetful learning: the features keep their place; repaired: trains in training mode",
        "LFL",
        options={"lambda_e": 1.0},
        grid={**COMMON, "options.lambda_e": (0.1, 1.0, 10.0)},
        has_memory=False,
        scenarios=("domain",),
        why_not="it freezes the classifier after the first experience, so no later class can be learned",
    ),
    "ewc": Method(
        "avalanche_contrastive.bench.methods.penalties:ewc",
        "elastic weight consolidation",
        "EWC",
        options={"ewc_lambda": 100.0, "mode": "separate", "decay_factor": 0.0},
        grid={**COMMON, "options.ewc_lambda": (1.0, 10.0, 100.0, 1000.0)},
        has_memory=False,
    ),
    "si": Method(
        "avalanche_contrastive.bench.methods.penalties:si",
        "synaptic intelligence",
        "SynapticIntelligence",
        options={"si_lambda": 1.0, "eps": 1e-7},
        grid={**COMMON, "options.si_lambda": (1.0, 10.0, 100.0, 1000.0)},
        has_memory=False,
    ),
    "mas": Method(
        "avalanche_contrastive.bench.methods.penalties:mas",
        "memory-aware synapses",
        "MAS",
        options={"lambda_reg": 1.0, "alpha": 0.5},
        grid={**COMMON, "options.lambda_reg": (0.01, 0.1, 1.0, 10.0)},
        has_memory=False,
    ),
    "rwalk": Method(
        "avalanche_contrastive.bench.methods.penalties:rwalk",
        "Riemannian walk without replay (RWalkPlugin); repaired: trains in training mode",
        "RWalkPlugin",
        options={"ewc_lambda": 0.1, "ewc_alpha": 0.9, "delta_t": 10},
        grid={**COMMON, "options.ewc_lambda": (0.1, 1.0, 10.0, 100.0)},
        has_memory=False,
    ),
    "agem": Method(
        "avalanche_contrastive.bench.methods.penalties:agem",
        "the gradient does not oppose that of stored images, on average; repaired: one memory for all experiences",
        "AGEM",
        options={"sample_size": 64},
        grid={**COMMON, "options.sample_size": (32, 64, 128)},
        alone=_OWN_LOADER,
    ),
    "gem": Method(
        "avalanche_contrastive.bench.methods.penalties:gem",
        "the same for each past experience; repaired: needs no solver of its own, one memory for all experiences",
        "GEM",
        options={"memory_strength": 0.5},
        grid={**COMMON, "options.memory_strength": (0.0, 0.1, 0.5, 1.0)},
    ),
}

_UPPER: Mapping[str, Method] = {
    "cumulative": Method(
        "avalanche_contrastive.bench.methods.baselines:cumulative",
        "all data so far at every experience",
        "Cumulative",
        has_memory=False,
    ),
    "joint": Method(
        "avalanche_contrastive.bench.methods.baselines:joint",
        "all classes at once, the upper end",
        "JointTraining",
        grid=ALONE,
        has_memory=False,
    ),
}

METHODS: Mapping[str, Method] = {**_OURS, **_ENDS, **_REPLAY, **_PROTOTYPES, **_PENALTIES, **_UPPER}

UNAVAILABLE: Mapping[str, str] = {
    "AETraining": "trains an autoencoder, no classifier; a part of ExpertGateStrategy",
    "VAETraining": "trains an autoencoder, no classifier; a part of generative_replay",
    "AR1": "takes no model: it trains a MobileNet of its own from ImageNet weights that it downloads",
    "LearningToPrompt": "takes no model: it prompts a vision transformer of timm with ImageNet weights to download",
    "ExpertGateStrategy": "wants AlexNets with ImageNet weights, one per task, and images of 224 x 224",
    "PNNStrategy": "evaluating a task before its training freezes all columns there are, so it cannot be followed "
    "through a whole stream",
    "PackNet": "cannot evaluate a task before its training, and trains no network with batch norm",
    **dict.fromkeys(
        ("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle"), "a read-out by class means, no way of training"
    ),
    **dict.fromkeys(
        ("CurrentDataFeCAMUpdate", "MemoryFeCAMUpdate", "FeCAMOracle"),
        "a read-out by class means and covariances, no way of training",
    ),
}


def method_of(name: str, folder: Path | None = None) -> Method:
    """The method of that name.

    Args:
        name: a key of METHODS, or "module:function" of a builder of your own. That function takes a `Setting` (of
            `networks`); its keyword-only parameters are the options, with their defaults, and the first line of its
            docstring is what `list` says. It gives an Avalanche strategy or a `Built`. It stores as many images as the
            config's `memory` says, none by default, or takes no notice of that.
        folder: where a module of your own is looked for first: that of the TOML file.

    Raises:
        ValueError: there is no such method, module or function, or a parameter that no config could set.
    """
    if name in METHODS:
        return METHODS[name]
    if ":" not in name:
        raise ValueError(f"no method named {name!r}. Known: {', '.join(METHODS)}, or module:function of your own")
    builder = find_builder(name, folder)
    return Method(name, about=first_line(builder), options=options_of(builder, name), stores_by_default=False)
