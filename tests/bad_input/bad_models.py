"""Model folders to be damaged, and what a model that holds code would do."""

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, Workplace


class Payload:
    """Code in a pickle: unpickling writes the canary."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def lying(content: bytes, edit: Callable[[dict[str, Any], str], None]) -> bytes:
    """safetensors whose header was edited; `edit` gets the header and the name of its first tensor."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    edit(header, min(name for name in header if name != "__metadata__"))
    written = json.dumps(header).encode()
    return struct.pack("<Q", len(written)) + written + content[8 + size :]


def _beyond(header: dict[str, Any], name: str) -> None:
    header[name]["data_offsets"] = [0, 10**15]


def _gigantic(header: dict[str, Any], name: str) -> None:
    header[name]["shape"] = [10**6, 10**9]


def _renamed(header: dict[str, Any], name: str) -> None:
    header["another." + name] = header.pop(name)


def _not_a_number(content: bytes) -> bytes:
    from safetensors.torch import load, save

    weights = load(content)
    name = next(name for name, weight in weights.items() if weight.is_floating_point())
    weights[name].view(-1)[0] = float("nan")
    return save(weights, metadata={"format": "pt"})


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "0 bytes": lambda _: b"",
    "cut off": lambda content: content[:-100],
    "text": lambda _: b"version https://git-lfs.github.com/spec/v1\n",
    "header of 4 exabytes": lambda content: struct.pack("<Q", 2**62) + content[8:],
    "offsets beyond the end": lambda content: lying(content, _beyond),
    "gigantic shape": lambda content: lying(content, _gigantic),
    "another architecture": lambda content: lying(content, _renamed),
    "not a number": _not_a_number,
}
CLIP_FILE = "open_clip_model.safetensors"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def encoder_folder(place: Workplace, edit: Callable[[Path], None]) -> str:
    source = place.models["encoders"][0]["model"].removeprefix("local-dir:")
    folder = shutil.copytree(source, place.folder / "models" / "bad encoder")
    edit(folder)
    return f"local-dir:{folder}"


def encoder(edit: Callable[[Path, Workplace], None], *words: str) -> Case:
    """An encoder whose folder was edited is loaded."""

    def act(place: Workplace) -> None:
        pytest.importorskip("open_clip")
        from pipeline_lib.clip_models import load_clip

        load_clip(encoder_folder(place, lambda folder: edit(folder, place)), None, None)

    return Case(act, ("models.encoders", "bad encoder", *words))


def generator(edit: Callable[[Path, Workplace], None], *words: str) -> Case:
    """A generator whose folder was edited is loaded."""

    def act(place: Workplace) -> None:
        torch = pytest.importorskip("torch")
        from pipeline_lib.generators.folders import pipeline_folder
        from pipeline_lib.generators.loading import load_pipeline

        folder = shutil.copytree(place.models["generator"], place.folder / "models" / "bad generator")
        edit(folder, place)
        load_pipeline(pipeline_folder(str(folder), None), torch.float32)

    return Case(act, ("models.generator", "bad generator", *words))


def sentences(edit: Callable[[Path, Workplace], None], *words: str) -> Case:
    """A word-to-sentence model whose folder was edited is loaded."""

    def act(place: Workplace) -> None:
        pytest.importorskip("transformers")
        from pipeline_lib.sentences import SentenceModel

        folder = shutil.copytree(place.models["sentences"], place.folder / "models" / "bad sentences")
        edit(folder, place)
        SentenceModel(str(folder), None, 8, device="cpu")

    return Case(act, ("models.sentences", "bad sentences", *words))


def checkpoint(write: Callable[[Path, Workplace], Any], *words: str, name: str = "bad.pt") -> Case:
    """A checkpoint file for one of open_clip's architectures is loaded."""

    def act(place: Workplace) -> None:
        pytest.importorskip("open_clip")
        from pipeline_lib.clip_models import load_clip

        write(place.folder / name, place)
        load_clip("RN50", str(place.folder / name), None)

    return Case(act, ("models.encoders", name, *words))


def damaged(file: str, damage: Callable[[bytes], bytes]) -> Callable[[Path, Workplace], None]:
    return lambda folder, _: (folder / file).write_bytes(damage((folder / file).read_bytes())) and None


def pickled(file: str, instead: str) -> Callable[[Path, Workplace], None]:
    """A pickle with code in place of the weights."""

    def edit(folder: Path, place: Workplace) -> None:
        import torch

        (folder / instead).unlink()
        torch.save({"state_dict": Payload(place.canary)}, folder / file)

    return edit


def weights_with_code(path: Path, place: Workplace) -> None:
    """What torch.save makes of a dictionary that holds code beside weights."""
    import torch

    torch.save({"weight": torch.zeros(2), "more": Payload(place.canary)}, path)


def array_with_code(path: Path, place: Workplace) -> None:
    """What numpy makes of an array of objects."""
    with path.open("wb") as file:
        np.save(file, np.array([Payload(place.canary)], dtype=object), allow_pickle=True)


def plain_pickle(path: Path, place: Workplace) -> None:
    path.write_bytes(pickle.dumps(Payload(place.canary)))


def with_code(file: str, **entries: Any) -> Callable[[Path, Workplace], None]:
    """A configuration that names a class in a Python file of the folder, with other entries of the model's."""

    def edit(folder: Path, place: Workplace) -> None:
        path = folder / file
        code = f"open({str(place.canary)!r}, 'w')\nclass Evil: pass\n"
        for beside in (folder, path.parent):
            (beside / "evil.py").write_text(code)
        config = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(_merged(config, entries)))

    return edit


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    return base | {k: _merged(base[k], v) if isinstance(v, dict) and k in base else v for k, v in over.items()}


def disguised(folder: Path, place: Workplace) -> None:
    (folder / CLIP_FILE).write_bytes(pickle.dumps(Payload(place.canary)))


def index(**entries: Any) -> Callable[[Path, Workplace], None]:
    """Other entries of model_index.json."""

    def edit(folder: Path, place: Workplace) -> None:
        (folder / "evil.py").write_text(f"open({str(place.canary)!r}, 'w')\nclass Evil: pass\n")
        path = folder / "model_index.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | entries))

    return edit
