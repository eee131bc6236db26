"""Read prompts with their settings from a file: YAML, kohya's lines, or the WebUI's parameters in an image or as text.

Imports no torch.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from hypernet.config import SIZE_MULTIPLE, parse_size
from hypernet.generation.infotext import SPACING, parse_infotext, read_image_infotext
from hypernet.generation.tag_syntax import cut_tags
from hypernet.generation.written_prompt import NUMBER_RULES, WrittenPrompt
from hypernet.stable_diffusion.sampler_names import join_schedule_type
from hypernet.utils.errors import UserError, one_line, reason
from hypernet.utils.file_kinds import file_problem
from hypernet.utils.numbers import meant_number, meant_whole_number
from hypernet.utils.reading import read_text
from hypernet.utils.yaml_text import TextLoader

MAX_BYTES = 2**17  # of a text file
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")  # the first bytes of PNG, JPEG and WebP
FLAG = re.compile(r"(?:^|\s)--(\w[\w-]*)(?=\s|=|$)")
FLAGS_HINT = "use --n (negative prompt), --w, --h, --d (seed), --l (guidance scale), --s (steps), --ss (sampler)"

# Setting -> its names in kohya's lines, kohya's JSON, the WebUI and diffusers, besides its own
NAMES = {
    "prompt": "p",
    "negative_prompt": "n negative",
    "sampler": "ss sample_sampler sampler_name",
    "seed": "d",
    "width": "w",
    "height": "h",
    "size": "resolution",
    "steps": "s sample_steps num_inference_steps inference_steps diffusion_steps",
    "guidance_scale": "l scale cfg_scale cfg",
}
SETTINGS = {other: name for name, others in NAMES.items() for other in (name, *others.split())}
SIDE: tuple[type, Callable[[float], bool], str] = (
    int,
    lambda number: number > 0 and number % SIZE_MULTIPLE == 0,
    f"it must be a positive multiple of {SIZE_MULTIPLE}",
)
RULES = {**NUMBER_RULES, "width": SIDE, "height": SIDE}
INFOTEXT_FIELDS = {"Steps": "steps", "CFG scale": "guidance_scale", "Seed": "seed", "Size": "size"}


def read_prompts(path: Path, option: str) -> list[WrittenPrompt]:
    """Return the prompts of a file with their settings, in order.

    Args:
        option: the option that names the file, for messages.

    Raises:
        UserError: if the file cannot be read or has no prompt, or, with the line, if a setting cannot work.
    """
    where = f"{option} {path}"
    if problem := file_problem(path):
        raise UserError(f"{where}: {problem}")
    if path.suffix.lower() == ".toml":
        raise UserError(f"{where}: TOML is not supported; write the prompts as YAML, JSON or kohya's lines of text")
    try:
        with open(path, "rb") as file:
            is_image = file.read(4).startswith(IMAGES)
    except OSError as error:
        raise UserError(f"{where}: it cannot be read ({reason(error)})") from None
    if is_image:
        text = read_image_infotext(path)
        if text is None or "Steps" not in parse_infotext(text)[2]:
            raise UserError(f"{where}: this image does not contain the WebUI's parameters")
        return [_from_infotext(text, where)]
    try:
        text = read_text(path, MAX_BYTES)
    except UnicodeDecodeError:
        raise UserError(f"{where}: it is neither an image nor UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{where}: it cannot be read ({reason(error)})") from None
    lines = text.split("\n")
    if path.suffix.lower() in (".yaml", ".yml", ".json"):
        prompts = _read_yaml(text, where)
    elif any(_is_settings(line) for line in lines):
        prompts = _read_infotexts(lines, where)
    else:
        numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1)]
        prompts = [_read_line(line, f"{where}: line {n}") for n, line in numbered if line and line[0] != "#"]
    if not prompts:
        raise UserError(f"{where}: it has no prompt")
    return prompts


# --- Settings


def _setting(key: str) -> str | None:
    """Return the setting that a name stands for; None if there is none."""
    return SETTINGS.get(key.lower().replace("-", "_").removeprefix("validation_"))


def _convert(name: str, text: str) -> Any:
    """Return the value of a setting.

    Raises:
        ValueError: if it cannot work.
    """
    if name in ("prompt", "negative_prompt"):
        return text
    if not text:
        raise ValueError("it has no value")
    if name == "sampler":
        return text
    if name == "size":
        size = parse_size(text)
        if any(side % SIZE_MULTIPLE for side in size):
            raise ValueError(f"both sides must be multiples of {SIZE_MULTIPLE}")
        return size
    kind, is_valid, rule = RULES[name]
    try:
        number = kind(text)
    except ValueError:
        meant = meant_number(text) if kind is float else meant_whole_number(text)
        hint = "" if meant is None else f"; write {meant}"
        raise ValueError(f"it is not a {'' if kind is float else 'whole '}number{hint}") from None
    if not is_valid(number):
        raise ValueError(rule)
    return number


def _collect(pairs: list[tuple[str, str, str]], unknown: str) -> dict[str, Any]:
    """Return settings by name.

    Args:
        pairs: (where, name, value) of each, as written.
        unknown: what to do about an unknown name, for messages.

    Raises:
        UserError: for a setting that is unknown, cannot work, or is given twice.
    """
    found: dict[str, Any] = {}
    for where, key, text in pairs:
        name = _setting(key.lstrip("-"))
        if name is None:
            raise UserError(f"{where}: unknown setting {one_line(key, 40)}; {unknown}")
        others = {"size": {"width", "height"}, "width": {"size"}, "height": {"size"}}.get(name, set())
        if ({name} | others) & set(found):
            raise UserError(f"{where}: {key} is given twice")
        try:
            found[name] = _convert(name, text.strip())
        except ValueError as error:
            raise UserError(f"{where}: {key} {one_line(text, 60)}: {error}") from None
    return found


def _written(where: str, settings: dict[str, Any], **more: Any) -> WrittenPrompt:
    if not (text := settings.pop("prompt", "").strip()):
        raise UserError(f"{where}: it has no prompt")
    return WrittenPrompt(where, text, settings, **more)


# --- Kinds of files


def _read_line(line: str, where: str) -> WrittenPrompt:
    """Read a line such as "a cat --n blurry --w 512 --h 768 --d 1 --l 7 --s 28"."""
    prompt, *rest = FLAG.split(line)
    pairs = [(where, "prompt", prompt)] if prompt.strip() else []
    for flag, value in zip(rest[::2], rest[1::2]):
        value = value.strip().removeprefix("=")
        quoted = len(value) > 1 and value[0] == value[-1] == '"'
        pairs.append((where, f"--{flag}", value[1:-1] if quoted else value))
    return _written(where, _collect(pairs, FLAGS_HINT))


def _read_yaml(text: str, where: str) -> list[WrittenPrompt]:
    """Read a list of prompts, each a string or a mapping; or a single mapping."""
    loader = TextLoader(text)
    try:
        top = loader.get_single_node()
        items = [top] if isinstance(top, yaml.MappingNode) else top.value if isinstance(top, yaml.SequenceNode) else []
        for item in items:
            if isinstance(item, yaml.MappingNode):
                loader.flatten_mapping(item)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{where}: line {line}: it is not valid YAML ({error.problem})") from None
    except (RecursionError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{where}: it is not valid YAML ({reason(error)})") from None
    if top is not None and not isinstance(top, (yaml.MappingNode, yaml.SequenceNode)):
        raise UserError(f"{where}: it must be a list of prompts, such as: - prompt: a cat")
    return [_read_item(item, where) for item in items]


def _read_item(item: yaml.Node, where: str) -> WrittenPrompt:
    here = f"{where}: line {item.start_mark.line + 1}"
    if isinstance(item, yaml.ScalarNode):
        return _written(here, {"prompt": _scalar(item) or ""})
    if not isinstance(item, yaml.MappingNode):
        raise UserError(f"{here}: write a prompt, or lines such as prompt: a cat")
    pairs = []
    for key, value in item.value:
        place = f"{where}: line {key.start_mark.line + 1}"
        is_size = isinstance(value, yaml.SequenceNode) and _setting(str(key.value)) == "size"  # such as [512, 768]
        is_known = not isinstance(key, yaml.ScalarNode) or _setting(key.value)
        parts = (value.value if is_size else [value]) if is_known else []  # `_collect` names an unknown setting
        if not all(isinstance(part, yaml.ScalarNode) for part in (key, *parts)):
            raise UserError(f"{place}: write one value, in quotes if it has brackets or colons")
        texts = [text for part in parts if (text := _scalar(part)) is not None]
        if texts or not parts:
            pairs.append((place, key.value, ",".join(texts)))
    return _written(here, _collect(pairs, f"use {', '.join(NAMES)}"))


def _scalar(node: yaml.ScalarNode) -> str | None:
    """Return the text of a value; None for null."""
    if node.tag == "tag:yaml.org,2002:null":
        return None
    return node.value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # JSON writes emoji as two halves


def _is_settings(line: str) -> bool:
    """Whether a line is the last one of an infotext."""
    return line.lstrip().startswith("Steps: ") and "Steps" in parse_infotext(line)[2]


def _read_infotexts(lines: list[str], where: str) -> list[WrittenPrompt]:
    """Read infotexts, each of which ends with its line of settings."""
    prompts: list[WrittenPrompt] = []
    block: list[str] = []
    for number, line in enumerate(lines, start=1):
        block.append(line)
        if _is_settings(line):
            prompts.append(_from_infotext("\n".join(block), f"{where}: line {number}"))
            block = []
    rest = {one_line(line.partition(":")[0], 30): "" for line in block if line.strip()}  # of the WebUI's extensions
    last = prompts[-1]
    return [*prompts[:-1], WrittenPrompt(last.where, last.text, last.settings, {**last.fields, **rest})]


def _from_infotext(text: str, where: str) -> WrittenPrompt:
    """Read an infotext. As in the WebUI's previews, hypernetworks and LoRAs in its tags do not apply."""
    prompt, negative_prompt, fields = parse_infotext(text)
    text, tags = cut_tags(prompt)
    pairs = [(where, "prompt", text), (where, "negative_prompt", negative_prompt)]
    sampler, schedule_type = fields.get("Sampler"), fields.get("Schedule type")
    if sampler:
        kind = None if fields.get(SPACING) == "leading" and schedule_type == "Uniform" else schedule_type
        pairs.append((where, "sampler", join_schedule_type(sampler, kind)))
    pairs += [(where, name, fields[field]) for field, name in INFOTEXT_FIELDS.items() if field in fields]
    return _written(where, _collect(pairs, ""), fields={**fields, **{tag[0]: "" for tag in tags}})
