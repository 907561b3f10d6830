"""The command line of the runner: commands, options and their help."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from avalanche_contrastive._launch import launched
from avalanche_contrastive._version import __version__
from avalanche_contrastive.bench.config import DEFAULT_SUITE
from avalanche_contrastive.bench.selection import OWN_SUITE
from avalanche_contrastive.bench.texts import (
    COMPARE_TEXT,
    EXPORT_TEXT,
    FEATURES_EXAMPLES,
    FEATURES_TEXT,
    LIST_TEXT,
    REPORT_TEXT,
    RUN_EXAMPLES,
    RUN_TEXT,
    SPEED_TEXT,
    TUNE_EXAMPLES,
    TUNE_TEXT,
)
from avalanche_contrastive.registry import load

ROOM = "avalanche_contrastive.bench"
# The function of each command. They are imported when called, since torch, Avalanche and matplotlib take seconds.
COMMANDS = {
    "list": f"{ROOM}.listing:list_rows",
    "run": f"{ROOM}.run.matrix:command",
    "tune": f"{ROOM}.run.tuning:tune",
    "features": f"{ROOM}.run.features:features",
    "table": f"{ROOM}.report.pages:command",
    "compare": f"{ROOM}.report.folders:command",
    "export": f"{ROOM}.report.formats:command",
    "plot": f"{ROOM}.report.plots:command",
    "report": f"{ROOM}.report.html:command",
    "speed": f"{ROOM}.speed.command:command",
}
MOST_SEEDS = 10_000  # of one range: more are a slip of the keyboard
ROWS_HELP = "row names (see `list`) or paths of TOML files; default: all rows of the suite's main table"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all went well, 1 when something failed, 2 for a wrong command line."""
    parsed = make_parser().parse_args(arguments)
    try:
        if launched() > 1 and parsed.command != "run":
            raise ValueError(f"torchrun has started {launched()} processes, but of all commands only `run` uses them")
        command: Callable[[argparse.Namespace], int] = load(COMMANDS[parsed.command])
        return command(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; finished runs are kept, the same command goes on from there", file=sys.stderr)
        return 130


def program() -> str:
    """How the runner was called, for its help."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return "python -m benchmarks" if path.parent.name == "benchmarks" else f"python -m {ROOM}"
    return "avalanche-contrastive"


def make_parser() -> argparse.ArgumentParser:
    """What it parses has the command's name as ``command``."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Compare Co2L, SS-IL and CSD with Avalanche's own strategies, from configs to tables.",
        epilog="A row is one TOML file; the package has suites of them. `run` without a row runs the main table.",
    )
    parser.add_argument("--version", action="version", version=f"avalanche-contrastive {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    reports = (_add_table, _add_compare, _add_export, _add_plot, _add_report)
    for add in (_add_list, _add_run, _add_tune, _add_features, *reports, _add_speed):
        add(commands)
    return parser


def _add_command(commands: Any, name: str, about: str, text: str = "", examples: str = "") -> Any:
    return commands.add_parser(
        name,
        help=about,
        description=text or about[0].upper() + about[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_suite(command: Any) -> None:
    command.add_argument("--suite", help=f"folder of configs (default: {DEFAULT_SUITE}); `list --suites` names them")


def _add_list(commands: Any) -> None:
    command = _add_command(commands, "list", "the rows of a suite, one line each", LIST_TEXT)
    _add_suite(command)
    command.add_argument("row", nargs="?", metavar="CONFIG", help="one row: everything that a TOML file may set")
    command.set_defaults(rows=[], data=None)
    command.add_argument("--suites", action="store_true", help="the suites instead")
    command.add_argument("--streams", action="store_true", help="the streams and networks instead")
    command.add_argument("--unavailable", action="store_true", help="Avalanche's strategies that are left out, and why")


def _add_run(commands: Any) -> None:
    command = _add_command(
        commands, "run", "run rows, then print the tables and write them with figures", RUN_TEXT, RUN_EXAMPLES
    )
    command.add_argument("rows", nargs="*", metavar="CONFIG", help=ROWS_HELP)
    _add_suite(command)
    command.add_argument(
        "--others", action="store_true", help="add Avalanche's further strategies, which are not tuned"
    )
    command.add_argument("--ablations", action="store_true", help="add the rows of the ablation table")
    command.add_argument(
        "--trials", action="store_true", help="add the trials, which are evaluated on validation images"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="show what is done, what is to do and how long it may take, no more"
    )
    command.add_argument("--seeds", type=parse_seeds, default="0-2", help="such as 0-2 or 0,3,5 (default: %(default)s)")
    command.add_argument("--jobs", type=_positive, help="processes, a run in each (default: 2; under torchrun 1)")
    command.add_argument("--out", type=Path, help="folder of the results (default: out/SUITE)")
    command.add_argument(
        "--log",
        type=_loggers,
        default=(),
        metavar="csv,tensorboard,wandb",
        help="log metrics during each run, to logs/ROW-seedN in the folder of the results and to W&B",
    )
    _add_data(command)
    command.add_argument(
        "--memory", type=_positive, help="stored images of each row that has a memory (default: from the config)"
    )
    _add_set(command)
    command.add_argument(
        "--again", action="store_true", help="do runs once more from the start, whatever is there, and replace it"
    )
    _add_cluster(command)


def _add_cluster(command: Any) -> None:
    command.add_argument(
        "--on",
        default="local",
        choices=("local", "slurm"),
        help="this machine, or a Slurm cluster through submitit, one array task per run (default: %(default)s)",
    )
    cluster = command.add_argument_group("on slurm")
    cluster.add_argument("--partition", help="(default: the cluster's)")
    cluster.add_argument("--time", type=_positive, default=60, metavar="MINUTES", help="per run (default: %(default)s)")
    cluster.add_argument("--mem", type=_positive, metavar="GB", help="per run (default: the cluster's)")
    cluster.add_argument("--cpus", type=_positive, default=1, help="per run (default: %(default)s)")
    cluster.add_argument("--gpus", type=_positive, default=0, help="per run; the runs then train on them")
    cluster.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other option of sbatch, such as qos=long",
    )
    cluster.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before a run, such as 'module load cuda'",
    )
    cluster.add_argument("--detach", action="store_true", help="do not wait; the same command later shows what is done")


def _add_set(command: Any) -> None:
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a key of every row, such as epochs=1 or options.temperature=0.2 (TOML values; may be repeated)",
    )


def _add_tune(commands: Any) -> None:
    command = _add_command(
        commands, "tune", "choose the settings of rows on validation images", TUNE_TEXT, TUNE_EXAMPLES
    )
    command.add_argument("rows", nargs="*", metavar="CONFIG", help=ROWS_HELP)
    _add_suite(command)
    command.add_argument("--candidates", type=_positive, help="per row (default: as the suite says, else 16)")
    command.add_argument("--seeds", type=parse_seeds, help="1000 or more (default: as the suite says, else 1000,1001)")
    command.add_argument("--jobs", type=_positive, default=2, help="processes (default: %(default)s)")
    command.add_argument("--out", type=Path, help="folder of candidates and winners (default: out/tuning/SUITE)")
    _add_data(command)
    _add_set(command)
    command.add_argument("--reuse", action="store_true", help="take stored scores of another version of torch too")
    command.add_argument(
        "--write-reference",
        action="store_true",
        help="in a checkout: write the configs of the suite and benchmarks/tuning instead of --out",
    )
    _add_cluster(command)


def _add_data(command: Any) -> None:
    command.add_argument(
        "--data",
        metavar="PATH",
        help="your own images: a .npz file (train_images, train_labels, test_images, test_labels) or a folder of "
        "images per class; or a data set of torchvision or HuggingFace: torchvision:FashionMNIST, hf:NAME_OR_PATH, "
        f"with options such as hf:cifar100?label=fine_label; takes the suite {OWN_SUITE}",
    )
    command.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="bf16: train and evaluate under autocast to bfloat16 (default: as the rows say, which is fp32)",
    )
    _add_place(command)


def _add_place(command: Any) -> None:
    command.add_argument(
        "--device",
        default="cpu",
        type=_device,
        help="where to train: cpu, cuda, cuda:1, mps, or auto: cuda if there is a GPU, else cpu (default: %(default)s)",
    )
    command.add_argument(
        "--root",
        default="",
        metavar="FOLDER",
        help="where downloaded data sets are or go to; NAME.npz there (cifar10.npz, ...) is taken instead of a "
        "download (default: Avalanche's folder)",
    )


def _add_features(commands: Any) -> None:
    command = _add_command(
        commands, "features", "make a feature bank with a frozen encoder", FEATURES_TEXT, FEATURES_EXAMPLES
    )
    command.add_argument(
        "--data",
        required=True,
        metavar="PATH_OR_STREAM",
        help="a stream of `list --streams`, a .npz file, a folder, torchvision:NAME or hf:NAME",
    )
    command.add_argument(
        "--encoder",
        default="efficientnet_lite0",
        metavar="NAME",
        help="efficientnet_lite0 (extra `frozen`), a torchvision network with its weights, or module:function "
        "(default: %(default)s)",
    )
    command.add_argument(
        "--views", type=_count, default=4, help="augmented views of each training image (default: %(default)s)"
    )
    command.add_argument("--out", type=Path, required=True, metavar="BANK", help="the file to write, .npz")
    command.add_argument(
        "--image-size", type=_count, default=0, help="side that the encoder gets (default: 128; of your own: as it is)"
    )
    command.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "bfloat16", "float32"),
        help="auto: bfloat16 where the processor has instructions for it (default: %(default)s)",
    )
    command.add_argument("--seed", type=_count, default=0, help="of the views (default: %(default)s)")
    _add_place(command)


def _add_table(commands: Any) -> None:
    command = _add_command(commands, "table", "print the tables of a results folder, or write them into pages")
    _add_results(command)
    command.add_argument("--write", type=Path, metavar="RESULTS.md", help="write the whole page: tables and settings")
    command.add_argument(
        "--into",
        type=Path,
        nargs="+",
        default=[],
        metavar="PAGE",
        help="put tables between the lines <!-- table:SUITE [ROW ...] --> (or table:all) and "
        "<!-- /table --> of these pages",
    )
    command.add_argument(
        "--format",
        default="md",
        choices=("md", "csv", "latex"),
        help="of what is printed; the best of each column is marked (default: %(default)s)",
    )


def _add_compare(commands: Any) -> None:
    command = _add_command(commands, "compare", "compare two folders of results, paired by seed", COMPARE_TEXT)
    place = {"type": Path, "metavar": "PLACE"}
    command.add_argument("first", **place, help="folder of results, or FOLDER/ROW")
    command.add_argument(
        "second", **place, nargs="?", default=Path("benchmarks/results"), help="(default: %(default)s)"
    )


def _add_export(commands: Any) -> None:
    command = _add_command(commands, "export", "every figure of every run as one tidy CSV", EXPORT_TEXT)
    _add_results(command)
    command.add_argument("--out", type=Path, metavar="FILE.csv", help="(default: print it)")


def _add_plot(commands: Any) -> None:
    command = _add_command(commands, "plot", "draw the figures of a results folder")
    _add_results(command)
    command.add_argument("--out", type=Path, help="folder of the figures (default: beside the JSON files)")


def _add_report(commands: Any) -> None:
    command = _add_command(commands, "report", "write one self-contained HTML page, and RESULTS.md", REPORT_TEXT)
    _add_results(command)
    command.add_argument("--out", type=Path, default=Path("report.html"), help="the page (default: %(default)s)")
    command.add_argument("--write", type=Path, metavar="RESULTS.md", help="write this page too")


def _add_speed(commands: Any) -> None:
    command = _add_command(commands, "speed", "time our work beside that of others, in one process", SPEED_TEXT)
    command.add_argument("groups", nargs="*", metavar="GROUP", help="such as losses, steps, faiss (default: all)")
    command.add_argument("--rounds", type=_positive, metavar="N", help="of each comparison (default: by group)")
    command.add_argument("--out", type=Path, default=Path("speed.json"), metavar="FILE", help="(default: %(default)s)")
    command.add_argument("--page", type=Path, metavar="PAGE", help="write the table of FILE into this page")


def _add_results(command: Any) -> None:
    command.add_argument(
        "--results", type=Path, required=True, help="folder with the JSON files of `run`, or with such folders"
    )


def parse_seeds(text: str) -> list[int]:
    """ "0-2" or "0,3,5" as numbers, without repeats."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise argparse.ArgumentTypeError(f"expected seeds such as 0-2 or 0,3,5, got {text!r}")
        if int(match[2] or match[1]) - int(match[1]) >= MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"expected at most {MOST_SEEDS} seeds, got {text!r}")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return list(dict.fromkeys(seeds))


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|auto|mps|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda, cuda:1 (or another number), mps or auto, got {text!r}")
    return text


def _loggers(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if not set(names) <= {"csv", "tensorboard", "wandb"}:
        raise argparse.ArgumentTypeError(f"expected one or more of csv, tensorboard, wandb with commas, got {text!r}")
    return names


def _positive(text: str) -> int:
    return _count(text, 1)


def _count(text: str, smallest: int = 0) -> int:
    if not text.isdigit() or int(text) < smallest:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least {smallest}, got {text!r}")
    return int(text)
