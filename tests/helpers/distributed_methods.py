"""Runs of the benchmark in two processes and in one: ``torchrun distributed_methods.py FOLDER short`` (or ``whole``).

"short" is three experiences of every method that several processes may train, "whole" all of Split-Digits with Co2L
and SS-IL, and the first experience of CSD: the hardest triplets of which flip, so that even in one process 1e-15 on the
weights grows to 0.1 in five experiences. Float64, without augmentation: what remains is the rounding of sums.
"""

import os
import sys
from pathlib import Path

import torch
from avalanche.training.determinism.rng_manager import RNGManager

from avalanche_contrastive.bench import config as configs
from avalanche_contrastive.bench.config import METHODS
from avalanche_contrastive.bench.run import build as runs
from avalanche_contrastive.parallel.collectives import rank
from avalanche_contrastive.parallel.joining import join_processes

# So small that replay has to choose, so short that all methods take a minute.
SHORT = {"memory_epochs": 1, "readout_epochs": 3, "batch_size_mem": 10}


def in_double(module, arguments):
    return (arguments[0].double(), *arguments[1:])


def short_configs():
    """By method and scenario, each with the number of its experiences."""
    found = {}
    for name, method in METHODS.items():
        options = {key: SHORT.get(key, value) for key, value in method.options.items()}
        short = {"epochs": 1, "train_images": 150, "batch_size": 25, "memory": 60, "options": options}
        for scenario in () if method.alone else method.scenarios:
            found[name, scenario] = configs.Config(method=name, scenario=scenario, **short), 3
    return found


def whole_configs():
    """The rows of Split-Digits."""
    experiences = {"co2l": 5, "ssil": 5, "csd": 1}
    return {name: (configs.load_row(name, "split_digits").config, many) for name, many in experiences.items()}


def weights_of(config, experiences):
    """The weights after so many experiences."""
    RNGManager.set_random_seeds(0)
    stream = runs.stream_of(config, 0)
    strategy = runs.build(config, stream, torch.device("cpu")).strategy
    for plugin in strategy.plugins:
        if hasattr(plugin, "augmentation"):
            plugin.augmentation = torch.nn.Identity()
    for module in (strategy.model, getattr(strategy.model, "encoder", None)):
        if module is not None:
            module.double().register_forward_pre_hook(in_double)
    for step in runs.steps_of(config, stream.benchmark)[:experiences]:
        strategy.train(step)
        strategy.eval(stream.benchmark.test_stream[:1])
    return {name: x.detach().clone() for name, x in strategy.model.named_parameters()}


def main(folder, which):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    settings = whole_configs() if which == "whole" else short_configs()
    here = os.environ.pop("RANK")  # not in several processes yet
    alone = {key: weights_of(*setting) for key, setting in settings.items()}
    os.environ["RANK"] = here
    join_processes()
    together = {key: weights_of(*setting) for key, setting in settings.items()}
    torch.save({key: (alone[key], together[key]) for key in settings}, Path(folder) / f"{rank()}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
