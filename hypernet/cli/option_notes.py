"""Notes on valid options that are probably not what the user meant. Imports no torch."""

from collections.abc import Sequence

from hypernet.config import TrainingConfig
from hypernet.data.prompts import read_templates, unknown_placeholders
from hypernet.training.lr_schedule import unreached_values
from hypernet.utils.errors import one_line


def option_notes(config: TrainingConfig) -> list[str]:
    """Return notes on checked options, once the number of steps is known."""
    notes = []
    clipping = {"norm": ["max_grad_norm"], "value": ["max_grad_value"], "none": []}[config.clip_grad_mode]
    for option in ("learning_rate", *clipping):
        text = str(getattr(config, option))
        if unreached := unreached_values(text, config.max_train_steps):
            values = ", ".join(f"{value:g}" for value in unreached[:3]) + (" is" if len(unreached) == 1 else " are")
            notes.append(f"--{option} {text}: the run ends at step {config.max_train_steps}, so {values} never used")
    prompts = config.validation_prompt or []
    notes += [note for note in [unquoted_note("validation_prompt", prompts)] if note]
    literal = dict.fromkeys(
        word
        for prompt in prompts
        for word in ["[filewords]"] * ("[filewords]" in prompt) + unknown_placeholders(prompt, brackets_weigh=True)
    )
    if literal:
        known = "the only placeholder there is [name], the hypernetwork's name"
        words = ", ".join(literal) + (" stays" if len(literal) == 1 else " stay")
        notes.append(f"--validation_prompt: {words} in the prompt unchanged; {known}")
    if prompts and all("[name]" in line for line in read_templates(config.template)):
        if not any(str(config.name) in prompt or "[name]" in prompt for prompt in prompts):
            hint = "write [name] there, too, to see the full effect"
            notes.append(f"--validation_prompt: no prompt has the words that --template adds; {hint}")
    if str(config.name).startswith("."):
        notes.append(f"--name {config.name}: the WebUI does not list files whose names start with a dot")
    return notes


def unquoted_note(option: str, prompts: Sequence[str]) -> str | None:
    """Return a note if several prompts are single words, which suggests a prompt without quotes."""
    words = [prompt for prompt in prompts if len(prompt.split()) == 1]
    if len(words) < 2:
        return None
    shown = " ".join(prompts[:6]) + " ..." * (len(prompts) > 6)
    return f"--{option} {one_line(shown, 60)}: these are {len(prompts)} prompts; a prompt of several words needs quotes"
