"""What workflow/studies/smoke.yaml runs on: tiny random models in every real format, and tiny raw data sets.

    python tests/smoke_study.py data/smoke

The models are noise: the study shows that every format goes through the same rules, and nothing else.
"""

import shutil
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS / name) for name in ("", "datasets", "generators")]

from glide_models import TOKENIZER, tiny_glide_checkpoints  # noqa: E402
from raw_trees import RawTree, draw_raw_tree  # noqa: E402
from tiny_clip import RESNET, VIT, build, write_folder  # noqa: E402
from tiny_models import CAPTIONS, make_tiny_t5  # noqa: E402
from tiny_pipelines import stable_diffusion_1, stable_diffusion_xl  # noqa: E402

from pipeline_lib.miniature import tokenizer  # noqa: E402

DATASETS = ("cifar10", "cars")  # binary records; image files with lists


def make_smoke(folder: Path) -> dict[str, RawTree]:
    """Write models and raw data below `folder`, anew; returns the raw data sets by name."""
    shutil.rmtree(folder, ignore_errors=True)
    models = folder / "models"
    models.mkdir(parents=True)
    stable_diffusion_1(models / "stable_diffusion_1")
    stable_diffusion_xl(models / "stable_diffusion_xl")
    base, upsample = tiny_glide_checkpoints(folder / "checkpoints")
    convert = [sys.executable, "-m", "pipeline_lib", "convert-glide", base, upsample, models / "glide"]
    subprocess.run([*convert, "--tokenizer", TOKENIZER], check=True)
    # open_clip's form of OpenAI's models: their parameter names and QuickGELU.
    for name, architecture in (("clip_rn50", RESNET), ("clip_vit", VIT)):
        config = {**architecture, "quick_gelu": True}
        write_folder(build(config), config, models / name)
    tokenizer.save(folder / "words", *tokenizer.train(CAPTIONS, merges=40))
    make_tiny_t5(folder / "words", models / "t5")
    return {name: draw_raw_tree(name, folder / "raw" / name, n_per_class=4) for name in DATASETS}


if __name__ == "__main__":
    make_smoke(Path(sys.argv[1]))
