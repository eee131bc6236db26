"""Find the learning rate for `--learning_rate auto`: the range test of Smith (2017, arXiv 1506.01186).

Starting from the run's initial state, the learning rate rises exponentially from update to update, with the run's own
data and options. Every few updates, the loss is measured on a probe: images, noise and timesteps that stay the same, so
that the curve shows the effect of the updates and not of random sampling. Afterwards, the initial state is restored.
"""

import dataclasses
import itertools
import math

import torch
from accelerate.utils import send_to_device
from tqdm.auto import tqdm

from hypernet.data.dataset import build_loader
from hypernet.training.checkpoint import Checkpointer
from hypernet.training.divergence_guard import MAX_PERTURBATION
from hypernet.training.optimizer_rates import rate_range
from hypernet.training.perturbation import Perturbation
from hypernet.training.updater import Updater
from hypernet.utils.errors import UserError
from hypernet.utils.sequences import spread

UPDATES, UPDATES_PER_MEASUREMENT = 60, 3  # the probe below adds at most the time of 40 more
PROBE_PER_IMAGE, MIN_PROBE, MAX_PROBE = 4, 6, 64  # samples of the probe for each image of an update
BROKEN = 1.1  # times the loss before the test; the test ends there
RISE = 0.05  # of the whole fall of the loss; after a larger rise, the learning rate is too high
MOST_FALLEN = 0.5  # of the fall up to that rise, at the chosen learning rate
LEAST_FALL = 2e-4  # of the loss; a smaller fall or rise counts as none


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """The measurements of a range test.

    Attributes:
        learning_rates: those of the updates before each measurement, in ascending order.
        losses: relative to the loss before the test.
        perturbations: what the hypernetwork adds to the contexts, relative to them; see `Perturbation`.
    """

    learning_rates: list[float]
    losses: list[float]
    perturbations: list[float]

    @property
    def is_broken(self) -> bool:
        """Whether the last learning rate was too high."""
        return bool(self.losses) and not (self.losses[-1] < BROKEN and self.perturbations[-1] < MAX_PERTURBATION)

    @property
    def choice(self) -> float | None:
        """The learning rate one measurement before the largest fall of the loss; None if the loss does not fall.

        It is lower if more than half of the total fall has happened by then: on images near to what the base model
        draws, the loss may fall fastest at the end of its fall. Learning rates after the first clear rise do not count:
        there, the loss may fall only because it rose before.
        """
        clear_rise = max(RISE * (1 - min(filter(math.isfinite, self.losses), default=1.0)), LEAST_FALL)
        falls = []
        for before, after in itertools.pairwise([1.0, *self.losses]):
            if not after < before + clear_rise:
                break
            falls.append(before - after)
        fallen = list(itertools.accumulate(falls))
        if max(fallen, default=0.0) < LEAST_FALL:
            return None
        fastest = max(range(len(falls)), key=falls.__getitem__)
        early = list(itertools.takewhile(lambda fall: fall <= MOST_FALLEN * max(fallen), fallen))
        return self.learning_rates[max(min(fastest, len(early)) - 1, 0)]


def run_range_test(updater: Updater, checkpointer: Checkpointer, perturbation: Perturbation) -> RangeTest:
    """Test learning rates from the current state, then restore it. All processes call this and get the same result.

    Raises:
        UserError: if the loss is not finite before the test.
    """
    accelerator, config = updater.accelerator, updater.config
    lowest, highest = rate_range(config.optimizer)
    hypernetwork, probe = updater.trainee.hypernetwork, _Probe(updater)
    base = probe.measure()
    if not math.isfinite(base):
        hint = "try another --mixed_precision (bf16, no), or another model"
        raise UserError(f"before the first step the loss is {base}: the model's output is unusable; {hint}")
    test = RangeTest([], [], [])
    stream = iter(build_loader(accelerator, updater.dataset, updater.batches))
    bar = tqdm(range(UPDATES), desc="Finding the learning rate", disable=not accelerator.is_main_process)
    with checkpointer.restoring():
        for update in bar:
            learning_rate = lowest * (highest / lowest) ** (update / (UPDATES - 1))
            for _ in range(config.gradient_accumulation_steps):
                updater.learn(next(stream), 0, learning_rate)
            if (update + 1) % UPDATES_PER_MEASUREMENT == 0:
                test.learning_rates.append(learning_rate)
                test.losses.append(probe.measure() / base)
                largest = torch.tensor([0.0, *perturbation.measure(hypernetwork).values()]).max()  # NaN if one is NaN
                largest = accelerator.reduce(largest.to(accelerator.device), "mean")  # the same on all processes
                test.perturbations.append(largest.item())
                if test.is_broken:
                    break
    accelerator.step = 0  # of gradient accumulation
    return test


class _Probe:
    """Fixed samples to measure the loss on: images spread over the dataset, timesteps over the noise schedule."""

    def __init__(self, updater: Updater) -> None:
        self.updater, config, dataset = updater, updater.config, updater.dataset
        self.accelerator = updater.accelerator
        batch_size = config.train_batch_size * self.accelerator.num_processes
        wanted = PROBE_PER_IMAGE * batch_size * config.gradient_accumulation_steps
        count = min(max(MIN_PROBE, wanted), MAX_PROBE)
        indices = spread(range(len(dataset)), count)
        samples = []
        for number in range(count):
            sample = dataset.sample(number // len(indices), indices[number % len(indices)])
            timestep = int((number + 0.5) / count * dataset.num_train_timesteps)
            samples.append(sample._replace(timestep=torch.tensor(timestep)))
        samples = samples[self.accelerator.process_index :: self.accelerator.num_processes]
        size, self._share = max(2, config.train_batch_size), 1 / count  # without gradients, two fit
        by_shape: dict[torch.Size, list] = {}
        for sample in samples:
            by_shape.setdefault(sample.latents.shape, []).append(sample)
        self._batches = [same[at : at + size] for same in by_shape.values() for at in range(0, len(same), size)]

    @torch.no_grad()
    def measure(self) -> float:
        """Return the loss with the current hypernetwork, the mean over all samples of all processes."""
        updater, total = self.updater, torch.zeros((), device=self.accelerator.device)
        hypernetwork = updater.trainee.hypernetwork.eval()
        for samples in self._batches:
            batch = updater.dataset.collate(samples, [self._share] * len(samples))
            with self.accelerator.autocast():
                batch = send_to_device(batch, self.accelerator.device)
                total += updater.loss(updater.trainee.bare_model.forward, batch)  # which --compile does not compile
        hypernetwork.train()
        return self.accelerator.reduce(total, "sum").item()
