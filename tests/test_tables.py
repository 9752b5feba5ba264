"""Tables from cells: blocks per encoder, averages, and the paper's values where they belong and nowhere else."""

import csv
import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline_lib.records import Cell, predictions_schema
from pipeline_lib.tables import as_csv, as_markdown, as_metrics, paper_values, table1, table2

RN50 = "open_clip:RN50:openai"
# Top-1 of the authors' later table, ViT-B/16, and of the paper, RN50.
PAPER = {("cifar10", "rn50"): (70.31, 80.06), ("eurosat", "rn50"): (37.51, 55.37)}


def cell(dataset: str, encoder_name: str, encoder: str, split: str = "test") -> Cell:
    """A cell of four images: zero-shot right on one, tuned on three."""
    return Cell(
        dataset=dataset,
        task="object-level",
        pool=dataset,
        strategy="basic",
        clip_filter=False,
        loss="ce",
        n_classes=2,
        n_test=4,
        images_per_class=10,
        n_kept=20,
        seeds=[0],
        clip=25.0,
        clip_syn=75.0,
        clip_syn_per_seed=[75.0],
        gain=50.0,
        gain_low=0.0,
        gain_high=100.0,
        zero_shot_per_class={},
        tuned_per_class={},
        generator="hub:a/b@c",
        encoder_name=encoder_name,
        encoder=encoder,
        split=split,
        predictions="predictions/x",
    )


def predictions(_: str) -> pa.Table:
    tuned = pa.FixedSizeListArray.from_arrays(pa.array([0, 0, 1, 0], pa.int32()), 1)
    columns = [["a", "b", "c", "d"], [0, 1, 2, 3], [0, 0, 1, 1], [1, 1, 1, 0], tuned]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, predictions_schema(1), strict=True)],
        schema=predictions_schema(1),
    )


def rows(cells: list[Cell]) -> list[dict[str, Any]]:
    return table1(cells, predictions, 100)


def test_a_block_of_rows_per_encoder_each_with_its_average():
    cells = [cell(name, encoder, f"sha256:{encoder}") for encoder in ("b", "a") for name in ("x", "y", "z")]
    assert [(row["encoder"], row["dataset"]) for row in rows(cells)] == [
        *(("b", name) for name in ("x", "y", "z", "average")),
        *(("a", name) for name in ("x", "y", "z", "average")),
    ]
    metrics = as_metrics("table1", rows(cells))["table1"]
    assert metrics["a.clip"] == 25.0 and metrics["b.gain"] == 50.0
    read = list(csv.DictReader(io.StringIO(as_csv("table1", rows(cells)))))
    assert len(read) == 8 and read[0]["encoder"] == "b" and read[0]["clip"] == "25.00"
    assert "| b | average |" in as_markdown("table1", rows(cells), "study", cells)


@pytest.mark.parametrize(
    "encoder",
    [
        RN50,
        "open_clip:RN50-quickgelu:openai",
        f"open_clip:RN50:openai@{'0' * 40}",
        f"hub:timm/resnet50_clip.openai@{'0' * 40}",
    ],
)
def test_the_papers_values_stand_where_data_set_and_encoder_are_the_papers(encoder: str):
    first, second, average = rows([cell("cifar10", "any", encoder), cell("eurosat", "any", encoder)])
    assert (first["paper_clip"], first["paper_clip_syn"]) == PAPER["cifar10", "rn50"]
    assert (second["paper_clip"], second["paper_clip_syn"]) == PAPER["eurosat", "rn50"]
    assert average["paper_clip"] == pytest.approx((70.31 + 37.51) / 2)


def test_vit_has_the_values_of_the_authors_later_table():
    (row, _) = rows([cell("cifar10", "any", "open_clip:ViT-B-16:openai")])
    assert (row["paper_clip"], row["paper_clip_syn"]) == (90.80, 92.37)


@pytest.mark.parametrize(
    "other",
    [
        cell("cifar10", "clip_rn50", "open_clip:RN50:yfcc15m"),  # other weights under the paper's name
        cell("cifar10", "clip_rn50", "sha256:0"),
        cell("birds", "clip_rn50", RN50),
        cell("cifar10", "clip_rn50", RN50, split="validation"),
    ],
    ids=["weights", "folder", "data set", "split"],
)
def test_elsewhere_they_do_not(other: Cell):
    (row, average) = rows([other])
    assert row["paper_clip"] is None and row["paper_clip_syn"] is None and average["paper_clip"] is None
    # One row without: the average of the others would be compared with an average of more.
    mixed = rows([cell("cifar10", "a", RN50), cell("birds", "a", RN50)])
    assert mixed[-1]["paper_clip"] is None


def test_the_papers_own_average_gain_follows_from_its_rows():
    """Table 1 prints averages that do not follow from its rows; the gain of 4.31 does."""
    values = paper_values()
    gains = [
        values["1", row, "clip_rn50_syn"] - value
        for (table, row, column), value in values.items()
        if table == "1" and column == "clip_rn50"
    ]
    assert len(gains) == 17
    assert np.mean(gains) == pytest.approx(4.31, abs=0.005)


def test_table_2_has_the_papers_values_of_rn50():
    """Zero-shot and each method of a data set; other encoders and the averages have none."""
    methods = [("basic", False, "ce"), ("language_enhancement", True, "sce")]
    cells = [
        cell("cifar10", "any", RN50).model_copy(update={"strategy": strategy, "clip_filter": clip_filter, "loss": loss})
        for strategy, clip_filter, loss in methods
    ]
    found = [row["paper_top1"] for row in table2(cells, predictions, 100)]
    assert found == [70.31, 77.39, 80.06, None, None, None]
    others = [one.model_copy(update={"encoder": "open_clip:ViT-B-16:openai"}) for one in cells]
    assert all(row["paper_top1"] is None for row in table2(others, predictions, 100))
    text = as_markdown("table2", table2(cells, predictions, 100), "study", cells)
    assert "the values that the paper prints" in text
    assert "the values that the paper prints" not in as_markdown(
        "table2", table2(others, predictions, 100), "s", others
    )
