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

import torch
import torch.distributed as dist
from avalanche.training.determinism.rng_manager import RNGManager
from torch import Tensor

from avalanche_contrastive._archive import ArchiveError, read_plain, write_plain
from avalanche_contrastive._torch import unwrapped
from avalanche_contrastive._version import __version__
from avalanche_contrastive.checkpoint.decoding import Decoder
from avalanche_contrastive.checkpoint.encoding import Encoder
from avalanche_contrastive.checkpoint.kinds import (
    MISSING,
    SCALARS,
    CheckpointError,
    MismatchError,
    name_of,
    plugins_of,
    short,
)
from avalanche_contrastive.checkpoint.optimizers import OptimizerState
from avalanche_contrastive.checkpoint.random_state import apply_random_state, checked_random_state
from avalanche_contrastive.checkpoint.samples import LookUp, Sources
from avalanche_contrastive.checkpoint.table import check_table
from avalanche_contrastive.parallel.collectives import of_all_processes, processes, rank
from avalanche_contrastive.parallel.plugin import DataParallel

__all__ = ["CheckpointError", "MismatchError", "extra_of", "restore", "save"]

FORMAT = "avalanche-contrastive checkpoint"
VERSION = 2
CPU = torch.device("cpu")
HEADER: dict[str, type] = {
    **{"version": int, "versions": dict, "done": int, "device": str, "strategy": str, "model": str},
    **dict.fromkeys(("plugins", "metrics", "state", "random", "extra"), list),
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
    target = Path(path)
    if target.is_dir():
        raise CheckpointError(f"{target}: a checkpoint is a file, and this is a folder.")
    _check_between(strategy, "save")
    _join(strategy)
    encoder = Encoder(torch.device(strategy.device))
    state = encoder.encode(strategy)
    if stream is not None:
        sources = Sources(encoder.sources)
        try:
            sources.look_at([stream])
        except MismatchError as error:
            where = [encoder.paths[key] for key in sources.missing]
            words = (
                f"cannot save strategy.{where[0]}: its samples are not of the stream given" if where else "cannot save"
            )
            raise MismatchError(f"{words}: {error}") from None
    content = {
        "format": FORMAT,
        "version": VERSION,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "avalanche-lib", "numpy")}
        | {"avalanche-contrastive": __version__},
        "done": int(strategy.clock.train_exp_counter),
        "device": torch.device(strategy.device).type,
        **_names(strategy),
        "state": state,
        "random": _of_all(Encoder(CPU).encode([_tree(RNGManager.__getstate__(), "random")], plain=True)),
        "extra": Encoder(CPU).encode([_tree(extra, "extra")], plain=True),
    }
    _on_first_process(lambda: write_plain(target, content))


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
    error: Exception | None = None
    try:
        _check_between(strategy, "restore")
        if strategy.clock.train_exp_counter > 0 or strategy.clock.train_iterations > 0:
            raise CheckpointError(
                f"restore needs a strategy that has not been trained, this one has seen "
                f"{strategy.clock.train_exp_counter} experiences. Build a new one, with a new model, optimiser, "
                "plugins and evaluator."
            )
        content = _read(Path(path))
        _check_names(content, strategy)
        apply = _checked(lambda: _prepared(content, strategy, stream), path)
    except (CheckpointError, FileNotFoundError) as caught:
        error = caught
    others = [words for words in of_all_processes(None if error is None else str(error)) if words is not None]
    if error is not None or others:
        raise error or CheckpointError(f"another process cannot be restored: {others[0]}")
    apply()
    return int(content["done"])


def extra_of(path: str | os.PathLike[str]) -> Any:
    """What was given to ``save`` as ``extra``; needs no strategy.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged or of another version.
    """
    return _checked(lambda: _data(_read(Path(path))["extra"]), path)


# ---- reading


def _read(path: Path) -> dict[str, Any]:
    """The content of a file, with all fields of the right types."""
    try:
        content = read_plain(path)
    except ArchiveError as error:
        raise CheckpointError(str(error)) from error
    if type(content) is not dict or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: torch can read it, but it is no checkpoint of avalanche_contrastive. Is it a model's state dict, "
            "or a checkpoint of Avalanche's own?"
        )
    wrong = [name for name, kind in HEADER.items() if type(content.get(name)) is not kind]
    texts = (
        [*content.get("plugins", ()), *content.get("metrics", ()), *content.get("versions", {}).values()]
        if not wrong
        else []
    )
    if wrong or not all(type(text) is str for text in texts) or "avalanche-contrastive" not in content["versions"]:
        raise CheckpointError(f"{path}: the file is damaged or forged: its header has no {wrong or 'names'}.")
    if content["version"] != VERSION:
        raise CheckpointError(
            f"{path}: of format {content['version']}, written by avalanche-contrastive "
            f"{content['versions']['avalanche-contrastive']}; this one reads format {VERSION}. "
            f"{'Update it' if content['version'] > VERSION else 'Go on with that one, or start anew'}."
        )
    return content


def _checked(function: Callable[[], Any], path: Any) -> Any:
    """What a function makes of a file, of which nothing is sure."""
    try:
        return function()
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error.__cause__
    except Exception as error:
        raise CheckpointError(f"{path}: what it says of the state makes no sense ({error!r:.200}).") from error


def _data(table: Any) -> Any:
    check_table(table, plain=True)
    return Decoder(table, MISSING, CPU).data((0,))[0]


def _prepared(content: dict[str, Any], strategy: Any, stream: Any) -> Callable[[], None]:
    """What restores the strategy, once nothing can fail any more."""
    check_table(content["state"])
    decoder = Decoder(content["state"], strategy, torch.device(strategy.device), stream)
    optimizers = [OptimizerState(decoder, number) for number in decoder.optimizers]
    clock = content["state"][content["state"][0][2]["clock"][0]][2]
    if clock["train_exp_counter"] != content["done"] or not all(type(n) is int and n >= 0 for n in clock.values()):
        raise CheckpointError(f"done is {content['done']} there, but its clock has counted {clock}")
    if len(content["random"]) != processes():
        raise MismatchError(
            f"the checkpoint is of {len(content['random'])} processes and cannot go on in {processes()}: each has "
            "random generators of its own. Start as many."
        )
    states = [checked_random_state(_data(table)) for table in content["random"]]

    def apply() -> None:
        apply_random_state(states[rank()])
        for optimizer in optimizers:
            optimizer.apply()
        decoder.apply()
        if decoder.sources.missing:
            strategy.plugins = [LookUp(decoder.sources), *strategy.plugins]

    return apply


# ---- checks


def _names(strategy: Any) -> dict[str, Any]:
    metrics = getattr(getattr(strategy, "evaluator", None), "metrics", ())
    return {
        "strategy": name_of(type(strategy)),
        "model": name_of(type(unwrapped(strategy.model))),
        "plugins": [name_of(type(plugin)) for plugin in plugins_of(strategy)],
        "metrics": [name_of(type(metric)) for metric in metrics],
    }


def _check_names(content: dict[str, Any], strategy: Any) -> None:
    """Refuse another strategy, model, plugin or metric before anything else is looked at."""
    for key, here in _names(strategy).items():
        if content[key] != here:
            words = [
                ", ".join(map(short, n)) if isinstance(n, list) else n.replace(":", ".") for n in (content[key], here)
            ]
            raise MismatchError(f"the checkpoint is of another {key.rstrip('s')}: {words[0]} there, {words[1]} here.")
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


def _tree(value: Any, path: str, above: tuple[int, ...] = ()) -> Any:
    """A copy of plain data in which nothing is in two places."""
    if id(value) in above:
        raise CheckpointError(f"{path} contains itself.")
    above = (*above, id(value))
    if isinstance(value, dict):
        return {_tree(k, f"a key of {path}", above): _tree(v, f"{path}[{k!r}]", above) for k, v in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_tree(item, f"{path}[{index}]", above) for index, item in enumerate(value))
    if type(value) not in (*SCALARS, type(None), Tensor) and type(value).__name__ != "ndarray":
        raise CheckpointError(
            f"{path} must be made of numbers, strings, tensors, lists, tuples and dicts, got {type(value).__name__}."
        )
    return value.clone() if isinstance(value, Tensor) else value


# ---- several processes


def _join(strategy: Any) -> None:
    """Have the processes of a distributed run meet, which is else done when training begins."""
    for plugin in strategy.plugins:
        if isinstance(plugin, DataParallel):
            plugin.join(strategy)


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
        said: list[Any] = [None if failed is None else (failed.errno, str(failed))]
        dist.broadcast_object_list(said, 0)
        if rank() > 0 and said[0] is not None:
            number, words = said[0]
            raise OSError(number, f"the first process could not write: {words}")
    if failed is not None:
        raise failed


def _of_all(table: Any) -> list[Any]:
    """A table of each process, in their order; as bytes, for `of_all_processes` takes no tensors."""
    if processes() == 1:
        return [table]
    data = io.BytesIO()
    torch.save(table, data)
    return [torch.load(io.BytesIO(each), weights_only=True) for each in of_all_processes(data.getvalue())]
