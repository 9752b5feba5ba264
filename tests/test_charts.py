"""Figure 1 as a picture: lines where the numbers are, names that do not lie on each other, the same bytes again."""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import isotonic_regression, minimize

from pipeline_lib.charts import figure1, spread
from pipeline_lib.few_shot_tables import METHODS

SVG = "{http://www.w3.org/2000/svg}"
BLUE, VERMILION = "#0072b2", "#d55e00"
EIGHT = ("imagenet", "caltech101", "pets", "cars", "aircraft", "sun397", "dtd", "eurosat")


def rows_of(datasets: Sequence[str], shots: Sequence[int] = (1, 2, 4, 8, 16), drop: Sequence[str] = ()) -> list[Any]:
    """All methods meet at the largest number of shots; there, names would lie on each other. The linear probe starts
    far below."""
    tuned = [method for method in METHODS if method not in ("zero_shot", *drop)]
    rows: list[dict[str, Any]] = []
    for dataset in (*datasets, "average"):
        rows.append(row(dataset, "zero_shot", 0, 40.0))
        for number, method in enumerate(tuned):
            for n in shots:
                start = 10.0 if method == "linear_probe" else 60.0 - 2 * number
                done = math.log2(n / shots[0]) / math.log2(shots[-1] / shots[0])
                rows.append(row(dataset, method, n, start + (70.0 + 0.01 * number - start) * done))
    return rows


def row(dataset: str, method: str, shots: int, top1: float, half: float = 1.0) -> dict[str, Any]:
    gain = None if method in ("zero_shot", "ct_init") else top1 - 50
    seeds = None if method == "zero_shot" else 5
    values = {
        "top1": top1,
        "low": top1 - half,
        "high": top1 + half,
        "gain": gain,
        "seeds": seeds,
        "n_test": 100,
        "note": "",
    }
    ends = {"gain_low": None if gain is None else gain - half, "gain_high": None if gain is None else gain + half}
    return {"dataset": dataset, "method": method, "shots": shots, **values, **ends}


def draw(rows: list[Any], folder: Path) -> tuple[Path, ElementTree.Element]:
    png, svg = folder / "figure1.png", folder / "figure1.svg"
    figure1(rows, png, svg, study="small", split="test")
    return png, ElementTree.fromstring(svg.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> ElementTree.Element:
    """Two data sets with all shots, as SVG."""
    return draw(rows_of(["a", "b"]), tmp_path_factory.mktemp("two"))[1]


def texts(svg: ElementTree.Element) -> list[tuple[str, float, float]]:
    """Each text with its place, in points."""
    found = []
    for element in svg.iter(f"{SVG}text"):
        place = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", element.get("transform", ""))
        x, y = place.groups() if place else (element.get("x"), element.get("y"))
        found.append(("".join(element.itertext()), float(x), float(y)))
    return found


def lines(svg: ElementTree.Element, colour: str, n_points: int) -> Iterator[np.ndarray]:
    """The lines of a colour: places of their points, float [n_points, 2]."""
    for path in svg.iter(f"{SVG}path"):
        numbers = re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d", ""))
        style = path.get("style", "")
        if f"stroke: {colour}" in style and "fill: none" in style and len(numbers) == n_points:
            yield np.array(numbers, float)


def test_lines_are_where_the_numbers_are(two: ElementTree.Element):
    """x by the logarithm of the shots, y by the accuracy, alike for both methods of a panel."""
    synthetic, gain, *panels = lines(two, BLUE, 5)
    real, *_ = lines(two, VERMILION, 5)
    assert len(panels) == 2
    np.testing.assert_allclose(np.diff(synthetic[:, 0]), synthetic[1, 0] - synthetic[0, 0], rtol=1e-4)
    np.testing.assert_allclose(real[:, 0], synthetic[:, 0])
    # ct_init goes from 60 to 70, ct_syn from 58 to 70.01; y grows downwards.
    scale = (real[0, 1] - real[4, 1]) / 10
    assert synthetic[0, 1] - real[0, 1] == pytest.approx(2 * scale, rel=1e-3)
    assert synthetic[0, 1] - synthetic[4, 1] == pytest.approx(12.01 * scale, rel=1e-3)
    # The gain beside it: 8 at one shot, 20.01 at 16.
    assert gain[0, 0] > synthetic[4, 0] and gain[0, 1] > gain[4, 1]


def test_zero_shot_stands_at_no_shots(two: ElementTree.Element):
    found = texts(two)
    synthetic, *_ = lines(two, BLUE, 5)
    ticks = {text: x for text, x, y in found if text in ("0", "1", "2", "4", "8", "16") and y > synthetic[:, 1].max()}
    step = synthetic[1, 0] - synthetic[0, 0]
    (dotted, *_) = lines(two, "#333333", 2)
    assert dotted[0, 0] == pytest.approx(synthetic[0, 0] - step, abs=0.01)
    assert dotted[1, 0] == pytest.approx(synthetic[4, 0], abs=0.01) and dotted[0, 1] == dotted[1, 1]
    assert ticks.keys() >= {"0", "16"}


@pytest.mark.parametrize(
    "datasets, shots", [(("a",), (3,)), (("a", "b", "c"), (1, 16)), (EIGHT, (1, 2, 4, 8, 16))], ids=[1, 3, 8]
)
def test_names_stand_at_the_ends_of_lines_and_not_on_each_other(datasets, shots, tmp_path: Path):
    rows = (
        rows_of(datasets, shots) if len(shots) > 1 else [one for one in rows_of(datasets, (3, 4)) if one["shots"] != 4]
    )
    png, svg = draw(rows, tmp_path)
    found = texts(svg)
    panels = 1 if len(datasets) == 1 else 1 + len(datasets)
    names = {name: [(x, y) for text, x, y in found if text == name] for name in METHODS.values()}
    for name, places in names.items():
        beside = name == "CT w. Syn" and len(datasets) == 1  # what it adds is named so, too
        assert len(places) == panels + beside
    blocks: dict[float, list[float]] = {}
    for text, x, y in found:
        if text in METHODS.values() or text in (*datasets, "average"):
            blocks.setdefault(x, []).append(y)
    for places in blocks.values():
        assert len(places) == 1 or np.diff(sorted(places)).min() >= 8.0  # points, the size of the letters
    width, height = map(float, (svg.get("viewBox") or "").split()[2:])
    assert all(0 <= x < width and 0 < y < height for _, x, y in found)
    with Image.open(png) as image:
        assert image.size == pytest.approx((width / 72 * 160, height / 72 * 160), abs=1)
        assert not {key.lower() for key in image.info} & {"software", "creation time", "date"}


def test_the_title_says_what_is_seen(two: ElementTree.Element):
    found = [text for text, _, _ in texts(two)]
    assert "With synthetic images: +8.0 [7.0, 9.0] points at 1 shot, +20.0 [19.0, 21.0] at 16 shots" in found
    assert any("test images, mean of 5 seeds" in text for text in found)
    assert any("Study small" in text for text in found)
    assert {"Average of 2 data sets", "What synthetic images add (points)", "a", "b"} <= set(found)


def test_a_method_that_could_not_be_run_has_no_line_and_is_named(tmp_path: Path, two: ElementTree.Element):
    rows = rows_of(["a", "b"])
    for one in rows:
        if one["method"] == "coop" and one["dataset"] != "a":
            one.update(dict.fromkeys(("top1", "low", "high", "gain", "gain_low", "gain_high", "seeds")), note="why")
    _, svg = draw(rows, tmp_path)
    found, before = texts(svg), texts(two)
    assert [text for text, *_ in before].count("CoOp") == 3 and [text for text, *_ in found].count("CoOp") == 1
    assert any(text == "Not computed: CoOp on b, average. The CSV says why." for text, *_ in found)
    assert not any("Not computed" in text for text, *_ in before)
    assert sum(1 for _ in lines(svg, BLUE, 5)) == sum(1 for _ in lines(two, BLUE, 5))
    height, without = (float((one.get("viewBox") or "").split()[3]) for one in (svg, two))
    assert height - without >= 8.0  # room of its own
    foot = sorted(y for text, _, y in found if "Study small" in text or "Not computed" in text)
    assert len(foot) == 2 and foot[1] - foot[0] >= 8.0 and foot[1] < height
    assert max(y for text, _, y in found if text == "real shots per class") < foot[0] - 8.0


def test_a_loss_is_called_a_loss(tmp_path: Path):
    rows = rows_of(["a", "b"])
    for one in rows:
        if one["method"] == "ct_syn":
            one |= {"gain": -1.5, "gain_low": -2.0, "gain_high": 0.25}
    _, svg = draw(rows, tmp_path)
    minus = "\N{MINUS SIGN}"
    loss = f"{minus}1.5 [{minus}2.0, 0.2]"
    title = f"With synthetic images: {loss} points at 1 shot, {loss} at 16 shots"
    assert title in [text for text, _, _ in texts(svg)]


def test_a_line_far_below_leaves_the_panel_and_its_number_stays(two: ElementTree.Element, tmp_path: Path):
    """The axis begins near what the figure is about: 40 to 71, a third of that below at the most."""
    found = [text for text, _, _ in texts(two)]
    triangle = "\N{BLACK DOWN-POINTING SMALL TRIANGLE}"
    assert found.count(f"{triangle}10") == 3  # in the average and on both data sets
    assert found.count(f"{triangle}25") == 3
    assert sum(text.startswith(triangle) for text in found) == 6
    _, without = draw(rows_of(["a", "b"], drop=["linear_probe"]), tmp_path)
    assert not any(text.startswith(triangle) for text, _, _ in texts(without))


def test_a_baseline_above_is_never_cut_off(tmp_path: Path):
    rows = rows_of(["a", "b"])
    for one in rows:
        if one["method"] == "coop":
            one["top1"] = 99.0
    _, svg = draw(rows, tmp_path)
    ((_, y), *_) = [(x, y) for text, x, y in texts(svg) if text == "CoOp"]
    real, *_ = lines(svg, VERMILION, 5)
    scale = (real[0, 1] - real[4, 1]) / 10
    assert y == pytest.approx(real[4, 1] - 29 * scale, abs=4)  # its name stands at 99


def test_without_intervals_there_are_no_bands_and_no_brackets(tmp_path: Path):
    rows = rows_of(["a", "b"])
    for one in rows:
        one.update(dict.fromkeys(("low", "high", "gain_low", "gain_high")))
    _, svg = draw(rows, tmp_path)
    assert "With synthetic images: +8.0 points at 1 shot, +20.0 at 16 shots" in [text for text, _, _ in texts(svg)]
    assert not any("fill-opacity" in path.get("style", "") for path in svg.iter(f"{SVG}path"))


def test_the_same_rows_give_the_same_bytes_whatever_ones_own_settings(tmp_path: Path):
    import matplotlib

    def made() -> tuple[bytes, bytes]:
        draw(rows_of(["a"]), tmp_path)
        return (tmp_path / "figure1.png").read_bytes(), (tmp_path / "figure1.svg").read_bytes()

    first = made()
    own = {"lines.linewidth": 9, "font.size": 20, "axes.facecolor": "black", "svg.fonttype": "path"}
    with matplotlib.rc_context(own):
        again = made()
        assert matplotlib.rcParams["font.size"] == 20
    assert first == again
    assert b"dc:date" not in first[1] and b"matplotlib" not in first[0].lower()


def test_names_are_text_not_formulas_and_long_ones_are_cut(tmp_path: Path):
    _, svg = draw(rows_of(["$x^2$", "a<b&c", "a_name_that_is_very_long"]), tmp_path)
    found = [text for text, _, _ in texts(svg)]
    assert found.count("$x^2$") == 2 and found.count("a<b&c") == 2
    assert "a_name_that_is_very_long" in found and "a_name_that_is\N{HORIZONTAL ELLIPSIS}" in found


def test_labels_that_would_touch_move_apart_evenly():
    assert spread([5.0, 5.0], 2.0, 0.0, 10.0) == pytest.approx([4.0, 6.0])
    assert spread([6.0, 1.0, 5.5], 2.0, 0.0, 10.0) == pytest.approx([6.75, 1.0, 4.75])
    assert spread([9.9, 9.8], 2.0, 0.0, 10.0) == pytest.approx([10.0, 8.0])
    assert spread([0.0, 0.0, 0.0], 8.0, 0.0, 10.0) == pytest.approx([0.0, 5.0, 10.0])
    assert spread([3.0], 2.0, 0.0, 10.0) == [3.0] and spread([], 2.0, 0.0, 10.0) == []


def test_places_are_the_least_squares_ones():
    rng = np.random.default_rng(0)
    for _ in range(30):
        n = int(rng.integers(2, 9))
        wanted = rng.uniform(0, 10, n)
        found = np.array(spread(list(wanted), 1.0, -100.0, 100.0))
        order = np.argsort(wanted)
        gaps = np.arange(n)
        np.testing.assert_allclose(found[order], isotonic_regression(wanted[order] - gaps).x + gaps, atol=1e-9)
    for _ in range(10):
        wanted = np.sort(rng.uniform(0, 10, 6))
        constraints = [{"type": "ineq", "fun": lambda x, i=i: x[i + 1] - x[i] - 1.5} for i in range(5)]
        best = minimize(
            lambda x, wanted=wanted: ((x - wanted) ** 2).sum(),
            np.linspace(0, 10, 6),
            jac=lambda x, wanted=wanted: 2 * (x - wanted),
            bounds=[(0, 10)] * 6,
            constraints=constraints,
            method="SLSQP",
            options={"ftol": 1e-12},
        )
        np.testing.assert_allclose(spread(list(wanted), 1.5, 0.0, 10.0), best.x, atol=1e-4)
