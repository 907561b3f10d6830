"""What the catalog says of a method, and what `tune` tries for many of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from avalanche_contrastive.bench.methods.builders import Option

Grid = Mapping[str, tuple[Option, ...]]

SCENARIOS = ("class", "task", "domain")

# Each `tune` draws its candidates from these and from what the method adds. The epochs are the same for all rows and
# bounded by what `make benchmark` may take in all.
RATES = (0.01, 0.03, 0.1)
LATER = (0.3, 1.0)
EPOCHS = (10, 20, 30)
ALONE: Grid = {"lr": RATES, "epochs": EPOCHS, "augment": (False, True)}
COMMON: Grid = {**ALONE, "lr_later": LATER}
CONTRASTIVE: Grid = {"lr": RATES, "epochs": EPOCHS, "lr_later": LATER}
REPLAYED: Grid = {**COMMON, "options.batch_size_mem": (16, 32, 64)}

SCORES = {"accuracy": "final accuracy", "recall": "final Recall@1"}  # what `tune` can choose by


@dataclass(frozen=True)
class Method:
    """One strategy as the benchmarks know it.

    Args:
        build: "module:function"; the function takes a `Setting` and the options as keywords, and gives a `Built` or an
            Avalanche strategy (both classes in avalanche_contrastive.bench.methods.networks).
        about: one line for `list`.
        strategy: the class of avalanche.training.supervised or avalanche.training.plugins behind it; "" for others.
        options: every option a config may set, with its default; anything else in a config is refused. TOML has no
            "none": where an option may be off, 0 or "" says so.
        grid: what `tune` tries. Plain names are fields of Config, "options.x" is option x.
        has_memory: False for methods that store no image.
        stores_by_default: False where only the config tells whether it stores images: by its `memory`, else 0.
        own_augmentation: True for contrastive methods, which always augment; `augment` is then not an option.
        select_by: the validation figure by which `tune` chooses, a key of SCORES.
        scenarios: the kinds of streams that it runs on.
        why_not: why it does not run on the others, to follow "does not run on ...-incremental streams: ".
        alone: why it cannot be trained by several processes together; "" where it can.
    """

    build: str
    about: str
    strategy: str = ""
    options: Mapping[str, Option] = field(default_factory=dict)
    grid: Grid = field(default_factory=lambda: COMMON)
    has_memory: bool = True
    stores_by_default: bool = True
    own_augmentation: bool = False
    select_by: str = "accuracy"
    scenarios: tuple[str, ...] = SCENARIOS
    why_not: str = ""
    alone: str = ""
