"""Find suspicious captions: file names without words, images without a caption among others that have one, ...

A run and examples/show_data.py print these notes before anything slow starts.
"""

import collections
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from hypernet.config import TrainingConfig
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.prompts import split_tags, template_notes
from hypernet.utils.errors import counted, one_line

SHOWN = 3  # examples in a note
HINT = "write captions as NAME.txt, as examples/prepare.py --caption does, or use a template without [filewords]"


def _plain(text: str) -> str:
    """Return a text in lower case and without accents."""
    return "".join(mark for mark in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(mark))


# Words in file names that cameras, phones, image generators and other programs choose, in names of copies and
# screenshots, and in names that say nothing about the image
NAMELESS = set(
    _plain(
        # cameras, phones, messengers and downloads
        "img image images imgp dsc dscn dscf dscpdc dcim cimg hpim pict dji gopr pxl mvimg burst pano vid "
        "photo photos foto fotos pic pics picture pictures bild bilder imagen imagem immagine scan scanned "
        "whatsapp wa telegram signal snapchat fb received instagram insta twitter tumblr kakaotalk wechat mmexport "
        "microsoftteams picsart psx lightroom unsplash pexels pixabay shutterstock istockphoto adobestock gettyimages "
        "download downloaded downloads thumbnail thumb preview "
        # screenshots and videos
        "screenshot screenshots screen shot screencapture bildschirmfoto capture ecran captura pantalla tela schermata "
        "skarmavbild zrzut ekranu vlcsnap mpv frame frames clip "
        # copies, versions, new files
        "untitled unnamed unknown noname file copy final finals version ver edit edited export exported output outputs "
        "out result results tmp temp new old fixed crop cropped resized scaled upscaled large small full original orig "
        "kopie kopia copia copie ohne titel unbenannt sans titre sin titulo senza titolo sem naamloos "
        "layer canvas artboard "
        # image generators
        "comfyui comfy sd sdxl flux txt img2img txt2img invokeai fooocus dalle chatgpt gemini midjourney generated "
        "grid xyz seed sample samples batch "
        # words between these, times, months
        "of at am pm and the de del la le du da von um las alle kl no "
        "jan feb mar apr may jun jul aug sep sept oct nov dec "
        # other scripts
        "фото снимок экрана скриншот изображение копия безымянный без названия "
        "屏幕截图 截图 截屏 屏幕快照 微信图片 微信截图 图片 照片 图像 副本 未命名 年 月 日 "
        "スクリーンショット 写真 画像 コピー 名称未設定 無題 사진 스크린샷 이미지"
    ).split()
)
# Names made of random letters, or of the photographer's name
RANDOM = re.compile(
    r"^comfyui_temp_[a-z]{5}_|^gemini_generated_image_\w*|^pexels-[\w-]+-\d+|^[\w-]+-unsplash\b|^tumblr_\w+|^fb_img_\d+"
)
# JEITA CP-3461 (DCF): cameras name an image by four capitals, digits or underscores, then four digits
CAMERA = re.compile(r"[A-Z0-9_]{4}\d{4}(?:[ _~-]*\(?\w{0,3}\)?)")


def has_words(name: str) -> bool:
    """Return whether a file name, or a caption from one, describes anything; IMG_2034, final_v2 and 3f9a8c do not."""
    if CAMERA.fullmatch(name):
        return False
    plain = RANDOM.sub(" ", _plain(name))
    # letters next to digits are part of a hash, unless 2 or more come before a number
    words = re.findall(r"(?<![a-z0-9])([a-z]{2,})\d*(?![a-z0-9])|([^\W\da-z_]+)", plain)
    return any(word not in NAMELESS for word in ("".join(groups) for groups in words))


def is_wordless(caption: str, written: bool) -> bool:
    """Whether a caption says nothing about its image; an empty one has a note of its own.

    Args:
        written: whether it is a written one, not a file name.
    """
    return bool(caption) and not (any(map(str.isalpha, caption)) if written else has_words(caption))


def doubtful_captions(captions: Sequence[str], captioned: Sequence[bool]) -> Iterator[tuple[int, str]]:
    """Yield (index, what is doubtful) for captions without words, and for file names among written captions.

    Args:
        captioned: whether each caption is a written one, not a file name.
    """
    for index, (caption, written) in enumerate(zip(captions, captioned)):
        if not caption:  # an empty one has a note of its own
            continue
        if is_wordless(caption, written):
            yield index, "its caption has no words" if written else "its caption is its file name, which has no words"
        elif not written and any(captioned):
            yield index, "it has no caption, so its file name is used"


def caption_notes(captions: Sequence[str], captioned: Sequence[bool]) -> list[str]:
    """Return notes if file names serve as captions although other images have written ones, or if captions lack words.

    Args:
        captioned: whether each caption is a written one, not a file name.
    """
    names, notes = [caption for caption, written in zip(captions, captioned) if caption and not written], []
    if names and any(captioned):
        which = f"images without a caption: {len(names)} of {len(captions)}"
        notes.append(f'{which}; their file names serve as captions, such as "{names[0]}"')
    wordless = [pair for pair in zip(captions, captioned) if is_wordless(*pair)]
    for kind, is_written in (
        ("captions that are file names without words", False),
        ("written captions without words", True),
    ):
        if found := [caption for caption, written in wordless if written == is_written]:
            examples = ", ".join(f'"{one_line(caption, 40)}"' for caption in list(dict.fromkeys(found))[:SHOWN])
            notes.append(f"{kind}: {len(found)}, such as {examples}; {HINT}")
    return notes


def caption_remarks(source: ImageSource, records: Sequence[ImageRecord], config: TrainingConfig) -> list[str]:
    """Return a note for each likely mistake in the captions of these images, and in the templates that use them."""
    captions = [source.captions[record.row] for record in records]
    notes = []

    def remark(is_doubtful: Callable[[tuple[str, ...]], bool], one: str, many: str, hint: str = "") -> None:
        """Note how many images have such captions."""
        found = [record for record, texts in zip(records, captions) if is_doubtful(texts)]
        if found:
            notes.append(f"{counted(len(found), one, many)}, such as {source.name(found[0].row)}{hint}")

    all_templates = source.templates(config.template)
    templates = {id(lines): lines for lines in (all_templates[record.row] for record in records)}.values()
    if any("[filewords]" in template for lines in templates for template in lines):
        if config.caption_column:
            remark(lambda texts: not any(texts), "image has an empty caption", "images have an empty caption")
        if source.is_folder:
            notes += caption_notes(
                [texts[0] for texts in captions], [source.captioned[record.row] for record in records]
            )
        hint = "; it stands for the caption only in --template"
        one, many = "caption has [filewords]", "captions have [filewords]"
        remark(lambda texts: "[filewords]" in "".join(texts), one, many, hint)
        hint = "; all lines are one caption, unless --caption_lines makes each a separate one"
        remark(lambda texts: "\n" in "".join(texts), "caption has several lines", "captions have several lines", hint)
        if config.caption_lines and max(map(len, captions)) == 1:
            notes.append("--caption_lines has no effect: no caption has several lines")
        notes += tag_notes([text for texts in captions for text in texts], config)
    files = [source.template_files[record.row] if source.template_files else "" for record in records]
    of_file = collections.defaultdict[str, list[tuple[str, ...]]](list)
    for file, texts in zip(files, captions):
        of_file[file].append(texts)
    for file, own in of_file.items():
        option = {"option": ""} if file else {}
        notes += template_notes(file or config.template, own, config.prompt_emphasis, **option)
    if all(files) and config.changed(["template"]):
        problem = f"it has no effect, since all images have templates of their own, such as {files[0]}"
        notes.append(f"--template {one_line(config.template, 80)}: {problem}")
    return notes


def tag_notes(captions: Sequence[str], config: TrainingConfig) -> list[str]:
    """Return a note if tags are to be shuffled or dropped, but no caption has enough of them."""
    if not (config.shuffle_tags or config.tag_dropout):
        return []

    def most_tags(separator: str) -> int:
        return max((len(split_tags(caption, separator)) for caption in captions), default=0)

    needed = config.keep_tags + (1 if config.tag_dropout else 2)
    if most_tags(config.tag_separator) >= needed:
        return []
    option = "--tag_dropout" if config.tag_dropout else "--shuffle_tags"
    problem = f"{option} has no effect: no caption has {needed} or more tags, separated by "
    # words separated by spaces are a sentence, unless some have underscores, as on booru sites
    likely = [",", ";", "|", *([" "] if "_" in "".join(captions) else [])]
    better = next((other for other in likely if most_tags(other) >= needed), None)
    hint = f'; --tag_separator "{better}" would find more' if better and better != config.tag_separator else ""
    return [f'{problem}"{config.tag_separator}"{hint}']
