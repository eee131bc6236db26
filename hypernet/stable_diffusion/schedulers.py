"""Noise schedulers: the one for training, and samplers by their names in the WebUI or in diffusers."""

import contextlib
import difflib
import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, SchedulerMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging as diffusers_logging

from hypernet.stable_diffusion.sampler_names import (
    SAMPLERS,
    SCHEDULE_TYPES,
    WITHOUT_TYPES,
    plain_sampler_name,
    sampler_options,
)
from hypernet.utils.errors import UserError

_CLASSES = sorted({*KarrasDiffusionSchedulers.__members__, "LCMScheduler", "TCDScheduler"} - {"EDMEulerScheduler"})
ZERO_SNR = "rescale_betas_zero_snr"
# Sampling with zero terminal SNR must start at the last timestep (Lin et al. 2023, "Common Diffusion Noise Schedules and
# Sample Steps are Flawed"), as trailing and linspace do
_ZERO_TERMINAL_SNR = {ZERO_SNR: True, "timestep_spacing": "trailing"}


def _all_names() -> dict[str, tuple[str, dict[str, Any]]]:
    """Map every name a user may write to class name and options; the WebUI's names come first."""
    names: dict[str, tuple[str, dict[str, Any]]] = {}
    for sampler, (class_name, _) in SAMPLERS.items():
        for schedule_type in (None, *SCHEDULE_TYPES):
            options = sampler_options(sampler, schedule_type)
            if options is not None:
                names[f"{sampler} {schedule_type}" if schedule_type else sampler] = class_name, options
    for class_name in _CLASSES:
        names[class_name] = class_name, {}
        names.setdefault(class_name.removesuffix("Scheduler"), (class_name, {}))  # "DDIM" stays the WebUI's
    return names


SAMPLER_NAMES = _all_names()


def find_sampler(name: str, option: str = "--sampler") -> tuple[type[SchedulerMixin], dict[str, Any]]:
    """Return class and options of a sampler.

    Args:
        name: the WebUI's, kohya's, or that of diffusers' class with or without "Scheduler"; case does not matter.
        option: what names the sampler, for messages.

    Raises:
        UserError: if diffusers has no such sampler, or it needs a package that is not installed.
    """
    known = {key.lower(): value for key, value in SAMPLER_NAMES.items()}
    wanted = plain_sampler_name(name)
    if wanted not in known:
        raise _unknown_sampler(name, wanted, option)
    class_name, options = known[wanted]
    scheduler_class = getattr(diffusers, class_name)
    needed = [*getattr(scheduler_class, "_backends", [])]  # on diffusers' placeholder for a missing package
    needed += ["scipy"] if options.get("use_beta_sigmas") else []
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{option} {name}: it needs {missing[0]}, which is not installed; pip install {missing[0]}")
    return scheduler_class, options


def _unknown_sampler(name: str, wanted: str, option: str) -> UserError:
    """Return an error that suggests the nearest names, or the schedule types that the sampler supports."""
    for sampler in SAMPLERS:
        if wanted in (f"{sampler} {schedule_type}".lower() for schedule_type in SCHEDULE_TYPES):
            types = [schedule_type for schedule_type in SCHEDULE_TYPES if f"{sampler} {schedule_type}" in SAMPLER_NAMES]
            return UserError(f"{option} {name}: in diffusers, {sampler} takes {', '.join(types) or 'no schedule type'}")
    shown = {key.lower(): key for key in SAMPLER_NAMES}
    near = [shown[key] for key in difflib.get_close_matches(wanted, shown, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}?" if near else f"some are {', '.join(list(SAMPLERS)[:6])}"
    return UserError(f"{option} {name!r}: there is no such sampler; {hint}")


def build_scheduler(name: str, config: Mapping[str, Any], option: str = "--sampler") -> SchedulerMixin:
    """Build the scheduler of this name for a model.

    Args:
        config: the config of another scheduler of the model.
        option: what names the sampler, for messages.

    Raises:
        UserError: if there is none, or it does not support the model.
    """
    scheduler_class, options = find_sampler(name, option)
    prediction_type, zero_snr = config.get("prediction_type"), bool(config.get(ZERO_SNR))
    if zero_snr:
        options = {**_ZERO_TERMINAL_SNR, **options}
    with _quiet():
        scheduler = scheduler_class.from_config(config, **options)
        supported = _supports(scheduler, prediction_type, zero_snr)
    if not supported:
        reason = "has zero terminal SNR" if zero_snr else f"predicts {prediction_type}"
        raise UserError(f"{option} {name}: it does not support this model, which {reason}; DDIM does")
    return scheduler


def build_training_scheduler(scheduler: SchedulerMixin, prediction_type: str, zero_snr: bool) -> DDPMScheduler:
    """Return the noise schedule for training, with the betas of the model's own scheduler."""
    changes = {"prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    return DDPMScheduler.from_config(scheduler.config, **changes)


def choose_sampler(scheduler: SchedulerMixin, prediction_type: str, zero_snr: bool) -> SchedulerMixin:
    """Return the model's own sampler, set to what the model predicts; DDIM if its own does not support that."""
    changes = {"prediction_type": prediction_type, **(_ZERO_TERMINAL_SNR if zero_snr else {})}
    if all(scheduler.config.get(key) == value for key, value in changes.items()):
        return scheduler
    with _quiet():
        changed = type(scheduler).from_config(scheduler.config, **changes)
        if _supports(changed, prediction_type, zero_snr):
            return changed
        return diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False, **changes)


def _supports(scheduler: SchedulerMixin, prediction_type: str | None, zero_snr: bool) -> bool:
    """Return whether a scheduler supports zero terminal SNR, if needed, and what the model predicts."""
    if zero_snr and ZERO_SNR not in inspect.signature(type(scheduler).__init__).parameters:
        return False
    if prediction_type != "sample":
        return True
    trial = type(scheduler).from_config(scheduler.config)
    trial.set_timesteps(3)
    try:
        trial.step(torch.zeros(1, 4, 2, 2), trial.timesteps[0], torch.zeros(1, 4, 2, 2))
    except (NotImplementedError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence diffusers' warnings that a scheduler ignores options of another."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def webui_name(scheduler: SchedulerMixin) -> tuple[str, str | None]:
    """Return a scheduler's sampler and schedule type in the WebUI; its class name if the WebUI does not have it."""
    config, class_name = scheduler.config, type(scheduler).__name__
    compared = ("algorithm_type", "solver_order", "solver_type", "skip_prk_steps")
    for sampler, (other, options) in SAMPLERS.items():
        if class_name == other and all(config.get(key) == options[key] for key in compared if key in options):
            return sampler, None if sampler in WITHOUT_TYPES else _schedule_type(config)
    return class_name, None


def _schedule_type(config: Mapping[str, Any]) -> str:
    """Return the schedule type, never None: where it is missing, the WebUI uses Karras for some samplers."""
    for name in ("Karras", "Exponential", "Beta"):
        if config.get(f"use_{name.lower()}_sigmas"):
            return name
    return "SGM Uniform" if config.get("timestep_spacing") == "trailing" else "Uniform"
