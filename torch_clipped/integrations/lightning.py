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

    The statistics go where ``LightningModule.log`` goes, only at the steps that the Trainer logs (``log_every_n_steps``), since
    reading waits for an accelerator. Their names are ``clipping/grad_norm`` and so on, of several optimizers
    ``clipping/optimizer_0/grad_norm``, counted as ``self.optimizers()`` does. Where groups are clipped apart, each clip set has
    its own too, like ``clipping/set_0/grad_norm``. Values that are not finite are left out.

    Leave ``gradient_clip_val`` of the Trainer at None: it clips before the optimizer does, and what arrives is no longer the true
    gradient; there is a ClippingWarning if you do not.

    Raises:
        TypeError: at the start of the fit, if an optimizer does not clip.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from torch_clipped.integrations import LightningClippingCallback
        >>> trainer = Trainer(callbacks=[LightningClippingCallback()], logger=False, accelerator="cpu")
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an optimizer that does not clip, and warn where the Trainer clips too."""
        warn_of_double_clipping(trainer.optimizers, "gradient_clip_val", trainer.gradient_clip_val, "None")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Log the statistics if the Trainer logs this step."""
        if not trainer._logger_connector.should_update_logs:
            return
        for i, optimizer in enumerate(trainer.optimizers):
            prefix = f"clipping/optimizer_{i}/" if len(trainer.optimizers) > 1 else "clipping/"
            # no mean is taken over batches, but where training_step takes the iterator their size has to be said
            pl_module.log_dict(clipping_values(optimizer, prefix), on_step=True, on_epoch=False, batch_size=1)
