"""Notes on valid options that are probably not what the user meant. Imports no torch."""

import collections
import re
import sys
from collections.abc import Iterable, Sequence

from hypernet.cli.training_options import REPEATABLE
from hypernet.config import TrainingConfig
from hypernet.data.prompts import PLACEHOLDERS, read_templates, unknown_placeholders, with_template_words
from hypernet.generation.preview_prompts import preview_prompts
from hypernet.stable_diffusion.loras import split_lora
from hypernet.training.lr_schedule import auto_factor, unreached_values
from hypernet.training.optimizer_rates import FEW_STEPS, rate_notes
from hypernet.utils.errors import one_line

QUOTES = "'`\u00ab\u00bb\u2018\u2019\u201a\u201c\u201d\u201e"  # left in a prompt by the shell
FILES = (".txt", ".yaml", ".yml", ".json", ".csv", ".png")  # endings of files that may hold prompts
WEIGHTS = (".pt", ".safetensors", ".ckpt")
USUAL_STRENGTH = 5  # higher values give noise, and are probably meant as percentages
# Option -> (highest plausible value, what to write instead)
USUAL = {
    "caption_dropout": (0.99, "this leaves every prompt empty; for 1%, write 0.01"),
    "tag_dropout": (0.99, "this drops every tag; for 1%, write 0.01"),
    "validation_split": (0.5, "this keeps more than half of the images out of training; 0.1 is usual"),
    "noise_offset": (1, "0.05 to 0.1 is usual"),
    "validation_guidance_scale": (40, "7.5 is usual; is a decimal point missing?"),
}


def option_notes(config: TrainingConfig) -> list[str]:
    """Return notes on checked options, once the number of steps is known."""
    notes = []
    clipping = {"norm": ["max_grad_norm"], "value": ["max_grad_value"], "none": []}[config.clip_grad_mode]
    is_auto = auto_factor(config.learning_rate) is not None
    for option in (*([] if is_auto else ["learning_rate"]), *clipping):
        text = str(getattr(config, option))
        if unreached := unreached_values(text, config.max_train_steps):
            values = ", ".join(f"{value:g}" for value in unreached[:3]) + (" is" if len(unreached) == 1 else " are")
            notes.append(f"--{option} {text}: the run ends at step {config.max_train_steps}, so {values} never used")
    if is_auto and config.max_train_steps < FEW_STEPS:
        notes.append(f"--learning_rate {config.learning_rate}: the test takes longer than a run of so few steps")
    notes += [note for note in [unquoted_note("validation_prompt", config.validation_prompt or [])] if note]
    prompts = [each.prompt for each in preview_prompts(config)]
    source = "--validation_prompt" if config.validation_prompt else "--validation_prompts_file"
    literal = dict.fromkeys(word for prompt in prompts for word in unknown_placeholders(prompt, brackets_weigh=True))
    if literal:
        known = "the placeholders are [name], [filewords] and [folder]"
        words = ", ".join(literal) + (" stays" if len(literal) == 1 else " stay")
        notes.append(f"{source}: {words} in the prompt unchanged; {known}")
    if prompts and _lack_template_words(config, prompts):
        example = one_line(with_template_words(read_templates(config.template), prompts[0], "[name]"), 120)
        hint = f'write "{example}" to see the full effect'
        notes.append(f"{source}: no prompt has the words that --template adds; {hint}")
    if config.prior_weight and not config.prior_prompts and read_templates(config.template) == ["[filewords]"]:
        hint = 'to tell them apart, add words to the captions, such as --template "[filewords], [name] style"'
        notes.append(
            f"--prior_weight {config.prior_weight:g}: your images and the base model's have the same prompts; {hint}"
        )
    if str(config.name).startswith("."):
        notes.append(f"--name {config.name}: the WebUI does not list files whose names start with a dot")
    return [*notes, *value_notes(config), *([] if is_auto else rate_notes(config)), *repeated_notes(sys.argv[1:])]


def _lack_template_words(config: TrainingConfig, prompts: Sequence[str]) -> bool:
    """Whether no prompt has the words that the template adds to every caption (of several templates, only [name])."""
    templates, name = read_templates(config.template), str(config.name)
    if all("[name]" in line for line in templates):
        return not any(name in prompt or "[name]" in prompt for prompt in prompts)
    return len(templates) == 1 and all(with_template_words(templates, prompt, name) != prompt for prompt in prompts)


def repeated_notes(arguments: Sequence[str]) -> list[str]:
    """Return a note if a command line repeats options of which only the last counts."""
    given = collections.Counter(word[2:].partition("=")[0].replace("-", "_") for word in arguments if word[:2] == "--")
    twice = [f"--{name}" for name, count in given.items() if name and count > 1 and name not in REPEATABLE]
    hint = "; name several folders after one --train_data_dir" if "--train_data_dir" in twice else ""
    return [f"{', '.join(twice)}: given more than once, and only the last one counts{hint}"] if twice else []


def unquoted_note(option: str, prompts: Sequence[str]) -> str | None:
    """Return a note if several prompts are single words, which suggests a prompt without quotes."""
    words = [prompt for prompt in prompts if len(prompt.split()) == 1]
    if len(words) < 2:
        return None
    shown = " ".join(prompts[:6]) + " ..." * (len(prompts) > 6)
    hint = "a prompt of several words needs quotes"
    if any(prompt[0] in QUOTES or prompt[-1] in QUOTES for prompt in words):
        hint += ', and in this shell only straight double quotes (") count'
    return f"--{option} {one_line(shown, 60)}: these are {len(prompts)} prompts; {hint}"


def value_notes(config: TrainingConfig) -> list[str]:
    """Return notes on values that are valid, but far from what anyone uses."""
    notes = []
    for option, (most, usual) in USUAL.items():
        if (value := getattr(config, option)) > most:
            notes.append(f"--{option} {value:g}: {usual}")
    if 0 < config.ema_decay < 0.5:
        notes.append(f"--ema_decay {config.ema_decay:g}: this averages over hardly more than one step; 0.999 is usual")
    for text in config.lora or []:
        if note := strength_note([split_lora(text)[1]]):
            notes.append(f"--lora {text}: {note}")
    if re.search(r",\s*1,(5|25|75)\s*,", config.layer_structure):
        count = len(config.layer_structure.split(","))
        notes.append(f"--layer_structure {config.layer_structure}: these are {count} numbers; write decimals as 1.5")
    if str(config.name).lower().endswith(WEIGHTS):
        name = str(config.name).rpartition(".")[0]
        notes.append(f"--name {config.name}: the file becomes {config.name}.pt; leave out the ending: --name {name}")
    for prompt in config.validation_prompt or []:
        if config.prompt_emphasis and (weight := re.search(r"\([^()]*:\s*(\d+,\d+)\s*\)", prompt)):
            meant = weight[0].replace(weight[1], weight[1].replace(",", "."))
            notes.append(f"--validation_prompt {prompt}: {weight[0]} is read as text; write {meant}")
        if prompt.lower().endswith(FILES) and len(prompt.split()) == 1:
            notes.append(
                f"--validation_prompt {prompt}: this is a prompt; for a file of prompts, use --validation_prompts_file"
            )
    return notes


def placeholder_note(prompts: Sequence[str]) -> str | None:
    """Return a note if prompts to generate have placeholders, which are filled only in previews."""
    found = [word for word in PLACEHOLDERS if any(word in prompt for prompt in prompts)]
    if not found:
        return None
    words = ", ".join(found) + (" stays" if len(found) == 1 else " stay")
    meant = "what it stands for" if len(found) == 1 else "what they stand for"
    return f"--prompt: {words} in the prompt unchanged; write {meant}"


def strength_note(strengths: Iterable[float]) -> str | None:
    """Return a note if strengths, of hypernetworks or LoRAs, are so high that percentages are probably meant."""
    strong = sorted({strength for strength in strengths if abs(strength) > USUAL_STRENGTH})
    if not strong:
        return None
    shown = ", ".join(f"{strength:g}" for strength in strong[:4])
    return f"strength {shown}: 1 is full strength; for {abs(strong[0]):g}%, write {strong[0] / 100:g}"
