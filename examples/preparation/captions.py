"""Captions for prepare.py: from file names, by a model of transformers, by a tagger; and how they meet a text that is there.

A captioner is called with an RGB picture and returns a text in one line.
"""

import csv
import dataclasses
import io
import os
import re
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hypernet.data.captions import read_text
from hypernet.utils.errors import UserError
from hypernet.utils.hub import hub_file, is_hub_id

BLIP = "Salesforce/blip-image-captioning-base"
TAGGER = "SmilingWolf/wd-vit-tagger-v3"
OWN = ("filename", "blip", "tagger")
RATING = "9"  # the category of general, sensitive, ... in a tagger's list
GO_ON = "leave it out to go on with the texts and file names that there are"


# --- Texts


def check_names(names):
    """Raises: UserError for a captioner that there cannot be."""
    for name in names:
        if name not in OWN and not os.path.isdir(name) and not is_hub_id(name):
            raise UserError(f"--caption {name}: write {', '.join(OWN)}, a model's Hub id (OWNER/NAME) or its folder")


def join_texts(texts) -> str:
    """Texts joined by commas; what stands between the commas of an earlier one is not said again."""
    joined, said = [], set()
    for text in texts:
        pieces = [piece.strip() for piece in text.split(",")]
        new = [piece for piece in pieces if piece and piece.lower() not in said]
        said.update(piece.lower() for piece in new)
        if not joined and text.strip():
            joined.append(text.strip())  # the first as it stands
        elif new:
            joined.append(", ".join(new))
    return ", ".join(joined)


def needs_captions(existing: str | None, mode: str) -> bool:
    """Whether a captioner is asked; `existing` is None where there is no text, and an empty one is as good as none."""
    return mode != "copy" or not existing


def combine(existing: str | None, generated: list[str], mode: str) -> str | None:
    """The text beside a prepared picture; None where nothing but the file's name is to be had.

    The four modes are those of the WebUI's Preprocess tab: ignore, copy, prepend and append the existing text.
    """
    if mode == "ignore":
        existing = None
    if not generated or not existing or mode == "copy":
        return existing or (join_texts(generated) if generated else existing)
    return join_texts([existing, *generated] if mode == "prepend" else [*generated, existing])


# --- Models of transformers


class ModelCaptioner:
    """A model that writes a sentence: BLIP, GIT, a vision-language model that chats, ..."""

    def __init__(self, name: str, prompt: str | None, longest: int):
        """Load it from a folder, the Hub or its cache. Raises: UserError if that cannot be done."""
        from transformers import AutoModelForImageTextToText

        self.prompt, self.longest = prompt, longest
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.float16 if self.device == "cuda" else torch.float32
        try:
            model = AutoModelForImageTextToText.from_pretrained(name, dtype=self.dtype)
            self.processor, self.tokenizer = _load_processors(name)
        except Exception as error:  # whatever loading and the connection raise
            raise cannot_load(name, error) from None
        self.model = model.to(self.device).eval()
        self.chats = bool(getattr(self.processor, "chat_template", None))
        try:
            self(Image.new("RGB", (64, 64), "white"))  # what cannot work is told before the pictures are begun
        except Exception as error:
            raise cannot_load(name, error, "it cannot caption a picture") from None

    @torch.inference_mode()
    def __call__(self, image: Image.Image) -> str:
        inputs = self._inputs(image).to(self.device, self.dtype)
        tokens = self.model.generate(**inputs, max_new_tokens=self.longest, do_sample=False)
        if self.chats:  # what was asked stands before the answer
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        text = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)[0]
        return " ".join(text.split())

    def _inputs(self, image):
        if self.chats:
            question = {"type": "text", "text": self.prompt or "Describe this picture in one sentence."}
            messages = [{"role": "user", "content": [{"type": "image", "image": image}, question]}]
            options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
            return self.processor.apply_chat_template(messages, **options)
        text = {"text": self.prompt} if self.prompt else {}
        return self.processor(images=image, return_tensors="pt", **text)


def _load_processors(name):
    """(what makes inputs, what decodes tokens); models of an encoder and a decoder come without a common one."""
    from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer

    processor = AutoProcessor.from_pretrained(name)
    if hasattr(processor, "image_processor"):
        return processor, processor
    return AutoImageProcessor.from_pretrained(name), AutoTokenizer.from_pretrained(name)


def cannot_load(name, error, problem="it cannot be loaded, neither from here nor from the Hub") -> UserError:
    """The one line for a model that cannot be used, and how to go on."""
    reason = textwrap.shorten(str(error).partition("\n")[0], 160, placeholder="…") or type(error).__name__
    return UserError(f"--caption {name}: {problem} ({reason}); {GO_ON}")


# --- Taggers


@dataclasses.dataclass(frozen=True)
class TagStyle:
    """Which tags are taken, and how they are written."""

    threshold: float = 0.35
    keep_underscores: bool = False
    escape_brackets: bool = False
    order: str = "score"
    excluded: tuple[str, ...] = ()

    def text(self, names: list[str], scores) -> str:
        """The tags that reach the threshold, joined by commas: by score, the highest first, or by the alphabet."""
        excluded = {_plain(tag) for tag in self.excluded}
        chosen = [(-float(score), i) for i, score in enumerate(scores) if score >= self.threshold]
        tags = [names[i] for _, i in sorted(chosen) if _plain(names[i]) not in excluded]
        return ", ".join(map(self.written, sorted(tags) if self.order == "alphabet" else tags))

    def written(self, tag: str) -> str:
        """One tag: spaces for underscores, except in a face such as >_<; brackets with a backslash, if wanted."""
        if not self.keep_underscores and not is_kaomoji(tag):
            tag = tag.replace("_", " ")
        return re.sub(r"([\\()])", r"\\\1", tag) if self.escape_brackets else tag


def is_kaomoji(tag: str) -> bool:
    """Whether a tag is a face drawn with signs, such as ^_^ or o_o: nowhere in it do two letters or digits meet."""
    return "_" in tag and not re.search(r"[^\W_]{2}", tag)


def _plain(tag):
    return tag.strip().replace("_", " ").lower()


class Tagger:
    """A tagger such as https://huggingface.co/SmilingWolf/wd-vit-tagger-v3: model.onnx and selected_tags.csv."""

    def __init__(self, name: str, style: TagStyle):
        """Load it from a folder, the Hub or its cache. Raises: UserError if that cannot be done."""
        try:
            import onnxruntime
        except ImportError:
            raise UserError(f"--caption tagger: pip install onnxruntime; or {GO_ON}") from None
        self.style, files = style, {}
        try:
            for file in ("model.onnx", "selected_tags.csv"):
                files[file] = Path(name) / file if os.path.isdir(name) else hub_file(name, file)
                if not files[file].is_file():
                    raise OSError(f"it has no {file}")
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3  # errors only
            providers = onnxruntime.get_available_providers()
            self.session = onnxruntime.InferenceSession(str(files["model.onnx"]), options, providers=providers)
            rows = list(csv.DictReader(io.StringIO(read_text(files["selected_tags.csv"]), newline="")))
            self.names, self.categories = [row["name"] for row in rows], [row["category"] for row in rows]
            self.input = self.session.get_inputs()[0]
            found = self.scores(Image.new("RGB", (64, 64), "white")).size
        except Exception as error:  # whatever the runtime and the connection raise
            problem = f"no column {error}" if isinstance(error, KeyError) else error
            raise cannot_load(f"tagger --tagger_model {name}", problem) from None
        if found != len(self.names):
            problem = f"model.onnx has {found} tags, selected_tags.csv {len(self.names)}"
            raise UserError(f"--caption tagger --tagger_model {name}: {problem}; {GO_ON}")

    def __call__(self, image: Image.Image) -> str:
        scores = self.scores(image)
        kept = [i for i, category in enumerate(self.categories) if category != RATING]
        return self.style.text([self.names[i] for i in kept], scores[kept])

    def scores(self, image: Image.Image) -> np.ndarray:
        """(tags,) probabilities of an RGB picture."""
        side = self.input.shape[1] if isinstance(self.input.shape[1], int) else 448
        return self.session.run(None, {self.input.name: tagger_pixels(image, side)})[0].reshape(-1)


def tagger_pixels(image: Image.Image, side: int) -> np.ndarray:
    """An RGB picture as these taggers want it: in the middle of a white square, scaled, BGR: (1, side, side, 3) float32
    from 0 to 255 (the model cards' code)."""
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), "white")
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    square = square.resize((side, side), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(np.asarray(square, np.float32)[None, :, :, ::-1])


def load_captioners(args) -> list:
    """What --caption names, in its order; None stands for the file's name.

    Raises:
        UserError: for a model that cannot be loaded, with how to go on without it.
    """
    style = TagStyle(args.tagger_threshold, args.keep_underscores, args.escape_brackets, args.order, args.exclude_tags)
    found = []
    for name in args.caption:
        if name == "filename":
            found.append(None)
        elif name == "tagger":
            found.append(Tagger(args.tagger_model, style))
        else:
            found.append(ModelCaptioner(BLIP if name == "blip" else name, args.caption_prompt, args.caption_tokens))
    return found
