"""Every method that a row can name: those of this package's registry, and Avalanche's strategies with their grids.

Names and numbers only, no torch. Options, their defaults and one line about each method are read from the builders'
sources. To add a strategy of Avalanche here: one entry, one function that builds it, one TOML file in
bench/configs/<suite>/. A method of your own needs no entry: `method = "module:function"` in its TOML.
"""

from collections import ChainMap
from collections.abc import Mapping

from avalanche_contrastive import registry
from avalanche_contrastive.registry import COMMON, CONTRASTIVE, EPOCHS, LATER, RATES, Grid, Method, Option

HOME = "avalanche_contrastive.bench.methods"

ALONE: Grid = {"lr": RATES, "epochs": EPOCHS, "augment": (False, True)}
REPLAYED: Grid = {**COMMON, "options.batch_size_mem": (16, 32, 64)}
SCR: Grid = {**CONTRASTIVE, "options.temperature": (0.1, 0.2, 0.5), "options.batch_size_mem": (16, 32, 64)}

# Why several processes cannot train a method together.
OWN_LOOP = "its training loop is its own, and the rows of the processes cannot be put together in it"
OWN_ROWS = "it works on the batch before the forward pass, where each process has only its own rows"
OWN_LOADER = "Avalanche gives each process another part of its memory"
# Why a method does not run on streams where all classes are in every experience.
OLD_CLASSES = "it tells old classes from new ones, and there every experience has all classes"


def _common(**grid: tuple[Option, ...]) -> Grid:
    """The common grid with values for some options."""
    return {**COMMON, **{f"options.{name}": values for name, values in grid.items()}}


def _baseline(name: str, strategy: str, **facts: object) -> Method:
    return Method(f"{HOME}.baselines:{name}", strategy, **facts)  # type: ignore[arg-type]


def _penalty(name: str, strategy: str, **facts: object) -> Method:
    return Method(f"{HOME}.penalties:{name}", strategy, **facts)  # type: ignore[arg-type]


AVALANCHE: Mapping[str, Method] = {
    # ---- the lower end
    "naive": _baseline("naive", "Naive", has_memory=False),
    "from_scratch": _baseline("from_scratch", "FromScratchTraining", has_memory=False),
    # ---- replay
    "replay": _baseline("replay", "Replay", grid=REPLAYED),
    "er_ace": _baseline("er_ace", "ER_ACE", grid=REPLAYED, alone=OWN_LOOP),
    "er_aml": _baseline("er_aml", "ER_AML", grid={**REPLAYED, "options.temp": (0.1, 0.2, 0.5)}, alone=OWN_LOOP),
    "der": _baseline("der", "DER", grid={**_common(alpha=(0.1, 0.3, 1.0)), "lr": (0.003, 0.01, 0.03)}, alone=OWN_LOOP),
    "derpp": _baseline(
        "derpp",
        "DER",
        grid={**_common(alpha=(0.1, 0.3, 1.0), beta=(0.5, 1.0)), "lr": (0.003, 0.01, 0.03)},
        alone=OWN_LOOP,
    ),
    "mir": _baseline("mir", "MIR", grid=REPLAYED, alone="its trial step takes the gradient of each process's own rows"),
    "gdumb": _baseline(
        "gdumb",
        "GDumb",
        # A pass over the memory is a third of one over an experience of Split-Digits.
        grid={"lr": RATES, "augment": (False, True), "options.memory_epochs": (30, 60, 90)},
    ),
    "gss": _baseline("gss", "GSS_greedy", grid=REPLAYED, alone=OWN_ROWS),
    "rar": _baseline("rar", "RARPlugin", grid=_common(beta_coef=(0.1, 0.4, 1.0), epsilon_fgsm=(0.03, 0.1))),
    "mer": _baseline(
        "mer",
        "MER",
        # A step per image and stored image: three of its epochs are more steps than thirty of the others.
        grid={
            "lr": RATES,
            "epochs": (1, 2, 3),
            "lr_later": LATER,
            "options.beta": (0.03, 0.1, 0.3),
            "options.gamma": (0.3, 1.0),
        },
        alone=OWN_LOOP,
    ),
    "la_maml": _baseline(
        "la_maml",
        "LaMAML",
        grid={
            "epochs": EPOCHS,
            "options.alpha_init": (0.03, 0.1, 0.3),
            "options.lr_alpha": (0.1, 0.25),
            "options.batch_size_mem": (10, 32),
        },
        alone=OWN_LOOP,
    ),
    "feature_replay": _baseline("feature_replay", "FeatureReplay", grid=REPLAYED, alone=OWN_ROWS),
    "generative_replay": _baseline(
        "generative_replay",
        "GenerativeReplay",
        grid=_common(generator_lr=(1e-3, 3e-3, 1e-2), generator_epochs=(0, 60)),
        has_memory=False,
        alone=OWN_ROWS,
    ),
    # ---- exemplars and prototypes
    "icarl": _baseline(
        "icarl",
        "ICaRL",
        grid={**COMMON, "lr": (0.03, 0.1, 0.3, 1.0)},
        scenarios=("class", "task"),
        why_not=OLD_CLASSES,
        alone=OWN_ROWS,
    ),
    "bic": _baseline(
        "bic",
        "BiC",
        grid=_common(val_percentage=(0.1, 0.2), stage_2_lr=(0.01, 0.03, 0.1)),
        scenarios=("class", "task"),
        why_not=OLD_CLASSES,
        alone=OWN_LOADER,
    ),
    "scr": _baseline("scr", "SCR", grid=SCR, own_augmentation=True, alone=OWN_ROWS),
    "scr_repaired": _baseline("scr_repaired", "SCR", grid=SCR, own_augmentation=True, alone=OWN_ROWS),
    "cope": _baseline("cope", "CoPE", grid=_common(alpha=(0.9, 0.99), T=(0.1, 0.2, 0.5))),
    "slda": _baseline(
        "slda",
        "StreamingLDA",
        grid={
            "augment": (False, True),
            "options.shrinkage_param": (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
            "options.streaming_update_sigma": (False, True),
        },
        has_memory=False,
        alone=OWN_LOOP,
    ),
    "cwr": _baseline("cwr", "CWRStar", has_memory=False),
    # ---- penalties
    "lwf": _penalty("lwf", "LwF", grid=_common(alpha=(1.0, 3.0, 10.0)), has_memory=False),
    "feature_distillation": _penalty(
        "feature_distillation",
        "FeatureDistillationPlugin",
        grid=_common(alpha=(1.0, 3.0, 10.0)),
        has_memory=False,
        alone=OWN_ROWS,
    ),
    "lfl": _penalty(
        "lfl",
        "LFL",
        grid=_common(lambda_e=(0.1, 1.0, 10.0)),
        has_memory=False,
        scenarios=("domain",),
        why_not="it freezes the classifier after the first experience, so no later class can be learned",
    ),
    "ewc": _penalty("ewc", "EWC", grid=_common(ewc_lambda=(1.0, 10.0, 100.0, 1000.0)), has_memory=False),
    "si": _penalty("si", "SynapticIntelligence", grid=_common(si_lambda=(1.0, 10.0, 100.0, 1000.0)), has_memory=False),
    "mas": _penalty("mas", "MAS", grid=_common(lambda_reg=(0.01, 0.1, 1.0, 10.0)), has_memory=False),
    "rwalk": _penalty("rwalk", "RWalkPlugin", grid=_common(ewc_lambda=(0.1, 1.0, 10.0, 100.0)), has_memory=False),
    "agem": _penalty("agem", "AGEM", grid=_common(sample_size=(32, 64, 128)), alone=OWN_LOADER),
    "gem": _penalty("gem", "GEM", grid=_common(memory_strength=(0.0, 0.1, 0.5, 1.0))),
    # ---- the upper end
    "cumulative": _baseline("cumulative", "Cumulative", has_memory=False),
    "joint": _baseline("joint", "JointTraining", grid=ALONE, has_memory=False),
}

METHODS: Mapping[str, Method] = ChainMap(dict(AVALANCHE), registry.METHODS)  # iterates the registry's first

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
