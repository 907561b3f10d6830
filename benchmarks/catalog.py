"""What each method is called, which options it has, and what `tune` may try: names and numbers only, no torch.

To add a method: one entry here, one function that builds it, one TOML file in benchmarks/configs/<suite>/.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

Option = bool | int | float | str

# Each `tune` draws its candidates from these and from what the method adds. The epochs are the same for all rows and
# bounded by what `make benchmark` may take in all.
RATES = (0.01, 0.03, 0.1)
LATER = (0.3, 1.0)
EPOCHS = (10, 20, 30)
ALONE: Mapping[str, tuple[Option, ...]] = {"lr": RATES, "epochs": EPOCHS, "augment": (False, True)}
COMMON: Mapping[str, tuple[Option, ...]] = {**ALONE, "lr_later": LATER}
CONTRASTIVE: Mapping[str, tuple[Option, ...]] = {"lr": RATES, "epochs": EPOCHS, "lr_later": LATER}


SCORES = {"accuracy": "final accuracy", "recall": "final Recall@1"}  # what `tune` can choose by


@dataclass(frozen=True)
class Method:
    """One strategy as the benchmarks know it.

    Args:
        build: "module:function"; the function takes a `Setting` and gives a `Built` (both in benchmarks.models).
        about: one line for `list`.
        options: every option a config may set, with its default; anything else in a config is refused.
        grid: what `tune` tries. Plain names are fields of Config, "options.x" is option x.
        has_memory: False for methods that store no image.
        own_augmentation: True for contrastive methods, which always augment; `augment` is then not an option.
        select_by: the validation figure by which `tune` chooses, a key of SCORES.
    """

    build: str
    about: str
    options: Mapping[str, Option] = field(default_factory=dict)
    grid: Mapping[str, tuple[Option, ...]] = field(default_factory=lambda: COMMON)
    has_memory: bool = True
    own_augmentation: bool = False
    select_by: str = "accuracy"


_SCR_OPTIONS: Mapping[str, Option] = {"temperature": 0.1, "batch_size_mem": 32, "projection_size": 64}
_SCR_GRID = {**CONTRASTIVE, "options.temperature": (0.1, 0.2, 0.5), "options.batch_size_mem": (16, 32, 64)}

METHODS: Mapping[str, Method] = {
    "co2l": Method(
        "benchmarks.ours:co2l",
        "contrastive continual learning: asymmetric SupCon, relation distillation, refitted read-out",
        options={
            "temperature": 0.5,
            "distill_temperature": 0.2,
            "teacher_temperature": 0.01,
            "weight": 1.0,
            "base_temperature": 0.07,
            "reduction": "all",
            "asymmetric": True,
            "readout": "linear",
            "readout_lr": 1.0,
            "readout_epochs": 100,
            "projection_size": 64,
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
        "benchmarks.ours:ssil",
        "separated softmax, task-wise distillation, fixed number of replay rows per step",
        options={
            "batch_size_mem": 32,
            "separated": True,
            "distillation": "task",
            "temperature": 2.0,
            "weight": 1.0,
        },
        grid={**COMMON, "options.batch_size_mem": (8, 16, 32), "options.weight": (0.1, 0.3, 1.0)},
    ),
    "csd": Method(
        "benchmarks.ours:csd",
        "contrastive supervised distillation for retrieval, without a memory",
        options={
            "temperature": 0.07,
            "weight": 1.0,
            "kd_weight": 1.0,
            "triplet_weight": 1.0,
            "margin": 1.0,
            "kd_temperature": 2.0,
            "ce": "weighted",
        },
        grid={**COMMON, "options.weight": (1.0, 3.0), "options.triplet_weight": (0.3, 1.0)},
        has_memory=False,
        select_by="recall",
    ),
    "naive": Method(
        "benchmarks.baselines:naive",
        "plain fine-tuning, the lower end",
        has_memory=False,
    ),
    "replay": Method(
        "benchmarks.baselines:replay",
        "cross-entropy on the new data and a replay batch (ReplayPlugin)",
        options={"batch_size_mem": 32},
        grid={**COMMON, "options.batch_size_mem": (16, 32, 64)},
    ),
    "lwf": Method(
        "benchmarks.baselines:lwf",
        "learning without forgetting: distillation of the old logits, without a memory",
        options={"alpha": 1.0, "temperature": 2.0},
        grid={**COMMON, "options.alpha": (1.0, 3.0, 10.0)},
        has_memory=False,
    ),
    "icarl": Method(
        "benchmarks.baselines:icarl",
        "herded exemplars, sigmoid distillation, nearest class mean",
        grid={**COMMON, "lr": (0.03, 0.1, 0.3, 1.0)},
    ),
    "scr": Method(
        "benchmarks.baselines:scr",
        "supervised contrastive replay as Avalanche ships it",
        options=_SCR_OPTIONS,
        grid=_SCR_GRID,
        own_augmentation=True,
    ),
    "scr_repaired": Method(
        "benchmarks.baselines:scr_repaired",
        "the same with fresh class means and a unit-length projection",
        options=_SCR_OPTIONS,
        grid=_SCR_GRID,
        own_augmentation=True,
    ),
    "er_ace": Method(
        "benchmarks.baselines:er_ace",
        "replay with asymmetric cross-entropy",
        options={"batch_size_mem": 32},
        grid={**COMMON, "options.batch_size_mem": (16, 32, 64)},
    ),
    "derpp": Method(
        "benchmarks.baselines:derpp",
        "dark experience replay with labels",
        options={"alpha": 0.1, "beta": 0.5, "batch_size_mem": 32},
        grid={**COMMON, "lr": (0.003, 0.01, 0.03), "options.alpha": (0.1, 0.3, 1.0), "options.beta": (0.5, 1.0)},
    ),
    "joint": Method(
        "benchmarks.baselines:joint",
        "all classes at once, the upper end",
        grid=ALONE,
        has_memory=False,
    ),
}
