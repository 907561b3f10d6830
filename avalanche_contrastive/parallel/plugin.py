"""Training in several processes: one plugin that makes any Avalanche strategy data-parallel.

Start the script with ``torchrun --nproc-per-node N`` and give the strategy the plugin `DataParallel`. Torch's
``DistributedDataParallel`` is not used, nor Avalanche's ``DistributedHelper``: the wrapper renames the parameters, by
which EWC then finds none of its penalties, hides the model's attributes from plugins, stops at a head that a penalty
reaches but the batch does not, and knows no head that has grown; the helper shards the loaders of some streams only,
always in the same order, and the evaluation as well. Here the model is never wrapped.
"""

import zlib
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from avalanche.models import MultiTaskModule
from avalanche.training.determinism.rng_manager import RNGManager
from avalanche.training.plugins.strategy_plugin import SupervisedPlugin
from avalanche.training.templates.update_type.sgd_update import SGDUpdate
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from avalanche_contrastive._checks import check_positive
from avalanche_contrastive._loaders import unsharded
from avalanche_contrastive._rows import SharesBatches
from avalanche_contrastive._torch import digest, map_tensors, unwrapped
from avalanche_contrastive.parallel.collectives import (
    Rows,
    average_gradients,
    broadcast,
    of_all_processes,
    processes,
    rank,
)
from avalanche_contrastive.parallel.joining import join_processes
from avalanche_contrastive.parallel.sharding import OwnRandom, ShardedLoader

__all__ = ["DataParallel"]


class DataParallel(SupervisedPlugin[Any], SharesBatches):
    """Trains the strategy in all processes that torchrun has started, as one process would; alone it does nothing.

    Every process builds the same strategy on the same stream. The weights of process 0 are taken, its random state,
    too. ``train_mb_size`` is the size of the *whole* batch: each process loads and runs its share of the rows, outputs
    and batch are put together, and from then on (the criterion or objective, penalties, metrics) all processes see the
    whole batch. Batch-norm layers normalise by the whole batch; in a multi-task model that runs the rows of each task
    in turn (``as_multitask``) by the task's rows in all processes. What a run gives is what it gives in one process, up
    to the rounding of sums and to the draws of augmentation and dropout, which differ by process.

    - Shuffles, buffers and read-outs draw from the shared random state; what makes a row (the training transform,
      plugins before the forward pass, dropout) from the process's own, which follows from seed, experience and epoch.
    - Evaluation is done by every process, on everything. Loggers of processes but the first are taken out.
    - After each experience weights, random states and stored exemplars of all processes are compared.
    - Refused: strategies with a training loop of their own (DER, ER-ACE, ...), plugins that add rows to a batch
      (generative replay) or take gradients themselves before the strategy does (MIR), models that cut their batch in
      some other way before batch norm. Plugins with a loader of their own (A-GEM, BiC) get another part of it in each
      process by Avalanche's doing, and end in an error.

    Attributes:
        rows: of the current batch, by process; None between batches.

    Args:
        timeout: seconds that a process waits for the others before it fails: longer than anything that one of them
            may do alone.
    """

    def __init__(self, *, timeout: float = 600.0) -> None:
        super().__init__()
        check_positive("DataParallel", timeout=timeout)
        self.supports_distributed = True  # Avalanche warns of plugins that do not say so
        self.timeout = timeout
        self.rows: Rows | None = None
        self._last = _Last(self)
        self._random = OwnRandom()
        self._loader: ShardedLoader | None = None
        self._forward = ExitStack()
        self._backward_is_due = False
        self._next: Any = None  # while it trains: the plugin that it stood before

    def join(self, strategy: Any) -> None:
        """Meet the other processes that torchrun has started, if that has not been done."""
        join_processes(strategy.device, timeout=self.timeout)

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Meet the other processes; take the first and the last place among the plugins."""
        self.join(strategy)
        self._abandon()
        if processes() == 1:
            return
        _check_strategy(strategy)
        # Those before this one have been called, those after it will be: moving it skips and repeats none.
        if self._last not in strategy.plugins:  # else an error has ended the last training
            self._next = strategy.plugins[strategy.plugins.index(self) + 1]
            strategy.plugins.remove(self)
            strategy.plugins.insert(0, self)
            strategy.plugins.insert(strategy.plugins.index(strategy.evaluator), self._last)
        if rank() > 0:
            strategy.evaluator.loggers = []
        of_first: list[Any] = [(RNGManager.__getstate__(), _gpu(strategy.device))]
        dist.broadcast_object_list(of_first, 0)
        states, first = of_first[0]
        RNGManager.__setstate__(_of_own_gpu(states, first, _gpu(strategy.device)))

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Check that all processes train the same; take the model of process 0, with heads that have grown."""
        if processes() == 1:
            return
        _check_same("train differently", _setting(strategy))
        broadcast([*strategy.model.parameters(), *strategy.model.buffers()])

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """From here to the end of the forward pass random numbers are this process's own."""
        self.rows = None
        self._forward.close()
        if processes() > 1:
            self._forward.enter_context(self._random.own())

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Put the batch and the model's output together: the first to be called, so all others see the whole."""
        self._forward.close()
        if self.rows is None or self._loader is None:
            return
        rows, mbatch = self.rows, strategy.mbatch
        mark = torch.full((len(mbatch[1]),), self._loader.mark, device=mbatch[0].device)
        mark, *strategy.mbatch = rows.whole_batch([mark, *mbatch])
        if bool((mark != self._loader.mark).any()):
            raise RuntimeError(
                "DataParallel: the processes are at different batches. Does something draw random numbers in one "
                "process and not in the others, or as many batches not come from every process's loader?"
            )
        self._backward_is_due = False
        strategy.mb_output = map_tensors(self._whole, strategy.mb_output)

    def _whole(self, output: Tensor) -> Tensor:
        assert self.rows is not None
        whole = self.rows.whole(output)
        if whole.requires_grad:
            whole.register_hook(self._refuse_early)
        return whole

    def _refuse_early(self, gradient: Tensor) -> None:
        if not self._backward_is_due:
            raise RuntimeError(
                "DataParallel: a plugin takes gradients of the loss itself, before the strategy does (MIR's trial "
                "step). In several processes they would be those of this process's rows. Train it in one process."
            )

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Average the gradients: the first to be called, so that plugins edit those of the whole batch."""
        if self.rows is None:
            return
        groups = strategy.optimizer.param_groups
        everything = [*strategy.model.parameters(), *(p for group in groups for p in group["params"])]
        average_gradients(p for p in dict.fromkeys(everything) if p.requires_grad)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Give the loader back as it was."""
        self.rows = None
        if isinstance(strategy.dataloader, ShardedLoader):
            strategy.dataloader = strategy.dataloader.loader

    def after_training(self, strategy: Any, **kwargs: Any) -> None:
        """Put the plugins back in the user's order, in which a checkpoint has to find them."""
        if self._last not in strategy.plugins:
            return
        plugins = [plugin for plugin in strategy.plugins if plugin is not self and plugin is not self._last]
        plugins.insert(plugins.index(self._next), self)
        strategy.plugins, self._next = plugins, None  # another list: Avalanche is going through this one

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Evaluation has nothing to do with a batch, whether finished or not."""
        self._abandon()

    def before_eval_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let every process evaluate everything, where Avalanche would give each a part of it."""
        unsharded(strategy.dataloader)

    def _abandon(self) -> None:
        self._forward.close()
        self.rows = None

    def _shard(self, strategy: Any) -> None:
        counters = (strategy.clock.train_exp_counter, strategy.clock.train_exp_epochs, rank())
        self._random.restart(*counters)
        if self._loader is None or self._loader.loader is not strategy.dataloader:
            self._loader = ShardedLoader(strategy.dataloader, rank(), processes(), self._random)
        strategy.dataloader = self._loader

    def _begin(self, strategy: Any) -> None:
        assert self._loader is not None
        rows = Rows(self._loader.sizes, rank())
        if len(strategy.mbatch[1]) != rows.length:
            raise ValueError(
                f"DataParallel: the loader gave this process {rows.length} rows, but the batch has "
                f"{len(strategy.mbatch[1])}. A plugin that adds rows to the batch (generative replay, SCR) would add "
                "them once in each process; train it in one."
            )
        model = unwrapped(strategy.model)
        self.rows = _task_by_task(strategy, model, rows, self._forward) if _splits_batch_norm(model) else rows
        self._forward.enter_context(self.rows.shared_statistics(model))


class _Last(SupervisedPlugin[Any]):
    """The part of `DataParallel` that must come after all other plugins."""

    def __init__(self, parallel: DataParallel) -> None:
        super().__init__()
        self.supports_distributed = True
        self.parallel = parallel

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Shard whatever loader the plugins have settled on by now."""
        if processes() > 1:
            self.parallel._shard(strategy)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """The batch is as the model will see it."""
        if processes() > 1:
            self.parallel._begin(strategy)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """The loss is complete."""
        self.parallel._backward_is_due = True

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """See that all processes have come to the same end; statistics may differ by rounding: take process 0's."""
        if processes() == 1:
            return
        _check_same("have come apart", _outcome(strategy))
        broadcast(strategy.model.buffers())
        self.parallel._loader = None


def _check_strategy(strategy: Any) -> None:
    name, model = type(strategy).__name__, strategy.model
    if getattr(type(strategy), "training_epoch", None) is not SGDUpdate.training_epoch:
        raise ValueError(
            f"DataParallel: {name} has a training loop of its own, in which the rows of the processes cannot be put "
            "together. Train it in one process."
        )
    if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        raise ValueError("DataParallel: give the strategy the plain model, not one wrapped for data-parallel training.")


def _gpu(device: torch.device) -> int | None:
    """The number of a GPU, None for any other device."""
    if device.type != "cuda":
        return None
    return torch.cuda.current_device() if device.index is None else device.index


def _of_own_gpu(states: dict[str, Any], theirs: int | None, ours: int | None) -> dict[str, Any]:
    """Another process's random states, with what its GPU draws from at the place of the GPU of this process."""
    gpus = list(states["torch.cuda"]["current_state"])  # of all GPUs that it sees
    if theirs is not None and ours is not None and max(theirs, ours) < len(gpus):
        gpus[ours] = gpus[theirs]
    return {**states, "torch.cuda": {"current_state": gpus}}


def _splits_batch_norm(model: nn.Module) -> bool:
    """Whether a multi-task model may run the rows of each task in turn through batch norm (``as_multitask`` does)."""
    return (
        isinstance(model, MultiTaskModule)
        and type(model).forward_single_task is not MultiTaskModule.forward_single_task
        and any(isinstance(module, _BatchNorm) for module in model.modules())
    )


def _task_by_task(strategy: Any, model: MultiTaskModule, rows: Rows, during: ExitStack) -> Rows:
    """Let each task's rows be normalised by those of all processes, in a model that runs one task after the other.

    Each process must then run the same tasks in the same order: for a task of the batch that it has no row of, its
    batch gets one for show, at the end.

    Args:
        strategy: its batch is extended.
        model: the strategy's.
        rows: of the batch.
        during: is closed when the forward pass has ended.

    Returns:
        The rows, those for show included.
    """
    labels = strategy.mb_task_id
    blocks = rows.whole(labels).split(rows.sizes)
    tasks = sorted({int(task) for block in blocks for task in block})
    by_task = {task: Rows(tuple(int((block == task).sum()) for block in blocks), rows.rank) for task in tasks}
    missing = sorted(set(tasks) - set(labels.tolist()))
    if missing:
        strategy.mbatch = [torch.cat([x, x[:1].expand(len(missing), *x.shape[1:])]) for x in strategy.mbatch]
        strategy.mb_task_id[len(labels) :] = torch.tensor(missing)

    def forward_single_task(x: Tensor, task_label: int) -> Any:
        with by_task[int(task_label)].shared_statistics(model):
            return type(model).forward_single_task(model, x, task_label)

    # Not by setattr, with which a model of as_multitask would give it to the model inside.
    vars(model)["forward_single_task"] = forward_single_task
    during.callback(partial(vars(model).pop, "forward_single_task"))
    return replace(rows, extra=len(missing))


def _setting(strategy: Any) -> dict[str, Any]:
    """What must be the same in all processes before an experience, by name."""
    data, model = strategy.adapted_dataset, strategy.model
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {
        "train_mb_size": strategy.train_mb_size,
        "train_epochs": strategy.train_epochs,
        "number of experiences so far": strategy.clock.train_exp_counter,
        "training data (labels in order)": (len(data), zlib.crc32(str(list(getattr(data, "targets", ()))).encode())),
        "model": [(name, tuple(x.shape), str(x.dtype)) for name, x in tensors],
    }


def _outcome(strategy: Any) -> dict[str, Any]:
    """What must be the same in all processes after an experience, by name."""
    buffers = [getattr(owner, "storage_policy", None) for owner in (strategy, *strategy.plugins)]
    return {
        "weights": digest(strategy.model.parameters()),
        "random state (torch)": digest([torch.get_rng_state()]),
        "stored exemplars": [_exemplars(policy.buffer) for policy in buffers if policy is not None],
    }


def _exemplars(buffer: Any) -> int:
    """A number that follows from which samples of the stream a buffer holds, in their order."""
    # Avalanche has no public name for the indices; to read the images would take long.
    return zlib.crc32(str(list(buffer._flat_data._get_lazy_indices())).encode()) if len(buffer) else 0


def _check_same(trouble: str, mine: Mapping[str, Any]) -> None:
    """Compare with all processes; every one of them fails where any differs."""
    everyone = of_all_processes(mine)
    differing = [name for name in mine if any(other[name] != everyone[0][name] for other in everyone)]
    if differing:
        raise RuntimeError(
            f"DataParallel: the processes {trouble}: {', '.join(differing)} differ. Each process must build the same "
            "strategy on the same stream from the same seed, and whatever draws random numbers between batches must "
            "do so in each."
        )
