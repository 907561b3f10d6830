"""Files of ``torch.save`` from which only plain data is read.

torch's own reader (``weights_only=True``) runs no code either, but makes tensors of any size that a file claims,
containers within themselves, and dictionaries whose keys collide. Here the directory of the archive is checked before
anything is read, and the pickle is read with those instructions only that plain data takes. What comes out is a tree of
dicts by name, lists, tuples, numbers, strings and dense tensors, no larger than the file.
"""

import gc
import io
import math
import os
import pickle
import pickletools
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from avalanche_contrastive._files import remove_left_over, replacing

__all__ = ["DTYPES", "INTEGER_BITS", "CheckpointError", "check_regular", "read_plain", "write_plain"]

LEFT_OVER_SECONDS = 3600.0
INSTRUCTIONS = 2_000_000  # of a pickle; a parameter takes about forty
DIMENSIONS = 64  # of a tensor; numpy has no more
INTEGER_BITS = 2000  # more would take another instruction
KNOWN = (
    *(
        "PROTO",
        "STOP",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "BINFLOAT",
        "BINUNICODE",
    ),
    *("EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE", "MARK", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "GLOBAL", "REDUCE", "BINPERSID"),
)
STORAGES = {
    f"{name}Storage": getattr(torch, dtype)
    for name, dtype in {
        **{"Float": "float32", "Double": "float64", "Half": "float16", "BFloat16": "bfloat16", "Bool": "bool"},
        **{"Byte": "uint8", "Char": "int8", "Short": "int16", "Int": "int32", "Long": "int64"},
        **{"ComplexFloat": "complex64", "ComplexDouble": "complex128"},
    }.items()
}
DTYPES = frozenset(STORAGES.values())  # of tensors that can be saved


class CheckpointError(ValueError):
    """A strategy that cannot be saved, or a file that cannot be restored into it: the message has the reason."""


def write_plain(path: Path, content: dict[str, Any]) -> None:
    """Write a file, whole or not at all.

    Raises:
        CheckpointError: it would have too many parts to be read again.
        OSError: it could not be written.
    """
    data = io.BytesIO()  # in memory first: torch turns an error of the disk into one of its own
    torch.save(content, data)
    with zipfile.ZipFile(data) as archive:
        _pickle_of(archive)
    target = Path(os.path.realpath(path))  # a link stays one
    if target.parent.is_dir():
        remove_left_over(target.parent, f".{target.name}.*.part", before=time.time() - LEFT_OVER_SECONDS)
    with replacing(target) as file:
        file.write(data.getbuffer())


def check_regular(path: Path) -> None:
    """Refuse a path at which something else than a file is: reading a pipe would wait for ever, writing replace it.

    Raises:
        CheckpointError: a folder, a device or a pipe.
    """
    if path.exists() and not path.is_file():
        kind = "folder" if path.is_dir() else "device or a pipe"
        raise CheckpointError(f"{path}: a checkpoint is a file, and this is a {kind}.")


def read_plain(path: Path) -> Any:
    """The plain data in a file.

    Raises:
        FileNotFoundError: there is none.
        CheckpointError: it holds more than plain data, or is damaged.
    """
    check_regular(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise CheckpointError(f"{path}: the file is empty. Was its disk full, or the machine switched off?")
        is_zip = file.read(2) == b"PK"
        try:
            with zipfile.ZipFile(file) as archive:
                _check_directory(archive, size)
                with _collector_at_rest():
                    return _Reader(archive).load()
        except Exception as error:  # whatever is in the file, and however a reader fails on it
            if isinstance(error, zipfile.BadZipFile) and is_zip:
                raise CheckpointError(f"{path}: the file is cut short or damaged ({error}).") from error
            why = f"it holds more than plain data, or is damaged ({error!r:.200}). Is it a model's state dict, or old?"
            why = why if is_zip else "it is no file that torch.save writes."
            raise CheckpointError(f"{path}: not a checkpoint: {why} Nothing in it was run.") from error


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Containers in containers make each pass of the garbage collector longer, and reading leaves it nothing to do."""
    was_at_work = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_at_work:
            gc.enable()


def _check_directory(archive: zipfile.ZipFile, size: int) -> None:
    """Refuse an archive that would be larger than it is, before anything is unpacked."""
    members = archive.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise CheckpointError("its members are compressed, which torch never does")
    if any(member.file_size != member.compress_size for member in members) or sum(m.file_size for m in members) > size:
        raise CheckpointError("its members claim to be larger than the file")
    if len({member.filename for member in members}) < len(members):
        raise CheckpointError("several of its members have one name")


def _pickle_of(archive: zipfile.ZipFile) -> tuple[str, bytes]:
    """The folder in the archive, and the pickle in it, which has only so many instructions."""
    (name,) = (name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
    data = archive.read(name)
    for number, _ in enumerate(pickletools.genops(data)):
        if number > INSTRUCTIONS:
            raise CheckpointError(f"the state has too many parts, more than {INSTRUCTIONS:,} instructions to read it")
    return name.removesuffix("data.pkl"), data


class _Memo(dict[int, Any]):
    """What a pickle may refer to again: no containers, so that each of them has one place and none contains itself."""

    def __setitem__(self, index: int, thing: Any) -> None:
        if isinstance(thing, (str, torch.dtype)) or thing in (_tensor, _no_hooks):
            super().__setitem__(index, thing)


class _Reader(pickle._Unpickler):
    """Python's own reader, restricted: no class is looked up, and nothing is called but `_tensor` and `_no_hooks`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.folder, data = _pickle_of(archive)
        self.taken: set[str] = set()  # storages: each is of one tensor
        order = f"{self.folder}byteorder"
        if order in archive.namelist() and archive.read(order) != sys.byteorder.encode():
            raise CheckpointError("it was written on a machine with the other order of bytes")
        super().__init__(io.BytesIO(data))
        self.memo = _Memo()

    def find_class(self, module: str, name: str) -> Any:
        """One of two functions, or the type of a storage."""
        known = {"_rebuild_tensor_v2": _tensor, "OrderedDict": _no_hooks, **STORAGES}
        if module not in ("torch", "torch._utils", "collections") or name not in known:
            raise CheckpointError(f"{module}.{name} is no plain data")
        return known[name]

    def persistent_load(self, pid: Any) -> Tensor:
        """The numbers of a storage, as many as it claims."""
        _, dtype, key, _, length = pid
        if key in self.taken or dtype not in DTYPES:
            raise CheckpointError("two tensors of the same numbers")
        self.taken.add(key)
        data = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        if length * dtype.itemsize != len(data):
            raise CheckpointError(f"a tensor claims {length} numbers and has {len(data)} bytes")
        return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)

    stack: list[Any]

    def set_items(self, items: list[Any]) -> None:
        """Fill a dict. Its keys are strings, which cannot be made to collide."""
        if type(self.stack[-1]) is not dict or not all(type(name) is str for name in items[::2]):
            raise CheckpointError("keys that are no names")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    dispatch: ClassVar[dict[int, Any]] = {
        **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in KNOWN},
        pickle.SETITEM[0]: lambda self: self.set_items([self.stack.pop(-2), self.stack.pop()]),
        pickle.SETITEMS[0]: lambda self: self.set_items(self.pop_mark()),
    }


def _no_hooks() -> dict[str, Any]:
    """The hooks of a tensor, of which there are none."""
    return {}


def _tensor(numbers: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any) -> Tensor:
    """A dense tensor of all numbers of a storage, in any order of its axes (channels last, for example)."""
    expected = 1
    for step, length in sorted((step, length) for step, length in zip(stride, size, strict=True) if length != 1):
        if len(numbers) and step != expected:
            raise CheckpointError("a tensor whose parts overlap")
        expected *= length
    if len(size) > DIMENSIONS:
        raise CheckpointError("a tensor with too many axes")
    if type(numbers) is not Tensor or offset != 0 or math.prod(size) != len(numbers) or hooks != {}:
        raise CheckpointError("a tensor that is a part of another, or claims to have more numbers than it has")
    return numbers.as_strided(size, stride) if len(numbers) else numbers.reshape(size)
