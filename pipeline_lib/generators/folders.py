"""The folder of a diffusers pipeline, local or from the hub: what its model_index.json says and what is there of it.

Only names and JSON are read here: a model that is missing or incomplete is refused before torch starts.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline_lib.errors import UserError
from pipeline_lib.hub import hub_folder

KEY = "models.generator"
INDEX = "model_index.json"
# Not loaded: it blackens images that it takes for unsafe, a bias that depends on the class.
LEFT_OUT = frozenset({"safety_checker"})
_STEMS = ("diffusion_pytorch_model", "model")  # what diffusers and transformers call a component's weights
VARIANTS = (None, "fp16")  # the weights as they are, else rounded to half precision


@dataclass(frozen=True)
class Component:
    """A part of a pipeline that lies in a folder of its own."""

    name: str
    library: str
    class_name: str
    folder: Path

    @property
    def is_model(self) -> bool:
        """Whether it has weights; a scheduler or a tokenizer has none, and other configuration files."""
        return (self.folder / "config.json").is_file()

    @cached_property
    def variant(self) -> str | None:
        """Which of `VARIANTS` of a model's weights is there, the first that is.

        Raises `UserError` where neither is whole, in safetensors format.
        """
        for variant in VARIANTS:
            if any(_is_whole(self.folder, stem, variant) for stem in _STEMS):
                return variant
        names = sorted(path.name for path in self.folder.iterdir())
        pickled = [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
        reason = (
            f"{', '.join(pickled)} can run code when loaded and is refused; convert it with diffusers' "
            f"save_pretrained(FOLDER, safe_serialization=True), or name a revision that has safetensors"
            if pickled
            else f"its files are {', '.join(names)}; download the model again"
        )
        raise UserError(f"{KEY}: {self.folder} holds no whole safetensors weights: {reason}")


@dataclass(frozen=True)
class PipelineFolder:
    """A folder that diffusers' `save_pretrained` wrote."""

    path: Path

    @cached_property
    def _index(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / INDEX).read_bytes())
        except FileNotFoundError:
            content = ", ".join(sorted(path.name for path in self.path.iterdir())[:10]) or "nothing"
            raise UserError(
                f"{KEY}: {str(self.path)!r} holds no {INDEX}, so it is no diffusers pipeline (there is: {content}); "
                f"name a folder as save_pretrained writes it; a single checkpoint file is converted with diffusers' "
                f"from_single_file, GLIDE's with `python -m pipeline_lib convert-glide`"
            ) from None
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{KEY}: {str(self.path)!r} cannot be loaded: its {INDEX} is not JSON ({error}); "
                f"download the model again"
            ) from None
        if not isinstance(found, dict) or not isinstance(found.get("_class_name"), str):
            raise UserError(f"{KEY}: {str(self.path)!r} cannot be loaded: its {INDEX} names no pipeline class")
        return found

    @property
    def class_name(self) -> str:
        """The pipeline's class. Raises `UserError` where the folder is no pipeline."""
        name: str = self._index["_class_name"]
        return name

    def components(self) -> Iterator[Component]:
        """The parts that are loaded, in the order of the index."""
        for name, entry in self._index.items():
            is_component = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
            if is_component and name not in LEFT_OUT:
                yield Component(name, entry[0], entry[1], self.path / name)

    def models(self) -> list[Component]:
        """The parts with weights."""
        return [component for component in self.components() if component.is_model]


def pipeline_folder(model: str, revision: str | None) -> PipelineFolder:
    """The folder of a configuration's generator; a hub id's files are downloaded unless the cache has them all.

    Of each component the safetensors weights are fetched, at full precision if they are there, and nothing twice.
    Raises `UserError` for a model that is not there and cannot be fetched, with the command that fetches it elsewhere.
    """
    if Path(model).is_dir():
        return PipelineFolder(Path(model))
    folder = PipelineFolder(hub_folder(model, revision, [INDEX], key=KEY))
    for component in folder.models():
        names = [f"{component.name}/{stem}{end}" for end in (".safetensors", "-*.safetensors") for stem in _STEMS]
        names += [f"{component.name}/{stem}.fp16*.safetensors" for stem in _STEMS]
        hub_folder(model, revision, names, key=KEY)
    return folder


def _is_whole(folder: Path, stem: str, variant: str | None) -> bool:
    """Whether a component's weights are there, in one file or in all the shards that their index names."""
    middle = f".{variant}" if variant else ""
    if (folder / f"{stem}{middle}.safetensors").is_file():
        return True
    try:
        shards = json.loads((folder / f"{stem}.safetensors.index{middle}.json").read_bytes())["weight_map"].values()
    except (FileNotFoundError, KeyError, ValueError):
        return False
    return all((folder / name).is_file() for name in set(shards))
