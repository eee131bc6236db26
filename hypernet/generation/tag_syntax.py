"""Read the tags in prompts, as the WebUI writes them: `<hypernet:name:0.8>`. Imports no torch."""

import math
import re

from hypernet.utils.errors import UserError
from hypernet.utils.numbers import meant_number

TAG = re.compile(r"<(\w+):([^>]+)>")  # the WebUI's extra networks; any other < is text
EXAMPLE = "write <hypernet:name:strength>, such as <hypernet:my_style:0.8>"


def cut_tags(prompt: str) -> tuple[str, list[re.Match[str]]]:
    """Return the prompt without its tags of any kind, and the tags. As in the WebUI, the space around a tag stays."""
    end = prompt.rfind(">") + 1  # otherwise, every "<word:" would start a search for ">" to the end of the prompt
    return TAG.sub("", prompt[:end]) + prompt[end:], list(TAG.finditer(prompt, 0, end))


def split_prompt(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """Return the prompt without its tags, and (name, strength) of each tag in order.

    As in the WebUI, the default strength is 1.

    Raises:
        UserError: for a tag of another kind, without a name, or with a strength that is not a finite number.
    """
    text, found = cut_tags(prompt)
    tags = [_parse_tag(match) for match in found]
    malformed = re.search(r"<\s*hypernet\s*:.*", text)
    if malformed:
        raise UserError(f"{malformed[0][:60]}: {EXAMPLE}")
    return text, tags


def _parse_tag(match: re.Match[str]) -> tuple[str, float]:
    kind, (name, *values) = match[1], match[2].split(":")
    if kind == "lora":
        raise UserError(f"{match[0]}: tags cannot load LoRAs here; use --lora PATH:SCALE")
    if kind != "hypernet":
        raise UserError(f"{match[0]}: tags of the kind {kind} are not supported, only <hypernet:name:strength>")
    try:
        strength = float(values[0]) if values else 1.0
    except ValueError:
        strength = math.nan
    if not name.strip() or len(values) > 1 or not math.isfinite(strength):
        hint = "; for a colon in a name, write _" if len(values) > 1 else ""
        if len(values) == 1 and (meant := meant_number(values[0])):
            raise UserError(f"{match[0]}: {values[0]} is not a number; write <hypernet:{name}:{meant}>")
        raise UserError(f"{match[0]}: {EXAMPLE}{hint}")
    return name, strength
