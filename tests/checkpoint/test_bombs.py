"""Archives and pickles that no ``torch.save`` has written: each is refused within a second and 200 MiB."""

import contextlib
import io
import os
import pickle
import random
import resource
import struct
import time
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.hostile import attempt, rezipped
from helpers.resuming import build, go_on
from helpers.streams import make_benchmark

from avalanche_contrastive import checkpoint

SECONDS, MIB = 1.0, 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint of CSD after one experience, as bytes."""
    path = tmp_path_factory.mktemp("saved") / "a.pt"
    torch.manual_seed(0)
    go_on(build("CSD"), make_benchmark("A", per_class=6), 0, 1, path)
    checkpoint.restore(build("CSD"), path)  # whatever is imported late, is now
    return path.read_bytes()


def peak():
    """The most memory that this process has had since it was last asked, in MiB."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def refuse(data, path):
    """The error of a file, which costs neither time nor memory."""
    path.write_bytes(data)
    strategy = build("CSD")
    peak()
    before, began = peak(), time.process_time()
    with pytest.raises(checkpoint.CheckpointError) as caught:
        checkpoint.restore(strategy, path)
    seconds, more = time.process_time() - began, peak() - before
    assert seconds < SECONDS, f"{seconds:.2f} s"
    assert more < MIB, f"{more:.0f} MiB"
    with pytest.raises(checkpoint.CheckpointError):
        checkpoint.extra_of(path)
    assert attempt(strategy, path) is not None
    assert str(path) in str(caught.value)
    return str(caught.value)


# ---- pickles

PROTO, FLOATS = b"\x80\x02", b"ctorch\nFloatStorage\n"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
HOOKS = b"ccollections\nOrderedDict\n)R"


def number(value):
    """An instruction for a whole number."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = pickle.encode_long(value)
    return b"\x8a" + bytes([len(data)]) + data


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key="0", length=1, kind=FLOATS):
    return b"(" + text("storage") + kind + text(key) + text("cpu") + number(length) + b"tQ"


def tensor(size, stride, *, offset=0, **of_storage):
    """Instructions for a tensor as torch writes it."""
    return (
        REBUILD
        + b"("
        + storage(**of_storage)
        + number(offset)
        + numbers(size)
        + numbers(stride)
        + b"\x89"
        + HOOKS
        + b"tR"
    )


def doubled(times):
    """A list of two lists that are one, of two lists that are one, ..."""
    data = b"]q\x00"
    for index in range(times):
        data += b"]q" + bytes([index + 1]) + b"(h" + bytes([index]) + b"h" + bytes([index]) + b"e"
    return data


COLLIDING = b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(20_000)) + b"u"
PICKLES = {
    "a command": b"cposix\nsystem\n" + text("touch /tmp/avalanche_contrastive.trap") + b"\x85R",
    "a command by its object": b"(i__main__\nTrap\n",
    "a new object": b"csubprocess\nPopen\n)\x81",
    "a state for an object": b"ccollections\nOrderedDict\n)R}b",
    "a class of torch": b"ctorch.nn.modules.container\nSequential\n)R",
    "torch.load itself": b"ctorch\nload\n" + text("/etc/passwd") + b"\x85R",
    "a class by two names": text("os") + text("system") + b"\x93",
    "an extension": b"\x82\x01",
    "a function of the reader": b"ctorch._utils\n_rebuild_tensor\n)R",
    "a call of what is no function": b"]" + b")R",
    "a call with what is no tuple": HOOKS[:-2] + b"]R",
    "hooks with content": b"ccollections\nOrderedDict\n(]tR",
    "a list in itself": b"]q\x00h\x00a",
    "a list in itself, by a tuple": b"]q\x00(h\x00h\x00ta",
    "a dict in itself": b"}q\x00" + text("a") + b"h\x00s",
    "halves that are one": doubled(60),
    "lists in lists": b"]" * 300_000 + b"a" * 299_999,
    "tuples in tuples": b")" + b"\x85" * 300_000,
    "dicts in dicts": (b"}" + text("a")) * 100_000 + b"N" + b"s" * 100_000,
    "three million instructions": b"](" + b"N" * 3_000_000 + b"e",
    "three million lists": b"](" + b"]" * 3_000_000 + b"e",
    "marks without an end": b"(" * 3_000_000,
    "keys that collide": COLLIDING,
    "keys that are lists": b"}]Ns",
    "a frame of 2^62 bytes": b"\x95" + struct.pack("<Q", 2**62),
    "bytes of 2^33": b"\x8e" + struct.pack("<Q", 2**33),
    "an array of bytes of 2^33": b"\x96" + struct.pack("<Q", 2**33),
    "a text of 2^33": b"\x8d" + struct.pack("<Q", 2**33) + b"x",
    "a text of 2^32 - 1": b"X" + struct.pack("<I", 2**32 - 1) + b"x",
    "a number of 2^31 bytes": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
    "a number in a million digits": b"I" + b"9" * 1_000_000 + b"\n",
    "a long in a million digits": b"L" + b"9" * 1_000_000 + b"L\n",
    "a text in quotes": b"S'" + b"x" * 10 + b"'\n",
    "a memo of 2^31": b"Nr" + struct.pack("<I", 2**31) + b"0j" + struct.pack("<I", 2**31),
    "an empty stack": b"0000",
    "no end": b"](" * 10,
    "a persistent id that is a text": text("x") + b"Q",
    "a persistent id of five that are none": b"(NNNNNtQ",
    "a storage of a class": b"(" + text("storage") + b"cposix\nsystem\n" + text("0") + text("cpu") + number(1) + b"tQ",
    "a storage of another path": tensor([1], [1], key="../../../../etc/passwd"),
    "a storage that is not there": tensor([1], [1], key="99"),
    "a storage of 2^33 numbers": tensor([2**33], [1], length=2**33),
    "a storage of -1 numbers": tensor([1], [1], length=-1),
    "a size of 2^33": tensor([2**33], [1]),
    "a size of 2^33 by a step of 0": tensor([2**33], [0]),
    "a size of 2^33 without storage": tensor([2**33], [0], key="empty", length=0),
    "a size of 2^40 by nothing": tensor([2**40, 0], [0, 0], key="empty", length=0),
    "a size of -1": tensor([-1], [1]),
    "a size of 2^70": tensor([2**70], [1]),
    "sizes whose product is 1": tensor([-1, -1], [1, 1]),
    "a size that is no tuple": REBUILD + b"(" + storage() + number(0) + b"NN\x89" + HOOKS + b"tR",
    "a size that is not a number": REBUILD
    + b"("
    + storage()
    + number(0)
    + b"(G\x7f\xf8\0\0\0\0\0\0t"
    + numbers([1])
    + b"\x89"
    + HOOKS
    + b"tR",
    "a step of -1": tensor([1, 1], [-1, 1]),
    "steps that overlap": tensor([2, 2], [1, 1], key="4", length=4),
    "an offset": tensor([1], [1], offset=1),
    "an offset of -1": tensor([1], [1], offset=-1),
    "an offset of 2^62": tensor([1], [1], offset=2**62),
    "two tensors of one storage": b"](" + tensor([1], [1]) + tensor([1], [1]) + b"e",
    "a tensor twice": b"](" + tensor([1], [1]) + b"q\x05h\x05e",
    "a storage twice": b"](" + storage() + b"q\x05h\x05e",
    "numbers of another type": tensor([1], [1], kind=b"ctorch\nDoubleStorage\n"),
    "numbers of a type that there is not": tensor([1], [1], kind=b"ctorch\nQInt8Storage\n"),
    "half a number": tensor([1], [1], key="half"),
    "deep axes": tensor([1] * 200_000, [1] * 200_000),
}
HARMLESS = {  # is data when it is read; nothing of it could be a checkpoint
    *(
        "a size of 2^40 by nothing",
        "a call with what is no tuple",
        "lists in lists",
        "tuples in tuples",
        "dicts in dicts",
    ),
}
STORED = {"0": 4, "4": 16, "empty": 0, "half": 2}


def archive(instructions, **members):
    """A file of torch.save with a pickle of these instructions in it, as `extra` of a checkpoint."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as new:
        new.writestr("a/data.pkl", PROTO + b"}" + text("extra") + instructions + b"s.")
        new.writestr("a/byteorder", "little")
        for key, size in STORED.items():
            new.writestr(f"a/data/{key}", b"\0" * size)
        new.writestr("a/version", "3\n")
        for name, data in members.items():
            new.writestr(name, data)
    return made.getvalue()


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_that_no_save_writes(what, tmp_path):
    words = refuse(archive(PICKLES[what]), tmp_path / "a.pt")
    assert ("torch can read it" in words) == (what in HARMLESS)
    assert not Path("/tmp/avalanche_contrastive.trap").exists()


def test_the_hand_made_archive_is_read_when_there_is_no_harm_in_it(tmp_path):
    """Otherwise the files above would be refused for another reason."""
    from avalanche_contrastive._archive import read_plain

    (tmp_path / "a.pt").write_bytes(archive(b"](" + tensor([1], [1]) + number(2**40) + text("x") + b"e"))
    assert read_plain(tmp_path / "a.pt")["extra"] == [torch.zeros(1), 2**40, "x"]


# ---- archives


def deflated(data, level=9):
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            new.writestr(member.filename, old.read(member))
    return made.getvalue()


def bomb():
    """A gigabyte of zeros in a megabyte."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("a/data.pkl", PROTO + b"}.")
        with new.open("a/data/0", "w", force_zip64=True) as member:
            for _ in range(64):
                member.write(bytes(2**24))
    return made.getvalue()


def directory(data, place, value, form="<I"):
    """The archive with a number of all entries of its directory changed; a negative place is of its end."""
    changed, start = bytearray(data), data.find(b"PK\x01\x02")
    while start >= 0:
        struct.pack_into(form, changed, start + place, value)
        start = data.find(b"PK\x01\x02", start + 4)
    return bytes(changed)


def named(data, change):
    made = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as old,
        zipfile.ZipFile(made, "w") as new,
        pytest.warns() if len(change("x")) > 1 else contextlib.nullcontext(),
    ):
        for member in old.infolist():
            for name in change(member.filename):
                new.writestr(zipfile.ZipInfo(name), old.read(member))
    return made.getvalue()


def overlapping(data):
    """All entries of the directory are of one member."""
    return directory(data, 42, 0)


ARCHIVES = {
    "deflated": deflated,
    "a bomb": lambda data: bomb(),
    "sizes of 2^32 - 2": lambda data: directory(data, 24, 2**32 - 2),
    "both sizes of 2^32 - 2": lambda data: directory(directory(data, 24, 2**32 - 2), 20, 2**32 - 2),
    "sizes in another place": lambda data: directory(directory(data, 24, 2**32 - 1), 20, 2**32 - 1),
    "encrypted": lambda data: directory(data, 8, 1, "<H"),
    "another method": lambda data: directory(data, 10, 14, "<H"),
    "members at one place": overlapping,
    "members at 2^31": lambda data: directory(data, 42, 2**31),
    "names twice": lambda data: named(data, lambda name: [name, name]),
    "names with NUL": lambda data: data.replace(b"archive/", b"archive\0"),
    "names upwards": lambda data: named(data, lambda name: [f"../{name}"]),
    "names from the root": lambda data: named(data, lambda name: [f"/{name}"]),
    "two pickles": lambda data: named(data, lambda name: [name, name.replace("data.pkl", "b/data.pkl"), "b/data.pkl"]),
    "no pickle": lambda data: named(data, lambda name: [] if name.endswith("data.pkl") else [name]),
    "no storages": lambda data: named(data, lambda name: [] if "/data/" in name else [name]),
    "the other order of bytes": lambda data: rezipped(data, lambda name, old: b"big" if "byteorder" in name else old),
    "longer storages": lambda data: rezipped(data, lambda name, old: old + old if "/data/" in name else old),
    "shorter storages": lambda data: rezipped(data, lambda name, old: old[:-1] if "/data/" in name else old),
    "an empty pickle": lambda data: rezipped(data, lambda name, old: b"" if name.endswith("data.pkl") else old),
    "a directory of 60,000": lambda data: archive(b"N", **{f"a/{number}": b"" for number in range(60_000)}),
    "a pickle alone": lambda data: pickle.dumps({"format": checkpoint.FORMAT}),
    "an old file of torch": lambda data: of_old_torch(),
    "a directory only": lambda data: data[data.index(b"PK\x01\x02") :],
    "nothing but an end": lambda data: b"PK\x05\x06" + bytes(18),
    "zeros": lambda data: bytes(10_000),
    "PK and zeros": lambda data: b"PK" + bytes(10_000),
}


def of_old_torch():
    made = io.BytesIO()
    torch.save({"format": checkpoint.FORMAT}, made, _use_new_zipfile_serialization=False)
    return made.getvalue()


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_that_no_save_writes(saved, what, tmp_path):
    refuse(ARCHIVES[what](saved), tmp_path / "a.pt")


@pytest.mark.parametrize("part", range(20))
def test_a_file_that_is_cut_short(saved, part, tmp_path):
    (tmp_path / "a.pt").write_bytes(saved[: len(saved) * part // 20])
    error = attempt(build("CSD"), tmp_path / "a.pt")
    assert "cut short or damaged" in str(error) or "is empty" in str(error)


def test_bits_that_have_turned(saved, tmp_path):
    """Of two hundred, each is seen, or is where it has no meaning: the data of a restored file are the right ones."""
    draw, path, refused = random.Random(0), tmp_path / "a.pt", 0
    for _ in range(200):
        data = bytearray(saved)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        error = attempt(build("CSD"), path)
        refused += error is not None
        if error is None:
            with zipfile.ZipFile(path) as turned, zipfile.ZipFile(io.BytesIO(saved)) as whole:
                names = [name for name in whole.namelist() if "data" in name]  # what is read
                assert [turned.read(name) for name in names] == [whole.read(name) for name in names]
    assert refused > 150


def test_a_pipe_and_a_device_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert attempt(build("CSD"), path) is not None


def test_this_machine_tells_its_memory():
    before = peak()
    data = bytearray(64 * 2**20)
    assert peak() > before - 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > len(data) / 1024
