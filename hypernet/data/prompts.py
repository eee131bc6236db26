"""Turn captions into prompts by the WebUI's rules: templates, tags, and a new random prompt at every access."""

import dataclasses
import difflib
import os
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hypernet.data.captions import read_any_encoding
from hypernet.utils.errors import UserError, one_line
from hypernet.utils.hashing import derive_seed

TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDERS = ("[filewords]", "[name]", "[folder]")
# Words that users and other trainers write in brackets instead
PLACEHOLDER_WORDS = (
    *("caption", "captions", "filename", "file_name", "filewords", "name", "prompt", "tags", "text"),
    *("folder", "folders", "folder_name", "subfolder", "directory"),
)


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
    elif not os.path.isfile(path) and template.removesuffix(".txt") in shipped_templates():  # as in the WebUI's list
        path = TEMPLATES / template
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
        check_placeholders(line, f"{template}: ")
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


def check_placeholders(template: str, where: str = "") -> None:
    """Raise ValueError if the template contains a near miss of a placeholder; `where` begins its message."""
    for word in re.findall(r"\[[^][\s]*\]", template):
        nearest = _nearest(word.lower(), PLACEHOLDERS, 0.85)  # strict, since "[game]" may be text
        if nearest == "[folder]" and word.lower() not in (nearest, "[folders]"):  # so may "[older]" and "[bolder]"
            continue
        if nearest and word != nearest:
            raise ValueError(f"{where}{template}: {word} is unknown; did you mean {nearest}?")


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


def template_notes(
    template: str, captions: Iterable[tuple[str, ...]], brackets_weigh: bool = False, option: str = "--template "
) -> list[str]:
    """Return a note if the templates are probably not what the user meant, else an empty list.

    Args:
        template: the value of `--template`, or the path of a folder's own file.
        captions: the captions of each image.
        brackets_weigh: as in `unknown_placeholders`.
        option: what precedes `template` in the note.
    """
    templates, problems = read_templates(template), []
    unknown = list(dict.fromkeys(word for line in templates for word in unknown_placeholders(line, brackets_weigh)))
    count = len(set(captions))
    if unknown:
        problems.append(f"{', '.join(unknown[:4])} {'stays' if len(unknown) == 1 else 'stay'} in the prompts unchanged")
    if count > 1 and not any("[filewords]" in line for line in templates):
        problems.append(f"it has no [filewords], so the {count} different captions are not used")
    if unknown:
        problems.append(
            "[filewords] is the caption, [name] the hypernetwork's name, [folder] that of the image's folder"
        )
    return [f"{option}{one_line(template, 80)}: {'; '.join(problems)}"] if problems else []


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
    filled = fill_template(template.replace("[folder]", "\n"), "\n", name)
    words = [part.strip(" ,.;:") for part in filled.split("\n")]
    if all(part in prompt for part in words):
        return prompt
    return fill_template(template if "[filewords]" in template else f"[filewords], {template}", prompt, name)


def without_template_words(templates: Sequence[str], prompt: str, name: str) -> str:
    """Return `prompt` without the words of the first template that has any and all of whose words it has."""
    for template in templates:
        filled = fill_template(template.replace("[folder]", "\n"), "\n", name)
        parts = filter(None, (part.strip(" ,.;:") for part in filled.split("\n")))
        patterns = [rf"(?<!\w){re.escape(part)}(?!\w)" for part in parts]
        if patterns and all(re.search(pattern, prompt) for pattern in patterns):
            for pattern in patterns:
                prompt = re.sub(pattern, "", prompt, count=1)
            return " ".join(prompt.split()).strip(" ,.;:")
    return prompt


def read_prior_prompts(path: str) -> list[str]:
    """Return the prompts of `--prior_prompts`, a text file with one per line, each once.

    Raises:
        UserError: if the file cannot be read or has none.
    """
    try:
        lines = read_any_encoding(Path(path)).splitlines()
    except UserError as error:
        raise UserError(f"--prior_prompts {error}") from None
    prompts = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise UserError(f"--prior_prompts {path}: it is empty; write one prompt per line, such as: a house by the sea")
    return prompts


def split_tags(caption: str, separator: str = ",") -> list[str]:
    """Return the tags of a caption; spaces around them and around the separator do not matter."""
    parts = caption.split() if separator.isspace() and "\n" not in separator else caption.split(separator.strip(" "))
    return [part.strip() for part in parts if part.strip()]


def sample_tags(
    caption: str, rng: random.Random, shuffle: bool, keep: int, dropout: float, separator: str = ","
) -> str:
    """Drop and shuffle the tags of a caption.

    Args:
        shuffle: whether to shuffle the tags after the first `keep`.
        keep: number of leading tags that stay, in place.
        dropout: probability of dropping each of the other tags.
        separator: text between the tags. It joins them again, with a space after it if it has none of its own.
    """
    tags = split_tags(caption, separator)
    rest = [tag for tag in tags[keep:] if rng.random() >= dropout]
    if shuffle:
        rng.shuffle(rest)
    return (separator if re.search(r"\s", separator) else f"{separator} ").join(tags[:keep] + rest)


@dataclasses.dataclass
class PromptSampler:
    """Samples a prompt for an image in an epoch, determined by seed, epoch and image id.

    With `variants`, each image has that many random prompts for the whole run, and each epoch picks one of them. If
    images are repeated, "epoch" means the pass over the image.

    Attributes:
        ids: a unique id per image.
        captions: one or several captions per image.
        templates: all that occur.
        image_templates: those of each image, if they differ.
        tag_separator: text between the tags of a caption.
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
    tag_separator: str = ","
    image_templates: list[list[str]] | None = None

    @property
    def samples_tags(self) -> bool:
        """Whether tags are shuffled or dropped."""
        return self.shuffle_tags or self.tag_dropout > 0

    @property
    def first_captions(self) -> list[str]:
        """The first caption of each image; empty for an image without."""
        return [next(iter(captions), "") for captions in self.captions]

    def sample(self, epoch: int, index: int) -> str:
        """Return the prompt of image `index` in an epoch; empty with probability `caption_dropout`."""
        rng = random.Random(derive_seed(self.seed, "prompt", epoch, self.ids[index]))
        if rng.random() < self.caption_dropout:
            return ""
        return self._variant(index, rng.randrange(self.variants)) if self.variants else self._sample(index, rng)

    def _variant(self, index: int, variant: int) -> str:
        return self._sample(index, random.Random(derive_seed(self.seed, "prompt variant", variant, self.ids[index])))

    def _sample(self, index: int, rng: random.Random) -> str:
        template, caption = rng.choice(self.templates_of(index)), rng.choice(self.captions[index])
        if self.samples_tags:
            rules = self.shuffle_tags, self.keep_tags, self.tag_dropout, self.tag_separator
            caption = sample_tags(caption, rng, *rules)
        return fill_template(template, caption, self.name)

    def templates_of(self, index: int) -> list[str]:
        """Return the templates of an image."""
        return self.image_templates[index] if self.image_templates else self.templates

    def full_prompts(self, index: int) -> list[str]:
        """Return the prompts of an image with all its tags in their order: one per template and caption."""
        captions, templates = self.captions[index], self.templates_of(index)
        return [fill_template(template, caption, self.name) for template in templates for caption in captions]

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
