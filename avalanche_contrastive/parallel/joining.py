"""Which process this is, its device, and how the processes that torchrun has started meet."""

import os
import socket
from datetime import timedelta

import torch
import torch.distributed as dist

from avalanche_contrastive._launch import launched
from avalanche_contrastive.parallel.collectives import of_all_processes, processes, rank

__all__ = ["is_main_process", "join_processes", "local_device", "processes", "rank"]


def is_main_process() -> bool:
    """Whether this process is the one that writes files and shows progress; true without torchrun."""
    return rank() == 0 if processes() > 1 else launched() == 1 or os.environ["RANK"] == "0"


def local_device() -> torch.device:
    """The device of this process: a GPU of its own where torch finds any, else the CPU.

    Raises:
        ValueError: torchrun has started more processes on this machine than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if launched() == 1:
        return torch.device("cuda", torch.cuda.current_device())
    index, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= gpus:
        raise ValueError(
            f"torchrun has started a process with LOCAL_RANK {index}, but torch finds {gpus} GPU{'s' * (gpus != 1)} "
            f"here, and each process needs one of its own. Start no more than {gpus} (--nproc-per-node), or train on "
            "the CPU."
        )
    return torch.device("cuda", index)


def join_processes(device: torch.device | str = "cpu", *, timeout: float = 600.0) -> None:
    """Meet the other processes that torchrun has started; nothing happens in one process, or the second time.

    `DataParallel` does it by itself. Avalanche refuses to make loggers in any process but the first from here on.

    Args:
        device: that this process trains on. Messages go by gloo, between GPUs by NCCL.
        timeout: seconds that a process waits for the others before it fails.

    Raises:
        ValueError: a GPU that is not this process's own.
    """
    device = torch.device(device)
    if launched() == 1 or processes() > 1:
        return
    if device.type == "cuda":
        if device.index is None:
            raise ValueError(
                "several processes on GPUs need one each, but the device is 'cuda'. Pass device=local_device() "
                "(avalanche_contrastive.parallel) to the strategy."
            )
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    if device.type == "cuda":
        # Numbers count the GPUs that a process sees: torchrun --virtual-local-rank shows each another one, as number 0.
        places = of_all_processes((socket.gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES", "all"), device.index))
        if len(set(places)) < len(places):
            raise ValueError(
                f"several processes share a GPU: {places} (host, visible GPUs, index). Pass device=local_device()."
            )
