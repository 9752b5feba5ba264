"""Model folders from the Hugging Face hub, at a pinned commit; what to do where the hub cannot be reached."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from pipeline_lib.errors import UserError

_SMALL_FILES = ("*.json", "*.txt", "*.model")  # configurations and tokenizers
_TIMEOUT_S = 20.0


def hub_folder(
    repository: str, revision: str | None, weights: Sequence[str], *, key: str, local_prefix: str = ""
) -> Path:
    """The folder of a hub repository's configuration, tokenizer and weights, downloaded unless the cache has them.

    weights: patterns of file names, the best first; files of the first that matches any are fetched, so safetensors can
    be preferred to a pickle of the same weights. A cached commit is enough where the hub cannot be reached. `key` is
    the configuration key to name in errors, `local_prefix` what its value has before the name of a local folder.

    Raises `UserError` where there is no such model, no such weights in it, or no way to the hub: with the command that
    downloads it elsewhere.
    """
    from huggingface_hub import HfApi, snapshot_download

    pinned = f" --revision {revision}" if revision else ""
    remedy = (
        f"where there is a network, run `hf download {repository}{pinned} --local-dir FOLDER`, bring the folder here "
        f"and name it in {key}: {local_prefix}FOLDER"
    )
    if revision and (folder := _cached_folder(repository, revision, weights)):
        return folder  # a commit never changes: no need to ask
    try:
        # Asked once and without retries: downloads are tried again and again, for minutes where there is no network.
        files = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_S).siblings or []
    except Exception as error:  # of the hub, of the network, of the settings: the cache may hold the model all the same
        if folder := _cached_folder(repository, revision, weights):
            return folder
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{key}: {repository!r} at {revision or 'main'} is not in the cache and cannot be downloaded "
            f"({reason}); check name and revision, or, {remedy}"
        ) from error
    names = [file.rfilename for file in files]
    found = [[name for name in names if fnmatch(name, pattern)] for pattern in weights]
    chosen = next(filter(None, found), None)
    if chosen is None:
        raise UserError(
            f"{key}: {repository!r} holds no weights named {' or '.join(weights)}, but {', '.join(names[:10])}; "
            f"name another model"
        )
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=[*_SMALL_FILES, *chosen]))
    except Exception as error:
        raise UserError(f"{key}: {repository!r} cannot be downloaded: {error}; try again, or, {remedy}") from error


def _cached_folder(repository: str, revision: str | None, weights: Sequence[str]) -> Path | None:
    """The folder in the hub's cache that holds the best of the weights that it has whole; None without any."""
    from huggingface_hub import snapshot_download

    for pattern in weights:
        wanted = [*_SMALL_FILES, pattern]
        try:
            folder = snapshot_download(repository, revision=revision, allow_patterns=wanted, local_files_only=True)
        except FileNotFoundError:  # not there, or not all of it
            continue
        if any(Path(folder).glob(pattern)):
            return Path(folder)
    return None
