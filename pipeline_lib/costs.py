"""What a plan costs: how much is to be drawn and encoded, for how long, and whether the disk has room for it."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline_lib.errors import UserError
from pipeline_lib.graph import Graph
from pipeline_lib.paths import nearest_existing
from pipeline_lib.sections import Costs
from pipeline_lib.store import Artifact


@dataclass(frozen=True)
class Amount:
    """Artifacts of one stage, and rows (images) in them: in all, and those that are there already."""

    artifacts: int
    artifacts_there: int
    rows: int
    rows_there: int
    effort_missing: float
    """Rows that are not there; an image that starts from a noised real one counts as its share of the steps. Of
    training with batch norm, which has no rows: how often an image passes through the encoder, at the most."""

    @property
    def rows_missing(self) -> int:
        return self.rows - self.rows_there


def amounts(graph: Graph, jobs: Iterable[Artifact] | None = None) -> dict[str, Amount]:
    """Per stage, what `jobs` (default: all of the graph) ask for; each unit counts once, however many jobs share it."""
    known = _units(graph.jobs.values())
    units = known if jobs is None else _units(jobs)
    found: dict[str, list[float]] = {}
    for unit in units.values():
        rows = _rows(unit, known)
        there = graph.store.is_complete(unit)
        effort = 0.0 if there else _passes(unit, known) or rows * _share(unit)
        count = found.setdefault(str(unit.spec["stage"]), [0, 0, 0, 0, 0.0])
        for position, value in enumerate((1, there, rows, rows * there, effort)):
            count[position] += value
    return {
        stage: Amount(int(n), int(n_there), int(rows), int(rows_there), effort)
        for stage, (n, n_there, rows, rows_there, effort) in found.items()
    }


def _share(unit: Artifact) -> float:
    return float(unit.spec.get("real_guidance", {}).get("start", 1))


def _units(jobs: Iterable[Artifact]) -> dict[str, Artifact]:
    return {unit.path: unit for job in jobs for unit in job.members or (job,)}


def _rows(unit: Artifact | None, known: Mapping[str, Artifact]) -> int:
    """Images in a unit, as far as that is known before it is made."""
    if unit is None:
        return 0
    spec = unit.spec
    if spec["stage"] == "embeddings":  # of a shard as many as its images
        return _rows(known.get(spec["images"]), known)
    if spec["stage"] == "real_images" and "shots" in spec:  # as many as the data set has enough images for
        drawn = known[spec["shots"]].spec
        return len(drawn["class_names"]) * int(drawn["n_shots"] + drawn["n_validation"])
    # A split whose size is not known before it is read has no `stop`.
    return 0 if spec.get("stop") is None else int(spec["stop"] - spec["start"])


def _passes(unit: Artifact, known: Mapping[str, Artifact]) -> int:
    """How often an image passes through the encoder in training with batch norm (Table 6): once in each epoch, and
    all that are tested on once for zero-shot CLIP and once for each run. Of other units 0.
    """
    spec = unit.spec
    if spec["stage"] != "batch_norm":
        return 0

    def rows(paths: Iterable[str]) -> int:
        return sum(_rows(known.get(path), known) for path in paths)

    trained = [
        run["shots"] * len(spec["class_names"]) if "drawn" in run else rows(run["images"]) for run in spec["runs"]
    ]
    return int(spec["settings"]["epochs"] * sum(trained) + (1 + len(trained)) * rows(spec["tested"]))


@dataclass(frozen=True)
class Estimate:
    """What is still to be made. Hours are of one device working alone; None where no rate is given."""

    n_drawn: int
    n_encoded: int
    drawing_hours: float | None
    encoding_hours: float | None
    n_bytes: int


def estimate(found: dict[str, Amount], costs: Costs) -> Estimate:
    """Time and disk for what is missing, at the configuration's rates."""
    missing = {stage: amount.rows_missing for stage, amount in found.items()}
    drawn, real, encoded = (missing.get(stage, 0) for stage in ("images", "real_images", "embeddings"))
    effort = found["images"].effort_missing if "images" in found else 0.0
    passes = encoded + (round(found["batch_norm"].effort_missing) if "batch_norm" in found else 0)
    return Estimate(
        n_drawn=drawn,
        n_encoded=passes,
        drawing_hours=_hours(effort, costs.images_per_second),
        encoding_hours=_hours(passes, costs.encodes_per_second),
        n_bytes=round(1000 * ((drawn + real) * costs.kilobytes_per_image + encoded * costs.kilobytes_per_embedding)),
    )


def _hours(n: float, per_second: float | None) -> float | None:
    return None if per_second is None else n / per_second / 3600


def summary(found: dict[str, Amount], costs: Costs) -> Iterable[str]:
    """Lines for people: the artifacts of each stage, and what the missing ones cost."""
    for stage, amount in found.items():
        if stage not in ("tables", "samples"):
            rows = f", {amount.rows:,} images, {amount.rows_there:,} of them there" if amount.rows else ""
            yield f"  {stage:<16} {amount.artifacts:>9,} artifacts, {amount.artifacts_there:,} of them there{rows}"
    needed = estimate(found, costs)
    yield "still to be made:"
    yield _line("draw", needed.n_drawn, needed.drawing_hours, costs.images_per_second)
    yield _line("encode", needed.n_encoded, needed.encoding_hours, costs.encodes_per_second)
    yield f"  disk   {needed.n_bytes / 1e9:,.1f} GB (at {costs.kilobytes_per_image:,.12g} kB an image)"


def _line(what: str, n: int, hours: float | None, rate: float | None) -> str:
    time = "" if hours is None else f", {hours:,.1f} hours of one device at {rate:g} images/s"
    return f"  {what:<6} {n:,} images{time}"


def require_disk(graph: Graph, jobs: Iterable[Artifact], costs: Costs) -> None:
    """Raises `UserError` where the disk of the store has no room for what `jobs` still have to make."""
    needed = estimate(amounts(graph, jobs), costs).n_bytes
    free = shutil.disk_usage(nearest_existing(graph.store.root)).free
    if needed > free:
        raise UserError(
            f"store: the run needs about {needed / 1e9:,.1f} GB in {graph.store.root}, the disk there has "
            f"{free / 1e9:,.1f} GB left; make room, put `store` on a larger disk, ask for fewer images "
            f"(images.per_class), or correct costs.kilobytes_per_image ({costs.kilobytes_per_image:,.12g})"
        )
