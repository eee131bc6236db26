"""The twelve subjects as shapes: (points, role) in a square from -1 to 1, y downwards; the role decides the colour."""

from math import cos, pi, sin


def _ellipse(x, y, rx, ry, points=40):
    return [(x + rx * cos(2 * pi * i / points), y + ry * sin(2 * pi * i / points)) for i in range(points)]


def _box(left, top, right, bottom):
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _star():
    radii = [1.05, 0.47] * 5
    return [(r * sin(pi * i / 5), -r * cos(pi * i / 5)) for i, r in enumerate(radii)]


def _heart(points=48):  # the classic heart curve, scaled to the unit square
    angles = [2 * pi * i / points for i in range(points)]
    return [
        (0.97 * sin(t) ** 3, -(13 * cos(t) - 5 * cos(2 * t) - 2 * cos(3 * t) - cos(4 * t)) / 16.5 - 0.1) for t in angles
    ]


def _sun(rays=9):
    def ray(angle):
        ends = ((0.62, angle - 0.21), (1.08, angle), (0.62, angle + 0.21))
        return [(r * cos(a), r * sin(a)) for r, a in ends]

    return [*((ray(2 * pi * i / rays), "main") for i in range(rays)), (_ellipse(0, 0, 0.56, 0.56), "main")]


def _flower(petals=5):
    angles = [2 * pi * i / petals - pi / 2 for i in range(petals)]
    return [
        (_box(-0.08, 0.1, 0.08, 1.05), "stem"),
        ([(0.05, 0.85), (0.28, 0.45), (0.62, 0.5), (0.4, 0.8)], "stem"),
        *((_ellipse(0.42 * cos(a), -0.28 + 0.42 * sin(a), 0.34, 0.34, 24), "main") for a in angles),
        (_ellipse(0, -0.28, 0.27, 0.27, 24), "core"),
    ]


SHAPES = {
    "circle": [(_ellipse(0, 0, 0.95, 0.95), "main")],
    "square": [(_box(-0.85, -0.85, 0.85, 0.85), "main")],
    "triangle": [([(0, -0.95), (1, 0.8), (-1, 0.8)], "main")],
    "star": [(_star(), "main")],
    "heart": [(_heart(), "main")],
    "house": [
        (_box(-0.75, -0.15, 0.75, 0.95), "main"),
        ([(-1, -0.15), (0, -1), (1, -0.15)], "dark"),
        (_box(-0.2, 0.35, 0.2, 0.95), "door"),
        (_box(-0.6, 0.08, -0.3, 0.38), "window"),
        (_box(0.3, 0.08, 0.6, 0.38), "window"),
    ],
    "tree": [
        (_box(-0.17, 0.3, 0.17, 1.0), "wood"),
        (_ellipse(-0.4, 0.05, 0.5, 0.45), "main"),
        (_ellipse(0.4, 0.05, 0.5, 0.45), "main"),
        (_ellipse(0, -0.4, 0.6, 0.58), "main"),
    ],
    "fish": [
        ([(0.4, 0), (1.05, -0.55), (0.88, 0), (1.05, 0.55)], "dark"),
        (_ellipse(-0.2, 0, 0.8, 0.55), "main"),
        (_ellipse(-0.6, -0.12, 0.13, 0.13, 16), "eye"),
    ],
    "cat": [
        ([(-0.88, -0.1), (-0.8, -1), (-0.15, -0.6)], "main"),
        ([(0.88, -0.1), (0.8, -1), (0.15, -0.6)], "main"),
        (_ellipse(0, 0.1, 0.92, 0.78), "main"),
        (_ellipse(-0.38, -0.03, 0.14, 0.19, 16), "eye"),
        (_ellipse(0.38, -0.03, 0.14, 0.19, 16), "eye"),
        ([(-0.16, 0.28), (0.16, 0.28), (0, 0.46)], "nose"),
    ],
    "sun": _sun(),
    "flower": _flower(),
    "boat": [
        (_box(-0.06, -1, 0.06, 0.4), "wood"),
        ([(0.1, -0.9), (0.88, 0.25), (0.1, 0.25)], "sail"),
        ([(-0.1, -0.75), (-0.7, 0.25), (-0.1, 0.25)], "sail"),
        ([(-1, 0.4), (1, 0.4), (0.65, 0.95), (-0.65, 0.95)], "main"),
    ],
}
