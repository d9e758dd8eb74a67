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
    """Add clipping statistics to what a Trainer logs of its training: ``HuggingFaceClippingCallback.attach(trainer)``.

    The statistics stand under ``clipping/grad_norm`` and so on, beside the loss, wherever the Trainer reports to: in
    ``state.log_history``, and as ``train/clipping/grad_norm`` in TensorBoard and W&B. Where groups are clipped apart,
    each clip set has its own, like ``clipping/set_0/grad_norm``. Values that are not finite are left out. The statistics are read
    in the main process, only at steps that are logged, since reading waits for an accelerator.

    Set ``max_grad_norm=0`` in the TrainingArguments: the Trainer clips before the optimizer does, at 1.0 by default, and what
    arrives is no longer the true gradient; there is a ClippingWarning if you do not.

    A callback in ``Trainer(callbacks=[...])`` stands behind those of ``report_to``, which then have reported already when it adds
    something. :meth:`attach` puts it in front of them.

    Args:
        prefix (str): stands before every name. Default: ``"clipping/"``.

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
        """Make a callback and put it in front of all others of a Trainer, so that they see what it adds.

        Args:
            trainer (transformers.Trainer): before its ``train``.
            prefix (str): stands before every name. Default: ``"clipping/"``.

        Returns:
            The callback, which ``trainer.remove_callback`` takes away again.
        """
        callback = cls(prefix)
        trainer.callback_handler.callbacks.insert(0, callback)
        return callback

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, optimizer: object = None, **kwargs: object
    ) -> None:
        """Refuse an optimizer that does not clip, and warn where the Trainer clips too."""
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
        """Add the statistics to logs of the training, which have a loss, and to the history, where they stand already."""
        if state.is_world_process_zero and "loss" in logs:
            values = clipping_values(optimizer, self.prefix)
            logs.update(values)
            state.log_history[-1].update(values)
