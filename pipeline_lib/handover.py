"""Handover: the configuration that a run was started with, for its jobs on a cluster.

They plan anew, each when its turn in the queue has come: from this file, whatever was made of params.yaml meanwhile.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from pipeline_lib.files import atomic_path, storage_errors

FOLDER = Path(".snakemake/configurations")


def is_handed_over(configfiles: Iterable[str | PathLike[str]]) -> bool:
    """Whether a run's configuration is one that another run has handed over: whole, so nothing else is to be read."""
    return any(Path(file).absolute().parent == FOLDER.absolute() for file in configfiles)


def hand_over(values: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Write the content of a configuration, overlays merged in, to a file in `folder`; returns its absolute path.

    The file is named by its content, so runs that share a folder do not meet. It stays: jobs may outlive their run.
    Raises `StorageError` where it cannot be written.
    """
    content = json.dumps(values).encode()
    path = (folder / f"{hashlib.sha256(content).hexdigest()[:16]}.json").absolute()
    if not path.exists() or path.read_bytes() != content:
        with storage_errors(folder), atomic_path(path) as temporary:
            temporary.write_bytes(content)
    return path
