"""What is there of each data set, what is missing, and what to do about it."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline_lib.config import Config
from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.datasets.fingerprints import raw_fingerprint
from pipeline_lib.datasets.layouts import LAYOUTS, find_parts, hints
from pipeline_lib.datasets.recipes import how_to_get, raw_folder
from pipeline_lib.datasets.registry import Dataset, builtin_datasets, read_datasets
from pipeline_lib.datasets.units import real_units
from pipeline_lib.digests import DigestCache
from pipeline_lib.errors import UserError
from pipeline_lib.graph import Graph
from pipeline_lib.store import Artifact, Store

_WIDTH = 100


def describe_datasets(config: Config) -> Iterator[str]:
    """Lines for people on every data set that the package or the configuration defines. Reads no image."""
    own = read_datasets(config.own_datasets, "own_datasets")
    known = {**builtin_datasets(), **own}
    graph, digests = Graph(Path(config.store)), DigestCache(Path(config.store) / "digests.json")
    for name, definition in sorted(known.items()):
        yield f"{name}{' (in this study)' if name in config.datasets else ''}"
        facts = [definition.task, f"{len(definition.class_names)} classes"]
        facts += [_count(definition, split) for split in definition.splits]
        facts += [f"licence: {definition.licence}"] if definition.licence else []
        yield from _paragraph("; ".join(facts))
        yield from _paragraph(f"raw data: {_raw_data(definition, config)}")
        yield from _paragraph(f"shards: {_prepared(definition, config, graph, digests)}")
    digests.save()
    yield (
        f"{len(known)} data sets, {len(config.datasets)} of them in this study. Raw data is read once, when a study "
        f"needs it; afterwards the shards are enough."
    )
    yield "Of training images only those that are drawn as shots become shards; they are not counted here."


def _count(definition: Dataset, split: str) -> str:
    number = definition.n_images.get(split)  # type: ignore[call-overload]
    return f"{split} images: {'as many as there are' if number is None else f'{number:,}'}"


def _raw_data(definition: Dataset, config: Config) -> str:
    if definition.fashion_mnist is not None:
        places = [Path(config.fashion_mnist)] if config.fashion_mnist else []
        places += [fashion_mnist.DEBIAN_FOLDER, Path(config.data) / "fashion-mnist"]
        there = next((place for place in places if place.is_dir()), None)
        return f"there, in {there}" if there else "not there yet; fetched when it is needed"
    if definition.loader is not None:
        remedy = how_to_get(definition, config)
        return _official_download(definition.loader, Path(raw_folder(definition, config)), remedy)
    hub = definition.huggingface
    train = definition.train_folder or definition.train_parquet or (hub and hub.train_split)
    more = f"; training images: {'split ' if hub else ''}{train}" if train else ""
    if hub is not None and not hub.is_local:
        return f"{hub.id} at {hub.revision} on the Hugging Face hub; fetched when it is needed{more}"
    return f"your own, in {definition.folder or definition.parquet or (hub and hub.id)}{more}"


def _official_download(loader: str, root: Path, remedy: str) -> str:
    layout = LAYOUTS[loader]
    missing = {
        split: [part for part, path in find_parts(layout, split, root).items() if path is None and part in parts]
        for split, parts in layout.parts.items()
    }
    lacking = {split: parts for split, parts in missing.items() if parts}
    if not lacking:
        return f"there, in {root}"
    remedy = f" To do: {remedy}" if remedy else ""
    if not root.is_dir() or not any(root.iterdir()):
        return f"MISSING; it is expected in {root} (a link will do).{remedy}"
    gaps = "; ".join(f"{', '.join(parts)} of the {split} split" for split, parts in lacking.items())
    return f"HALF THERE in {root}; missing: {gaps}.{hints(layout, root)}{remedy}"


def _prepared(definition: Dataset, config: Config, graph: Graph, digests: DigestCache) -> str:
    counts: list[str] = []
    outdated: list[str] = []
    for split in definition.splits:
        try:
            units = real_units(definition, split, config, digests)
        except UserError as error:
            return f"cannot be made: {error}"
        if split == "train":  # the shards of draws are known by the study's few_shot, not by the data set
            continue
        name = f"{definition.name}.{split}"
        shards = [graph.unit("real_images", name, unit.spec, location=unit.location) for unit in units]
        complete = list(filter(graph.store.is_complete, shards))
        counts.append(f"{split} {len(complete)} of {len(shards)}")
        if definition.name not in config.own_datasets and complete:
            outdated += _outdated(split, complete, graph.store, digests)
    return ", ".join(counts) + "".join(outdated)


def _outdated(split: str, shards: Sequence[Artifact], store: Store, digests: DigestCache) -> Iterator[str]:
    """What there is to say of shards whose raw data has changed since; of deleted raw data nothing."""
    spec, location = shards[0].spec, shards[0].location
    there = raw_fingerprint(spec["loader"], split, Path(location["root"]), digests) if "loader" in spec else None
    made_from = [record.details for record in map(store.record, shards) if record and "raw_data" in record.details]
    if there is not None and any(details["raw_data"] != there for details in made_from):
        yield (
            f". The {split} shards were made from OTHER FILES than {location['root']} has now (they were "
            f"{made_from[0]['n_images']:,} images then), and stay in use. To use the new ones, define a data set in "
            f"own_datasets with loader: {spec['loader']} and this root: such a one is known by its files"
        )


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
