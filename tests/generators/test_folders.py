"""Where a pipeline's files come from, and what is said where they are missing, damaged or not what they should be."""

import json
import shutil
import time
from pathlib import Path

import pytest
from fake_hub import COMMIT, NOWHERE, REPOSITORY, serving, use_hub
from tiny_pipelines import TinyPipeline

from pipeline_lib.errors import UserError
from pipeline_lib.generators.folders import PipelineFolder, pipeline_folder

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def pipeline(tiny_pipeline: TinyPipeline, tmp_path: Path) -> Path:
    """A pipeline folder to take things out of."""
    return shutil.copytree(tiny_pipeline("stable_diffusion_1"), tmp_path / "pipeline")


def read(folder: Path) -> PipelineFolder:
    """The folder, looked at as before loading: class and weights of every component."""
    found = pipeline_folder(str(folder), None)
    assert found.class_name
    assert [component.variant for component in found.models()]
    return found


# --- a local folder ---------------------------------------------------------------------------------------------------


def test_a_pipelines_parts_are_read_from_its_index(pipeline: Path):
    """Models are what has weights; the safety checker is left out."""
    found = read(pipeline)
    assert found.class_name == "StableDiffusionPipeline"
    assert {part.name for part in found.components()} == {
        *("vae", "text_encoder", "tokenizer", "unet", "scheduler", "feature_extractor")
    }
    assert {part.name: part.variant for part in found.models()} == {"vae": None, "text_encoder": None, "unet": None}


def test_a_folder_that_is_no_pipeline_is_an_error(tmp_path: Path):
    """The message says what is there, and what to do about a checkpoint file."""
    (tmp_path / "v1-5-pruned.ckpt").touch()
    with pytest.raises(UserError, match=r"models\.generator.*no model_index\.json.*v1-5-pruned.*from_single_file"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"_class_name": ["mine", "MyPipeline"]}'])
def test_an_index_that_names_no_pipeline_is_an_error(tmp_path: Path, content: str):
    """Half a download, a hand-made file, or a pipeline that brings its own code."""
    (tmp_path / "model_index.json").write_text(content)
    with pytest.raises(UserError, match=r"models\.generator.*cannot be loaded: its model_index\.json"):
        read(tmp_path)


def test_pickled_weights_are_refused_unread(pipeline: Path):
    """A pickle can run code; the message names it and the way out."""
    (pipeline / "unet" / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.bin can run code.*safe_serialization"):
        read(pipeline)


def test_missing_weights_are_an_error(pipeline: Path):
    """The message names the component."""
    (pipeline / "vae" / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"pipeline/vae holds no whole safetensors weights.*download the model again"):
        read(pipeline)


def test_half_precision_weights_do_where_there_are_no_others(pipeline: Path):
    """A repository that was saved with variant="fp16" only, for one component."""
    (pipeline / "unet" / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert {part.name: part.variant for part in read(pipeline).models()}["unet"] == "fp16"
    shutil.copy(pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors", pipeline / "unet" / WEIGHTS)
    assert {part.name: part.variant for part in read(pipeline).models()}["unet"] is None


@pytest.mark.parametrize(("there", "whole"), [((1, 2), True), ((1,), False)])
def test_shards_must_all_be_there(pipeline: Path, there: tuple[int, ...], whole: bool):
    """An interrupted download of large weights is noticed before anything is loaded."""
    names = {number: f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors" for number in (1, 2)}
    index = {"weight_map": {"a": names[1], "b": names[2]}}
    (pipeline / "unet" / WEIGHTS).unlink()
    (pipeline / "unet" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    for number in there:
        (pipeline / "unet" / names[number]).touch()
    if whole:
        read(pipeline)
    else:
        with pytest.raises(UserError, match="no whole safetensors weights"):
            read(pipeline)


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_of_a_hub_repository_the_needed_files_are_fetched_once(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Safetensors of the components at full precision; no pickle, no second precision, no checkpoint in one file, no
    safety checker. The second time nothing is even asked."""
    stem = "unet/diffusion_pytorch_model"
    for name in (f"{stem}.bin", f"{stem}.fp16.safetensors", "all.safetensors"):
        shutil.copy(pipeline / "unet" / WEIGHTS, pipeline / name)
    (pipeline / "text_encoder" / "model.safetensors").rename(pipeline / "text_encoder" / "model.fp16.safetensors")
    with serving(pipeline) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "cache")
        found = pipeline_folder(REPOSITORY, COMMIT)
        weights = {name for name in hub.fetched if not name.endswith((".json", ".txt"))}
        assert weights == {f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.fp16.safetensors"}
        assert len(hub.fetched) == len(set(hub.fetched))
        assert [part.variant for part in found.models()].count("fp16") == 1
        asked = hub.n_requests
        assert pipeline_folder(REPOSITORY, COMMIT) == found
        assert hub.n_requests == asked


def test_what_is_in_the_cache_needs_no_hub(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pinned commit does not change, so a machine without a network draws with what was fetched before."""
    with serving(pipeline) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "cache")
        found = pipeline_folder(REPOSITORY, COMMIT)
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    assert pipeline_folder(REPOSITORY, COMMIT) == found


def test_an_interrupted_download_is_taken_up(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What is missing is fetched, and only that."""
    with serving(pipeline) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "cache")
        found = pipeline_folder(REPOSITORY, COMMIT)
        (found.path / "vae" / WEIGHTS).unlink()
        hub.fetched.clear()
        assert pipeline_folder(REPOSITORY, COMMIT) == found
        assert hub.fetched in ([], [f"vae/{WEIGHTS}"])  # the cache may still hold the content under its digest
        assert (found.path / "vae" / WEIGHTS).is_file()


def test_without_hub_and_cache_the_message_says_what_to_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """At once, not after minutes of trying again; with the command, and what to write then."""
    use_hub(monkeypatch, NOWHERE, tmp_path / "cache")
    started = time.monotonic()
    with pytest.raises(UserError) as found:
        pipeline_folder(REPOSITORY, COMMIT)
    assert time.monotonic() - started < 60
    assert f"hf download {REPOSITORY} --revision {COMMIT} --local-dir" in str(found.value)
    assert "models.generator: FOLDER" in str(found.value)


def test_a_repository_that_is_not_there_is_an_error(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A typing error in the name."""
    with serving(pipeline) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "cache")
        with pytest.raises(UserError, match=r"models\.generator: 'someone/other'.*check name and revision"):
            pipeline_folder("someone/other", COMMIT)


def test_pickled_weights_are_not_even_fetched(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message names what was looked for."""
    (pipeline / "unet" / WEIGHTS).rename(pipeline / "unet" / "diffusion_pytorch_model.bin")
    with serving(pipeline) as hub:
        use_hub(monkeypatch, hub.endpoint, tmp_path / "cache")
        with pytest.raises(UserError, match=r"holds no weights named unet/diffusion_pytorch_model\.safetensors"):
            pipeline_folder(REPOSITORY, COMMIT)
        assert not [name for name in hub.fetched if name.endswith(".bin")]
