"""The three methods beside their authors' code, from the same weights and the same batches, in float64.

    python benchmarks/authors/compare.py --co2l DIR --ssil DIR --csd DIR --out FILE

See README.md in this folder for where the checkouts are got and for what is compared.
"""

import argparse
import importlib
import importlib.metadata
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from checkouts import CHECKOUTS, Checkout, CheckoutError
from replay import Part

from avalanche_contrastive import __version__
from avalanche_contrastive.bench.files import write_json

HERE = Path(__file__).parent
MODULES = {
    "co2l": ("part_co2l", "part_memory", "part_readout"),
    "ssil": ("part_ssil",),
    "csd": ("part_csd_losses", "part_csd"),
}
LIBRARIES = ("torch", "torchvision", "avalanche-lib", "numpy", "pytorch-metric-learning")


def main(words: Sequence[str] | None = None) -> int:
    """Compare, and write the file when all is done.

    Returns:
        0, or 1 where more differs than rounding and chance explain. (Argparse ends the program with 2.)
    """
    parser = argparse.ArgumentParser(prog="compare.py", description="Compare the methods with their authors' code.")
    for option, source in CHECKOUTS.items():
        text = f"checkout of github.com/{source.repository}, compared at {source.commit}"
        parser.add_argument(f"--{option}", type=Path, required=option in MODULES, metavar="DIR", help=text)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="JSON file to write")
    given = parser.parse_args(words)
    folders = {option: getattr(given, option) for option in CHECKOUTS if getattr(given, option) is not None}
    try:
        checkouts = {option: Checkout(option, folder) for option, folder in folders.items()}
    except CheckoutError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    parts = []
    start = time.monotonic()
    for part in _all_parts(checkouts):
        parts.append(part)
        print(
            f"{time.monotonic() - start:5.0f} s  {part.method}, {part.name}: {part.absolute:.1e} "
            f"(relative {part.relative:.1e})",
            flush=True,
        )
    write_json(given.out, _record(checkouts, parts))
    print(f"written: {given.out}")
    apart = [f"{part.method}, {part.name}" for part in parts if part.absolute > part.bound]
    if apart:
        print(f"more than rounding and chance explain: {'; '.join(apart)}", file=sys.stderr)
    return 1 if apart else 0


def _all_parts(checkouts: dict[str, Checkout]) -> Iterator[Part]:
    for option, modules in (
        ("co2l", ("co2l", "memory", "readout")),
        ("ssil", ("ssil",)),
        ("csd", ("csd_losses", "csd")),
    ):
        for name in modules:
            yield from importlib.import_module(f"part_{name}").parts(checkouts[option])
    yield from importlib.import_module("part_compatibility").parts(checkouts)


def _record(checkouts: dict[str, Checkout], parts: list[Part]) -> dict[str, Any]:
    head = subprocess.run(["git", "-C", str(HERE), "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "package": {"version": __version__, "commit": head or None},
        "libraries": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in LIBRARIES},
        "processor": platform.machine(),
        "authors": {option: checkout.provenance() for option, checkout in checkouts.items()},
        "parts": [asdict(part) for part in parts],
    }


if __name__ == "__main__":
    sys.exit(main())
