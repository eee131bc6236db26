"""Samplers by the WebUI's names or diffusers' own."""

import contextlib
import difflib
import importlib.util
import inspect

import diffusers
import torch
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils import logging as diffusers_logging

from hypernet.utils.errors import UserError

_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_SDE = {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"}

# The table of diffusers' documentation, api/schedulers/overview, with its "N/A" left out. Three rows are not in it:
# "DPM++ SDE" is the class that api/schedulers/dpm_sde calls a port of k-diffusion's (the table names a class that adds no
# noise), and "Heun" and "3M" are options of the 2M SDE's class.
SAMPLERS = {
    "DPM++ 2M": ("DPMSolverMultistepScheduler", _MULTISTEP),
    "DPM++ SDE": ("DPMSolverSDEScheduler", {}),
    "DPM++ 2M SDE": ("DPMSolverMultistepScheduler", _SDE),
    "DPM++ 2M SDE Heun": ("DPMSolverMultistepScheduler", {**_SDE, "solver_type": "heun"}),
    "DPM++ 3M SDE": ("DPMSolverMultistepScheduler", {**_SDE, "solver_order": 3}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "LMS": ("LMSDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM2": ("KDPM2DiscreteScheduler", {}),
    "DPM2 a": ("KDPM2AncestralDiscreteScheduler", {}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),  # as Stable Diffusion was sampled
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
# The WebUI's schedule types; before its 1.9 they were part of the name. The second table of the same page, and "Uniform",
# the WebUI's word for even steps from the first to the last.
SCHEDULE_TYPES = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
    "Beta": {"use_beta_sigmas": True, "timestep_spacing": "linspace"},
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
    "Uniform": {"timestep_spacing": "linspace"},
}
_SIGMAS = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
ZERO_SNR = "rescale_betas_zero_snr"
ENDS_IN_NOISE = {ZERO_SNR: True, "timestep_spacing": "trailing"}
_WITHOUT_TYPES = ("DDIM", "PLMS", "UniPC", "LCM")
_WITHOUT_SIGMAS = ("Euler a", *_WITHOUT_TYPES)  # their class has no such option
_CLASSES = sorted({*KarrasDiffusionSchedulers.__members__, "LCMScheduler", "TCDScheduler"} - {"EDMEulerScheduler"})


def _options(sampler, schedule_type) -> dict | None:
    """What the scheduler is built with; None if this sampler has no such schedule type."""
    sigmas = {} if sampler in _WITHOUT_SIGMAS else _SIGMAS
    chosen = SCHEDULE_TYPES.get(schedule_type, {})
    if schedule_type and (sampler in _WITHOUT_TYPES or any(key in _SIGMAS and key not in sigmas for key in chosen)):
        return None
    return {**SAMPLERS[sampler][1], **sigmas, **chosen}


def _all_names() -> dict[str, tuple[str, dict]]:
    """{name that a user may write: (class name, options)}, all of the WebUI's first."""
    names = {}
    for sampler, (class_name, _) in SAMPLERS.items():
        for schedule_type in (None, *SCHEDULE_TYPES):
            options = _options(sampler, schedule_type)
            if options is not None:
                names[f"{sampler} {schedule_type}" if schedule_type else sampler] = class_name, options
    for class_name in _CLASSES:
        names[class_name] = class_name, {}
        names.setdefault(class_name.removesuffix("Scheduler"), (class_name, {}))  # DDIM is the WebUI's
    return names


NAMES = _all_names()


def find_sampler(name: str):
    """(class, options) of a sampler: a name of the WebUI's, or of a class with or without its "Scheduler", in any case.

    Raises:
        UserError: if diffusers has no such sampler, or it needs a package that is not installed.
    """
    known = {key.lower(): value for key, value in NAMES.items()}
    wanted = " ".join(name.lower().split())
    if wanted not in known:
        shown = {key.lower(): key for key in NAMES}
        near = [shown[key] for key in difflib.get_close_matches(wanted, shown, cutoff=0.5)]
        for sampler in SAMPLERS:
            if wanted in (f"{sampler} {other}".lower() for other in SCHEDULE_TYPES):
                types = [other for other in SCHEDULE_TYPES if f"{sampler} {other}" in NAMES]
                raise UserError(
                    f"--sampler {name}: {sampler} takes {', '.join(types) or 'no schedule type'} in diffusers"
                )
        hint = f"did you mean {' or '.join(near)}?" if near else f"some are {', '.join(list(SAMPLERS)[:6])}"
        raise UserError(f"--sampler {name!r}: there is no such sampler here; {hint}")
    class_name, options = known[wanted]
    scheduler_class = getattr(diffusers, class_name)
    needed = [*getattr(scheduler_class, "_backends", [])]  # that of a placeholder for a class that lacks something
    needed += ["scipy"] if options.get("use_beta_sigmas") else []
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"--sampler {name}: it needs {missing[0]}, which is not installed; pip install {missing[0]}")
    return scheduler_class, options


def build_scheduler(name: str, config):
    """The scheduler of this name for the model that `config`, another scheduler's, belongs to.

    Raises:
        UserError: if there is none, or it cannot draw with this model.
    """
    scheduler_class, options = find_sampler(name)
    if config.get(ZERO_SNR):
        options = {**options, **ENDS_IN_NOISE}
    with _unsaid():
        scheduler = scheduler_class.from_config(config, **options)
        can_draw = _can_draw(scheduler, config.get("prediction_type"), config.get(ZERO_SNR))
    if not can_draw:
        needs = "ends in noise alone" if config.get(ZERO_SNR) else f"predicts {config.get('prediction_type')}"
        raise UserError(f"--sampler {name}: it cannot draw with this model, which {needs}; DDIM can")
    return scheduler


def choose_sampler(scheduler, prediction_type: str, zero_snr: bool):
    """The model's own sampler, set to what the model predicts; DDIM where that one cannot draw so.

    Args:
        zero_snr: whether the last timestep is noise alone; the steps then begin there, as Lin et al. 2023 ("Common Diffusion
            Noise Schedules and Sample Steps are Flawed") have it.
    """
    changes = {"prediction_type": prediction_type, **(ENDS_IN_NOISE if zero_snr else {})}
    if all(scheduler.config.get(key) == value for key, value in changes.items()):
        return scheduler
    with _unsaid():
        changed = type(scheduler).from_config(scheduler.config, **changes)
        if _can_draw(changed, prediction_type, zero_snr):
            return changed
        return diffusers.DDIMScheduler.from_config(scheduler.config, clip_sample=False, **changes)


def _can_draw(scheduler, prediction_type, zero_snr) -> bool:
    """Whether it knows such a schedule, and takes a step with what is predicted."""
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
def _unsaid():
    """Without diffusers' remarks on which of another scheduler's options mean nothing to this one."""
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(verbosity)


def webui_name(scheduler) -> tuple[str, str | None]:
    """(sampler, schedule type) by which the WebUI calls a scheduler; a class that it has not keeps its own name."""
    config, class_name = scheduler.config, type(scheduler).__name__
    compared = ("algorithm_type", "solver_order", "solver_type", "skip_prk_steps")
    for sampler, (other, options) in SAMPLERS.items():
        if class_name == other and all(config.get(key) == options[key] for key in compared if key in options):
            return sampler, None if sampler in _WITHOUT_TYPES else _schedule_type(config)
    return class_name, None


def _schedule_type(config) -> str:
    """Always one by name: left open, the WebUI would take Karras for some samplers."""
    for name in ("Karras", "Exponential", "Beta"):
        if config.get(f"use_{name.lower()}_sigmas"):
            return name
    return "SGM Uniform" if config.get("timestep_spacing") == "trailing" else "Uniform"
