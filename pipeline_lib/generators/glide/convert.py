"""OpenAI's GLIDE checkpoints -> the folder of a `GlidePipeline`."""

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from pipeline_lib.errors import UserError
from pipeline_lib.generators.glide.names import Move, text_moves, unet_moves
from pipeline_lib.generators.glide.pipeline import GlidePipeline
from pipeline_lib.generators.glide.schedulers import GlideAncestralScheduler, GlideDDIMScheduler
from pipeline_lib.generators.glide.sizes import COLOURS, HEAD, Shapes, read_sizes
from pipeline_lib.generators.glide.text import GlideTextEncoder, build_text_encoder
from pipeline_lib.generators.glide.tokens import load_tokenizer
from pipeline_lib.generators.glide.unet import build_unet

_NAMED = 3  # parameters of each kind that an error message names


def convert(base: Path, upsample: Path, out: Path, tokenizer: str, tokenizer_revision: str | None) -> None:
    """Write the folder `out`, in float32 safetensors, from OpenAI's base.pt and upsample.pt and GPT-2's tokenizer (a
    folder or a pinned hub id). Widths and depths are read off the checkpoints.

    Raises `UserError` where `out` exists, a file is no checkpoint of tensors, or a parameter is missing, unknown or of
    another shape; then nothing is written.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name another folder, or remove it")
    words = load_tokenizer(tokenizer, tokenizer_revision)
    models = []
    for path, in_channels in ((base, COLOURS), (upsample, 2 * COLOURS)):
        text_encoder, unet = convert_parameters(_read(path), str(path))
        _check_use(text_encoder, unet, path, in_channels, tokenizer, len(words))
        models += [text_encoder, unet]
    text_encoder, unet, upsampler_text_encoder, upsampler_unet = models
    pipeline = GlidePipeline(
        tokenizer=words,
        text_encoder=text_encoder,
        unet=unet,
        scheduler=GlideAncestralScheduler(),
        upsampler_text_encoder=upsampler_text_encoder,
        upsampler_unet=upsampler_unet,
        upsampler_scheduler=GlideDDIMScheduler(),
    )
    with _atomic_folder(out) as temporary:
        pipeline.save_pretrained(temporary)


def convert_parameters(
    theirs: Mapping[str, torch.Tensor], source: str
) -> tuple[GlideTextEncoder, UNet2DConditionModel]:
    """Text transformer and UNet, in float32, with the parameters of one of the original's models.

    `source` is named in errors. Of parameters on torch's meta device the models are there too.
    """
    shapes = {name: tuple(value.shape) for name, value in theirs.items()}
    text_sizes, unet_sizes = read_sizes(shapes, source)
    with torch.device("meta"):
        text, unet = build_text_encoder(text_sizes), build_unet(unet_sizes, text_sizes.width)
    expected: dict[Move, tuple[int, ...]] = {}
    for model, moves in ((text, text_moves(text_sizes.layers)), (unet, unet_moves(unet_sizes))):
        expected |= _expected_shapes(moves, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    _check_names_and_shapes(shapes, {move.theirs: shape for move, shape in expected.items()}, source)
    ours: dict[str, torch.Tensor] = {}
    for move in expected:
        ours |= _moved(theirs[move.theirs], move)
    for model in (text, unet):
        model.load_state_dict({name: ours[name] for name in model.state_dict()}, assign=True)
        model.eval()
    return text, unet


def _read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file. Nothing in it is run."""
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; name the file that OpenAI's checkpoint was saved to") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is refused: it holds something else than tensors, and loading that could run code of the file's "
            f"author; take the checkpoint from OpenAI"
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint; is it complete? ({error})") from error
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in found.items()
    ):
        raise UserError(f"{path} holds no mapping of parameter names to tensors, so it is no GLIDE checkpoint")
    return found


def _check_use(
    text_encoder: GlideTextEncoder,
    unet: UNet2DConditionModel,
    path: Path,
    in_channels: int,
    tokenizer: str,
    tokens: int,
) -> None:
    """Whether a model is what it is to be used as, and speaks the tokenizer's language."""
    if unet.config.in_channels != in_channels:
        kinds = {COLOURS: "a base model", 2 * COLOURS: "an upsampler"}
        raise UserError(
            f"{path} is {kinds.get(unet.config.in_channels, 'another model')} (it takes {unet.config.in_channels} "
            f"channels), not {kinds[in_channels]} ({in_channels} channels); give base.pt, then upsample.pt"
        )
    if text_encoder.config.vocabulary != tokens:
        raise UserError(
            f"--tokenizer: {tokenizer!r} has {tokens} tokens, but {path} was trained with "
            f"{text_encoder.config.vocabulary}; OpenAI's checkpoints go with GPT-2's tokenizer"
        )


def _expected_shapes(moves: Sequence[Move], ours: Shapes) -> dict[Move, tuple[int, ...]]:
    """Shapes that the original's parameters must have to become ours. Moves to what our model lacks (shortcuts that a
    residual block does not need) are left out."""
    expected = {}
    for move in moves:
        if all(name in ours for name in move.ours):
            rows = sum(ours[name][0] for name in move.ours)
            expected[move] = (rows, *ours[move.ours[0]][1:], *((1,) if move.pointwise else ()))
    return expected


def _check_names_and_shapes(found: Shapes, expected: Shapes, source: str) -> None:
    """Raises `UserError` that names the first few of the missing, the unknown and the misshapen parameters."""
    misshapen = [
        f"{name!r} ({list(found[name])}, expected {list(shape)})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    faults = {
        "missing": [repr(name) for name in expected if name not in found],
        "unknown": [repr(name) for name in found if name not in expected],
        "of another shape": misshapen,
    }
    lines = [
        f"  {kind}: {', '.join(names[:_NAMED])}{f' and {len(names) - _NAMED} more' if len(names) > _NAMED else ''}"
        for kind, names in faults.items()
        if names
    ]
    if lines:
        raise UserError(f"{source}: its parameters are not those of a GLIDE text-to-image model:\n" + "\n".join(lines))


def _moved(theirs: torch.Tensor, move: Move) -> dict[str, torch.Tensor]:
    """A parameter of the original under our name or names."""
    value = theirs.to(torch.float32)
    if move.pointwise:
        value = value.squeeze(-1)
    if move.fused > 1:
        by_head = value.reshape(-1, move.fused, HEAD, *value.shape[1:])
        value = by_head.transpose(0, 1).reshape(value.shape)
    parts = value.chunk(len(move.ours))
    # Clones, because safetensors does not save tensors that share memory.
    return {name: part.clone() for name, part in zip(move.ours, parts, strict=True)}


@contextmanager
def _atomic_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out`; renamed to `out`, all on disk, when the block ends well, else removed."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            path.chmod(0o755 if path.is_dir() else 0o644)  # mkdtemp and safetensors let only the owner read
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
