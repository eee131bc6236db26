"""Captions for prepare.py: from file names, a captioning model or a tagger, combined with existing captions.

A captioner is called with an RGB image and returns one line of text.
"""

import argparse
import csv
import dataclasses
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hypernet.data.captions import read_any_encoding
from hypernet.utils.errors import UserError
from hypernet.utils.hub import hub_file, is_hub_id

BLIP = "Salesforce/blip-image-captioning-base"
TAGGER = "SmilingWolf/wd-vit-tagger-v3"
SHORT_NAMES = ("filename", "blip", "tagger")
QUESTION = "Describe this picture in one sentence."  # for chat models
RATING = "9"  # the tagger's category of the ratings: general, sensitive, ...
WITHOUT_IT = "leave it out to use the existing captions and file names"

Captioner = Callable[[Image.Image], str]


# --- Texts


def check_names(names: Iterable[str]) -> None:
    """Check the values of --caption.

    Raises:
        UserError: for a name that cannot be a captioner.
    """
    for name in names:
        if name not in SHORT_NAMES and not os.path.isdir(name) and not is_hub_id(name):
            raise UserError(
                f"--caption {name}: use {', '.join(SHORT_NAMES)}, a model's Hub id (OWNER/NAME) or its folder"
            )


def join_texts(texts: Iterable[str]) -> str:
    """Join texts by commas; drop comma-separated pieces that an earlier text already has."""
    joined: list[str] = []
    seen: set[str] = set()
    for text in texts:
        pieces = [piece.strip() for piece in text.split(",")]
        new = [piece for piece in pieces if piece and piece.lower() not in seen]
        seen.update(piece.lower() for piece in new)
        if not joined and text.strip():
            joined.append(text.strip())  # the first one unchanged
        elif new:
            joined.append(", ".join(new))
    return ", ".join(joined)


def needs_captions(existing: str | None, mode: str) -> bool:
    """Return whether to run the captioners on an image whose own caption is `existing` (None or "" for none)."""
    return mode != "copy" or not existing


def combine(existing: str | None, generated: list[str], mode: str) -> str | None:
    """Return the caption of a prepared image, or None if it has only its file name.

    The modes are those of the WebUI's Preprocess tab: ignore, copy, prepend or append the existing caption.
    """
    if mode == "ignore":
        existing = None
    if not generated or not existing or mode == "copy":
        return existing or (join_texts(generated) if generated else existing)
    return join_texts([existing, *generated] if mode == "prepend" else [*generated, existing])


# --- Captioning models


class ModelCaptioner:
    """A captioning model of transformers: BLIP, GIT, a vision-language chat model, ..."""

    def __init__(self, name: str, prompt: str | None, generation: dict[str, Any]):
        """Load a model from a folder, the Hub or its cache, and try it on a white image.

        Args:
            prompt: a question, or the start of the caption.
            generation: settings for transformers' `generate`, such as `num_beams`.

        Raises:
            UserError: if it cannot be loaded or cannot caption an image.
        """
        from transformers import AutoModelForImageTextToText

        self.prompt, self.generation = prompt, generation
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.float16 if self.device == "cuda" else torch.float32
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=self.dtype)
            self.processor, self.tokenizer = _load_processors(name)
        except Exception as error:  # loaders and the Hub client raise many kinds of errors
            raise _captioner_error(name, error) from None
        self.model = model.to(self.device).eval()
        self.chats = bool(getattr(self.processor, "chat_template", None))
        try:
            self(Image.new("RGB", (64, 64), "white"))
        except Exception as error:
            raise _captioner_error(name, error, "it cannot caption an image") from None

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        inputs = self._inputs(image).to(self.device, self.dtype)
        tokens = self.model.generate(**inputs, **self.generation, do_sample=False)
        if self.chats:  # the question precedes the answer
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        text = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())

    def _inputs(self, image: Image.Image) -> Any:
        if self.chats:
            question = {"type": "text", "text": self.prompt or QUESTION}
            messages = [{"role": "user", "content": [{"type": "image", "image": image}, question]}]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.processor.apply_chat_template(messages, **options)
        text = {"text": self.prompt} if self.prompt else {}
        return self.processor(images=image, return_tensors="pt", **text)


def _load_processors(name: str) -> tuple[Any, Any]:
    """Return a model's input processor and its token decoder: one object, or two for encoder-decoder models."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    processor = AutoProcessor.from_pretrained(name)
    if hasattr(processor, "image_processor"):
        return processor, processor
    return AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def _captioner_error(
    name: str, error: object, problem: str = "it cannot be loaded from disk or from the Hub"
) -> UserError:
    """Return the error for a captioner that cannot be used: one line, with a way to continue."""
    reason = textwrap.shorten(str(error).partition("\n")[0], 160, placeholder="…") or type(error).__name__
    return UserError(f"--caption {name}: {problem} ({reason}); {WITHOUT_IT}")


# --- Taggers


@dataclasses.dataclass(frozen=True)
class TagStyle:
    """Which tags are kept, and how they are written."""

    threshold: float = 0.35
    keep_underscores: bool = False
    escape_brackets: bool = False
    order: str = "score"
    excluded: tuple[str, ...] = ()

    def text(self, names: list[str], scores: np.ndarray) -> str:
        """Return the tags that reach the threshold, joined by commas: highest score first, or in alphabetical order."""
        excluded = {_plain(tag) for tag in self.excluded}
        chosen = [(-float(score), i) for i, score in enumerate(scores) if score >= self.threshold]
        tags = [names[i] for _, i in sorted(chosen) if _plain(names[i]) not in excluded]
        return ", ".join(map(self.format, sorted(tags) if self.order == "alphabet" else tags))

    def format(self, tag: str) -> str:
        """Replace underscores by spaces, except in emoticons such as >_<, and escape brackets, if so configured."""
        if not self.keep_underscores and not is_emoticon(tag):
            tag = tag.replace("_", " ")
        return re.sub(r"([\\()])", r"\\\1", tag) if self.escape_brackets else tag


def is_emoticon(tag: str) -> bool:
    """Return whether a tag is an emoticon such as ^_^ or o_o: an underscore, and no two adjacent letters or digits."""
    return "_" in tag and not re.search(r"[^\W_]{2}", tag)


def _plain(tag: str) -> str:
    return tag.strip().replace("_", " ").lower()


class Tagger:
    """A tagger like https://huggingface.co/SmilingWolf/wd-vit-tagger-v3: model.onnx and selected_tags.csv."""

    def __init__(self, name: str, style: TagStyle):
        """Load a tagger from a folder, the Hub or its cache, and try it on a white image.

        Raises:
            UserError: if it cannot be loaded, or its two files do not match.
        """
        try:
            import onnxruntime
        except ImportError:
            raise UserError(
                f"--caption tagger: it needs onnxruntime; pip install onnxruntime, or {WITHOUT_IT}"
            ) from None
        self.style = style
        try:
            model, tags = (_tagger_file(name, file) for file in ("model.onnx", "selected_tags.csv"))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors only
            providers = onnxruntime.get_available_providers()
            self.session = onnxruntime.InferenceSession(str(model), options, providers=providers)
            rows = list(csv.DictReader(io.StringIO(read_any_encoding(tags), newline="")))
            self.names, self.categories = [row["name"] for row in rows], [row["category"] for row in rows]
            self.input = self.session.get_inputs()[0]
            count = self.scores(Image.new("RGB", (64, 64), "white")).size
        except Exception as error:  # the runtime and the Hub client raise many kinds of errors
            problem = f"no column {error}" if isinstance(error, KeyError) else error
            raise _captioner_error(f"tagger --tagger_model {name}", problem) from None
        if count != len(self.names):
            problem = f"model.onnx has {count} tags, but selected_tags.csv has {len(self.names)}"
            raise UserError(f"--caption tagger --tagger_model {name}: {problem}; {WITHOUT_IT}")

    def __call__(self, image: Image.Image) -> str:
        scores = self.scores(image)
        kept = [i for i, category in enumerate(self.categories) if category != RATING]
        return self.style.text([self.names[i] for i in kept], scores[kept])

    def scores(self, image: Image.Image) -> np.ndarray:
        """Return the probabilities of all tags for an RGB image, (tags,)."""
        side = self.input.shape[1] if isinstance(self.input.shape[1], int) else 448
        return self.session.run(None, {self.input.name: tagger_pixels(image, side)})[0].reshape(-1)


def _tagger_file(name: str, file: str) -> Path:
    path = Path(name) / file if os.path.isdir(name) else hub_file(name, file)
    if not path.is_file():
        raise OSError(f"it has no {file}")
    return path


def tagger_pixels(image: Image.Image, side: int) -> np.ndarray:
    """Pad an RGB image with white to a square and resize it: (1, side, side, 3) float32 in BGR order, 0 to 255.

    This is the preprocessing of the code in the taggers' model cards.
    """
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, np.float32)[None, :, :, ::-1])


def generation_settings(args: argparse.Namespace) -> dict[str, int]:
    """Return the arguments for transformers' `generate`. Lengths are in tokens of the caption, without the prompt.

    What no option sets is left to the model's own settings.
    """
    settings = {"max_new_tokens": args.max_length, "min_new_tokens": args.min_length, "num_beams": args.num_beams}
    return {name: value for name, value in settings.items() if value is not None}


def load_captioners(args: argparse.Namespace) -> list[Captioner | None]:
    """Load the captioners that --caption names, in that order; None stands for the file name.

    Raises:
        UserError: for a model that cannot be loaded, with a way to continue without it.
    """
    style = TagStyle(args.tagger_threshold, args.keep_underscores, args.escape_brackets, args.order, args.exclude_tags)
    captioners: list[Captioner | None] = []
    for name in args.caption:
        if name == "filename":
            captioners.append(None)
        elif name == "tagger":
            captioners.append(Tagger(args.tagger_model, style))
        else:
            model = BLIP if name == "blip" else name
            captioners.append(ModelCaptioner(model, args.caption_prompt, generation_settings(args)))
    return captioners
