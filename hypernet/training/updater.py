"""Train on one batch: the forward and backward pass, clipping, and the optimizer's update when it is due."""

from collections.abc import Callable

import torch
from accelerate import Accelerator

from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import TrainingDataset
from hypernet.stable_diffusion.conditioning import cast_conditions
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.training.loss import snr_weights, training_loss
from hypernet.training.lr_schedule import clipping_schedule
from hypernet.training.optimizers import clip_gradients, set_learning_rate
from hypernet.training.prior import Prior
from hypernet.training.run import Run, Trainee
from hypernet.utils.hashing import derive_seed


class Updater:
    """Trains a run's hypernetwork batch by batch, with the options of the run."""

    def __init__(
        self,
        run: Run,
        models: StableDiffusion,
        dataset: TrainingDataset,
        batches: EpochBatchSampler,
        trainee: Trainee,
        prior: Prior | None = None,
    ) -> None:
        self.config: TrainingConfig = run.config
        self.accelerator: Accelerator = run.accelerator
        self.dtype, self.scheduler = run.dtype, models.scheduler
        self.dataset, self.batches, self.trainee, self.prior = dataset, batches, trainee, prior
        self._threshold_at = clipping_schedule(run.config).at
        gamma = run.config.snr_gamma
        self.snr_table = snr_weights(models.scheduler, gamma).to(run.accelerator.device) if gamma else None

    def learn(self, batch: dict, step: int, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Train on a batch; every `gradient_accumulation_steps`-th batch, update the weights.

        Args:
            batch: as `TrainingDataset.__getitems__` makes it, on the device.
            step: the number of updates before this one.

        Returns:
            The loss, including that of the prior, and the norm of the gradients before clipping, or None if this batch
            does not update the weights. Both are detached scalars.
        """
        trainee, norm = self.trainee, None
        set_learning_rate(trainee.optimizer, learning_rate)
        self._fix_dropout(batch)
        with self.accelerator.accumulate(trainee.model):
            loss = self.loss(trainee.model, batch)
            self.accelerator.backward(loss)
            if self.prior is not None:  # by itself, which takes no more memory
                kept = self.prior.loss(trainee.model, trainee.bare_model, self._place(batch), self.snr_table)
                self.accelerator.backward(self.config.prior_weight * kept)
                loss = loss.detach() + self.config.prior_weight * kept
            if self.accelerator.sync_gradients:
                parameters = trainee.hypernetwork.parameters()
                norm = clip_gradients(
                    self.accelerator, parameters, self.config.clip_grad_mode, self._threshold_at(step)
                )
            trainee.optimizer.step()
            trainee.optimizer.zero_grad()
        return loss.detach(), norm

    def loss(self, model: Callable[..., torch.Tensor], batch: dict) -> torch.Tensor:
        """Return the loss of a batch, a scalar, as `training_loss` does, without the loss of the prior."""
        conditions = cast_conditions(self.dataset.conditions(batch), self.accelerator.device, self.dtype)
        return training_loss(model, batch, conditions, self.scheduler, self.dtype, self.snr_table)

    def _fix_dropout(self, batch: dict) -> None:
        """Make dropout depend only on the seed, the batch and the process, so that resuming is exact."""
        if self.trainee.hypernetwork.config.dropout_structure:
            seed = derive_seed(self.config.seed, "dropout", *self._place(batch), self.accelerator.process_index)
            torch.manual_seed(seed)

    def _place(self, batch: dict) -> tuple[int, int]:
        """Return the round of a batch, and its number in that round."""
        return self.batches.round_of((batch["epoch"], batch["epoch_step"]))
