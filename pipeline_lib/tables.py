"""Tables from cells: CSV for machines, Markdown for people, the paper's value beside ours where it exists."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline_lib import shipped
from pipeline_lib.metrics.cells import difference
from pipeline_lib.metrics.classification import Gain, average_gain
from pipeline_lib.records import Cell

Row = dict[str, Any]
COLUMNS = {
    "table1": [
        *("encoder", "dataset", "task", "n_classes", "n_test", "images_per_class", "clip", "clip_syn"),
        *("gain", "gain_low", "gain_high", "seeds", "paper_clip", "paper_clip_syn"),
    ],
    "table2": ["dataset", "prompts", "filter", "loss", "top1", "gain", "gain_low", "gain_high", "paper_top1"],
}
TITLES = {
    "table1": "Table 1: zero-shot recognition with synthetic images",
    "table2": "Table 2: prompts, filter and loss",
}
_TEXT_COLUMNS = frozenset({"encoder", "dataset", "task", "prompts", "filter", "loss"})
# The encoders of the paper's tables: how a plan's identity of the same weights begins. open_clip's tag `openai` of
# these architectures, and the hub repositories that it stands for.
PAPER_ENCODERS = {
    "open_clip:RN50:openai": "clip_rn50",
    "open_clip:RN50-quickgelu:openai": "clip_rn50",
    "hub:timm/resnet50_clip.openai@": "clip_rn50",
    "open_clip:ViT-B-16:openai": "clip_vitb16",
    "open_clip:ViT-B-16-quickgelu:openai": "clip_vitb16",
    "hub:timm/vit_base_patch16_clip_224.openai@": "clip_vitb16",
}


@cache
def paper_values() -> Mapping[tuple[str, str, str], float]:
    """The paper's numbers by (table, row, column), as in its tables; columns `clip_vitb16*` were published later."""
    text = shipped.read_text("paper_tables.csv")
    return {(row["table"], row["row"], row["column"]): float(row["value"]) for row in csv.DictReader(io.StringIO(text))}


def average_over_datasets(cells: Sequence[Cell], read: Callable[[str], pa.Table], resamples: int) -> Gain:
    """Mean gain over data sets; those that share test images are resampled together."""
    return average_gain([difference(cell, read(cell.predictions)) for cell in cells], resamples=resamples)


def table1(cells: Sequence[Cell], read: Callable[[str], pa.Table], resamples: int) -> list[Row]:
    """Paper, Table 1: per encoder one row per data set, then an average row."""
    by_encoder: dict[str, list[Cell]] = {}
    for cell in cells:
        by_encoder.setdefault(cell.encoder_name, []).append(cell)
    return [row for group in by_encoder.values() for row in _table1_block(group, read, resamples)]


def _table1_block(cells: Sequence[Cell], read: Callable[[str], pa.Table], resamples: int) -> list[Row]:
    rows: list[Row] = [
        {
            "encoder": cell.encoder_name,
            "dataset": cell.dataset,
            "task": cell.task,
            "n_classes": cell.n_classes,
            "n_test": cell.n_test,
            "images_per_class": cell.images_per_class,
            "clip": cell.clip,
            "clip_syn": cell.clip_syn,
            "gain": cell.gain,
            "gain_low": cell.gain_low,
            "gain_high": cell.gain_high,
            "seeds": len(cell.seeds),
            "paper_clip": _paper_table1(cell, ""),
            "paper_clip_syn": _paper_table1(cell, "_syn"),
        }
        for cell in cells
    ]
    average = average_over_datasets(cells, read, resamples)
    # The paper's average stands beside ours only if every one of our rows has a paper's value.
    comparable = all(row["paper_clip"] is not None for row in rows)
    rows.append(
        {
            "encoder": cells[0].encoder_name,
            "dataset": "average",
            "task": "",
            "n_classes": "",
            "n_test": average.n,  # distinct images: several data sets may show the same ones
            "images_per_class": cells[0].images_per_class,
            "clip": _mean(row["clip"] for row in rows),
            "clip_syn": _mean(row["clip_syn"] for row in rows),
            "gain": average.value,
            "gain_low": average.low,
            "gain_high": average.high,
            "seeds": len(cells[0].seeds),
            "paper_clip": _mean(row["paper_clip"] for row in rows) if comparable else None,
            "paper_clip_syn": _mean(row["paper_clip_syn"] for row in rows) if comparable else None,
        }
    )
    return rows


def table2(cells: Sequence[Cell], read: Callable[[str], pa.Table], resamples: int) -> list[Row]:
    """Paper, Table 2: zero-shot and {B, LE, LE+CF} x {CE, SCE} per data set, then the averages over the data sets."""
    by_dataset: dict[str, list[Cell]] = {}
    for cell in cells:
        by_dataset.setdefault(cell.dataset, []).append(cell)
    rows: list[Row] = []
    for dataset, group in by_dataset.items():
        rows.append(_zero_shot_row(dataset, group[0].clip, _paper_table2(group[0], "clip")))
        for cell in group:
            gain = (cell.gain, cell.gain_low, cell.gain_high)
            rows.append(_method_row(dataset, cell, cell.clip_syn, gain, _paper_table2(cell, _paper_method(cell))))
    rows.append(_zero_shot_row("average", _mean(group[0].clip for group in by_dataset.values()), None))
    for same_method in zip(*by_dataset.values(), strict=True):
        average = average_over_datasets(same_method, read, resamples)
        top1 = _mean(cell.clip_syn for cell in same_method)
        gain = (average.value, average.low, average.high)
        rows.append(_method_row("average", same_method[0], top1, gain, None))
    return rows


TABLES: dict[str, Callable[[Sequence[Cell], Callable[[str], pa.Table], int], list[Row]]] = {
    "table1": table1,
    "table2": table2,
}


def as_csv(table: str, rows: Sequence[Row]) -> str:
    """CSV with the table's columns; numbers to two decimals; a missing value is an empty field."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS[table])
    writer.writerows([formatted(row[column]) for column in COLUMNS[table]] for row in rows)
    return buffer.getvalue()


def as_metrics(table: str, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The averages, few enough to read in one line of `dvc metrics show` and `dvc metrics diff`."""
    averages = [row for row in rows if row["dataset"] == "average"]
    if table == "table1":
        numbers = {
            f"{row['encoder']}.{name}": row[name]
            for row in averages
            for name in ("clip", "clip_syn", "gain", "gain_low", "gain_high")
        }
    else:
        numbers = {_method_name(row): row["top1"] for row in averages}
    return {table: {name: round(number, 4) for name, number in numbers.items()}}


def _method_name(row: Row) -> str:
    return "_".join(word for word in (row["prompts"], row["filter"], row["loss"]) if word not in ("", "none"))


def as_markdown(table: str, rows: Sequence[Row], study: str, cells: Sequence[Cell]) -> str:
    """The table for people, with what must be known to read it."""
    columns = COLUMNS[table]
    seeds = len(cells[0].seeds)
    lines = [
        f"# {TITLES[table]}",
        "",
        f"Study `{study}`. Top-1 accuracy in percent on the {cells[0].split} images, mean of {seeds} "
        f"seed{'s' if seeds > 1 else ''} of classifier tuning. `gain` is in percentage points over zero-shot CLIP, "
        "`gain_low` and `gain_high` its 95% paired bootstrap interval over the images; in averages, images that "
        "several data sets share are resampled together.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "|".join("---" if column in _TEXT_COLUMNS else "---:" for column in columns) + "|",
        *("| " + " | ".join(formatted(row[column]) for column in columns) + " |" for row in rows),
        "",
    ]
    if any(row[column] is not None for row in rows for column in columns if column.startswith("paper_")):
        lines += [
            "`paper_*` are the values that the paper prints (its authors' later table for ViT-B/16) for GLIDE and "
            "2,000 images per class, beside ours where data set and encoder are the same.",
            "",
        ]
    if all(len(cell.seeds) > 1 for cell in cells):
        spread = [float(np.std(cell.clip_syn_per_seed, ddof=1)) for cell in cells]
        lines += [f"Standard deviation over seeds: at most {max(spread):.2f} points.", ""]
    return "\n".join(lines)


def _zero_shot_row(dataset: str, top1: float, paper: float | None) -> Row:
    row: Row = dict.fromkeys(COLUMNS["table2"])
    empty = dict.fromkeys(("filter", "loss"), "")
    return row | empty | {"dataset": dataset, "prompts": "zero_shot", "top1": top1, "paper_top1": paper}


def _method_row(dataset: str, cell: Cell, top1: float, gain: tuple[float, float, float], paper: float | None) -> Row:
    value, low, high = gain
    return {
        "dataset": dataset,
        "prompts": cell.strategy,
        "filter": "clip_filter" if cell.clip_filter else "none",
        "loss": cell.loss,
        "top1": top1,
        "gain": value,
        "gain_low": low,
        "gain_high": high,
        "paper_top1": paper,
    }


def _paper_encoder(cell: Cell) -> str | None:
    """The paper's column of the cell's encoder; None where it is another, or where the test split was not used."""
    if cell.split != "test":
        return None
    return next((column for start, column in PAPER_ENCODERS.items() if cell.encoder.startswith(start)), None)


def _paper_table1(cell: Cell, suffix: str) -> float | None:
    """The paper's value where data set and encoder are the paper's."""
    encoder = _paper_encoder(cell)
    return None if encoder is None else paper_values().get(("1", cell.dataset, encoder + suffix))


def _paper_table2(cell: Cell, column: str) -> float | None:
    """The paper's value where data set and encoder are the paper's: this table is of RN50."""
    return paper_values().get(("2", cell.dataset, column)) if _paper_encoder(cell) == "clip_rn50" else None


def _paper_method(cell: Cell) -> str:
    prompts = "b" if cell.strategy == "basic" else "le"
    return "_".join([prompts, *(["cf"] if cell.clip_filter else []), cell.loss])


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def formatted(value: Any) -> str:
    """A value of a table as text: numbers to two decimals, nothing for what is missing."""
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)
