"""Clipping statistics in the loggers of Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback

from .values import clipping_values, warn_of_double_clipping

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["LightningClippingCallback"]


class LightningClippingCallback(Callback):
    """Log the clipping statistics of a Trainer's optimizers: ``Trainer(callbacks=[LightningClippingCallback()])``.

    The statistics are logged like values of ``LightningModule.log``, only at the steps that the Trainer logs
    (``log_every_n_steps``), because reading waits for an accelerator. Their names are ``clipping/grad_norm`` and so on; with
    several optimizers ``clipping/optimizer_0/grad_norm``, in the order of ``self.optimizers()``. If there are several clip sets,
    each has its own statistics, like ``clipping/set_0/grad_norm``. Values that are not finite are omitted.

    Leave ``gradient_clip_val`` of the Trainer at None. Otherwise the Trainer clips before the optimizer, the optimizer does not
    get the true gradient, and the callback warns with a ClippingWarning.

    Raises:
        TypeError: at the start of the fit, if an optimizer does not clip.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from torch_clipped.integrations import LightningClippingCallback
        >>> trainer = Trainer(callbacks=[LightningClippingCallback()], logger=False, accelerator="cpu")
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer that does not clip, and warn if the Trainer clips too."""
        warn_of_double_clipping(trainer.optimizers, "gradient_clip_val", trainer.gradient_clip_val, "None")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log the statistics if the Trainer logs this step."""
        if not trainer._logger_connector.should_update_logs:
            return
        for i, optimizer in enumerate(trainer.optimizers):
            prefix = f"clipping/optimizer_{i}/" if len(trainer.optimizers) > 1 else "clipping/"
            # no mean over batches is taken, but their size must be given if training_step takes the iterator
            pl_module.log_dict(clipping_values(optimizer, prefix), on_step=True, on_epoch=False, batch_size=1)
