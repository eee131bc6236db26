"""Samplers by their names in the WebUI or in diffusers."""

import importlib.util
import re

import diffusers
import pytest
import torch

from hypernet.stable_diffusion.schedulers import (
    SAMPLER_NAMES,
    SAMPLERS,
    SCHEDULE_TYPES,
    build_scheduler,
    find_sampler,
    webui_name,
)
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO

MODEL = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def model_config(**more):
    return diffusers.PNDMScheduler(**MODEL, skip_prk_steps=True, **more).config


def options_of(scheduler):
    return {key: value for key, value in scheduler.config.items() if key[0] != "_"}


def installed(name):
    try:
        return find_sampler(name) is not None
    except UserError:
        return False


WEBUI_NAMES = [name for name in SAMPLER_NAMES if SAMPLER_NAMES[name][1] != {} or name in SAMPLERS]
WEBUI_NAMES = [name for name in WEBUI_NAMES if installed(name)]


@pytest.mark.parametrize(
    "name, class_name, options",
    [
        ("Euler a", "EulerAncestralDiscreteScheduler", {}),
        ("euler  A", "EulerAncestralDiscreteScheduler", {}),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("DPM++ 2M SDE", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", {"use_karras_sigmas": True}),
        ("Heun", "HeunDiscreteScheduler", {}),
        ("Euler SGM Uniform", "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("PLMS", "PNDMScheduler", {"skip_prk_steps": True}),
        ("DDIM", "DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False}),
        ("unipc", "UniPCMultistepScheduler", {}),
        ("LCM", "LCMScheduler", {}),
        ("EulerAncestralDiscreteScheduler", "EulerAncestralDiscreteScheduler", {}),
        ("deismultistep", "DEISMultistepScheduler", {}),
        ("k_euler_a", "EulerAncestralDiscreteScheduler", {}),  # kohya's names
        ("dpm_2_a", "KDPM2AncestralDiscreteScheduler", {}),
        ("dpmsolver++", "DPMSolverMultistepScheduler", {}),
        ("dpmpp_2m_sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),  # ComfyUI's
    ],
)
def test_builds_the_class_that_diffusers_documents(name, class_name, options):
    """It has the same timesteps, sigmas and options as that class built by hand."""
    built = build_scheduler(name, model_config(prediction_type="v_prediction"))
    expected = getattr(diffusers, class_name)(**MODEL, prediction_type="v_prediction", **options)
    assert type(built) is type(expected)
    for scheduler in (built, expected):
        scheduler.set_timesteps(12)
    assert torch.equal(built.timesteps, expected.timesteps)
    if hasattr(expected, "sigmas"):
        assert torch.equal(built.sigmas, expected.sigmas)
    ours, theirs = options_of(built), options_of(expected)
    assert {key: ours[key] for key in theirs} == theirs


def karras_sigmas(alphas_cumprod, steps):
    """Return the formula of Karras et al. (2022), equation 5, with rho = 7, from end to end of a training schedule."""
    low, high = (((1 - alphas_cumprod) / alphas_cumprod) ** 0.5)[[0, -1]] ** (1 / 7)
    return (high + torch.linspace(0, 1, steps, dtype=torch.float64) * (low - high)) ** 7


@pytest.mark.parametrize("name", [name for name in WEBUI_NAMES if name.endswith("Karras")])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])  # SDXL's config has "leading"
def test_karras_sigmas_span_the_training_schedule(name, spacing):
    """As in the WebUI, whatever spacing of steps the model's config has."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    scheduler = build_scheduler(name, model_config(timestep_spacing=spacing))
    for steps in (2, 25):
        scheduler.set_timesteps(steps)
        sigmas = torch.unique_consecutive(scheduler.sigmas[scheduler.sigmas > 0])  # some samplers use each twice
        torch.testing.assert_close(sigmas.double(), karras_sigmas((1 - betas).cumprod(0), steps), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["Euler Karras", "Euler Exponential", "DPM++ 2M Karras", "Euler"])
def test_zero_terminal_snr_starts_at_the_last_timestep(name):
    config = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "leading"}
    scheduler = build_scheduler(name, diffusers.DDIMScheduler(**MODEL, **config).config)
    scheduler.set_timesteps(8)
    assert scheduler.timesteps[0] == 999 and scheduler.config.rescale_betas_zero_snr
    if name != "Euler":
        assert scheduler.timesteps[-1] == pytest.approx(0, abs=1e-3) and "trailing" not in scheduler.config.values()


@pytest.mark.parametrize("name", WEBUI_NAMES)
def test_names_round_trip(name):
    """A scheduler has the name it was built with, and that name builds it again."""
    sampler, schedule_type = webui_name(build_scheduler(name, model_config()))
    shown = f"{sampler} {schedule_type}" if schedule_type else sampler
    again = build_scheduler(shown, model_config())
    assert options_of(again) == options_of(build_scheduler(name, model_config()))
    assert shown.startswith(name) or name.endswith("Simple")  # the same as SGM Uniform


def test_names_of_models_own_schedulers():
    assert webui_name(diffusers.PNDMScheduler(**MODEL, skip_prk_steps=True)) == ("PLMS", None)
    assert webui_name(diffusers.DDIMScheduler(**MODEL)) == ("DDIM", None)
    assert webui_name(diffusers.EulerDiscreteScheduler(**MODEL, timestep_spacing="trailing")) == (
        "Euler",
        "SGM Uniform",
    )
    assert webui_name(diffusers.DDPMScheduler(**MODEL)) == ("DDPMScheduler", None)
    karras = diffusers.DPMSolverMultistepScheduler(**MODEL, use_karras_sigmas=True, solver_order=3)
    assert webui_name(karras) == ("DPMSolverMultistepScheduler", None)
    plain = build_scheduler("DPM++ 2M", karras.config)  # keeps neither Karras nor order 3
    assert webui_name(plain) == ("DPM++ 2M", "Uniform") and plain.config.solver_order == 2


@pytest.mark.parametrize(
    "name, named",
    [
        ("Eulr a", "Euler a"),
        ("DPM++ 2S a", "DPM++ 2"),
        ("Euler a Karras", "SGM Uniform, Simple, Uniform"),
        ("ddim karras", "DDIM"),
        ("qqqq", "DPM++ 2M"),
    ],
)
def test_refuses_unknown_names_and_suggests_others(name, named):
    with pytest.raises(UserError, match=f"^--sampler '?{re.escape(name)}'?: .*{re.escape(named)}") as error:
        find_sampler(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, package", [("LMS", "scipy"), ("DPM++ SDE Karras", "torchsde"), ("Euler Beta", "scipy")])
def test_names_the_package_a_sampler_needs(name, package):
    if importlib.util.find_spec(package):
        assert find_sampler(name)
    else:
        with pytest.raises(UserError, match=f"pip install {package}$"):
            find_sampler(name)


def test_docs_list_every_sampler():
    """generation.md has a row per sampler with its class and schedule types."""
    lines = (REPO / "examples" / "docs" / "generation.md").read_text(encoding="utf-8").splitlines()
    for name, (class_name, _) in SAMPLERS.items():
        types = [kind for kind in SCHEDULE_TYPES if f"{name} {kind}" in SAMPLER_NAMES]
        assert f"| {name} | `{class_name}` | {', '.join(types)} |" in lines
