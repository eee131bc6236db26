"""Fetch and render the emoji of nine artists: the images that the model, its classifier and its styles are made from.

Each set is an npm package, `@iconify-json/NAME`: one JSON file of SVG bodies by subject. The repository holds none of
them; `load_set` downloads a set once with `npm pack`, and `render` draws one emoji with resvg (`pip install resvg-py`).
"""

import functools
import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from hypernet.utils.errors import UserError

CACHE_DIR = Path(__file__).resolve().parents[1] / "build" / "sets"


class EmojiSet(NamedTuple):
    """One artist's set. `words` name its hand in captions; the UNet and text encoder never see a set without them."""

    version: str
    license: str
    author: str
    words: str = ""


SETS = {
    "noto": EmojiSet("1.2.9", "Apache-2.0", "Google, Noto Emoji", "shaded"),
    "noto-v1": EmojiSet("1.2.5", "Apache-2.0", "Google, Noto Emoji before 2017", "vintage"),
    "fluent-emoji": EmojiSet("1.2.7", "MIT", "Microsoft, Fluent Emoji", "glossy"),
    "fluent-emoji-flat": EmojiSet("1.2.6", "MIT", "Microsoft, Fluent Emoji, flat", "flat"),
    "fxemoji": EmojiSet("1.2.2", "Apache-2.0", "Mozilla, FxEmojis", "muted"),
    "emojione": EmojiSet("1.2.3", "CC-BY-4.0", "EmojiOne 2"),
    "openmoji": EmojiSet("1.2.29", "CC-BY-SA-4.0", "HfG Schwäbisch Gmünd, OpenMoji"),
    "streamline-emojis": EmojiSet("1.2.4", "CC-BY-4.0", "Streamline, Streamline Emojis"),
    "icon-park": EmojiSet("1.2.4", "Apache-2.0", "ByteDance, IconPark"),
}
HANDS = tuple(name for name in SETS if name != "icon-park")  # neither the VAE nor the classifier has seen that one
MODEL_HANDS = tuple(name for name, emoji_set in SETS.items() if emoji_set.words)

# The words of the captions, and what the sets call the subject where that differs. Every model hand has all of them.
_SUBJECTS = """
dog: dog-face dog; cat: cat-face cat; mouse: mouse-face mouse; bear; panda: panda pandaface; koala; tiger: tiger-face
tiger; cow: cow-face cow; pig: pig-face pig; frog; monkey: monkey-face; chicken; penguin; chick: baby-chick; wolf:
wolf wolfface; horse: horse-face horse; bee: honeybee; snail; ladybug: lady-beetle ladybeetle; spider; turtle; snake;
octopus; fish; dolphin; whale: spouting-whale whale; elephant; cactus; tree: deciduous-tree; palm tree; seedling;
clover: four-leaf-clover; maple leaf; mushroom; tulip; rose; sunflower; apple: red-apple; pear; tangerine; lemon;
banana; watermelon; grapes; strawberry; cherries; peach; pineapple; tomato; eggplant: eggplant aubergine; corn:
ear-of-corn earofmaize; bread; hamburger; fries: french-fries; pizza: pizza sliceofpizza; doughnut; cookie; cake:
birthday-cake; ice cream: soft-ice-cream; candy; lollipop; fried egg: cooking; coffee: hot-beverage; beer: beer-mug;
wine: wine-glass; car: automobile; taxi; bus; ambulance; fire engine; tractor; bicycle; locomotive: locomotive
steamlocomotive; sailboat; airplane; rocket; helicopter; house: house housebuilding; castle: castle europeancastle;
church; tent; office: office-building; umbrella; guitar; trumpet; violin; hammer; key; padlock: locked lock; light
bulb: light-bulb electriclightbulb; bell; book: closed-book; camera; television; telephone: telephone blacktelephone;
alarm clock; candle; scissors: scissors blackscissors; crown; top hat; necktie: necktie tie; shirt: t-shirt mansshirt;
jeans; dress; backpack: backpack schoolsatchel; gift: wrapped-gift present; balloon; trophy; football: soccer-ball;
gem: gem-stone gem; bomb; hourglass: hourglass-done hourglass; pencil; anchor; pumpkin: jack-o-lantern; snowman:
snowman snowman-without-snow; ghost; skull; alien; smiling face: slightly-smiling-face whitesmilingface; crying face:
crying-face crying; angry face: angry-face angry; winking face: winking-face winking wink; sleeping face:
sleeping-face sleeping; face with heart eyes: smiling-face-with-heart-eyes hearteyes; heart: red-heart
heavyblackheart; broken heart; star: star whitemediumstar; sun: sun whitesun sunrays; moon: crescent-moon; cloud;
rainbow; snowflake; fire; droplet
"""


def _parse_subjects() -> dict[str, tuple[str, ...]]:
    subjects = {}
    for entry in _SUBJECTS.split(";"):
        words, _, names = (" ".join(part.split()) for part in entry.partition(":"))
        subjects[words] = tuple(names.split()) or (words.replace(" ", "-"),)
    return subjects


SUBJECTS = _parse_subjects()


@functools.cache
def load_set(name: str) -> dict[str, Any]:
    """Return a set in Iconify's JSON format (`icons`, `aliases`, `width`, `height`), downloading it at first.

    Raises `UserError` if npm cannot fetch it.
    """
    path = CACHE_DIR / f"{name}.json"
    if not path.exists():
        CACHE_DIR.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE_DIR) as folder:
            package = f"@iconify-json/{name}@{SETS[name].version}"
            try:
                subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
            except (OSError, subprocess.CalledProcessError) as error:
                raise UserError(f"{package}: fetching an artist's emoji needs npm and a network ({error})") from None
            (archive,) = Path(folder).glob("*.tgz")
            with tarfile.open(archive) as tar:
                tar.extract("package/icons.json", folder, filter="data")
            (Path(folder) / "package" / "icons.json").replace(path)
    return json.loads(path.read_text(encoding="utf-8"))


@functools.cache
def find(subject: str, name: str) -> str | None:
    """Return what a set calls a subject, or None if it does not have it."""
    icons = load_set(name)
    known = {*icons["icons"], *icons.get("aliases", {})}
    names = (*SUBJECTS[subject], *(other.replace("-", "") for other in SUBJECTS[subject]))
    return next((other for other in names if other in known), None)


@functools.cache
def common_icons(name: str) -> tuple[str, ...]:
    """Return the icons of a set whose subject at least six of the sets have, without people, hands and signs."""
    left_out = re.compile(
        "flag|skin|tone|^(wo)?m[ae]n|person|button|oclock|thirty|keycap|square|arrow|circle|input|mark"
    )
    icons = {other: {icon.replace("-", ""): icon for icon in load_set(other)["icons"]} for other in HANDS}
    sets_with = Counter(key for keys in icons.values() for key in keys)
    return tuple(icon for key, icon in icons[name].items() if sets_with[key] >= 6 and not left_out.search(key))


def icon_entry(icon: str, name: str) -> dict[str, Any]:
    """Return what a set holds for an icon or its alias: `body`, and any dimensions of its own."""
    icons = load_set(name)
    while icon in icons.get("aliases", {}):
        icon = icons["aliases"][icon]["parent"]
    return icons["icons"][icon]


def render(subject: str, name: str, side: int = 192) -> Image.Image:
    """Return a set's emoji of a subject as `render_icon` does."""
    icon = find(subject, name)
    assert icon is not None, f"{name} has no {subject}"
    return render_icon(icon, name, side)


@functools.cache
def render_icon(icon: str, name: str, side: int = 192) -> Image.Image:
    """Return an emoji as a transparent RGBA image of side x side pixels, filled in its longer direction.

    Raises `UserError` if resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise UserError("drawing an artist's emoji needs resvg-py: pip install resvg-py") from None

    icons, shape = load_set(name), icon_entry(icon, name)
    left, top = shape.get("left", 0), shape.get("top", 0)
    width, height = (shape.get(key, icons.get(key, 16)) for key in ("width", "height"))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="256" height="256" '
        f'viewBox="{left} {top} {width} {height}">{shape["body"]}</svg>'
    )
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > 8)).getbbox())
    longer = max(image.size)
    square = Image.new("RGBA", (longer, longer))
    square.paste(image, ((longer - image.width) // 2, (longer - image.height) // 2))
    return square.resize((side, side), Image.Resampling.LANCZOS)
