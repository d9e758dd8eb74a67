"""Clipping statistics in the logs of the Hugging Face Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import TrainerCallback

from .._engine.types import StateDict
from .values import clipping_values, warn_of_double_clipping

if TYPE_CHECKING:
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

__all__ = ["HuggingFaceClippingCallback"]


class HuggingFaceClippingCallback(TrainerCallback):
    """Add clipping statistics to the training logs of a Trainer: ``HuggingFaceClippingCallback.attach(trainer)``.

    The statistics are logged as ``clipping/grad_norm`` and so on, beside the loss, to all targets of the Trainer: in
    ``state.log_history``, and as ``train/clipping/grad_norm`` in TensorBoard and W&B. If there are several clip sets, each has
    its own statistics, like ``clipping/set_0/grad_norm``. Values that are not finite are omitted. The statistics are read in the
    main process, only at logged steps, because reading waits for an accelerator.

    Set ``max_grad_norm=0`` in the TrainingArguments. Otherwise the Trainer clips before the optimizer, at 1.0 by default, the
    optimizer does not get the true gradient, and the callback warns with a ClippingWarning.

    A callback in ``Trainer(callbacks=[...])`` runs after the callbacks of ``report_to``, too late to add values to their reports.
    :meth:`attach` puts it in front of them.

    Args:
        prefix (str): the prefix of every name. Default: ``"clipping/"``.

    Raises:
        TypeError: at the beginning of the training, if the Trainer's optimizer does not clip.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments
        >>> from torch_clipped import ClippedAdamW
        >>> from torch_clipped.integrations import HuggingFaceClippingCallback
        >>> model = GPT2LMHeadModel(GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1))
        >>> data = [{"input_ids": row, "labels": row} for row in torch.randint(16, (8, 8))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arguments = TrainingArguments(
        ...         folder, max_steps=4, logging_steps=2, max_grad_norm=0, report_to=[], use_cpu=True, disable_tqdm=True
        ...     )
        ...     trainer = Trainer(model, arguments, train_dataset=data, optimizers=(ClippedAdamW(model.parameters()), None))
        ...     callback = HuggingFaceClippingCallback.attach(trainer)
        ...     result = trainer.train()  # doctest: +ELLIPSIS
        {'loss': ..., 'clipping/grad_norm': ...}
        >>> [logs["clipping/steps"] for logs in trainer.state.log_history if "loss" in logs]
        [2.0, 4.0]
    """

    def __init__(self, prefix: str = "clipping/") -> None:
        self.prefix = prefix

    @classmethod
    def attach(cls, trainer: Trainer, prefix: str = "clipping/") -> HuggingFaceClippingCallback:
        """Make a callback and put it in front of all others of a Trainer, so that they get the added values.

        Args:
            trainer (transformers.Trainer): the Trainer, before its ``train`` is called.
            prefix (str): the prefix of every name. Default: ``"clipping/"``.

        Returns:
            The callback; ``trainer.remove_callback`` removes it.
        """
        callback = cls(prefix)
        trainer.callback_handler.callbacks.insert(0, callback)
        return callback

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: object = None, **kwargs: object
    ) -> None:
        """Refuse an optimizer that does not clip, and warn if the Trainer clips too."""
        warn_of_double_clipping([optimizer], "max_grad_norm", args.max_grad_norm, "0")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: StateDict,
        optimizer: object = None,
        **kwargs: object,
    ) -> None:
        """Add the statistics to logs of the training, which have a loss, and to their entries in the history."""
        if state.is_world_process_zero and "loss" in logs:
            values = clipping_values(optimizer, self.prefix)
            logs.update(values)
            state.log_history[-1].update(values)
