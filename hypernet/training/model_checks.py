"""Check the options against the base model: what its UNet and its VAE can do."""

from hypernet.config import TrainingConfig
from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.utils.errors import UserError


def choose_widths(config: TrainingConfig, base: BaseModel) -> list[int]:
    """Return the context widths to train: all that the UNet has, or those asked for.

    Raises:
        UserError: if the UNet lacks one, or a layer would have no units.
    """
    available = base.context_widths
    missing = sorted(set(config.requested_widths or []) - set(available))
    if missing:
        option = f"--init_from {config.init_from}" if config.init_from else f"--widths {config.widths}"
        raise UserError(f"{option}: the UNet has no width {missing[0]}, only {','.join(map(str, available))}")
    widths = config.requested_widths or available
    for multiple in config.structure()["layer_structure"]:
        if int(multiple * widths[0]) < 1:
            problem = f"{multiple:g} times width {widths[0]} leaves no units"
            raise UserError(f"--layer_structure {config.layer_structure}: {problem}")
    return widths


def check_resolution(config: TrainingConfig, base: BaseModel) -> None:
    """Raise UserError if the sides of --resolution are not multiples of what the VAE needs."""
    multiple = base.image_multiple
    if any(side % multiple for side in config.size):
        raise UserError(f"--resolution {config.resolution}: it must be a multiple of {multiple} for this model")
