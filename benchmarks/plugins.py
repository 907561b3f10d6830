"""Small Avalanche plugins that make the comparison fair: the same augmentation and rate schedule for every row."""

from typing import Any

from avalanche.training.plugins import SupervisedPlugin


class BatchAugment(SupervisedPlugin):
    """Augment what the model trains on, replayed images included; evaluation and buffers see the plain images.

    ER-ACE and DER++ draw their replay batch from a loader of their own, behind the plugin hooks: that one is wrapped.
    """

    def __init__(self, augmentation: Any):
        super().__init__()
        self.augmentation = augmentation

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Wrap the replay loader, which these strategies make anew for each experience."""
        loader = getattr(strategy, "replay_loader", None)
        if loader is not None:
            strategy.replay_loader = ((self.augmentation(x), *rest) for x, *rest in loader)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Augment the batch in place of the loader's; runs in training only."""
        strategy.mbatch[0] = self.augmentation(strategy.mbatch[0])


class LaterRate(SupervisedPlugin):
    """Multiply the learning rate once, when the second experience begins."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Scale every parameter group."""
        if strategy.clock.train_exp_counter == 1:
            for group in strategy.optimizer.param_groups:
                group["lr"] *= self.factor
