"""Charts for people: Figure 1 (paper, section 3.2). Same rows and same matplotlib: same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_lib.few_shot_tables import METHODS, notes, shots_text
from pipeline_lib.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class _Style:
    """How a method is drawn. What the figure is about has colour and interval, all else is grey; in grey print markers
    and dashes tell them apart."""

    colour: str
    marker: str
    dashes: Any = "solid"
    width: float = 1.0
    filled: bool = True
    main: bool = False


# Blue and vermilion of Okabe and Ito (2008), which the colour-blind tell apart.
_STYLES = {
    "linear_probe": _Style("#767676", "x", (0, (1, 1.5))),
    "coop": _Style("#767676", "D", (0, (4, 1.5, 1, 1.5)), filled=False),
    "tip_adapter": _Style("#767676", "v", (0, (2, 1.5)), filled=False),
    "tip_adapter_f": _Style("#5a5a5a", "^", (0, (5, 1.5))),
    "ct_init_chosen": _Style("#b07a52", "P", (0, (3, 1, 1, 1, 1, 1)), width=1.3),
    "ct_syn_b": _Style("#56a0d0", "o", (0, (5, 1.5)), width=1.3, filled=False),
    "ct_init": _Style("#d55e00", "s", width=1.8, filled=False, main=True),
    "ct_syn": _Style("#0072b2", "o", width=2.2, main=True),
}
_ZERO_SHOT = _Style("#333333", "*", (0, (1, 2)), width=0.9)
_DATASET = _Style("#9a9a9a", ".", width=0.8)  # of what synthetic images add
_FOOTER = (
    "Study {study}. All numbers, with their intervals, are in the CSV. \N{BLACK DOWN-POINTING SMALL TRIANGLE} with a "
    "number: a line lies below its panel, at that number."
)
_QUIET = "#767676"
_TEXT = "#333333"
_FRAME = "#999999"
_FONT = 8.0  # points, of everything but titles
_NAME = 15  # letters of a line's name, at the most
_LINE = 1.18 * _FONT  # points from one label to the next
# Inches.
_LEFT, _RIGHT = 0.42, 1.1  # beside the axes of a panel: tick labels, names of the lines
_LEADER = 0.16  # from the axes to a name
_ABOVE, _BELOW = 0.3, 0.42  # over and under them: title of the panel, ticks and name of the axis
_HEAD, _FOOT = 0.92, 0.32  # of the figure: title and how to read it, study
_SETTINGS = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": _FONT,
    "svg.fonttype": "none",
    "svg.hashsalt": "figure1",
    "axes.linewidth": 0.6,
    "axes.edgecolor": _FRAME,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": _TEXT,
    "xtick.color": _TEXT,
    "ytick.color": _TEXT,
    "text.color": _TEXT,
    "text.parse_math": False,  # a data set's name may have a dollar sign
}


def figure1(rows: Sequence[Row], png: Path, svg: Path, *, study: str, split: str) -> None:
    """Accuracy against the number of real shots: on average over the data sets, with what synthetic images add beside
    it, and on each data set.

    rows: as `few_shot_tables.figure1` gives them, with CT w. init and CT w. Syn among the methods. The y axes start
    where these two and zero-shot CLIP do; where a baseline lies far below, its value stands at the foot of the panel.
    Writes a PNG of 160 dots per inch and an SVG whose text is text.
    """
    from matplotlib import style

    with style.context(["default", _SETTINGS]):
        figure = _draw_figure1(rows, study, split)
        figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions from low to high, at least `gap` apart and in the order of `wanted`, with the least squared distance to
    it: where labels go that would lie on each other. Where they do not all fit, the gap shrinks.

    Subtracting what the gaps take leaves an isotonic regression, solved by pooling adjacent violators.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    pools: list[list[float]] = []  # sum and number of what shares a position
    for rank, i in enumerate(order):
        pools.append([wanted[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += count
    levels = [total / count for total, count in pools for _ in range(int(count))]
    top = high - (len(wanted) - 1) * gap
    positions = [0.0] * len(wanted)
    for rank, (i, level) in enumerate(zip(order, levels, strict=True)):
        positions[i] = min(max(level, low), top) + rank * gap
    return positions


def _draw_figure1(rows: Sequence[Row], study: str, split: str) -> Figure:
    from matplotlib.figure import Figure

    datasets = [name for name in dict.fromkeys(row["dataset"] for row in rows) if name != "average"]
    panels = datasets if len(datasets) > 1 else []  # of one data set the average says it all
    columns = 2 if len(panels) in (0, 2, 4) else 3 if len(panels) <= 6 else 4
    lines = math.ceil(len(panels) / columns)
    # The two panels above share the width of those below.
    cell, height, height_above = (4.3, 2.5, 3.1) if columns == 2 else (3.4, 2.3, 3.1)
    footer = [_FOOTER.format(study=study), *_not_computed(rows)]
    foot = _FOOT + (len(footer) - 1) * _LINE / 72
    width, total = columns * cell, _HEAD + height_above + lines * height + foot
    figure = Figure(figsize=(width, total), facecolor="white")

    def axes(left: float, top: float, wide: float, high: float) -> Axes:
        box = (left + _LEFT, total - top - high + _BELOW, wide - _LEFT - _RIGHT, high - _ABOVE - _BELOW)
        return figure.add_axes((box[0] / width, box[1] / total, box[2] / width, box[3] / total))

    average = [row for row in rows if row["dataset"] == "average"]
    title = f"Average of {len(datasets)} data sets" if panels else datasets[0]
    _accuracies(axes(0, _HEAD, width / 2, height_above), average, title)
    _gains(axes(width / 2, _HEAD, width / 2, height_above), rows, panels)
    for number, name in enumerate(panels):
        line, column = divmod(number, columns)
        panel = axes(column * cell, _HEAD + height_above + line * height, cell, height)
        _accuracies(panel, [row for row in rows if row["dataset"] == name], name)
    for height_of_text, text, size, weight in (
        (0.2, _headline(average), 10.5, "bold"),
        (0.6, _how_to_read(average, split), _FONT, "normal"),
        (total - (0.12 if len(footer) == 1 else 0.2), "\n".join(footer), _FONT, "normal"),
    ):
        figure.text(0.1 / width, 1 - height_of_text / total, text, fontsize=size, fontweight=weight, va="center")
    return figure


def _not_computed(rows: Sequence[Row]) -> list[str]:
    """A line that says which methods have no line in which panels."""
    where: dict[str, list[str]] = {}
    for dataset, method in notes(rows):
        where.setdefault(METHODS[method], []).append(dataset)
    missing = "; ".join(f"{name} on {', '.join(datasets)}" for name, datasets in where.items())
    return [f"Not computed: {missing}. The CSV says why."] if missing else []


def _headline(average: Sequence[Row]) -> str:
    """What is seen, in numbers, with fewest and with most shots: a title must not say more than they do."""
    fewest, *rest = _at_the_ends(average)
    parts = [f"{_gain(fewest)} points at {shots_text(fewest['shots'])}"]
    parts += [f"{_gain(row)} at {shots_text(row['shots'])}" for row in rest]
    return f"With synthetic images: {', '.join(parts)}"


def _how_to_read(average: Sequence[Row], split: str) -> str:
    seeds = max(row["seeds"] for row in average if row["seeds"])
    lines = [
        f"Top-1 accuracy (%) on the {split} images, mean of {seeds} seeds that each draw other shots. "
        "Brackets and bands: 95% intervals.",
        f"{METHODS['ct_init']}: classifier tuned on the real shots alone. "
        f"{METHODS['ct_syn']}: on these and on synthetic images drawn from them, (B): from text.",
    ]
    if _has_control(average):
        over = [f"{_gain(row, 'over_chosen')} at {shots_text(row['shots'])}" for row in _at_the_ends(average)]
        lines.append(
            f"{METHODS['ct_init_chosen']}: on these alone, as long as is best on validation. "
            f"{METHODS['ct_syn']} over it: {', '.join(over)}."
        )
    return "\n".join(lines)


def _at_the_ends(average: Sequence[Row]) -> list[Row]:
    """What synthetic images add with fewest and with most shots; one row if these are the same."""
    gains = {row["shots"]: row for row in average if row["method"] == "ct_syn"}
    return [gains[n] for n in sorted({min(gains), max(gains)})]


def _has_control(average: Sequence[Row]) -> bool:
    return any(row["method"] == "ct_init_chosen" for row in average)


def _gain(row: Row, over: str = "gain") -> str:
    if row.get(over) is None:
        return ""
    low, high = row[f"{over}_low"], row[f"{over}_high"]
    interval = "" if low is None else f" [{low:.1f}, {high:.1f}]"
    return f"{row[over]:+.1f}{interval}".replace("-", "\N{MINUS SIGN}")


def _accuracies(axes: Axes, rows: Sequence[Row], title: str) -> None:
    """One panel of accuracies: lines named at their ends, zero-shot CLIP at 0 shots and as a level to compare with."""
    computed = [row for row in rows if not row["note"]]
    lines = {
        method: sorted((row["shots"], row) for row in computed if row["method"] == method)
        for method in _STYLES
        if any(row["method"] == method for row in computed)
    }
    (zero_shot,) = [row["top1"] for row in rows if row["method"] == "zero_shot"]
    main = [row for method, line in lines.items() if _STYLES[method].main for _, row in line]
    low = min(zero_shot, *(_low(row) for row in main))
    high = max(zero_shot, *(_high(row) for row in main))
    low = max(low - (high - low) / 3, min([low, *(row["top1"] for line in lines.values() for _, row in line)]))
    high = max(high, *(row["top1"] for line in lines.values() for _, row in line))
    first, last = _axes_of_shots(axes, [n for n, _ in lines["ct_init"]], low, high)
    axes.set_title(title, loc="left", fontsize=_FONT + 1, fontweight="bold")

    axes.plot(
        [first, last], [zero_shot, zero_shot], color=_ZERO_SHOT.colour, linestyle=_ZERO_SHOT.dashes, linewidth=0.9
    )
    axes.plot([first], [zero_shot], color=_ZERO_SHOT.colour, marker=_ZERO_SHOT.marker, markersize=9, clip_on=False)
    names = [(zero_shot, METHODS["zero_shot"], _ZERO_SHOT)]
    below: dict[float, list[float]] = {}
    for method, line in lines.items():
        kind = _STYLES[method]
        places, values = [math.log2(n) for n, _ in line], [row["top1"] for _, row in line]
        _line(axes, places, values, kind)
        if kind.main:
            _band(axes, places, [row for _, row in line], kind.colour)
        names.append((values[-1], METHODS[method], kind))
        for place, value in zip(places, values, strict=True):
            if value < axes.get_ylim()[0]:
                below.setdefault(place, []).append(value)
    for place, missed in below.items():
        text = "\N{BLACK DOWN-POINTING SMALL TRIANGLE}" + ", ".join(f"{value:.0f}" for value in sorted(missed))
        axes.annotate(text, (place, axes.get_ylim()[0]), (0, 2), textcoords="offset points", color=_QUIET, ha="center")
    _name_lines(axes, last, names)


def _gains(axes: Axes, rows: Sequence[Row], datasets: Sequence[str]) -> None:
    """What synthetic images add: the mean over the data sets with its interval, and each data set."""
    lines = {
        name: sorted((row["shots"], row) for row in rows if row["dataset"] == name and row["method"] == "ct_syn")
        for name in (*datasets, "average")
    }
    average = [row for _, row in lines["average"]]
    over = [row["over_chosen"] for row in average if row.get("over_chosen") is not None]
    values = [row["gain"] for line in lines.values() for _, row in line] + over
    ends = [row[end] for _, row in lines["average"] for end in ("gain_low", "gain_high") if row[end] is not None]
    _, last = _axes_of_shots(
        axes, [n for n, _ in lines["average"]], min(0.0, *values, *ends), max(0.0, *values, *ends), 1
    )
    axes.set_title("What synthetic images add (points)", loc="left", fontsize=_FONT + 1, fontweight="bold")
    axes.axhline(0, color=_TEXT, linewidth=0.8)
    names = []
    for name, line in lines.items():
        whole = name == "average"
        kind = _STYLES["ct_syn"] if whole else _DATASET
        places, gains = [math.log2(n) for n, _ in line], [row["gain"] for _, row in line]
        _line(axes, places, gains, kind)
        names.append((gains[-1], METHODS["ct_syn"] if whole and not datasets else name, kind))
    places = [math.log2(n) for n, _ in lines["average"]]
    ends_of = [{"low": row["gain_low"], "high": row["gain_high"]} for row in average]
    _band(axes, places, ends_of, _STYLES["ct_syn"].colour)
    if over:
        control = _STYLES["ct_init_chosen"]
        _line(axes, places, over, control)
        ends_of = [{"low": row["over_chosen_low"], "high": row["over_chosen_high"]} for row in average]
        _band(axes, places, ends_of, control.colour)
        names.append((over[-1], "to steps chosen", control))
    _name_lines(axes, last, names)


def _axes_of_shots(axes: Axes, shots: Sequence[int], low: float, high: float, start: int = 0) -> tuple[float, float]:
    """Set up the axes: numbers of shots by their logarithm, none a step before the first. Gives both ends."""
    from matplotlib.ticker import MaxNLocator

    places = [math.log2(n) for n in shots]
    ticks = [(places[0] - 1, 0), *zip(places, shots, strict=True)][start:]
    axes.set_xticks([place for place, _ in ticks], [str(n) for _, n in ticks])
    axes.set_xlim(ticks[0][0] - 0.25, ticks[-1][0] + 0.1)
    margin = 0.05 * (high - low) or 1.0
    axes.set_ylim(low - margin, high + margin)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.grid(axis="y", color="#ececec", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=2.5, width=0.6, color=_FRAME)
    axes.set_xlabel("real shots per class", labelpad=2)
    return ticks[0][0], ticks[-1][0]


def _line(axes: Axes, places: Sequence[float], values: Sequence[float], kind: _Style) -> None:
    axes.plot(
        places,
        values,
        color=kind.colour,
        linestyle=kind.dashes,
        linewidth=kind.width,
        marker=kind.marker,
        markersize=5 if kind.main else 3.5,
        markerfacecolor=kind.colour if kind.filled else "white",
        zorder=3 + kind.main,
    )


def _band(axes: Axes, places: Sequence[float], rows: Sequence[Row], colour: str) -> None:
    known = [(place, row) for place, row in zip(places, rows, strict=True) if row["low"] is not None]
    low, high = [row["low"] for _, row in known], [row["high"] for _, row in known]
    axes.fill_between([place for place, _ in known], low, high, color=colour, alpha=0.16, linewidth=0)


def _name_lines(axes: Axes, last: float, names: Sequence[tuple[float, str, _Style]]) -> None:
    """Names at the ends of lines, moved apart where they would lie on each other, with a thin line to where it ends."""
    low, high = axes.get_ylim()
    wide, tall = (length / axes.figure.dpi for length in axes.bbox.size)  # inches
    per_point = (high - low) / (72 * tall)
    x = 1 + _LEADER / wide
    wanted = [min(max(value, low), high) for value, _, _ in names]
    places = spread(wanted, _LINE * per_point, low - 2 * per_point, high + 2 * per_point)
    for (_, name, kind), end, place in zip(names, wanted, places, strict=True):
        axes.annotate(
            name if len(name) <= _NAME else name[: _NAME - 1] + "\N{HORIZONTAL ELLIPSIS}",
            (last, end),
            (x, place),
            textcoords=axes.get_yaxis_transform(),
            color=kind.colour if kind is not _DATASET else _QUIET,
            fontweight="bold" if kind.main else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": kind.colour,
                "linewidth": 0.5,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
        )


def _low(row: Row) -> float:
    return float(row["top1"] if row["low"] is None else row["low"])


def _high(row: Row) -> float:
    return float(row["top1"] if row["high"] is None else row["high"])
