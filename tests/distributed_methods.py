"""Every method that may be trained by several processes, in two and in one: ``torchrun distributed_methods.py FOLDER``.

Float64, without augmentation: what remains is the rounding of sums.
"""

import os
import sys
from pathlib import Path

import torch
from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive.collectives import rank
from avalanche_contrastive.distributed import join_processes
from benchmarks import configs, runs
from benchmarks.catalog import METHODS

# So small that replay has to choose, so short that all methods take a minute.
SHORT = {"memory_epochs": 1, "readout_epochs": 3, "batch_size_mem": 10}


def in_double(module, arguments):
    return (arguments[0].double(), *arguments[1:])


def weights_of(method, scenario):
    """The weights after three experiences."""
    options = {key: SHORT.get(key, value) for key, value in METHODS[method].options.items()}
    config = configs.Config(
        method=method, scenario=scenario, epochs=1, train_images=150, batch_size=25, memory=60, options=options
    )
    RNGManager.set_random_seeds(0)
    stream = runs.stream_of(config, 0)
    strategy = runs.build(config, stream, torch.device("cpu")).strategy
    for plugin in strategy.plugins:
        if hasattr(plugin, "augmentation"):
            plugin.augmentation = torch.nn.Identity()
    for module in (strategy.model, getattr(strategy.model, "encoder", None)):
        if module is not None:
            module.double().register_forward_pre_hook(in_double)
    for step in runs._steps(config, stream.benchmark)[:3]:
        strategy.train(step)
        strategy.eval(stream.benchmark.test_stream[:1])
    return {name: x.detach().clone() for name, x in strategy.model.named_parameters()}


def main(folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    pairs = [(name, kind) for name, method in METHODS.items() if not method.alone for kind in method.scenarios]
    here = os.environ.pop("RANK")  # not in several processes yet
    alone = {pair: weights_of(*pair) for pair in pairs}
    os.environ["RANK"] = here
    join_processes()
    together = {pair: weights_of(*pair) for pair in pairs}
    torch.save({pair: (alone[pair], together[pair]) for pair in pairs}, Path(folder) / f"{rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
