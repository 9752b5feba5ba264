"""Class prompts that are longer than what a text encoder reads, found at the start of a run, without torch.

So it is where a model lies in a folder with its tokenizer in the one file tokenizer.json. Of other models, and of
sentences that are not written yet, the job says it (`clip_models`, `images`).
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from pipeline_lib.generators.reading import TextLimit, lost_name, read_part
from pipeline_lib.plan import Plan
from pipeline_lib.sections import LOCAL
from pipeline_lib.store import Artifact
from pipeline_lib.yaml_files import shortened


def cut_prompts(plan: Plan, jobs: Collection[Artifact]) -> Iterator[str]:
    """A line for each model that would cut class prompts of these jobs: for an encoder any of them, for a generator
    those that lose the class name."""
    for job in jobs:
        if job.spec["stage"] == "heads":
            yield from _encoder_fault(job)
        elif job.spec["stage"] == "prompts" and job.members[0].spec["strategy"] == "basic":
            yield from _generator_fault(job, Path(plan.config.models.generator))


def _encoder_fault(heads: Artifact) -> Iterator[str]:
    model = heads.members[0].location["model"]
    limit = _encoder_limit(Path(model.removeprefix(LOCAL))) if model.startswith(LOCAL) else None
    if limit is None:
        return
    prompts = [
        template.replace("{}", name)
        for head in heads.members
        for name in head.spec["class_names"]
        for template in head.spec["templates"]
    ]
    if long := [prompt for prompt in prompts if limit.count(prompt) > limit.positions]:
        yield (
            f"models.encoders: the text encoder of {model!r} reads {limit.positions} tokens, and {len(long)} class "
            f"prompts have more, as {shortened(long[0])}: their ends would be cut; shorten the class names or the "
            f"templates of the data set"
        )


def _generator_fault(prompts: Artifact, folder: Path) -> Iterator[str]:
    limits = [
        _limit(words, _content(words / "tokenizer_config.json").get("model_max_length"))
        for words in sorted(folder.glob("tokenizer*"))
    ]
    if not limits or None in limits:
        return
    for unit in prompts.members:
        name, prompt = unit.spec["class_name"], unit.spec["template"].replace("{}", unit.spec["class_name"])
        if fault := lost_name(name, prompt, read_part([limit for limit in limits if limit], prompt)):
            yield fault
            return


def _encoder_limit(folder: Path) -> TextLimit | None:
    text: Any = _content(folder / "open_clip_config.json")
    for section in ("model_cfg", "text_cfg"):
        text = text.get(section)
        if not isinstance(text, dict):
            return None
    # Without hf_tokenizer_name it is open_clip's own tokenizer; a mode adds tokens of its own.
    if not text.get("hf_tokenizer_name") or text.get("tokenizer_mode"):
        return None
    return _limit(folder, text.get("context_length"))


def _limit(folder: Path, positions: Any) -> TextLimit | None:
    from tokenizers import Tokenizer

    try:
        words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # not there, or damaged: `tokenizers` raises no narrower one, and the job says so
        return None
    words.no_truncation()
    words.no_padding()
    return TextLimit(lambda text: len(words.encode(text).ids), positions) if isinstance(positions, int) else None


def _content(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; nothing where there is none: whoever loads the model says what is wrong."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
