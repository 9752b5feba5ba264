"""Makes tests/data/glide_*: what the original implementation of GLIDE computes with tiny, drawn weights.

    git clone https://github.com/openai/glide-text2im    (commit 69b530740eb6cef69442d6180579ef5ba9ef063e)
    PYTHONPATH=glide-text2im:tests/generators python tests/data/glide_reference.py glide-text2im/notebooks/text2im.ipynb

Written are the names and shapes of its parameters (full size and tiny), a tiny tokenizer, token numbers, features of
the text transformer, outputs of both UNets, and images of the sampling cells of its notebook, which are run as they
are, with the noise replaced.
"""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from glide_models import DATA, SEEDS, TOKENIZER, draw_noise, draw_parameters
from glide_text2im import model_creation
from glide_text2im.respace import space_timesteps
from glide_text2im.tokenizer.bpe import Encoder
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer

TINY = {
    "base": {"image_size": 16, "num_res_blocks": 2, "channel_mult": "1,4", "xf_layers": 2, "text_ctx": 32},
    "upsample": {"image_size": 32, "num_res_blocks": 1, "channel_mult": "1,1,4", "xf_layers": 1, "text_ctx": 24},
}
TINY_BOTH = {"num_channels": 32, "attention_resolutions": "8", "xf_width": 128, "xf_heads": 2, "use_fp16": False}
RESPACING = {"base": "100", "upsample": "fast27"}
CAPTIONS = [f"a photo of a {colour} {noun}, a kind of animal" for colour in ("red", "blue") for noun in ("cat", "dog")]
PROMPTS = [
    "a photo of a red cat",
    "A PHOTO of a Blue Dog!",
    "",
    "naïve café 猫, isn't it?  two  spaces\n12345",
    "a text that does not fit into so few positions, whatever it says of cats, dogs, animals and other photos",
    "the end: <|endoftext|> is text",
]
TIMESTEPS = [0, 499, 999]
STATE_EVERY = {"base": 10, "upsample": 4}  # steps between the states that are kept


def tiny_tokenizer() -> Encoder:
    """A byte-pair encoding with a few merges; the end token has the highest number, as in GPT-2's."""
    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(CAPTIONS, vocab_size=256 + 40, min_frequency=1, show_progress=False)
    TOKENIZER.mkdir(exist_ok=True)
    learner.save_model(str(TOKENIZER))
    path = TOKENIZER / "vocab.json"
    vocabulary = json.loads(path.read_text())
    vocabulary["<|endoftext|>"] = len(vocabulary)
    path.write_text(json.dumps(vocabulary, ensure_ascii=False))
    merges = [tuple(line.split()) for line in (TOKENIZER / "merges.txt").read_text().splitlines()[1:]]
    return Encoder(vocabulary, merges)


def settings(model: str) -> dict[str, Any]:
    """The original's own settings of the full model."""
    chosen = (
        model_creation.model_and_diffusion_defaults()
        if model == "base"
        else model_creation.model_and_diffusion_defaults_upsampler()
    )
    return chosen | {"timestep_respacing": RESPACING[model]}


def shapes(model: torch.nn.Module) -> dict[str, list[int]]:
    """Names and shapes of its parameters; it has no buffers."""
    return {name: list(value.shape) for name, value in model.state_dict().items()}


def main() -> None:
    """Run everything and write the files."""
    parameters: dict[str, Any] = {"full": {}, "tiny": {}}
    for name in TINY:
        with torch.device("meta"):
            parameters["full"][name] = shapes(model_creation.create_model_and_diffusion(**settings(name))[0])
    tokenizer = tiny_tokenizer()
    model_creation.get_encoder = lambda: tokenizer
    values: dict[str, torch.Tensor] = {}
    scope: dict[str, Any] = {"th": torch, "device": "cpu", "show_images": lambda batch: None}
    for name, suffix in (("base", ""), ("upsample", "_up")):
        options = settings(name) | TINY[name] | TINY_BOTH
        model, diffusion = model_creation.create_model_and_diffusion(**options)
        parameters["tiny"][name] = shapes(model)
        model.load_state_dict(draw_parameters(parameters["tiny"][name], SEEDS[name]))
        model.eval()
        scope |= {f"model{suffix}": model, f"diffusion{suffix}": diffusion, f"options{suffix}": options}
        values |= {f"{name}.{key}": value for key, value in outputs(model, options, name).items()}
    values |= images(Path(sys.argv[1]), scope)
    spacings = json.dumps([sorted(space_timesteps(1000, [count])) for count in range(2, 1001)])
    parameters["spacings_sha256"] = hashlib.sha256(spacings.encode()).hexdigest()
    (DATA / "glide_parameters.json").write_text(json.dumps(parameters))
    save_file(
        {name: value.contiguous() for name, value in values.items()},
        DATA / "glide_reference.safetensors",
        # One entry: safetensors writes several in any order.
        {"settings": json.dumps({"prompts": PROMPTS, "timesteps": TIMESTEPS, "state_every": STATE_EVERY})},
    )


@torch.no_grad()
def outputs(model: Any, options: dict[str, Any], name: str) -> dict[str, torch.Tensor]:
    """Tokens and features of PROMPTS; predictions at TIMESTEPS for the first prompts."""
    encoder, context = model.tokenizer, options["text_ctx"]
    padded = [encoder.padded_tokens_and_mask(encoder.encode(prompt), context) for prompt in PROMPTS]
    tokens, mask = torch.tensor([row for row, _ in padded]), torch.tensor([row for _, row in padded])
    features = model.get_text_emb(tokens, mask)
    count, size, noise = len(TIMESTEPS), options["image_size"], draw_noise(1)
    inputs = {"x": noise((count, 3, size, size)), "timesteps": torch.tensor(TIMESTEPS)}
    if name == "upsample":
        inputs["low_res"] = noise((count, 3, size // 2, size // 2)).clamp(-1, 1)
    return {
        "tokens": tokens,
        "mask": mask,
        "features": features["xf_out"].permute(0, 2, 1),
        "pooled": features["xf_proj"],
        "prediction": model(**inputs, tokens=tokens[:count], mask=mask[:count]),
    }


def images(notebook: Path, scope: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What the notebook's sampling cells draw: two images of the first prompt, and noisy states on the way there."""
    cells = ["".join(cell["source"]) for cell in json.loads(notebook.read_text())["cells"]]
    sampling = [cell for cell in cells if "# Sample from the base model #" in cell or "# Upsample the 64x64" in cell]
    exec(next(cell for cell in cells if cell.startswith("# Sampling parameters")), scope)
    scope |= {"prompt": PROMPTS[0], "batch_size": 2}
    drawn = {}
    for (name, suffix, result), cell in zip(
        (("base", "", "samples"), ("upsample", "_up", "up_samples")), sampling, strict=True
    ):
        noise, states = draw_noise(SEEDS[name]), []
        torch.randn = lambda *shape, noise=noise, **_: noise(np.ravel(shape))
        torch.randn_like = lambda other, noise=noise: noise(other.shape)
        scope[f"model{suffix}"].register_forward_pre_hook(
            lambda _, inputs, states=states: states.append(inputs[0][: scope["batch_size"]].clone())
        )
        exec(cell, scope)
        drawn[f"{name}.images"] = scope[result].clone()
        drawn[f"{name}.states"] = torch.stack(states[:: STATE_EVERY[name]])
    return drawn


if __name__ == "__main__":
    main()
