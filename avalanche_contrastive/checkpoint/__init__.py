"""Save a strategy between experiences, restore it in another process, go on as if nothing had been.

``save`` writes what the strategy has learned and counted: model, optimiser, teacher, class ledger, memory (as indices
into the stream, never images), clock, random generators, metrics so far, and whatever other plugins keep. What the user
builds (functions, transforms, loggers, the stream) is not in the file. To resume, build the same strategy again,
``restore`` it and go on with the rest of the stream: the run ends bit for bit where an undisturbed one ends. Files hold
containers, numbers and tensors only and are read with ``weights_only=True``: a stranger's file runs no code.
"""

import importlib.metadata
import io
import os
import time
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from avalanche.training.determinism.rng_manager import RNGManager
from torch import Tensor

from avalanche_contrastive._files import remove_left_over, replacing
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive._version import __version__
from avalanche_contrastive.checkpoint.comparing import differing_options
from avalanche_contrastive.checkpoint.decoding import Decoder, fill_optimizers
from avalanche_contrastive.checkpoint.encoding import Encoder
from avalanche_contrastive.checkpoint.kinds import (
    MISSING,
    CheckpointError,
    MismatchError,
    metrics_of,
    name_of,
    set_state,
    short,
    state_of,
)
from avalanche_contrastive.checkpoint.samples import Refill
from avalanche_contrastive.checkpoint.twins import Twins
from avalanche_contrastive.parallel.collectives import of_all_processes, processes, rank

__all__ = ["CheckpointError", "MismatchError", "extra_of", "restore", "save"]

FORMAT = "avalanche-contrastive checkpoint"
VERSION = 1
LEFT_OVER_SECONDS = 3600.0
PLAIN = (bool, int, float, str, type(None), Tensor)


def save(
    strategy: Any, path: str | os.PathLike[str], *, stream: Iterable[Any] | None = None, extra: Any = None
) -> None:
    """Write the state of a strategy, whole or not at all; an older file is replaced when the new one is complete.

    In a distributed run every process calls it, and the first one writes.

    Args:
        strategy: any Avalanche strategy, between experiences: not within ``train`` or ``eval``, nor after an error in
            them.
        path: of the file; its folder is made if there is none.
        stream: the training stream, to make sure that all stored samples are of it; a few hundredths of a second.
        extra: something of your own beside it: numbers, strings, tensors, lists, tuples and dicts of these. Read it
            with ``extra_of``.

    Raises:
        CheckpointError: it is called within training or evaluation, or something cannot be saved so that the run goes
            on exactly: its path is in the message.
        OSError: it could not be written; the older file is as it was.
    """
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"{target}: a checkpoint is a file, and this is a folder.")
    _check_between(strategy, "save")
    _check_plain(extra, "extra")
    content = _content(strategy, stream) | {"extra": extra}
    _on_first_process(lambda: _write(target, content))


def restore(strategy: Any, path: str | os.PathLike[str], *, stream: Iterable[Any] | None = None) -> int:
    """Bring a strategy that was built again to where the saved one was.

    The strategy must be the same: model, optimiser, plugins, metrics and their options; its objects are filled in
    place. Random generators are set, too. Stored samples are looked up in the stream: in ``stream``, or, if none is
    given, when training goes on, in the stream of the experience that it goes on with.

    Args:
        strategy: freshly built, not trained yet.
        path: of a file that ``save`` has written.
        stream: the training stream; needed only if the memory is looked at before training goes on, as some metrics do.

    Returns:
        Experiences done: go on with ``train_stream[done:]``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged or of a newer version, or the strategy has been trained.
        MismatchError: it is of another strategy, or its samples are not of this stream. In all these cases the strategy
            is as it was.
    """
    content = _read(Path(path))
    _check_between(strategy, "restore")
    if strategy.clock.train_exp_counter > 0 or strategy.clock.train_iterations > 0:
        raise CheckpointError(
            f"restore needs a strategy that has not been trained, this one has seen {strategy.clock.train_exp_counter} "
            "experiences. Build a new one, with a new model, optimiser, plugins and evaluator."
        )
    _check_names(content, strategy)
    try:
        decoder, attributes, state = _decoded(content, strategy)
    except CheckpointError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: what it says of the state makes no sense ({error!r:.200}).") from error
    if stream is not None:
        decoder.shelf.take([stream])
    decoder.finish()
    set_state(strategy, attributes)
    if not decoder.shelf.missing():
        decoder.shelf.fill()
    else:
        strategy.plugins.insert(0, Refill(decoder.shelf))
    RNGManager.__setstate__(state)
    return int(content["done"])


def extra_of(path: str | os.PathLike[str]) -> Any:
    """What was given to ``save`` as ``extra``; needs no strategy.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged or of a newer version.
    """
    return _read(Path(path))["extra"]


# ---- what is in a file


def _content(strategy: Any, stream: Iterable[Any] | None) -> dict[str, Any]:
    """Everything but the user's own; the random states of all processes."""
    encoder = Encoder(strategy)
    encoder.number(strategy)
    state, optimizers = encoder.attributes(_attributes(strategy), ""), encoder.optimizer_states()
    if stream is not None:
        encoder.check_samples(stream)
    random_state = Encoder(strategy)(RNGManager.__getstate__(), "random generators")
    return {
        "format": FORMAT,
        "version": VERSION,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "avalanche-lib", "numpy")}
        | {"avalanche-contrastive": __version__},
        "done": int(strategy.clock.train_exp_counter),
        "device": torch.device(strategy.device).type,
        **_names(strategy),
        "state": state,
        "optimizers": optimizers,
        "random": _states_of_all(random_state),
    }


def _attributes(strategy: Any) -> dict[str, Any]:
    """The strategy's attributes, its model first, which others refer to; without those of the last batch."""
    state = {name: value for name, value in (state_of(strategy) or {}).items() if not name.startswith("mb_")}
    return {"model": state.pop("model"), **state, "plugins": _plugins(strategy)}


def _plugins(strategy: Any) -> list[Any]:
    return [plugin for plugin in strategy.plugins if not isinstance(plugin, Refill)]


def _names(strategy: Any) -> dict[str, Any]:
    return {
        "strategy": name_of(type(strategy)),
        "model": name_of(type(unwrapped(strategy.model))),
        "plugins": [name_of(type(plugin)) for plugin in _plugins(strategy)],
        "metrics": [name_of(type(metric)) for metric in metrics_of(strategy)],
    }


def _decoded(content: dict[str, Any], strategy: Any) -> tuple[Decoder, dict[str, Any], Any]:
    """What reads the file, the attributes of the strategy, the random state; nothing is changed yet."""
    twins = Twins(content["state"], {number: optimizer["class"] for number, optimizer in content["optimizers"]})
    for name, node in content["state"].items():
        twins.match(node, vars(strategy).get(name, MISSING))
    decoder = Decoder(strategy, twins, content["optimizers"])
    decoder.keep(0, strategy)
    decoder.differences += differing_options(strategy, content["state"], "strategy")
    attributes = decoder.attributes(content["state"], {**vars(strategy)}, "")
    fill_optimizers(decoder)
    return decoder, attributes, _random_state(content, strategy)


def _random_state(content: dict[str, Any], strategy: Any) -> Any:
    """The random generators' states of this process."""
    if len(content["random"]) != processes():
        raise MismatchError(
            f"the checkpoint is of {len(content['random'])} processes and cannot go on in {processes()}: each has "
            "random generators of its own. Start as many."
        )
    decoder = Decoder(strategy, Twins(content["random"][rank()], {}))
    state = decoder(content["random"][rank()], None, "random generators")
    decoder.finish()
    return state


# ---- checks


def _check_between(strategy: Any, name: str) -> None:
    """Within train, eval or after an error in them, the state is not that between two experiences."""
    if strategy.experience is not None or strategy._eval_streams is not None or list(strategy.current_eval_stream):
        raise CheckpointError(
            f"{name} works between experiences, but this strategy is within train or eval, or an error ended one of "
            "them. Call it after strategy.train(experience) and strategy.eval(stream) have returned, not in a plugin."
        )


def _check_plain(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {path}")
            _check_plain(item, f"{path}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_plain(item, f"{path}[{index}]")
    elif type(value) not in PLAIN:
        raise CheckpointError(
            f"{path} must be made of numbers, strings, tensors, lists, tuples and dicts, got {type(value).__name__}."
        )


def _check_names(content: dict[str, Any], strategy: Any) -> None:
    """Another strategy, model, plugin or metric, before anything else is read."""
    for key, here in _names(strategy).items():
        there = content[key]
        if there != here:
            words = [", ".join(map(short, n)) if isinstance(n, list) else n.replace(":", ".") for n in (there, here)]
            raise MismatchError(f"the checkpoint is of another {key.rstrip('s')}: {words[0]} there, {words[1]} here.")
    device = torch.device(strategy.device).type
    if device not in (content["device"], "cpu"):
        raise MismatchError(
            f"the checkpoint was saved on {content['device']} and cannot go on on {device}: nothing tells which of its "
            "tensors belong there."
        )


# ---- files


def _write(path: Path, content: dict[str, Any]) -> None:
    # In memory first: torch turns an error of the disk into one of its own.
    data = io.BytesIO()
    torch.save(content, data)
    target = Path(os.path.realpath(path))  # a link stays one
    if target.parent.is_dir():
        remove_left_over(target.parent, f".{target.name}.*.part", before=time.time() - LEFT_OVER_SECONDS)
    with replacing(target) as file:
        file.write(data.getbuffer())


def _read(path: Path) -> dict[str, Any]:
    """The content of a file.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it is no checkpoint, or damaged, or too new.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: a checkpoint is a file, and this is a folder.")
    data = path.read_bytes()
    if not data:
        raise CheckpointError(f"{path}: the file is empty. Was its disk full, or the machine switched off?")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            broken = archive.testzip()
        content = None if broken else torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever is in the file, and however torch fails on it
        raise CheckpointError(f"{path}: {_why(data, error)}") from error
    if broken:
        raise CheckpointError(f"{path}: the file is damaged ({broken}).")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: torch can read it, but it is no checkpoint of avalanche_contrastive. Is it a model's state dict, "
            "or a checkpoint of Avalanche's own?"
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            f"{path}: of format {content['version']}, written by avalanche-contrastive "
            f"{content['versions'].get('avalanche-contrastive')}; this one reads formats up to {VERSION}. Update it."
        )
    return content


def _why(data: bytes, error: Exception) -> str:
    if isinstance(error, zipfile.BadZipFile):
        if data.startswith(b"PK"):
            return "the file is cut short or damaged."
        return "not a checkpoint: it is no file that torch.save writes. Nothing in it was run."
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"not a checkpoint: it holds more than plain data, or is damaged. Nothing in it was run. ({first:.200})"


# ---- several processes


def _on_first_process(write: Callable[[], None]) -> None:
    """The first process writes, all others wait for it; where it cannot, it is an error in all of them.

    One that goes on without checkpoints would leave the others waiting in the next call.
    """
    failed: OSError | None = None
    if rank() == 0:
        try:
            write()
        except OSError as error:
            failed = error
    if processes() > 1:
        told: list[Any] = [None if failed is None else (failed.errno, str(failed))]
        dist.broadcast_object_list(told, 0)
        if rank() > 0 and told[0] is not None:
            number, words = told[0]
            raise OSError(number, f"the first process could not write: {words}")
    if failed is not None:
        raise failed


def _states_of_all(state: Any) -> list[Any]:
    """A state with tensors, of each process, in their order; as bytes, for of_all_processes takes no tensors."""
    if processes() == 1:
        return [state]
    data = io.BytesIO()
    torch.save(state, data)
    return [torch.load(io.BytesIO(each), weights_only=True) for each in of_all_processes(data.getvalue())]
