"""Panels of points with their intervals, as SVG: the pictures of docs/paper.md.

    {"title", "notes": [...], "panels": [panel, ...]}                         a picture
    {"title", "x", "y", "series": {name: [point, ...]}}                       a panel
    [x, y, low, high] or, where x varies too, [x, y, low, high, left, right]  a point

A panel may hold more: "ticks", names of x = 0, 1, ... (points of several series then stand beside
each other, and no line joins them); "lines": whether points are joined; "hold": numbers that the
y axis must show; "apart": False, if points must not move to make room for intervals. A series has a
colour, a dash and a mark of its own, so none of them alone says which it is. Two panels stand
beside each other on the white card of pictures.py. Lengths in pixels.
"""
import math

from minicai.lab.charts import bounds, ticks
from minicai.lab.pictures import BLUE, INK, RED, SOFT, WIDTH, card, line, text

COLOURS = (BLUE, RED, "#1b7837", "#762a83", "#8c510a", INK)
DASHES = ("", "7 4", "2 3", "9 3 2 3", "1 4", "12 5")
HALF, HIGH = (WIDTH - 30) / 2, 226      # width of a panel, height of its plot
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 26, 46
ROW = 19                                # height of a line of legend or note


def mark(n: int, x: float, y: float, size: float = 4.5) -> str:
    """The mark of series n: circle, square, triangle, diamond, cross, hollow circle."""
    colour = COLOURS[n % len(COLOURS)]
    paint = f'fill="{colour}" stroke="white" stroke-width="0.8"'
    if n % 6 == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {paint}/>'
    if n % 6 == 5:
        hollow = f'fill="white" stroke="{colour}" stroke-width="2"'
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size}" {hollow}/>'
    if n % 6 == 4:
        return (
            f'<path d="M{x - size:.1f} {y - size:.1f}l{2 * size} {2 * size}m0 {-2 * size}'
            f'l{-2 * size} {2 * size}" stroke="{colour}" stroke-width="2.4"/>'
        )
    ring = {
        1: ((-1, -1), (1, -1), (1, 1), (-1, 1)),
        2: ((0, -1.3), (1.2, 1), (-1.2, 1)),
        3: ((0, -1.4), (1.4, 0), (0, 1.4), (-1.4, 0)),
    }[n % 6]
    corners = " ".join(f"{x + a * size:.1f},{y + b * size:.1f}" for a, b in ring)
    return f'<polygon points="{corners}" {paint}/>'


def legend(names: list, numbers: dict, x: float, y: float, wide: float) -> tuple:
    """(SVG, height) of the marks and names of series, in as many lines as `wide` asks for."""
    svg, at, down = [], x, 0
    for name in names:
        length = 46 + 6.7 * len(name)
        if at > x and at + length > x + wide:
            at, down = x, down + ROW
        n = numbers[name]
        dash = f'stroke-width="2" stroke-dasharray="{DASHES[n % len(DASHES)]}"'
        svg.append(line(at, y + down, at + 24, y + down, COLOURS[n % len(COLOURS)], dash))
        svg += [mark(n, at + 12, y + down), text(at + 29, y + down + 4, name, 12.5)]
        at += length
    return svg, down + ROW


def axes(panel: dict, x0: float, y0: float) -> tuple:
    """(SVG of grid, numbers and names, x -> pixels, y -> pixels) of a panel's plot."""
    points = [p for series in panel["series"].values() for p in series]
    ys = bounds([v for p in points for v in p[1:4]], panel.get("hold", ()))
    names = panel.get("ticks")
    xs = bounds([v for p in points for v in (p[0], *p[4:])])
    xs = (-0.5, len(names) - 0.5) if names else xs
    margin = 0 if names else 0.03 * (xs[1] - xs[0])
    low, high = xs[0] - margin, xs[1] + margin
    left, right, top, bottom = x0 + LEFT, x0 + HALF - RIGHT, y0 + TOP, y0 + TOP + HIGH
    to_x = lambda x: left + (x - low) / (high - low) * (right - left)
    rim = 0.04 * (ys[1] - ys[0])
    to_y = lambda y: bottom - (y - ys[0] + rim) / (ys[1] - ys[0] + 2 * rim) * (bottom - top)
    svg = [text(x0 + 8, y0 + 10, panel["title"], 14, weight="bold")]
    for y in ticks(*ys):
        svg.append(line(left, to_y(y), right, to_y(y)))
        svg.append(text(left - 6, to_y(y) + 4, f"{y:g}", 12, "end", SOFT))
    shown = list(enumerate(names)) if names else [(x, f"{x:g}") for x in ticks(*xs)]
    size = 12 if not names or max(map(len, names)) * len(names) < 46 else 10.5
    for x, name in shown:
        svg.append(text(to_x(x), bottom + 17, name, size, "middle", SOFT))
    svg.append(text((left + right) / 2, bottom + 36, panel["x"], 12, "middle", SOFT))
    svg.append(text(x0 + 14, (top + bottom) / 2, panel["y"], 12, "middle", SOFT, turn=-90))
    return svg, to_x, to_y


def points_of(n: int, points: list, joined: bool, shift: float, to_x, to_y) -> list:
    """SVG of one series: its line, the interval of each point, its marks, from back to front."""
    colour, dash = COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)]
    at = [(to_x(p[0]) + shift, to_y(p[1])) for p in points]
    svg = []
    if joined and len(at) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        svg.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
            f'stroke-dasharray="{dash}"/>'
        )
    for (x, y), (_, _, low, high, *sides) in zip(at, points):
        whisker = 'stroke-width="1.6" class="interval" opacity="0.75"'
        svg.append(line(x, to_y(low), x, to_y(high), colour, whisker))
        if sides:
            svg.append(line(to_x(sides[0]), y, to_x(sides[1]), y, colour, whisker))
    return svg + [mark(n, x, y) for x, y in at]


def plot(panel: dict, numbers: dict, x0: float, y0: float) -> list:
    """SVG of one panel whose title stands at (x0, y0)."""
    svg, to_x, to_y = axes(panel, x0, y0)
    count = len(panel["series"])
    for place, (name, points) in enumerate(panel["series"].items()):
        apart = 9 if "ticks" in panel else 2.5 if panel.get("apart", True) else 0
        beside = (place - (count - 1) / 2) * apart      # so that no interval hides another
        joined = panel.get("lines", "ticks" not in panel)
        svg += points_of(numbers[name], points, joined, beside, to_x, to_y)
    return svg


def usable(panel: dict) -> dict:
    """The panel without points that are not finite, and without series that have none left."""
    finite = lambda p: all(isinstance(v, (int, float)) and math.isfinite(v) for v in p)
    series = {name: [p for p in points if finite(p)] for name, points in panel["series"].items()}
    return panel | {"series": {name: points for name, points in series.items() if points}}


def draw(picture: dict) -> str:
    """The SVG of a picture; panels without a point are left out, and a note says so."""
    panels = [usable(panel) for panel in picture["panels"]]
    empty = [panel["title"] for panel in panels if not panel["series"]]
    panels = [panel for panel in panels if panel["series"]]
    notes = picture["notes"] + [f"Not measured yet: {title}." for title in empty]
    svg = [text(20, 54 + ROW * n, note, 13, fill=SOFT) for n, note in enumerate(notes)]
    y = 54 + ROW * len(notes)
    together = {name: None for panel in panels for name in panel["series"]}
    one = all(list(panel["series"]) == list(together) for panel in panels) and len(together) < 6
    if one and together:
        numbers = {name: n for n, name in enumerate(together)}
        drawn, high = legend(list(together), numbers, 20, y + 2, WIDTH - 40)
        svg, y = svg + drawn, y + high
    for n in range(0, len(panels), 2):
        tallest, tops = 0, []
        for column, panel in enumerate(panels[n : n + 2]):
            own = {name: k for k, name in enumerate(panel["series"])}
            drawn, high = ([], 0)
            if not one and not (len(own) == 1 and "" in own):
                drawn, high = legend(list(own), own, 28 + column * HALF, y + 34, HALF - 40)
            tops.append((column, panel, numbers if one else own, drawn))
            tallest = max(tallest, high)
        for column, panel, of, drawn in tops:
            title = [text(28 + column * HALF, y + 12, panel["title"], 14, weight="bold")]
            inside = plot(panel | {"title": ""}, of, 20 + column * HALF, y + tallest)
            svg += title + drawn + inside
        y += tallest + TOP + HIGH + BOTTOM + 12
    return card(picture["title"], said(panels), y + 6, svg)


def said(panels: list) -> str:
    """All numbers in words, for readers who cannot see the picture."""
    told = []
    for panel in panels:
        place = lambda x: panel["ticks"][int(x)] if "ticks" in panel else f"{x:.3g}"
        for name, points in panel["series"].items():
            numbers = [f"{p[1]:.3g} ({p[2]:.3g} to {p[3]:.3g})" for p in points]
            each = ", ".join(f"{place(p[0])}: {n}" for p, n in zip(points, numbers))
            told.append(f"{panel['title']}, {name} [{panel['x']}: {panel['y']}] {each}")
    return "; ".join(told)
