"""A font for grids and sheets that has the letters of a text."""

from PIL import ImageFont

LATIN = ("DejaVuSans.ttf", "LiberationSans-Regular.ttf", "arial.ttf", "Arial.ttf")
EAST_ASIAN = ("NotoSansCJK-Regular.ttc", "msgothic.ttc", "msyh.ttc", "Hiragino Sans GB.ttc", "wqy-zenhei.ttc")


def load_font(size: int, text: str = ""):
    """A font of the system at `size` pixels, one with Chinese and Japanese if the text needs it; else Pillow's own.

    (Pillow's own has English letters only.)
    """
    if text.isascii():
        return ImageFont.load_default(size)
    for name in (*EAST_ASIAN, *LATIN) if any(letter >= "\u2e80" for letter in text) else LATIN:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
