"""The loss curve as a picture, with Pillow alone."""

import math

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, SCALE = 800, 450, 2  # drawn at twice the size, so that lines are smooth
LEFT, TOP, RIGHT, BOTTOM = 70, 45, 20, 50


def plot_losses(rows: list[dict], name: str) -> Image.Image:
    """Each logged loss as a dot over its step, and as a line the mean with up to five neighbours on each side."""
    steps, losses = [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    right, top = max(steps, default=1), 1.05 * max(losses, default=1.0) or 1.0

    def place(step, loss):
        x = LEFT + step / right * (WIDTH - LEFT - RIGHT)
        return SCALE * x, SCALE * (HEIGHT - BOTTOM - loss / top * (HEIGHT - TOP - BOTTOM))

    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    _draw_axes(draw, place, name, right, top)
    means = []
    for i in range(len(losses)):
        reach = min(5, i, len(losses) - 1 - i)
        means.append(sum(losses[i - reach : i + reach + 1]) / (2 * reach + 1))
    for x, y in map(place, steps, losses):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(165, 195, 235))
    draw.line(list(map(place, steps, means)), fill=(30, 90, 180), width=2 * SCALE, joint="curve")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _ticks(end):
    """Round numbers from 0 to at most `end`, five or so."""
    magnitude = 10 ** math.floor(math.log10(end / 4))
    gap = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= end / 5)
    return [i * gap for i in range(int(end / gap) + 1)]


def _draw_axes(draw, place, name, right, top):
    font, title = ImageFont.load_default(13 * SCALE), ImageFont.load_default(16 * SCALE)
    for loss in _ticks(top):
        (x0, y), (x1, _) = place(0, loss), place(right, loss)
        draw.line((x0, y, x1, y), fill=(225, 225, 225), width=SCALE)
        draw.text((x0 - 8 * SCALE, y), f"{loss:g}", fill="black", font=font, anchor="rm")
    for step in _ticks(right):
        x, bottom = place(step, 0)
        draw.text((x, bottom + 8 * SCALE), f"{step:g}", fill="black", font=font, anchor="mt")
    middle = SCALE * (LEFT + WIDTH - RIGHT) / 2
    draw.text((middle, SCALE * (HEIGHT - 8)), "step", fill="black", font=font, anchor="mb")
    draw.text((middle, SCALE * 14), f"{name}: training loss", fill="black", font=title, anchor="mt")
