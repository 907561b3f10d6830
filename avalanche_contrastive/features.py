"""Taking features from inside any model, through hooks that live for one forward pass."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from avalanche.models import avalanche_forward
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from avalanche_contrastive._passes import NAME_IT, Places, Record, classifiers_of, in_order, layer_of, maker_of, makers
from avalanche_contrastive._torch import compiled, still_statistics, unwrapped

__all__ = ["FeatureCapture", "own_forward", "strategy_features"]


class FeatureCapture:
    """Features of any model: what enters the classifier layer that makes its logits, or what leaves a named layer.

    Classifier layers are ``nn.Linear`` and heads: Avalanche's, and ``SimplexClassifier``. The one whose output is
    returned is taken, whichever runs last; where none is, the one whose output ranks the classes of each image in the
    same way (the model may scale it, or take its softmax). The hooks live from ``attach`` to ``take``, around one
    forward pass: a copy of the model made at any other time carries none. In that pass no compiled code is run.

    Args:
        layer: name of a layer as in ``model.named_modules()``, whose *output* is taken; None: the *input* of the
            classifier layer.
    """

    def __init__(self, layer: str | None = None) -> None:
        if layer is not None and not isinstance(layer, str):
            raise TypeError(f"a feature layer is given by its name (a string), got {type(layer).__name__}.")
        self.layer = layer
        self._record: Record | None = None
        self._places: Places | None = None
        self._hooks: list[Any] = []
        self._eager: ExitStack | None = None

    def places_in(self, model: nn.Module) -> Places:
        """Where to listen in a model: a walk through all its layers, which a loop need not make at each step.

        Raises:
            ValueError: no layer of that name, or no classifier layer.
        """
        plain = unwrapped(model)
        layers = classifiers_of(plain) if self.layer is None else {self.layer: layer_of(plain, self.layer)}
        names = {layer: name for name, layer in layers.items()}
        return Places(plain, names, is_multi_task_module(plain), compiled(model))

    def of_call(self, model: nn.Module, places: Places, call: Callable[[], Any]) -> tuple[Any, Tensor]:
        """What a call of the model gives, and the features (B, D) that it makes on the way.

        Only the layer that has made the output of the call before is listened to: a hook costs as much as a small
        layer. Should this call go another way, the model is called again.

        Args:
            model: any.
            places: ``places_in(model)``; notes the layer.
            call: calls the model once, and returns what that gives.

        Raises:
            ValueError: as ``take``.
        """
        if places.maker is None or places.compiled:
            with self.listening(model, places):
                output = call()
            return output, self.take(output)
        record = Record()
        hook = self._listen(places.maker, record)
        try:
            output = call()
        finally:
            hook.remove()
        if made := maker_of(record.calls, output):
            return output, made.taken.flatten(1)
        places.maker = None
        with still_statistics(model):
            return self.of_call(model, places, call)

    def attach(self, model: nn.Module, places: Places | None = None) -> None:
        """Listen to the next forward pass of the model.

        Args:
            model: any.
            places: ``places_in(model)``, where that is known; None: it is asked.

        Raises:
            ValueError: as ``places_in``.
        """
        if self._hooks:
            self.detach()
        self._places = places = places or self.places_in(model)
        self._record = record = Record()
        self._hooks = [self._listen(layer, record) for layer in places.names]
        if places.multi_task:
            self._hooks.append(places.model.register_forward_pre_hook(record.begin, with_kwargs=True))
        self._hooks.append(places.model.register_forward_hook(record.end))
        if places.compiled:
            # Compiled code runs the hooks that were there when it was compiled, and torch does not look for new ones.
            # So the model runs uncompiled until this pass ends or fails.
            self._eager = eager = ExitStack()
            eager.enter_context(torch.compiler.set_stance("force_eager"))
            self._hooks.append(model.register_forward_hook(lambda *_: eager.close(), always_call=True))

    def _listen(self, layer: nn.Module, record: Record) -> Any:
        if self.layer is None:
            return layer.register_forward_hook(record.note_classifier, with_kwargs=True)
        return layer.register_forward_hook(record.note_layer)

    def take(self, output: Any, *, flat: bool = True) -> Tensor:
        """The features of the pass since ``attach``, (B, D); the hooks are gone afterwards.

        Args:
            output: what the model gave, or the logits (B, K) out of it: of several passes since then, that one counts.
            flat: with False the features keep their shape (B, ...), such as an axis of views.

        Raises:
            ValueError: no layer, or more than one, can be what has made the logits; or the named layer did not run.
        """
        record, places = self._record or Record(), self._places
        self.detach()
        noted = record.pass_of(output)
        calls, maker = noted.calls, maker_of(noted.calls, output)
        if self.layer is None:
            calls = makers(noted, output, places) if maker is None else [maker]
        value = calls[-1].taken if calls else None
        if len(calls) > 1 and places is not None and places.multi_task:
            value = in_order([call.taken for call in calls], noted.tasks)
        if not isinstance(value, Tensor):
            where = "the last classifier layer" if self.layer is None else f"layer {self.layer!r}"
            given = "nothing" if value is None else type(value).__name__
            raise ValueError(
                f"features of {where} must be a tensor, got {given}. Did the model's forward pass skip that layer? "
                + NAME_IT
            )
        if self.layer is None and maker is not None and places is not None:
            places.maker = maker.layer
        return value.flatten(1) if flat else value

    def detach(self) -> None:
        """Remove the hooks; harmless when there are none."""
        if self._eager is not None:
            self._eager.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._record, self._places, self._eager = [], None, None, None

    @contextmanager
    def listening(self, model: nn.Module, places: Places | None = None) -> Iterator[None]:
        """``attach`` for one forward pass, and be gone if it fails; ``take`` afterwards."""
        self.attach(model, places)
        try:
            yield
        except BaseException:
            self.detach()
            raise


def own_forward(strategy: Any, model: nn.Module, batch: Any = None) -> tuple[Any, Tensor]:
    """What a model gives in the strategy's own forward pass of evaluation, and the labels (B,) of the batch.

    The strategy's ``_unpack_minibatch`` and ``forward`` are called, which users override for inputs and outputs of
    their own. For that time it has this model and batch; its own are put back.

    Args:
        strategy: any of Avalanche's templates.
        model: the strategy's, or another to be asked in the same way.
        batch: as a loader gives it; None: the strategy's current one.
    """
    kept = strategy.model, strategy.mbatch, strategy.is_training
    strategy.model, strategy.is_training = model, False
    try:
        if batch is not None:
            strategy.mbatch = batch
            strategy._unpack_minibatch()
        has_tasks, wants_tasks = len(strategy.mbatch) > 2, hasattr(strategy.experience, "task_labels")
        if is_multi_task_module(model) and not (has_tasks and wants_tasks):
            # Avalanche's forward pass would not know the heads: without task labels all of them are asked.
            output = avalanche_forward(model, strategy.mb_x, strategy.mb_task_id if has_tasks else None)
        else:
            if wants_tasks and not has_tasks:  # of a data set beside the stream; a single head takes any label
                strategy.mbatch = [*strategy.mbatch, torch.zeros_like(strategy.mb_y)]
            output = strategy.forward()
        return output, strategy.mb_y
    finally:
        strategy.model, strategy.mbatch, strategy.is_training = kept


def strategy_features(
    strategy: Any, model: nn.Module, layer: str | None = None, *, flat: bool = True
) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """For ``embed_dataset``: features and labels of a batch, from the strategy's own forward pass of a model.

    Args:
        strategy: any of Avalanche's templates.
        model: the strategy's, or another.
        layer: see ``FeatureCapture``.
        flat: see ``FeatureCapture.take``.
    """
    capture = FeatureCapture(layer)

    def features_of(batch: Any) -> tuple[Tensor, Tensor]:
        with capture.listening(model):
            output, y = own_forward(strategy, model, batch)
        return capture.take(output, flat=flat), y

    return features_of
