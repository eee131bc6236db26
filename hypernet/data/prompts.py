"""Turn captions into prompts by the WebUI's rules: templates, tags, and a new random prompt at every access."""

import dataclasses
import difflib
import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hypernet.data.captions import read_any_encoding
from hypernet.utils.errors import one_line
from hypernet.utils.hashing import derive_seed

TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDERS = ("[filewords]", "[name]")
# Words that users and other trainers write in brackets instead
PLACEHOLDER_WORDS = ("caption", "captions", "filename", "file_name", "filewords", "name", "prompt", "tags", "text")


def shipped_templates() -> list[str]:
    """Return the names of the template files that come with this package."""
    return sorted(path.stem for path in TEMPLATES.glob("*.txt"))


def read_templates(template: str) -> list[str]:
    """Return the prompt templates that `--template` stands for.

    Args:
        template: the name of a shipped template file, the path of another one, or a template itself. In a file, each
            non-empty line is a template.

    Raises:
        ValueError: for an empty file, a misspelled placeholder, or a text that must be meant as a file name.
        UserError: if the file cannot be read.
    """
    path = Path(os.path.expanduser(template))
    if template in shipped_templates():
        path = TEMPLATES / f"{template}.txt"
    elif not os.path.isfile(path):  # Path.is_file raises for a long text
        check_placeholders(template)
        if _is_file_name(template):
            shown, shipped = one_line(template) or '""', ", ".join(shipped_templates())
            problem = "it is a folder" if template.strip() and os.path.isdir(path) else "there is no such file"
            raise ValueError(f"{shown}: {problem}, and the shipped templates are {shipped}; text needs [filewords]")
        return [template]
    lines = [line.strip() for line in read_any_encoding(path).splitlines()]
    if not any(lines):
        raise ValueError(f"{template}: it is empty; write a line such as: a painting of [filewords] by [name]")
    for line in lines:
        check_placeholders(line)
    return [line for line in lines if line]


def _is_file_name(template: str) -> bool:
    """Whether a template that names no existing file must be meant as a file, not as a prompt."""
    text = template.strip()
    if not text or text.lower().endswith(".txt"):
        return True
    if any(placeholder in text for placeholder in PLACEHOLDERS):
        return False
    if re.search(r"[/\\]", text):
        return True
    # one word like style_fileword is a typo, not a prompt
    one_word = not re.search(r"[\s\[{]", text)
    return one_word and bool(re.search(r"[_.]", text) or _nearest(text, shipped_templates()))


def check_placeholders(template: str) -> None:
    """Raise ValueError if the template contains a near miss of [filewords] or [name]."""
    for word in re.findall(r"\[[^][\s]*\]", template):
        nearest = _nearest(word.lower(), PLACEHOLDERS, 0.85)  # strict, since "[game]" may be text
        if nearest and word != nearest:
            raise ValueError(f"{template}: {word} is unknown; did you mean {nearest}?")


def unknown_placeholders(text: str, brackets_weigh: bool = False) -> list[str]:
    """Return words that look like placeholders but are not, such as {caption}, [caption] or an unclosed "[filewords".

    Args:
        brackets_weigh: whether [word] is the WebUI's syntax for a word that weighs less (--prompt_emphasis).
    """
    for placeholder in PLACEHOLDERS:
        text = text.replace(placeholder, " ")
    any_word = "|".join(PLACEHOLDER_WORDS)
    closed, unclosed = r"[\[{]\s*\w+\s*[\]}]", rf"[\[{{](?:{any_word})\b|\b(?:{any_word})[\]}}]"
    found = re.findall(rf"{closed}|{unclosed}|(?<![<($%])[<($%]*\bfilewords\b[>)%]*", text, re.IGNORECASE)
    weighed = re.compile(r"\[\s*(\w+)\s*\]")
    return [
        word
        for word in dict.fromkeys(found)
        if not (brackets_weigh and (match := weighed.fullmatch(word)) and match[1].lower() not in PLACEHOLDER_WORDS)
    ]


def template_notes(template: str, captions: Iterable[tuple[str, ...]], brackets_weigh: bool = False) -> list[str]:
    """Return a note if the templates are probably not what the user meant, else an empty list.

    Args:
        template: the value of `--template`.
        captions: the captions of each image.
        brackets_weigh: as in `unknown_placeholders`.
    """
    templates, problems = read_templates(template), []
    unknown = list(dict.fromkeys(word for line in templates for word in unknown_placeholders(line, brackets_weigh)))
    count = len(set(captions))
    if unknown:
        problems.append(f"{', '.join(unknown[:4])} {'stays' if len(unknown) == 1 else 'stay'} in the prompts unchanged")
    if count > 1 and not any("[filewords]" in line for line in templates):
        problems.append(f"it has no [filewords], so the {count} different captions are not used")
    if unknown:
        problems.append("[filewords] stands for the caption, [name] for the hypernetwork's name")
    return [f"--template {one_line(template, 80)}: {'; '.join(problems)}"] if problems else []


def _nearest(word: str, words: Sequence[str], cutoff: float = 0.8) -> str | None:
    return next(iter(difflib.get_close_matches(word, words, 1, cutoff)), None)


def fill_template(template: str, caption: str, name: str) -> str:
    """Replace `[filewords]` with the caption and `[name]` with the hypernetwork's name."""
    return template.replace("[filewords]", caption).replace("[name]", name)


def fill_name(prompts: list[str] | None, name: str) -> list[str] | None:
    """Replace `[name]` with the hypernetwork's name in the prompts of previews, as in templates."""
    return prompts and [prompt.replace("[name]", name) for prompt in prompts]


def with_template_words(templates: Sequence[str], prompt: str, name: str) -> str:
    """Return `prompt` with the words that a template adds to every caption, unless it has them already.

    A hypernetwork trained with "[filewords], art by [name]" has the most effect if the prompt also says "art by NAME".
    """
    if "[filewords]" in templates:
        return prompt
    template = next((each for each in templates if "[filewords]" in each), templates[0])
    words = [part.strip(" ,.;:") for part in fill_template(template, "\n", name).split("\n")]
    if all(part in prompt for part in words):
        return prompt
    return fill_template(template if "[filewords]" in template else f"[filewords], {template}", prompt, name)


def sample_tags(caption: str, rng: random.Random, shuffle: bool, keep: int, dropout: float) -> str:
    """Drop and shuffle the comma-separated tags of a caption.

    Args:
        shuffle: whether to shuffle the tags after the first `keep`.
        keep: number of leading tags that stay, in place.
        dropout: probability of dropping each of the other tags.
    """
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    rest = [tag for tag in tags[keep:] if rng.random() >= dropout]
    if shuffle:
        rng.shuffle(rest)
    return ", ".join(tags[:keep] + rest)


@dataclasses.dataclass
class PromptSampler:
    """Samples a prompt for an image in an epoch, determined by seed, epoch and image id.

    With `variants`, each image has that many random prompts for the whole run, and each epoch picks one of them.

    Attributes:
        ids: a unique id per image.
        captions: one or several captions per image.
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
    def samples_tags(self) -> bool:
        """Whether tags are shuffled or dropped."""
        return self.shuffle_tags or self.tag_dropout > 0

    def sample(self, epoch: int, index: int) -> str:
        """Return the prompt of image `index` in an epoch; empty with probability `caption_dropout`."""
        rng = random.Random(derive_seed(self.seed, "prompt", epoch, self.ids[index]))
        if rng.random() < self.caption_dropout:
            return ""
        return self._variant(index, rng.randrange(self.variants)) if self.variants else self._sample(index, rng)

    def _variant(self, index: int, variant: int) -> str:
        return self._sample(index, random.Random(derive_seed(self.seed, "prompt variant", variant, self.ids[index])))

    def _sample(self, index: int, rng: random.Random) -> str:
        template, caption = rng.choice(self.templates), rng.choice(self.captions[index])
        if self.samples_tags:
            caption = sample_tags(caption, rng, self.shuffle_tags, self.keep_tags, self.tag_dropout)
        return fill_template(template, caption, self.name)

    def full_prompts(self, index: int) -> list[str]:
        """Return the prompts of an image with all its tags in their order: one per template and caption."""
        captions = self.captions[index]
        return [fill_template(template, caption, self.name) for template in self.templates for caption in captions]

    def all_prompts(self) -> list[str] | None:
        """Return every prompt that can be sampled, sorted; None if their number is unlimited."""
        images = range(len(self.captions))
        if self.variants:
            found = {self._variant(index, variant) for index in images for variant in range(self.variants)}
        elif self.samples_tags:
            return None
        else:
            found = {prompt for index in images for prompt in self.full_prompts(index)}
        return sorted(found | {""} if self.caption_dropout else found)
