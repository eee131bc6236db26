"""The loss curve as a picture, with Pillow alone."""

import math

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, SCALE = 800, 450, 2  # drawn at twice the size, so that lines are smooth
LEFT, TOP, RIGHT, BOTTOM = 70, 60, 20, 50
BLUE, LIGHT, ORANGE, GREY = (30, 90, 180), (165, 195, 235), (220, 110, 20), (140, 140, 140)
RED = (190, 40, 40)


def plot_losses(rows: list[dict], name: str, held_out: list[dict] = (), returns: list[int] = ()) -> Image.Image:
    """Each logged loss as a dot over its step, and as a line the mean with up to five neighbours on each side.

    With `held_out`, rows of step, val_loss and val_loss_base, these two beside it; `returns` are the steps at which the
    guard went back.
    """
    steps, losses = _columns(rows, "loss")
    measured, base = _columns(held_out, "val_loss"), _columns(held_out, "val_loss_base")
    right = max([*steps, *measured[0]], default=1)
    usual = sorted(measured[1])[len(measured[1]) // 2 :][:1]  # (one that has run away would flatten all others)
    shown = [*losses, *base[1], *(loss for loss in measured[1] if loss <= 10 * usual[0])]
    top = 1.05 * max(shown, default=1.0) or 1.0

    def place(step, loss):
        x = LEFT + step / (right or 1) * (WIDTH - LEFT - RIGHT)
        return SCALE * x, SCALE * (HEIGHT - BOTTOM - min(loss / top, 1.05) * (HEIGHT - TOP - BOTTOM))

    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    _draw_axes(draw, place, name, right or 1, top)
    for step in returns:
        (x, bottom), (_, high) = place(step, 0), place(step, top)
        draw.line((x, bottom, x, high), fill=RED, width=SCALE)
        draw.text((x + 4 * SCALE, high), "guard", fill=RED, font=ImageFont.load_default(11 * SCALE), anchor="lt")
    for x, y in map(place, steps, losses):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=LIGHT)
    draw.line(list(map(place, steps, _smooth(losses))), fill=BLUE, width=2 * SCALE, joint="curve")
    if measured[0]:
        draw.line(list(map(place, *base)), fill=GREY, width=2 * SCALE)
        draw.line(list(map(place, *measured)), fill=ORANGE, width=2 * SCALE, joint="curve")
        _draw_legend(draw, {"training": BLUE, "held out": ORANGE, "held out, without it": GREY})
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _columns(rows, name):
    """The steps and the values of a column that are finite."""
    pairs = [(int(row["step"]), float(row[name])) for row in rows]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _smooth(losses):
    means = []
    for i in range(len(losses)):
        reach = min(5, i, len(losses) - 1 - i)
        means.append(sum(losses[i - reach : i + reach + 1]) / (2 * reach + 1))
    return means


def _draw_legend(draw, colors):
    font, x = ImageFont.load_default(13 * SCALE), SCALE * (WIDTH - RIGHT - 10)
    for label, color in reversed(colors.items()):
        y = SCALE * (TOP - 8)
        draw.text((x, y), label, fill="black", font=font, anchor="rm")
        x -= font.getlength(label) + 8 * SCALE
        draw.line((x - 20 * SCALE, y, x, y), fill=color, width=3 * SCALE)
        x -= 36 * SCALE


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
    draw.text((middle, SCALE * 14), f"{name}: loss", fill="black", font=title, anchor="mt")
