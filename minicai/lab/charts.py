"""Small line charts and histograms as SVG inside a page:
they take the page's colours, on light and dark ground.

A point is (x, y); y may be None (a number that was not finite). Lines differ in dashes and carry
their name at their end, so that colour alone says nothing.
"""

import math
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 210, 46, 70, 14, 26


def ticks(low: float, high: float, wanted: int = 4) -> list:
    """Round numbers from low to high, about `wanted` of them."""
    step = (high - low) / wanted
    unit = 10 ** math.floor(math.log10(step))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def bounds(values: list, hold=()) -> tuple:
    """(low, high) that hold all values, and those of `hold`, and are not equal."""
    low, high = min(*values, *hold, values[0]), max(*values, *hold, values[0])
    return (low, high) if high - low > 1e-9 else (low - 0.5, high + 0.5)


def axes(xs: tuple, ys: tuple) -> tuple:
    """(SVG of the grid and its numbers, x -> pixels, y -> pixels)."""
    to_x = lambda x: LEFT + (x - xs[0]) / (xs[1] - xs[0]) * (WIDTH - LEFT - RIGHT)
    to_y = lambda y: HEIGHT - BOTTOM - (y - ys[0]) / (ys[1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
    svg = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{to_y(y):.1f}" '
        f'y2="{to_y(y):.1f}"/>'
        f'<text x="{LEFT - 5}" y="{to_y(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in ticks(*ys)
    ]
    svg += [
        f'<text x="{to_x(x):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:g}</text>'
        for x in ticks(*xs)
        if x == int(x)
    ]
    return "".join(svg), to_x, to_y


def figure(title: str, unit: str, inside: str, below: str = "step") -> str:
    """A chart with its title and units; `below` names the x axis."""
    label = escape(f"{title} ({unit})")
    return (
        f'<figure><figcaption>{escape(title)} <small>({escape(unit)})</small></figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{inside}'
        f'<text x="{WIDTH - RIGHT + 16}" y="{HEIGHT - BOTTOM + 16}">{escape(below)}</text></svg>'
        f'</figure>'
    )


def spread(places: dict, gap: float = 13) -> dict:
    """{name: y} moved apart so that names at the ends of lines do not overlap,
    downwards from the topmost."""
    moved, last = {}, -math.inf
    for name, y in sorted(places.items(), key=lambda item: item[1]):
        last = moved[name] = max(y, last + gap)
    return moved


def smooth(points: list, half: int = 2) -> list:
    """The mean of each point and its neighbours, `half` to each side."""
    near = lambda i: points[max(0, i - half) : i + half + 1]
    return [(x, sum(y for _, y in near(i)) / len(near(i))) for i, (x, _) in enumerate(points)]


def curve(
    title: str, unit: str, series: dict, below: str = "step", hold=(), soft: bool = True
) -> str:
    """One chart of {name: points}, "" if there are none; its y axis holds the numbers `hold`.

    soft: from 20 points on, a pale line shows them and a full one their mean over five.
    """
    series = {name: [(x, y) for x, y in points if y is not None] for name, points in series.items()}
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    every = [point for points in series.values() for point in points]
    grid, to_x, to_y = axes(bounds([x for x, _ in every]), bounds([y for _, y in every], hold))
    line = lambda points: " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in points)
    svg, ends = [grid], {}
    for n, (name, points) in enumerate(series.items()):
        if soft and len(points) >= 20:
            svg.append(f'<polyline class="line pale s{n}" points="{line(points)}"/>')
            points = smooth(points)
        svg.append(
            f'<polyline class="line s{n}" points="{line(points)}"/>'
            if len(points) > 1
            else f'<circle class="dot s{n}" cx="{to_x(points[0][0]):.1f}" '
            f'cy="{to_y(points[0][1]):.1f}" r="3"/>'
        )
        ends[name] = to_y(points[-1][1]) + 4
    if len(series) > 1:
        svg += [
            f'<text class="name s{list(series).index(name)}" x="{WIDTH - RIGHT + 6}" y="{y:.1f}">'
            f'{escape(name)}</text>'
            for name, y in spread(ends).items()
        ]
    return figure(title, unit, "".join(svg), below)


def histogram(title: str, unit: str, values: list, bins: int = 10) -> str:
    """How many of the values, all between 0 and 1, fall into each of `bins` equal parts."""
    counts = [0] * bins
    for x in values:
        counts[min(bins - 1, int(x * bins))] += 1
    grid, _, to_y = axes((0, 1), (0, max(counts + [1])))
    wide = (WIDTH - LEFT - RIGHT) / bins
    bars = "".join(
        f'<rect class="block" x="{LEFT + i * wide + 1:.1f}" width="{wide - 2:.1f}" '
        f'y="{to_y(n):.1f}" '
        f'height="{HEIGHT - BOTTOM - to_y(n):.1f}"/>'
        for i, n in enumerate(counts)
    )
    return figure(title, "number of pairs", grid + bars, unit)


def token_chart(values: list, advantages: list, weight: list) -> str:
    """Value, advantage and the end token's weight over the tokens of one response."""
    numbered = lambda row: list(enumerate(row, 1))
    return curve(
        "value, advantage, and how much of the end token's surprise arrives",
        "in units of score; weight from 0 to 1",
        {"value": numbered(values), "advantage": numbered(advantages), "weight": numbered(weight)},
        "token",
        (0.0, 1.0),
        soft=False,
    )
