"""Captions, tags and templates, by the WebUI's rules: what prompt an image gets, drawn anew at every access."""

import dataclasses
import difflib
import os
import random
import re
from pathlib import Path

from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed

SHIPPED = Path(__file__).parent / "templates"


def caption_from_name(stem: str, word_regex: str | None = None, join_string: str = " ") -> str:
    """A file name as a caption: "03-a cat" -> "a cat"; with `word_regex`, its matches joined by `join_string`.

    Leading digits and dashes, and the spaces after them, go first. A pattern with a group gives the group.
    """
    text = re.sub(r"^[-\d]+\s*", "", stem)
    return join_string.join(re.findall(word_regex, text)) if word_regex else text


def check_word_regex(pattern: str):
    """Raises: ValueError if the pattern does not compile, or has several groups."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern}: it is no regular expression ({error})") from None
    if groups > 1:
        raise ValueError(f"{pattern}: it has {groups} groups; mark one with (...), the others with (?:...)")


def read_text(path) -> str:
    """A text file in UTF-8, with or without a byte order mark.

    Raises:
        UserError: if it is not UTF-8, or cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror})") from None


def shipped_templates() -> list[str]:
    """The names of the template files that come with this package."""
    return sorted(path.stem for path in SHIPPED.glob("*.txt"))


def read_templates(template: str) -> list[str]:
    """The lines of a template file (or of a shipped one, by name) that are not empty; other text is a template itself.

    Raises:
        ValueError: for a file without such lines, or a text that can only be meant as a file.
    """
    if template in shipped_templates():
        path = SHIPPED / f"{template}.txt"
    elif os.path.isfile(template):  # (Path's own would raise for a long text)
        path = Path(template)
    elif re.search(r"[\s\[]", template.strip()):
        check_placeholders(template)
        return [template]
    elif re.search(r"[_./\\]", template) or not template.strip() or _nearest(template, shipped_templates()):
        shipped = ", ".join(shipped_templates())  # one word such as style_fileword is a slip, and no prompt
        shown = template if template.strip() else '""'
        raise ValueError(f"{shown}: there is no such file, and no such template is shipped; there are {shipped}")
    else:
        return [template]
    lines = [line.strip() for line in read_text(path).splitlines()]
    if not any(lines):
        raise ValueError(f"{template}: it is empty; write a line such as: a picture of [filewords], by [name]")
    for line in lines:
        check_placeholders(line)
    return [line for line in lines if line]


def check_placeholders(template: str):
    """Raises: ValueError for what looks like a slip of [filewords] or [name]."""
    for word in re.findall(r"\[[^]\s]*\]", template):
        nearest = _nearest(word.lower(), ["[filewords]", "[name]"], 0.85)  # "[game]" may well be meant
        if nearest and word != nearest:
            raise ValueError(f"{template}: it has {word}; did you mean {nearest}?")


def _nearest(word, words, similarity=0.8):
    return next(iter(difflib.get_close_matches(word, words, 1, similarity)), None)


def fill_template(template: str, caption: str, name: str) -> str:
    """The prompt: `[filewords]` becomes the caption, `[name]` the hypernetwork's name."""
    return template.replace("[filewords]", caption).replace("[name]", name)


def sample_tags(caption: str, rng: random.Random, shuffle: bool, keep: int, dropout: float) -> str:
    """The caption's tags (what stands between its commas): the first `keep` as they are, each other one dropped with
    probability `dropout`; the rest shuffled, if `shuffle`."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    rest = [tag for tag in tags[keep:] if rng.random() >= dropout]
    if shuffle:
        rng.shuffle(rest)
    return ", ".join(tags[:keep] + rest)


@dataclasses.dataclass
class PromptSampler:
    """The prompts of all images; `captions` holds one or several alternatives for each, `ids` what identifies it.

    What is drawn follows from the seed, the epoch and the image's id alone. With `variants`, only so many prompts are drawn
    for an image, once for all epochs, and one of them at each access.
    """

    ids: list[str]
    captions: list[tuple[str, ...]]
    templates: list[str]
    name: str
    seed: int
    shuffle_tags: bool = False
    keep_tags: int = 0
    tag_dropout: float = 0.0
    caption_dropout: float = 0.0
    variants: int | None = None

    @property
    def draws_tags(self) -> bool:
        return self.shuffle_tags or self.tag_dropout > 0

    def sample(self, epoch: int, index: int) -> str:
        """The prompt of the image `index` in an epoch; empty with probability `caption_dropout`."""
        rng = random.Random(derive_seed(self.seed, "prompt", epoch, self.ids[index]))
        if rng.random() < self.caption_dropout:
            return ""
        return self._variant(index, rng.randrange(self.variants)) if self.variants else self._draw(index, rng)

    def _variant(self, index: int, variant: int) -> str:
        return self._draw(index, random.Random(derive_seed(self.seed, "prompt variant", variant, self.ids[index])))

    def _draw(self, index: int, rng: random.Random) -> str:
        template, caption = rng.choice(self.templates), rng.choice(self.captions[index])
        if self.draws_tags:
            caption = sample_tags(caption, rng, self.shuffle_tags, self.keep_tags, self.tag_dropout)
        return fill_template(template, caption, self.name)

    def undropped(self, index: int) -> list[str]:
        """The prompts of an image in which no tag is left out, in their order."""
        return [
            fill_template(template, text, self.name) for template in self.templates for text in self.captions[index]
        ]

    def every_prompt(self) -> list[str] | None:
        """Every prompt that can be drawn, sorted; None if tags are drawn without end."""
        images = range(len(self.captions))
        if self.variants:
            found = {self._variant(index, variant) for index in images for variant in range(self.variants)}
        elif self.draws_tags:
            return None
        else:
            found = {prompt for index in images for prompt in self.undropped(index)}
        return sorted(found | {""} if self.caption_dropout else found)
