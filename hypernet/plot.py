"""The loss curve as a picture, with Pillow alone."""

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, SCALE = 800, 450, 2  # drawn at twice the size, so that lines are smooth
LEFT, TOP, RIGHT, BOTTOM = 70, 45, 20, 50


def plot_losses(rows: list[dict], name: str) -> Image.Image:
    """Each logged loss as a dot, and the mean of it and the nine before it as a line, over the steps."""
    steps, losses = [int(row["step"]) for row in rows], [float(row["loss"]) for row in rows]
    top = 1.1 * max(losses, default=1.0) or 1.0
    first, last = min(steps, default=0), max(steps, default=1)

    def place(step, loss):
        across = (step - first) / max(1, last - first)
        up = loss / top
        x = LEFT + across * (WIDTH - LEFT - RIGHT)
        return SCALE * x, SCALE * (HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM))

    image = Image.new("RGB", (SCALE * WIDTH, SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    _draw_axes(draw, place, name, first, last, top)
    means = [sum(losses[max(0, i - 9) : i + 1]) / len(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
    for x, y in map(place, steps, losses):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(165, 195, 235))
    draw.line(list(map(place, steps, means)), fill=(30, 90, 180), width=2 * SCALE, joint="curve")
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _draw_axes(draw, place, name, first, last, top):
    font, title = ImageFont.load_default(13 * SCALE), ImageFont.load_default(16 * SCALE)
    for i in range(5):
        loss, step = top * i / 4, first + (last - first) * i / 4
        (x0, y), (x1, _) = place(first, loss), place(last, loss)
        draw.line((x0, y, x1, y), fill=(225, 225, 225), width=SCALE)
        draw.text((x0 - 8 * SCALE, y), f"{loss:.3g}", fill="black", font=font, anchor="rm")
        x, bottom = place(step, 0)
        draw.text((x, bottom + 8 * SCALE), f"{step:.0f}", fill="black", font=font, anchor="mt")
    middle = SCALE * (LEFT + WIDTH - RIGHT) / 2
    draw.text((middle, SCALE * (HEIGHT - 8)), "step", fill="black", font=font, anchor="mb")
    draw.text((middle, SCALE * 14), f"{name}: training loss", fill="black", font=title, anchor="mt")
