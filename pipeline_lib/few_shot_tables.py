"""Figure 1's numbers and Tables 5 to 7, from cells (paper, section 3.2)."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline_lib.methods import FEW_SHOT_METHODS
from pipeline_lib.metrics.few_shot import Contrast, contrast
from pipeline_lib.metrics.outcomes import Outcomes, Read
from pipeline_lib.records import FewShotCells
from pipeline_lib.tables import PAPER_ENCODERS, Row, formatted, paper_values

METHODS = {
    "zero_shot": "Zero-shot CLIP",
    "ct_init": "CT w. init",
    "ct_syn": "CT w. Syn",
    "ct_syn_b": "CT w. Syn (B)",
    "ct_init_chosen": "CT steps chosen",
    "tip_adapter": "Tip-Adapter",
    "tip_adapter_f": "Tip-Adapter-F",
    "coop": "CoOp",
    "linear_probe": "Linear probe",
}
"""Figure 1's methods as the paper writes them, in the order of its rows."""
STRATEGIES = {"B": "ct_syn_b", "RF": "ct_syn_rf", "RG": "ct_syn"}
"""The method of each row of Table 5; all are mix training."""
BATCH_NORM = {
    ("real", "trained"): "bn_real_trained",
    ("real", "frozen"): "ct_init",
    ("synthetic", "trained"): "bn_syn_trained",
    ("synthetic", "frozen"): "bn_syn_frozen",
}
"""The method of each row of Table 6, by training data and batch norm."""
TRAININGS = {"syn_then_real": "syn_then_real", "real_then_syn": "real_then_syn", "mix": "ct_syn"}
"""The method of each row of Table 7; all use real guidance."""

_TOP1 = ("top1", "low", "high")
_GAIN = ("gain", "gain_low", "gain_high")
_CONTROL = ("over_chosen", "over_chosen_low", "over_chosen_high")
_DIFFERENCE = ("difference", "difference_low", "difference_high")
COLUMNS = {
    "figure1": ["dataset", "method", "shots", *_TOP1, *_GAIN, *_CONTROL, "seeds", "n_test", "note"],
    "table5": ["dataset", "shots", "strategy", "synthetic_images", *_TOP1, *_DIFFERENCE, "paper_top1"],
    "table6": ["dataset", "shots", "train_data", "batch_norm", *_TOP1, *_DIFFERENCE, "paper_top1", "note"],
    "table7": ["dataset", "shots", "training", *_TOP1, *_DIFFERENCE, "paper_top1"],
    "findings": ["statement", "contrast", "estimate", "low", "high", "verdict", "datasets", "seeds"],
}
TITLES = {
    "figure1": "Figure 1: few-shot recognition with synthetic images",
    "table5": "Table 5: basic strategy (B), real filtering (RF), real guidance (RG)",
    "table6": "Table 6: batch norm frozen or trained",
    "table7": "Table 7: mix training and phase-wise training",
    "findings": "The paper's few-shot statements",
}
_TEXT_COLUMNS = frozenset({"dataset", "method", "strategy", "train_data", "batch_norm", "training", "note"}) | {
    *("statement", "contrast", "verdict"),
}
# The columns whose values name a number of `as_metrics`.
_METRIC_NAMES = {
    "figure1": ("method", "shots"),
    "table5": ("strategy",),
    "table6": ("train_data", "batch_norm"),
    "table7": ("training", "shots"),
}


@dataclass(frozen=True)
class Encodes:
    """Images that went through the encoder for Figure 1, to learn from and to be tested on; and how many it would have
    been if every run had encoded its own: what it is fitted to and, where it chooses something, its validation images,
    not what B's filter had to choose from."""

    made_training: int
    made_test: int
    independent_training: int
    independent_test: int

    def __str__(self) -> str:
        made, independent = self.made_training + self.made_test, self.independent_training + self.independent_test
        ratio = f" ({independent / made:.1f} times as many)" if made else ""
        return (
            f"Encodes made: {made:,}, {self.made_training:,} of them to learn from; independent runs would make "
            f"{independent:,}{ratio}, {self.independent_training:,} of them to learn from"
        )


def learned_from(cells: FewShotCells) -> int:
    """Images that the runs of one of Figure 1's methods learn from: a run is given validation images whether its method
    chooses something on them or not, and counts them only if it does."""
    counted = ["n_real", "n_synthetic"]
    if FEW_SHOT_METHODS[cells.method].uses_validation:
        counted.append("n_validation")
    return sum(run.get(name, 0) for cell in cells.cells for run in cell.runs for name in counted)


def figure1(cells: Sequence[FewShotCells], read: Read) -> list[Row]:
    """Paper, Figure 1: per data set, then on average, each method at each number of shots, zero-shot CLIP at 0.

    `gain` is over CT w. init with the same shots, `over_chosen` over its control, whose number of steps was chosen on
    validation images. Of a method that could not be run on a data set the rows there, and those of the average, are
    empty, and `note` says why. Raises ValueError where data sets differ in methods or shots.
    """
    outcomes = Outcomes(cells, read)
    shots = outcomes.shots(outcomes.datasets[0], "ct_init")
    tuned = [method for method in METHODS if any(one.method == method for one in cells)]
    points = [("zero_shot", 0), *((method, n) for method in tuned for n in shots)]
    rows: list[Row] = []
    for name, datasets in [*((name, [name]) for name in outcomes.datasets), ("average", outcomes.datasets)]:
        n_test = contrast(outcomes.mean("zero_shot", datasets, [0])).n
        for method, n in points:
            note = _why_empty(outcomes, method, datasets) if method in tuned else ""
            top1 = None if note else contrast(outcomes.mean(method, datasets, [n]))
            gains = {
                base: contrast(outcomes.gain(method, base, datasets, [n]))
                for base in ("ct_init", "ct_init_chosen")
                if top1 and base in tuned and method not in ("zero_shot", "ct_init", base)
            }
            rows.append(
                {
                    **{"dataset": name, "method": method, "shots": n},
                    **as_columns(_TOP1, top1),
                    **as_columns(_GAIN, gains.get("ct_init")),
                    **as_columns(_CONTROL, gains.get("ct_init_chosen")),
                    "seeds": (top1.n_seeds or None) if top1 else None,
                    "n_test": n_test,  # of the average: distinct images, as several data sets may show the same ones
                    "note": note,
                }
            )
    return rows


def _why_empty(outcomes: Outcomes, method: str, datasets: Sequence[str]) -> str:
    """Why there is no accuracy of a method on these data sets together; nothing where there is one."""
    reasons = {name: reason for name in datasets if (reason := outcomes.not_computed(name, method)) is not None}
    if len(datasets) > 1 and reasons:
        return f"not computed on {', '.join(reasons)}"
    return "".join(reasons.values())


def table5(cells: Sequence[FewShotCells], read: Read) -> list[Row]:
    """Paper, Table 5: strategies for synthetic images, at the largest number of shots, on one data set.

    `synthetic_images` is how many were trained on, the mean over seeds, where the records say so (`n_synthetic`).
    """
    outcomes = Outcomes(cells, read)
    dataset = outcomes.dataset
    shots = outcomes.shots(dataset, STRATEGIES["RG"])[-1]
    rows: list[Row] = []
    for strategy, method in STRATEGIES.items():
        against = outcomes.gain(method, STRATEGIES["B"], [dataset], [shots]) if strategy != "B" else []
        rows.append(
            {
                **{"dataset": dataset, "shots": shots, "strategy": strategy},
                "synthetic_images": _synthetic_images(outcomes.cells_of(dataset, method), shots),
                **as_columns(_TOP1, contrast(outcomes.mean(method, [dataset], [shots]))),
                **as_columns(_DIFFERENCE, contrast(against) if against else None),
                "paper_top1": _paper(cells[0], "5", f"{dataset}_{shots}shot", strategy.lower()),
            }
        )
    return rows


def table6(cells: Sequence[FewShotCells], read: Read) -> list[Row]:
    """Paper, Table 6: training on real shots (the largest number) or on synthetic images alone, with the encoder's
    batch norm trained or frozen, on one data set.

    Of an encoder without batch norm the rows that train it are empty (a method without cells), and `note` says why.
    """
    outcomes = Outcomes(cells, read)
    dataset = outcomes.dataset
    most = outcomes.shots(dataset, BATCH_NORM["real", "frozen"])[-1]
    rows: list[Row] = []
    for (data, batch_norm), method in BATCH_NORM.items():
        shots, paper_row = (most, f"{dataset}_{most}shot_real") if data == "real" else (0, f"{dataset}_synthetic")
        trained = BATCH_NORM[data, "trained"]
        top1 = outcomes.mean(method, [dataset], [shots]) if outcomes.shots(dataset, method) else []
        comparable = top1 and method != trained and outcomes.shots(dataset, trained)
        against = outcomes.gain(method, trained, [dataset], [shots]) if comparable else []
        rows.append(
            {
                **{"dataset": dataset, "shots": shots, "train_data": data, "batch_norm": batch_norm},
                **as_columns(_TOP1, contrast(top1) if top1 else None),
                **as_columns(_DIFFERENCE, contrast(against) if against else None),
                "paper_top1": _paper(cells[0], "6", paper_row, f"bn_{batch_norm}"),
                "note": outcomes.not_computed(dataset, method) or "",
            }
        )
    return rows


def table7(cells: Sequence[FewShotCells], read: Read) -> list[Row]:
    """Paper, Table 7: phase-wise and mix training at each number of shots, on one data set."""
    outcomes = Outcomes(cells, read)
    dataset = outcomes.dataset
    rows: list[Row] = []
    for shots in outcomes.shots(dataset, TRAININGS["mix"]):
        for training, method in TRAININGS.items():
            against = outcomes.gain(method, TRAININGS["mix"], [dataset], [shots]) if training != "mix" else []
            rows.append(
                {
                    **{"dataset": dataset, "shots": shots, "training": training},
                    **as_columns(_TOP1, contrast(outcomes.mean(method, [dataset], [shots]))),
                    **as_columns(_DIFFERENCE, contrast(against) if against else None),
                    "paper_top1": _paper(cells[0], "7", f"{dataset}_{shots}shot", training),
                }
            )
    return rows


TABLES: dict[str, Callable[[Sequence[FewShotCells], Read], list[Row]]] = {
    "figure1": figure1,
    "table5": table5,
    "table6": table6,
    "table7": table7,
}


def as_columns(names: Sequence[str], found: Contrast | None) -> Row:
    """Value, low and high of a contrast under three names; None where there is none."""
    values = (found.value, found.low, found.high) if found else (None, None, None)
    return dict(zip(names, values, strict=True))


def _synthetic_images(cells: FewShotCells, shots: int) -> int | None:
    (runs,) = [cell.runs for cell in cells.cells if cell.shots == shots]
    counts = [run["n_synthetic"] for run in runs if "n_synthetic" in run]
    return round(sum(counts) / len(counts)) if counts else None


def _paper(cells: FewShotCells, table: str, row: str, column: str) -> float | None:
    """The paper's value where data set, shots, split and encoder are the paper's: these tables are of RN50."""
    encoders = [encoder for start, encoder in PAPER_ENCODERS.items() if cells.encoder.startswith(start)]
    theirs = "clip_rn50" in encoders and cells.split == "test"
    return paper_values().get((table, row, column)) if theirs else None


# --- text -------------------------------------------------------------------------------------------------------------


def as_csv(table: str, rows: Sequence[Row]) -> str:
    """CSV with the table's columns; numbers to two decimals; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS[table])
    writer.writerows([formatted(row[column]) for column in COLUMNS[table]] for row in rows)
    return buffer.getvalue()


def as_metrics(table: str, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Numbers for `dvc metrics show` and `dvc metrics diff`, without those that are missing: of Figure 1 the averages
    without and with synthetic images, of Tables 5 to 7 every accuracy, of the findings every estimate."""
    if table == "findings":
        numbers = {row["statement"]: row["estimate"] for row in rows}
    else:
        shown = [row for row in rows if table != "figure1" or _in_metrics(row)]
        numbers = {"_".join(str(row[name]) for name in _METRIC_NAMES[table]): row["top1"] for row in shown}
    return {table: {name: round(number, 4) for name, number in numbers.items() if number is not None}}


def _in_metrics(row: Row) -> bool:
    return row["dataset"] == "average" and row["method"] in ("zero_shot", "ct_init", "ct_syn")


def as_markdown(
    table: str,
    rows: Sequence[Row],
    study: str,
    cells: Sequence[FewShotCells],
    encodes: Encodes | None = None,
) -> str:
    """The table for people, with what must be known to read it. Figure 1's has a column for each number of shots.

    encodes: printed below.
    """
    columns = COLUMNS[table]
    lines = [[formatted(row[column]) for column in columns] for row in rows]
    grid = _figure1_grid(rows) if table == "figure1" else _grid(columns, lines)
    text = [f"# {TITLES[table]}", "", _how_to_read(table, study, cells), "", *grid, ""]
    if table == "figure1":
        text += [f"{METHODS[method]}, {dataset}: {note}.\n" for (dataset, method), note in notes(rows).items()]
    if any(row.get("paper_top1") is not None for row in rows):
        text += ["`paper_top1` is what the paper prints, of GLIDE and CLIP RN50.", ""]
    if encodes is not None:
        text += [f"{encodes}.", ""]
    return "\n".join(text)


def notes(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """Why rows of Figure 1 are empty, by data set and method."""
    return {(row["dataset"], row["method"]): row["note"] for row in rows if row["note"]}


def _how_to_read(table: str, study: str, cells: Sequence[FewShotCells]) -> str:
    first = cells[0]
    # The seeds of runs without shots are those of tuning.
    seeds = {bool(cell.shots): len(one.seeds) for one in cells for cell in one.cells}
    alone = f"; of synthetic images alone, of {seeds[False]} seeds of tuning" if False in seeds else ""
    n_test = "" if table in ("figure1", "findings") else f"{first.n_test} "
    return (
        f"Study `{study}`, encoder `{first.encoder_name}`. Top-1 accuracy in percent on the {n_test}{first.split} "
        f"images, mean of {seeds[True]} seeds that each draw other shots{alone}. Intervals are 95%: how far a number "
        "would move with other shots and other test images of the same kind (not: with other noise of the generator). "
        f"{_READING[table]}"
    )


_READING = {
    "figure1": "The last rows of a data set are what synthetic images add, in percentage points, with intervals. CT "
    "steps chosen is our control: CT w. init with the number of steps that is best on validation images. In "
    "the average each data set counts once, and images that several data sets share are one draw (`n_test` counts "
    "them once). The CSV has the intervals of all numbers.",
    "table5": "All rows are mix training. `difference` is to B. B and RF choose from the images that passed the CLIP "
    "filter; RG's images are all that were drawn, as in the paper: so RG differs from B in the filter, too.",
    "table6": "`difference` is frozen minus trained, on the same training data.",
    "table7": "All rows use real guidance. `difference` is to mix training with the same shots.",
    "findings": "`estimate` is in percentage points. A statement holds where its interval lies above 0, does not hold "
    "where it lies below, and is open where 0 is in it. Each interval stands for itself: about one in twenty misses.",
}


def shots_text(n: int) -> str:
    """A number of shots in words."""
    return f"{n} shot{'s' if n != 1 else ''}"


def _figure1_grid(rows: Sequence[Row]) -> list[str]:
    """Methods by numbers of shots, and below each data set what synthetic images add."""
    shots = sorted({row["shots"] for row in rows})
    values = {(row["dataset"], row["method"], row["shots"]): formatted(row["top1"]) for row in rows}
    names = dict(METHODS)
    for base, columns in (("ct_init", _GAIN), ("ct_init_chosen", _CONTROL)):
        if any(row["method"] == base for row in rows):
            names[columns[0]] = f"*{METHODS['ct_syn']} over {METHODS[base]}*"
            values |= {
                (row["dataset"], columns[0], row["shots"]): _gain(row, columns)
                for row in rows
                if row["method"] == "ct_syn"
            }
    shown = {method for _, method, _ in values}
    lines = [
        [dataset, str(n_test), name, *(values.get((dataset, method, n), "") for n in shots)]
        for dataset, n_test in {row["dataset"]: row["n_test"] for row in rows}.items()
        for method, name in names.items()
        if method in shown
    ]
    return _grid(["dataset", "n_test", "method", *map(shots_text, shots)], lines)


def _gain(row: Row, columns: Sequence[str]) -> str:
    value, low, high = (row[column] for column in columns)
    interval = "" if low is None else f" [{low:.2f}, {high:.2f}]"
    return f"{value:+.2f}{interval}"


def _grid(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    rule = "|".join("---" if column in _TEXT_COLUMNS else "---:" for column in columns)
    return [f"| {' | '.join(columns)} |", f"|{rule}|", *(f"| {' | '.join(map(_escaped, line))} |" for line in lines)]


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")  # of a class name in a reason
