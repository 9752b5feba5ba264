"""The linear head of a CLIP-style classifier, its zero-shot weights, and its file.

numpy only: a head is read by planning, scoring and evaluation, none of which should wait for torch.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

FORMAT_VERSION = "1"
_RESERVED = frozenset({"class_names", "format_version"})


@dataclass(frozen=True, eq=False)
class Head:
    """A linear classifier `features @ weight.T + bias` over L2-normalised image features.

    weight: float32 [n_classes, d], logit scale included; bias: float32 [n_classes]; class_names: n_classes distinct,
    non-empty strings in the order of the rows. Other floating types are converted to float32.

    Raises ValueError where shapes and names disagree, names repeat, or a value is not finite.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "weight", np.ascontiguousarray(self.weight, dtype=np.float32))
        object.__setattr__(self, "bias", np.ascontiguousarray(self.bias, dtype=np.float32))
        object.__setattr__(self, "class_names", tuple(self.class_names))
        if self.weight.ndim != 2 or 0 in self.weight.shape:
            raise ValueError(f"head: weight has shape {self.weight.shape}; allowed is [n_classes, d], neither 0")
        n_classes = self.weight.shape[0]
        if self.bias.shape != (n_classes,):
            raise ValueError(f"head: bias has shape {self.bias.shape}, weight has {n_classes} rows; give a bias a row")
        _check_class_names(self.class_names, n_classes)
        for name, array in (("weight", self.weight), ("bias", self.bias)):
            bad = int(array.size - np.isfinite(array).sum())
            if bad:
                raise ValueError(f"head: {bad} of {array.size} values of {name} are not finite; retrain or re-read it")

    @property
    def n_classes(self) -> int:
        """Number of classes, the rows of weight."""
        return int(self.weight.shape[0])

    @property
    def dimension(self) -> int:
        """Feature dimension d, the columns of weight."""
        return int(self.weight.shape[1])

    def logits(self, features: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Logits float32 [N, n_classes] of L2-normalised features [N, d] (float16, 32 or 64; computed in float32).

        Raises ValueError where the features are not [N, d] with the head's d.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.dimension:
            raise ValueError(
                f"features have shape {features.shape}, the head takes [N, {self.dimension}]; "
                "embed the images with the encoder that the head was made for"
            )
        product: NDArray[np.float32] = features.astype(np.float32, copy=False) @ self.weight.T
        product += self.bias
        return product


def zero_shot_head(text_embeddings: NDArray[np.floating[Any]], logit_scale: float, class_names: Sequence[str]) -> Head:
    """CLIP's zero-shot classifier (Radford et al. 2021, section 3.1.4), with which Classifier Tuning starts.

    text_embeddings: [n_classes, n_templates, d], any length. Each is L2-normalised, the templates of a class are
    averaged, the mean is normalised again and multiplied by logit_scale = exp(model.logit_scale), 100 for OpenAI's
    CLIP; bias 0 (paper A.7 and released code; the same as open_clip's `build_zero_shot_classifier` times logit_scale).

    Raises ValueError for another shape, a non-finite or zero embedding, or a logit_scale that is not positive and
    finite.
    """
    embeddings = np.asarray(text_embeddings, dtype=np.float64)
    if embeddings.ndim != 3 or 0 in embeddings.shape:
        raise ValueError(
            f"text_embeddings have shape {embeddings.shape}; allowed is [n_classes, n_templates, d], none of them 0"
        )
    if not (np.isfinite(logit_scale) and logit_scale > 0):
        raise ValueError(f"logit_scale is {logit_scale}; give exp(model.logit_scale), a positive number (100 for CLIP)")
    _check_class_names(tuple(class_names), embeddings.shape[0])
    each = _normalised(embeddings, "a text embedding", class_names)
    mean = _normalised(each.mean(axis=1), "the mean text embedding", class_names)
    return Head((mean * logit_scale).astype(np.float32), np.zeros(embeddings.shape[0], np.float32), tuple(class_names))


def save_head(path: str | os.PathLike[str], head: Head, metadata: Mapping[str, str] | None = None) -> None:
    """Write a head as safetensors: tensors `weight` and `bias`, metadata `class_names` (JSON list) and what is given.

    The same head and metadata give the same bytes. Raises ValueError where a metadata key is reserved, and TypeError
    where a key or value is not a string.
    """
    write_tensors(path, {"weight": head.weight, "bias": head.bias}, head.class_names, metadata)


def save_heads(
    path: str | os.PathLike[str], heads: Mapping[int, Head], metadata: Mapping[str, str] | None = None
) -> None:
    """Write the heads of several seeds into one file: tensors `SEED.weight` and `SEED.bias`. Else as `save_head`.

    Raises ValueError where there is no head or their classes differ.
    """
    names = {head.class_names for head in heads.values()}
    if len(names) != 1:
        raise ValueError(f"{len(heads)} heads with {len(names)} lists of classes; give heads of the same classes")
    tensors: dict[str, NDArray[np.float32]] = {}
    for seed, head in heads.items():
        tensors |= {f"{seed}.weight": head.weight, f"{seed}.bias": head.bias}
    write_tensors(path, tensors, names.pop(), metadata)


def load_head(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> Head:
    """Read a head that `save_head` wrote; with class_names, only one of exactly these classes in this order.

    Raises FileNotFoundError, or ValueError where the file is no head, its parts disagree, or its classes are others.
    """
    tensors, text = read_tensors(path)
    if set(tensors) != {"weight", "bias"}:
        raise ValueError(f"{path}: tensors are {sorted(tensors)}; a head has exactly bias and weight")
    return _head(path, tensors["weight"], tensors["bias"], text, class_names)


def load_heads(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> dict[int, Head]:
    """Read the heads that `save_heads` wrote, by seed in ascending order. Raises as `load_head`."""
    tensors, text = read_tensors(path)
    seeds = sorted({name.partition(".")[0] for name in tensors})
    wanted = {f"{seed}.{part}" for seed in seeds for part in ("weight", "bias")}
    if not seeds or set(tensors) != wanted or not all(seed.isdecimal() for seed in seeds):
        raise ValueError(f"{path}: tensors are {sorted(tensors)}; tuned heads have SEED.bias and SEED.weight per seed")
    return {
        seed: _head(path, tensors[f"{seed}.weight"], tensors[f"{seed}.bias"], text, class_names)
        for seed in sorted(int(seed) for seed in seeds)
    }


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ValueError where it is none."""
    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error}); make it again") from error


def write_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, NDArray[Any]],
    class_names: Sequence[str],
    metadata: Mapping[str, str] | None,
) -> None:
    """Write tensors with the class names and further metadata as safetensors; the same input gives the same bytes."""
    extra = dict(metadata or {})
    for key, value in extra.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"head metadata {key!r}: {value!r} is not text; encode it, with json.dumps for example")
        if key in _RESERVED:
            raise ValueError(f"head metadata key {key!r} is reserved; allowed is any other than {sorted(_RESERVED)}")
    names = json.dumps(list(class_names), ensure_ascii=False)
    text = {**extra, "class_names": names, "format_version": FORMAT_VERSION}
    Path(path).write_bytes(_with_sorted_header(save(tensors, text)))


def _head(
    path: str | os.PathLike[str],
    weight: NDArray[Any],
    bias: NDArray[Any],
    text: Mapping[str, str],
    class_names: Sequence[str] | None,
) -> Head:
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.dtype != np.float32:
            raise ValueError(f"{path}: {name} is {tensor.dtype}; a head is float32")
    try:
        stored = json.loads(text.get("class_names", ""))
    except json.JSONDecodeError:
        stored = None
    if not isinstance(stored, list) or not all(isinstance(name, str) for name in stored):
        raise ValueError(f"{path}: metadata class_names is not a JSON list of names; write heads with save_head")
    try:
        head = Head(weight, bias, tuple(stored))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if class_names is not None and tuple(class_names) != head.class_names:
        raise ValueError(_difference(path, head.class_names, tuple(class_names)))
    return head


def _with_sorted_header(blob: bytes) -> bytes:
    # safetensors writes its metadata in the order of a hash map, another one in each process; a head's digest must not
    # depend on it. The layout is: header length (8 bytes), JSON header padded with blanks to a multiple of 8, tensors.
    length = int.from_bytes(blob[:8], "little")
    header = json.dumps(json.loads(blob[8 : 8 + length]), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    encoded = header.encode()
    encoded += b" " * (-len(encoded) % 8)
    return len(encoded).to_bytes(8, "little") + encoded + blob[8 + length :]


def _check_class_names(names: tuple[str, ...], n_classes: int) -> None:
    if len(names) != n_classes:
        raise ValueError(f"head: {len(names)} class names for {n_classes} classes; give one a class")
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("head: a class name is empty or not text; name every class")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"head: class names repeat: {twice[:5]}; name each class once")


def _normalised(vectors: NDArray[np.float64], what: str, class_names: Sequence[str]) -> NDArray[np.float64]:
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > 0))
    if bad.any():
        raise ValueError(
            f"{what} of class {class_names[int(np.argwhere(bad)[0, 0])]!r} is zero or not finite "
            f"({int(bad.sum())} in all); check the text encoder"
        )
    unit: NDArray[np.float64] = vectors / norms
    return unit


def _difference(path: str | os.PathLike[str], stored: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    if len(stored) != len(wanted):
        return f"{path}: the head has {len(stored)} classes, {len(wanted)} are asked for; tune a head for these classes"
    index = next(i for i, pair in enumerate(zip(stored, wanted, strict=True)) if pair[0] != pair[1])
    return f"{path}: class {index} is {stored[index]!r}, {wanted[index]!r} is asked for; tune a head for these classes"
