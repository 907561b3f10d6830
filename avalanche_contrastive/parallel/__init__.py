"""Training in several processes that torchrun has started: `DataParallel`, a plugin beside any method.

Experimental: it has run on CPUs (gloo), and not yet on several GPUs (NCCL).
"""

from avalanche_contrastive.parallel.joining import is_main_process, join_processes, local_device
from avalanche_contrastive.parallel.plugin import DataParallel

__all__ = ["DataParallel", "is_main_process", "join_processes", "local_device"]
