"""Images as files of every kind."""

import io

from PIL import Image

# The first bytes of each kind of image file
HEADS = {
    "PNG": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "JPEG": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
    "GIF": b"GIF89a\x08\0\x08\0",
    "WebP": b"RIFF\x24\0\0\0WEBPVP8 ",
    "BMP": b"BM\xf6\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x08\0",
    "TIFF": b"II*\0\x08\0\0\0",
    "AVIF": b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf\0\0\1\x7dmeta",
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic\0\0\1\x7dmeta",
    "JPEG XL": b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 ",
    "Photoshop": b"8BPS\0\1\0\0",
}


def stored(image: Image.Image, format: str = "PNG", **options) -> bytes:
    """Return the content of an image file."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()
