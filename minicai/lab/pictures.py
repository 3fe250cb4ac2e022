"""The pictures of README and docs as SVG: functions from numbers to text, with nothing to install.

Every picture stands on a white card of its own, so that it is read on light and on dark ground.
What a colour says, a number, a pattern or a shape says too. Lengths are in pixels.
"""

from html import escape

from minicai.lab.charts import bounds, smooth, spread, ticks

WIDTH = 860
RED, BLUE, PALE, GREY, INK, SOFT = "#b2182b", "#2166ac", "#9ecae1", "#d0d0d0", "#1f2328", "#59636e"
# What a response counts as, on harmful and on harmless requests: (its words, colour, ink on it).
HARM = {
    "harmful": ("helps with harm", "url(#hatch)", "white"),
    "explained": ("objects, says why, names something better", BLUE, "white"),
    "rest": ("evades, wrong reason, or makes no sense", GREY, INK),
}
HELP = {
    "refused": ("refuses", "url(#hatch)", "white"),
    "full": ("answers in full", BLUE, "white"),
    "partial": ("answers in part", PALE, INK),
    "rest": ("does not answer, or makes no sense", GREY, INK),
}
HATCH = (
    '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" '
    f'patternTransform="rotate(45)"><rect width="7" height="7" fill="{RED}"/>'
    '<line x1="0" y1="0" x2="0" y2="7" stroke="white" stroke-width="1.4" opacity="0.55"/></pattern>'
    '<marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    f'orient="auto"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>'
)


def text(x, y, words, size=14, anchor="start", fill=INK, weight="normal", turn=0) -> str:
    """One line of words at (x, y), turned by `turn` degrees about that point."""
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{fill}" '
        f'font-weight="{weight}"{turned}>{escape(str(words))}</text>'
    )


def box(x, y, width, height, fill="white", stroke="none", round=0) -> str:
    """A rectangle."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(0, width):.1f}" height="{height:.1f}" '
        f'rx="{round}" fill="{fill}" stroke="{stroke}"/>'
    )


def line(x1, y1, x2, y2, stroke=GREY, more="") -> str:
    """A straight line."""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}" {more}/>'
    )


def card(title: str, said: str, height: float, inside: list) -> str:
    """The whole file: a white card with a title, what it shows in words (`said`), and the rest."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'width="{WIDTH}" height="{height:.0f}" role="img" '
        f'font-family="Helvetica, Arial, sans-serif">\n<title>{escape(title)}</title>\n'
        f"<desc>{escape(said)}</desc>\n{HATCH}\n"
        + box(0.5, 0.5, WIDTH - 1, height - 1, "white", GREY, 8)
        + "\n"
        + text(20, 30, title, 17, weight="bold")
        + "\n"
        + "\n".join(inside)
        + "\n</svg>\n"
    )


def legend(y: float, kinds: dict) -> list:
    """One swatch and its words for each kind, in a row."""
    svg, x = [], 20
    for words, fill, _ in kinds.values():
        svg += [box(x, y - 11, 16, 13, fill), text(x + 22, y, words, 13, fill=SOFT)]
        x += 48 + 6.9 * len(words)
    return svg


def bars(title: str, panels: list) -> str:
    """Stacked bars that add up to 100 %: panels of (heading, kinds, {model: {kind: share}})."""
    svg, y, left, wide = [], 56, 92, WIDTH - 92 - 24
    last = None
    for heading, kinds, models in panels:
        if kinds is not last:
            svg, y, last = svg + legend(y + 6, kinds), y + 34, kinds
        svg.append(text(20, y + 2, heading, 14, weight="bold"))
        y += 10
        for model, shares in models.items():
            svg.append(text(left - 8, y + 16, model, 14, "end"))
            x = left
            for kind, (_, fill, ink) in kinds.items():
                width = wide * shares[kind]
                svg.append(box(x, y, width, 22, fill, "white"))
                if shares[kind] >= 0.055:
                    number = f"{100 * shares[kind]:.0f} %"
                    if fill.startswith("url"):
                        svg.append(box(x + width / 2 - 20, y + 3, 40, 16, RED))
                    svg.append(text(x + width / 2, y + 16, number, 13, "middle", ink))
                x += width
            y += 26
        y += 24
    said = "; ".join(
        f"{heading}: "
        + ", ".join(
            f"{model} " + " ".join(f"{kind} {100 * share:.1f} %" for kind, share in shares.items())
            for model, shares in models.items()
        )
        for heading, _, models in panels
    )
    return card(title, said, y, svg)


def shade(share: float) -> tuple:
    """(fill, ink) of a cell: white at 0, dark blue at 1."""
    mix = lambda low, high: round(low + (high - low) * min(1, max(0, share)))
    fill = f"#{mix(255, 8):02x}{mix(255, 69):02x}{mix(255, 140):02x}"
    return fill, "white" if share > 0.62 else INK


def heat_map(title: str, notes: list, columns: list, rows: list, aims=None) -> str:
    """A table whose cells are shaded by their number: rows of (name, remark, [share or None, ...]).

    aims: {(row, column): least share}; such a cell shows it too, and says if it is missed.
    """
    left, top, high = 292, 52 + 19 * len(notes) + 26, 30
    wide, aims = (WIDTH - left - 20) / len(columns), aims or {}
    svg = [text(20, 54 + 19 * n, note, 13, fill=SOFT) for n, note in enumerate(notes)]
    for c, column in enumerate(columns):
        svg.append(text(left + wide * (c + 0.5), top - 8, column, 13, "middle"))
    for r, (name, remark, shares) in enumerate(rows):
        y = top + r * high
        svg.append(text(20, y + 20, name, 14, weight="bold"))
        svg.append(text(left - 10, y + 20, remark, 12, "end", SOFT))
        for c, share in enumerate(shares):
            fill, ink = ("white", SOFT) if share is None else shade(share)
            aim = aims.get((r, c))
            missed = aim is not None and share is not None and share < aim
            svg.append(
                box(left + wide * c + 1, y + 1, wide - 2, high - 2, fill, INK if missed else GREY)
            )
            number = (
                "–"
                if share is None
                else f"{100 * share:.0f}" + (f" (≥ {100 * aim:.0f})" if aim is not None else "")
            )
            number += " missed" * missed
            svg.append(text(left + wide * (c + 0.5), y + 20, number, 13, "middle", ink))
    said = "; ".join(
        f"{name}: "
        + ", ".join(
            f"{column} {'none' if share is None else f'{100 * share:.1f}'}"
            for column, share in zip(columns, shares)
        )
        for name, _, shares in rows
    )
    return card(title, said, top + high * len(rows) + 18, svg)


def mark(model: int, x: float, y: float) -> str:
    """Circle, square, triangle: the first, second, third model."""
    if model == 0:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="white" stroke="{INK}"/>'
    if model == 1:
        return box(x - 5, y - 5, 10, 10, PALE, INK)
    corners = f"{x:.1f},{y - 7:.1f} {x + 7:.1f},{y + 5:.1f} {x - 7:.1f},{y + 5:.1f}"
    return f'<polygon points="{corners}" fill="{BLUE}" stroke="{INK}"/>'


def ranges(title: str, note: str, models: list, rows: list) -> str:
    """Means with their least and greatest value: rows of (name, [values of each model]); shares."""
    left, right, top, high = 400, WIDTH - 34, 92, 30
    to_x = lambda share: left + share * (right - left)
    svg, x = [text(20, 54, note, 13, fill=SOFT)], left
    for m, model in enumerate(models):
        svg += [mark(m, x + 8, 72), text(x + 22, 77, model, 13)]
        x += 110
    for percent in (0, 25, 50, 75, 100):
        svg.append(line(to_x(percent / 100), top, to_x(percent / 100), top + high * len(rows)))
        below = top + high * len(rows) + 18
        svg.append(text(to_x(percent / 100), below, f"{percent} %", 13, "middle", SOFT))
    said = []
    for r, (name, values) in enumerate(rows):
        y = top + high * (r + 0.5)
        svg.append(text(left - 16, y + 5, name, 13, "end"))
        for m, model in enumerate(models):
            low, high_, mean = min(values[m]), max(values[m]), sum(values[m]) / len(values[m])
            svg.append(line(to_x(low), y, to_x(high_), y, INK, 'stroke-width="3"'))
            svg.append(mark(m, to_x(mean), y))
            said.append(
                f"{name}, {model}: {100 * mean:.1f} % ({100 * low:.1f} to {100 * high_:.1f})"
            )
    return card(title, "; ".join(said), top + high * len(rows) + 36, svg)


def curve(x0: float, title: str, below: str, series: dict, hold=()) -> list:
    """One panel of {name: [lines of (x, y)]}, a line each run, the name at their end."""
    left, right, top, bottom = x0 + 50, x0 + 300, 108, 312
    points = [p for lines in series.values() for one in lines for p in one]
    xs, ys = bounds([x for x, _ in points]), bounds([y for _, y in points], hold)
    to_x = lambda x: left + (x - xs[0]) / (xs[1] - xs[0]) * (right - left)
    to_y = lambda y: bottom - (y - ys[0]) / (ys[1] - ys[0]) * (bottom - top)
    svg = [text(x0 + 14, top - 18, title, 14, weight="bold")]
    for y in ticks(*ys):
        svg += [
            line(left, to_y(y), right, to_y(y)),
            text(left - 6, to_y(y) + 4, f"{y:g}", 12, "end", SOFT),
        ]
    for x in ticks(*xs):
        svg.append(text(to_x(x), bottom + 18, f"{x:g}", 12, "middle", SOFT))
    svg.append(text((left + right) / 2, bottom + 36, below, 12, "middle", SOFT))
    ends = {}
    for n, (name, lines) in enumerate(series.items()):
        dash = 'stroke-dasharray="7 4"' if n else ""
        for one in lines:
            path = " ".join(f"{to_x(x):.1f},{to_y(y):.1f}" for x, y in smooth(one))
            svg.append(
                f'<polyline points="{path}" fill="none" stroke="{(BLUE, RED)[n % 2]}" '
                f'stroke-width="1.8" {dash}/>'
            )
        ends[name] = to_y(sum(smooth(one)[-1][1] for one in lines) / len(lines)) + 4
    return svg + [
        text(right + 6, y, name, 13, fill=(BLUE, RED)[list(series).index(name) % 2])
        for name, y in spread(ends, 16).items()
    ]


def curves(title: str, note: str, panels: list) -> str:
    """Two panels beside each other: (title, x axis, {name: lines}, numbers that y must hold)."""
    svg = [text(20, 54, note, 13, fill=SOFT)]
    for n, panel in enumerate(panels):
        svg += curve(10 + 425 * n, *panel)
    ends = "; ".join(
        f"{name} of {panel[0]}: from {lines[0][0][1]:.2f} to {lines[0][-1][1]:.2f}"
        for panel in panels
        for name, lines in panel[2].items()
    )
    return card(title, ends, 364, svg)


def arrow(*points) -> str:
    """A line through points that ends in a tip."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{SOFT}" stroke-width="1.8" '
        'marker-end="url(#tip)"/>'
    )


def stage(x: float, head: str, script: str, steps: list) -> list:
    """One column of the pipeline: what a script does, line by line."""
    svg = [box(x, 112, 244, 214, "#eef4fb", BLUE, 8), text(x + 14, 136, head, 15, weight="bold")]
    svg.append(text(x + 14, 156, script, 13, fill=SOFT))
    return svg + [text(x + 14, 184 + 21 * n, step, 13.5) for n, step in enumerate(steps)]


def file(x: float, y: float, name: str, what: str, wide: int = 244) -> list:
    """A file that stages meet through."""
    return [
        box(x, y, wide, 44, "#fff8e5", "#9a6700", 3),
        text(x + 12, y + 18, name, 13, weight="bold"),
        text(x + 12, y + 35, what, 12, fill=SOFT),
    ]


# The three stages: (head, script, steps, files that it writes, who judges).
STAGES = [
    (
        "1  Critique and revision",
        "train_sft.py",
        (
            "The base answers a harmful",
            "request. A principle is drawn; it",
            "criticises its answer by that",
            "and rewrites it: two rounds.",
            "Fine-tune the base on the",
            "revisions and on its helpful",
            "answers.",
        ),
        (
            ("revisions.jsonl", "answer, critique, revision, each round"),
            ("sl_cai/", "the model SL-CAI"),
        ),
        "the base, by the constitution",
    ),
    (
        "2  AI feedback",
        "train_pm.py",
        (
            "SL-CAI and the base answer.",
            "A principle is drawn; the base",
            "chooses (A) or (B): a label.",
            "People label which answer",
            "helps more, on harmless",
            "requests only.",
            "Fit a score: Bradley-Terry.",
        ),
        (
            ("comparisons.jsonl", "both answers, principle, P(A)"),
            ("pm/", "the preference model: text to score"),
        ),
        "the base; of help, people",
    ),
    (
        "3  Reinforcement learning",
        "train_rl.py",
        (
            "SL-CAI answers; the preference",
            "model pays the whole answer,",
            "a KL penalty each token.",
            "A value model says what was",
            "expected; PPO makes tokens",
            "that did better more likely.",
        ),
        (
            ("rollouts.jsonl", "answers and scores as PPO goes"),
            ("rl_cai/", "the model RL-CAI"),
        ),
        "the preference model",
    ),
]


def pipeline() -> str:
    """Three stages, the files between them, and who judges what."""
    at = [20, 308, 596]
    svg = [box(20, 48, 532, 38, "#f3eefb", "#6639ba", 8)]
    svg.append(text(34, 72, "constitutions/harmlessness.json", 13.5, weight="bold"))
    svg.append(text(296, 72, "principles: what is wanted, in words", 13, fill=SOFT))
    svg += [arrow((142, 86), (142, 110)), arrow((430, 86), (430, 110))]
    for x, (head, script, steps, files, judge) in zip(at, STAGES):
        svg += stage(x, head, script, steps) + [arrow((x + 122, 326), (x + 122, 348))]
        svg += file(x, 350, *files[0]) + file(x, 402, *files[1])
        svg.append(text(x, 490, "Who judges:", 13, weight="bold"))
        svg.append(text(x, 509, judge, 13))
    svg.append(arrow((264, 424), (286, 424), (286, 220), (306, 220)))
    svg.append(arrow((552, 424), (574, 424), (574, 220), (594, 220)))
    svg.append(arrow((264, 432), (280, 432), (280, 462), (582, 462), (582, 250), (594, 250)))
    said = (
        "A constitution goes into stages 1 and 2. Stage 1 writes revisions.jsonl and SL-CAI; "
        "stage 2 lets the base compare an answer of SL-CAI with one of its own and writes "
        "comparisons.jsonl and a preference model; stage 3 trains SL-CAI on its scores with PPO "
        "and writes RL-CAI. No person labels harm."
    )
    title = "From a constitution to a model: three stages that meet through files"
    return card(title, said, 526, svg)
