"""Save a strategy between experiences, restore it in another process, go on as if nothing had been.

``save`` writes what the strategy has learned and counted: model, optimiser, teacher, classes, memory (as indices into
the stream, never images), clock, random generators, metrics so far, and whatever other plugins keep. What the user
builds (functions, transforms, loggers, the stream) is not in the file. To resume, build the same strategy again,
``restore`` it and go on with the rest of the stream: the run ends bit for bit where an undisturbed one ends. A file is
data and is read as data: one from a stranger runs no code, and one that does not fit changes nothing.
"""

import importlib.metadata
import io
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.templates.base import BaseTemplate
from torch import Tensor

from avalanche_contrastive._archive import CheckpointError, check_regular, read_plain, write_plain
from avalanche_contrastive._random import checked_random_state
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive._version import __version__
from avalanche_contrastive.checkpoint.decoding import Decoder
from avalanche_contrastive.checkpoint.encoding import Encoder
from avalanche_contrastive.checkpoint.kinds import MISSING, SCALARS, MismatchError, name_of, plugins_of
from avalanche_contrastive.checkpoint.optimizers import OptimizerState
from avalanche_contrastive.checkpoint.places import Place
from avalanche_contrastive.checkpoint.samples import LookUp, Sources
from avalanche_contrastive.parallel.collectives import agreed, of_all_processes, processes, rank
from avalanche_contrastive.parallel.plugin import DataParallel

__all__ = ["CheckpointError", "MismatchError", "extra_of", "restore", "save"]

FORMAT = "avalanche-contrastive checkpoint"
VERSION = 3  # of the layout of what is in a file
CPU = torch.device("cpu")
HEADER: dict[str, type] = {
    **{"version": int, "versions": dict, "done": int, "device": str, "strategy": str, "model": str, "state": dict},
    **dict.fromkeys(("plugins", "metrics", "optimizers", "random", "extra"), list),
}


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
    _join(strategy)
    target = Path(path)
    content = agreed(lambda: _content(strategy, target, stream, extra), CheckpointError)
    content["random"] = _of_all(content["random"])
    agreed(lambda: write_plain(target, content) if rank() == 0 else None, OSError)


def restore(strategy: Any, path: str | os.PathLike[str], *, stream: Iterable[Any] | None = None) -> int:
    """Bring a strategy that was built again to where the saved one was.

    The strategy must be the same: model, optimiser, plugins, metrics and their options; its objects are filled in
    place. Random generators are set, too. Stored samples are looked up in the stream: in ``stream``, or, if none is
    given, when training goes on, by a plugin that is put before the others. In a distributed run every process calls
    it; processes that have not met yet do so here.

    Args:
        strategy: freshly built, not trained yet.
        path: of a file that ``save`` has written.
        stream: the training stream; needed if stored samples are looked at before training goes on, as some metrics do.

    Returns:
        Experiences done: go on with ``train_stream[done:]``.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged or of another version, or the strategy has been trained.
        MismatchError: it is of another strategy, or its samples are not of this stream. In all these cases the strategy
            is as it was, in all processes.
    """
    _join(strategy)
    done, apply = agreed(lambda: _prepared(strategy, path, stream), CheckpointError)
    apply()
    return done


def extra_of(path: str | os.PathLike[str]) -> Any:
    """What was given to ``save`` as ``extra``; needs no strategy.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged or of another version.
    """
    return _checked(lambda: _data(_read(Path(path))["extra"])[0], path)


def _content(strategy: Any, target: Path, stream: Any, extra: Any) -> dict[str, Any]:
    """What is to be written, with the random state of this process."""
    check_regular(target)
    _check_between(strategy, "save")
    encoder = Encoder(torch.device(strategy.device))
    try:
        _, _, _, state = encoder.node(strategy, "")
        optimizers = encoder.optimizers()
        _check_data(extra, "extra", set())
        given = Encoder(CPU).node([extra], "extra")
    except RecursionError:
        raise CheckpointError("cannot save: objects of the strategy are too deep within each other.") from None
    if stream is not None:
        sources = Sources()
        sources.wanted = encoder.sources
        sources.look_at([stream])
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
        "random": Encoder(CPU).node(RNGManager.__getstate__(), "random"),
        "extra": given,
    }


def _prepared(strategy: Any, path: Any, stream: Any) -> tuple[int, Callable[[], None]]:
    """Experiences done, and what restores the strategy, once nothing can fail any more."""
    _check_between(strategy, "restore")
    if strategy.clock.train_exp_counter or strategy.clock.train_iterations:
        raise CheckpointError(
            f"restore needs a strategy that has not been trained, this one has seen {strategy.clock.train_exp_counter} "
            "experiences. Build a new one, with a new model, optimiser, plugins and evaluator."
        )
    content = _read(Path(path))
    _check_names(content, strategy)
    return content["done"], _checked(lambda: _decoded(content, strategy, stream), path)


def _read(path: Path) -> dict[str, Any]:
    """The content of a file, with all fields of the right types."""
    content = read_plain(path)
    if type(content) is not dict or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: torch can read it, but it is no checkpoint of avalanche_contrastive. Is it a model's state dict, "
            "or a checkpoint of Avalanche's own?"
        )
    version, versions = content.get("version"), content.get("versions")
    versions = versions if type(versions) is dict else {}
    if type(version) is int and version != VERSION:  # the other fields may be other ones, too
        raise CheckpointError(
            f"{path}: of format {version!r:.40}, written by avalanche-contrastive "
            f"{versions.get('avalanche-contrastive')!s:.40}; this one reads format {VERSION}. "
            f"{'Update it' if version > VERSION else 'Go on with that one, or start anew'}."
        )
    wrong = [name for name, kind in HEADER.items() if type(content.get(name)) is not kind]
    texts = [] if wrong else [*content["plugins"], *content["metrics"], *versions.values()]
    if wrong or not all(type(text) is str for text in texts) or "avalanche-contrastive" not in versions:
        raise CheckpointError(f"{path}: damaged or forged: its header lacks {wrong or 'names'}.")
    return content


def _checked(function: Callable[[], Any], path: Any) -> Any:
    """What a function makes of a file, of which nothing is sure."""
    try:
        return function()
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error.__cause__
    except Exception as error:
        raise CheckpointError(f"{path}: what it says of the state makes no sense ({error!r:.200}).") from error


def _data(node: Any) -> Any:
    """A node of data as what it is."""
    value = Decoder(CPU, None, Sources()).place(node, Place(MISSING, ""))
    _check_data(value, "it", set())
    return value


def _decoded(content: dict[str, Any], strategy: Any, stream: Any) -> Callable[[], None]:
    """What restores the strategy, once nothing can fail any more."""
    sources = Sources()
    if stream is not None:
        sources.look_at([stream])
    decoder = Decoder(torch.device(strategy.device), unwrapped(strategy.model), sources)
    try:
        decoder.place(["object", 0, name_of(type(strategy)), content["state"]], Place(strategy, ""))
        optimizers = [OptimizerState(decoder, node) for node in content["optimizers"]]
        if decoder.optimizers:
            raise MismatchError("an optimiser is without its state")
    finally:
        decoder.check_options()  # if they differ, all else may follow from it
    if stream is not None:
        sources.look_at(())
    objects = (node for node in content["state"].values() if type(node) is list and node[0] == "object")
    clock = next(nodes for _, number, _, nodes in objects if decoder.known[number] is strategy.clock)
    if clock["train_exp_counter"] != content["done"] or not all(type(n) is int and n >= 0 for n in clock.values()):
        raise CheckpointError(f"done is {content['done']} there, but its clock has counted {clock}")
    if len(content["random"]) != processes():
        raise MismatchError(
            f"the checkpoint is of {len(content['random'])} processes and cannot go on in {processes()}: each has "
            "random generators of its own. Start as many."
        )
    states = [checked_random_state(_data(node)) for node in content["random"]]

    def apply() -> None:
        RNGManager.__setstate__(states[rank()])
        for optimizer in optimizers:
            optimizer.apply()
        for do in decoder.to_do:
            do()
        if sources.missing:
            strategy.plugins = [LookUp(sources), *strategy.plugins]

    return apply


def _names(strategy: Any) -> dict[str, Any]:
    return {
        "strategy": name_of(type(strategy)),
        "model": name_of(type(unwrapped(strategy.model))),
        "plugins": [name_of(type(plugin)) for plugin in plugins_of(strategy)],
        "metrics": [name_of(type(metric)) for metric in getattr(getattr(strategy, "evaluator", None), "metrics", ())],
    }


def _check_names(content: dict[str, Any], strategy: Any) -> None:
    """Refuse another strategy, model, plugin or metric before anything else is looked at."""
    for key, here in _names(strategy).items():
        if content[key] != here:
            there, ours = (n.replace(":", ".") if isinstance(n, str) else ", ".join(n) for n in (content[key], here))
            raise MismatchError(f"the checkpoint is of another {key.rstrip('s')}: {there} there, {ours} here.")
    device = torch.device(strategy.device).type
    if device not in (content["device"], "cpu"):
        raise MismatchError(
            f"the checkpoint was saved on {content['device']:.20} and cannot go on on {device}: nothing tells which of "
            "its tensors belong there."
        )


def _check_between(strategy: Any, name: str) -> None:
    """Within train, eval or after an error in them, the state is not that between two experiences."""
    if strategy.experience is not None or strategy._eval_streams is not None or list(strategy.current_eval_stream):
        raise CheckpointError(
            f"{name} works between experiences, but this strategy is within train or eval, or an error ended one of "
            "them. Call it after strategy.train(experience) and strategy.eval(stream) have returned, not in a plugin."
        )


def _check_data(value: Any, path: str, seen: set[int]) -> None:
    if id(value) in seen:
        return
    seen.add(id(value))
    if type(value) in (dict, list, tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_data(key, f"a key of {path}", seen)
            _check_data(item, f"{path}[{key!r}]", seen)
    elif type(value) not in (*SCALARS, type(None), Tensor, np.ndarray):
        raise CheckpointError(
            f"{path} must be made of numbers, strings, tensors, lists, tuples and dicts, got {type(value).__name__}."
        )


def _of_all(node: Any) -> list[Any]:
    """A node of each process, in their order; as bytes, for `of_all_processes` takes no tensors."""
    if processes() == 1:
        return [node]
    data = io.BytesIO()
    torch.save(node, data)
    return [torch.load(io.BytesIO(each), weights_only=True) for each in of_all_processes(data.getvalue())]


def _join(strategy: Any) -> None:
    """Have the processes of a distributed run meet, which is else done when training begins."""
    if not isinstance(strategy, BaseTemplate):
        raise TypeError(f"a strategy of Avalanche's comes first, then a path; got {type(strategy).__name__} first.")
    for plugin in strategy.plugins:
        if isinstance(plugin, DataParallel):
            plugin.join(strategy)
