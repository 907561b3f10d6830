"""What a run costs and where it runs: peak memory, time, and the device."""

import ctypes
import gc
import os
import platform
import re
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from avalanche_contrastive._launch import launched
from avalanche_contrastive.bench.report.cells import count
from avalanche_contrastive.parallel.joining import local_device

MIB = 1024 * 1024
STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak memory between `start` and `stop`, in MiB.

    On a GPU it is what torch had allocated there. On a CPU it is the resident memory of the whole process, the
    libraries' some 500 MiB included: a figure to compare runs with, not the size of a model. `kind` says which of them.

    What an earlier run in the same process left is collected, and goes back to the system, first, so that it is not
    counted again.
    """

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self._resets = False
        gc.collect()  # strategies and their plugins hold each other, and with them what they have on the GPU
        if self.device.type == "cuda":
            self.kind = "allocated on the GPU by torch, peak within the experience"
            return
        _give_back()
        self._resets = _reset_peak()
        self.kind = (
            "resident memory of the process, peak within the experience"
            if self._resets
            else "resident memory of the process, peak since it started (this system cannot reset it)"
        )

    def start(self) -> None:
        """Forget the peak so far, where that is possible."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self._resets:
            _reset_peak()

    def stop(self) -> float:
        """The peak since `start` in MiB."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / MIB
        return _high_water() if self._resets else _peak_since_start()


def no_memory(row: str, batch_size: int) -> str:
    """The message for a row that is out of memory."""
    return (
        f"{row} is out of memory with batch_size {batch_size}. Give a smaller batch_size or network, fewer "
        "train_images, or fewer --jobs at a time"
    )


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or its cause, says that there is no memory left, here or on a GPU."""
    if error is None:
        return False
    words = ("can't allocate memory", "not enough memory", "out of memory")
    own = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(w in str(error) for w in words))
    return own or is_out_of_memory(error.__cause__ or error.__context__)


def clock(device: torch.device | str = "cpu") -> float:
    """``time.perf_counter`` when the GPU has finished its work."""
    kind = torch.device(device).type
    if kind == "cuda":
        torch.cuda.synchronize(device)
    elif kind == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def _reset_peak() -> bool:
    """Set Linux' high-water mark back to the present size; False where that is not possible (see proc(5))."""
    try:
        CLEAR.write_text("5")
        _high_water()
    except (OSError, ValueError):
        return False
    return True


def _high_water() -> float:
    found = re.search(r"^VmHWM:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{STATUS}: expected a line VmHWM")
    return int(found[1]) / 1024


def _peak_since_start() -> float:
    """Of this process, as every system knows it: kilobytes on Linux, bytes on macOS, psutil's word on Windows."""
    try:
        import resource
    except ImportError:
        import psutil  # type: ignore[import-untyped, unused-ignore]  # comes with Avalanche

        return float(psutil.Process().memory_info().peak_wset) / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def _give_back() -> None:
    """Return freed memory to the system; only glibc has a call for it."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def device_of(name: str) -> torch.device:
    """The device of "cpu", "cuda", "cuda:1", "mps", or "auto" for what is there; under torchrun a GPU for each process.

    Raises:
        ValueError: there is no such device.
    """
    kind, _, number = name.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: torch finds no GPU here. Is the driver there, and torch built for it?")
    if number and int(number) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch finds {torch.cuda.device_count()} GPUs here, the first is cuda:0")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "--device mps: torch finds no GPU of Apple here. Is this a Mac with one, and torch built for it?"
        )
    if launched() > 1 and name != "cpu":
        if name not in ("cuda", "auto"):
            raise ValueError(f"--device {name} under torchrun: each process takes a GPU of its own, give --device cuda")
        return local_device()
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context of training and evaluation: an empty one for "fp32"; for "bf16" matrix products in bfloat16.

    Without autocast's cache of rounded weights, which is emptied where an autocast ends: here after many steps.

    Raises:
        ValueError: the device cannot compute in bfloat16.
    """
    if precision == "fp32":
        return nullcontext()
    able = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else True
    if not (able and torch.amp.is_autocast_available(device.type)):
        raise ValueError(f"--precision bf16: {describe_device(device)} does not compute in bfloat16; leave it out")
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def describe_device(device: torch.device | str = "cpu") -> str:
    """The device in words: a GPU's name, or the processor's, its architecture and the threads that torch uses."""
    device = torch.device(device)
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    about = ", ".join(filter(None, [_processor(), platform.machine()]))
    return f"{device.type} ({about}), {count(torch.get_num_threads(), 'thread')}"


def _processor() -> str:
    """The model of the CPU as the system names it; empty if it does not."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    name = found[1] if found else platform.processor() if os.name == "nt" or sys.platform == "darwin" else ""
    return " ".join(name.split())
