"""The samplers of the WebUI and the schedulers of diffusers they stand for. Imports no torch."""

from typing import Any

_MULTISTEP = {"algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint"}
_SDE = {**_MULTISTEP, "algorithm_type": "sde-dpmsolver++"}

# Name in the WebUI -> class and options. Source: diffusers' documentation, api/schedulers/overview, without its "N/A".
# Three rows are not in that table: "DPM++ SDE" is the class that api/schedulers/dpm_sde calls a port of k-diffusion's (the
# table names a class that adds no noise), and "Heun" and "3M" are options of the 2M SDE's class.
SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
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
    "DDIM": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),  # as in Stable Diffusion's own code
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}
# The WebUI's schedule types, which were part of the name before its version 1.9. Source: the second table of the same
# page; "Uniform" is the WebUI's word for even steps from the first to the last. The first three take their highest and
# lowest sigma from the spacing. In the WebUI these are the ends of the training schedule, which only linspace reaches.
SCHEDULE_TYPES: dict[str, dict[str, Any]] = {
    "Karras": {"use_karras_sigmas": True, "timestep_spacing": "linspace"},
    "Exponential": {"use_exponential_sigmas": True, "timestep_spacing": "linspace"},
    "Beta": {"use_beta_sigmas": True, "timestep_spacing": "linspace"},
    "SGM Uniform": {"timestep_spacing": "trailing"},
    "Simple": {"timestep_spacing": "trailing"},
    "Uniform": {"timestep_spacing": "linspace"},
}
_SIGMAS = dict.fromkeys(("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"), False)
WITHOUT_TYPES = ("DDIM", "PLMS", "UniPC", "LCM")
_WITHOUT_SIGMAS = ("Euler a", *WITHOUT_TYPES)  # their classes have no such options
# The schedule types that the WebUI's "Automatic" stands for; for all other samplers, it is an even spacing. Source:
# modules/sd_samplers_kdiffusion.py of WebUI 1.10
_AUTOMATIC = {
    "DPM++ 2M": "Karras",
    "DPM++ SDE": "Karras",
    "DPM++ 2M SDE": "Exponential",
    "DPM++ 2M SDE Heun": "Exponential",
    "DPM++ 3M SDE": "Exponential",
    "DPM2": "Karras",
    "DPM2 a": "Karras",
}
# Names in kohya's scripts and ComfyUI that neither the WebUI nor diffusers has
_OTHER_NAMES = {
    "euler_ancestral": "Euler a",
    "dpm_2": "DPM2",
    "dpm_2_a": "DPM2 a",
    "dpm_2_ancestral": "DPM2 a",
    "dpmsolver": "DPMSolverMultistepScheduler",
    "dpmsolver++": "DPM++ 2M",
    "dpmsingle": "DPMSolverSinglestepScheduler",
}


def sampler_options(sampler: str, schedule_type: str | None) -> dict[str, Any] | None:
    """Return the scheduler's arguments; None if the sampler does not support the schedule type."""
    sigmas = {} if sampler in _WITHOUT_SIGMAS else _SIGMAS
    chosen = SCHEDULE_TYPES[schedule_type] if schedule_type else {}
    if schedule_type and (sampler in WITHOUT_TYPES or any(key in _SIGMAS and key not in sigmas for key in chosen)):
        return None
    return {**SAMPLERS[sampler][1], **sigmas, **chosen}


def join_schedule_type(sampler: str, schedule_type: str | None) -> str:
    """Return the name of a sampler whose schedule type is given apart, as in the WebUI since its version 1.9.

    "Automatic" is the WebUI's choice for the sampler. Without a schedule type, or for a sampler that has none, the
    name stays.
    """
    kind = (schedule_type or "").strip()
    if kind.lower() == "automatic":
        kind = _AUTOMATIC.get(sampler, "")
    return sampler if not kind or sampler in WITHOUT_TYPES else f"{sampler} {kind}"


def plain_sampler_name(name: str) -> str:
    """Return a sampler's name in lower case, as the WebUI or diffusers writes it: "euler a" for kohya's "k_euler_a"."""
    word = name.strip().lower().removeprefix("k_").replace("dpmpp", "dpm++")
    return " ".join(_OTHER_NAMES.get(word, word).lower().replace("_", " ").split())
