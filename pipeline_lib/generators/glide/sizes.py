"""Widths and depths of a GLIDE model, read off the names and shapes of its parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline_lib.errors import UserError

HEAD = 64  # channels of an attention head, in the text transformers and in the UNets (`num_head_channels`, 512 / 8)
COLOURS = 3

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class TextSizes:
    """A text transformer; `pooled_width` that of the time embedding, which its last position is added to."""

    vocabulary: int
    context: int
    width: int
    layers: int
    pooled_width: int


@dataclass(frozen=True)
class UNetSizes:
    """A UNet; `widths` and `attention` (whether there is any) are per level, the highest resolution first."""

    in_channels: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    layers: int

    @property
    def resolution(self) -> int:
        """Height and width in pixels. No parameter depends on them, but in all models of the original the lowest of the
        levels has 8 x 8 pixels (`create_model`: image_size == 2 ** (levels + 2))."""
        return int(2 ** (len(self.widths) + 2))


def read_sizes(shapes: Shapes, source: str) -> tuple[TextSizes, UNetSizes]:
    """Sizes of the text transformer and the UNet in a checkpoint of the original implementation.

    Raises `UserError`, naming `source`, where a parameter that tells a size is missing or the sizes make no GLIDE.
    """
    return _text_sizes(shapes, source), _unet_sizes(shapes, source)


def _text_sizes(shapes: Shapes, source: str) -> TextSizes:
    vocabulary, width = _shape(shapes, "token_embedding.weight", 2, source)
    _check_heads(width, "text transformer", source)
    return TextSizes(
        vocabulary=vocabulary,
        context=_shape(shapes, "positional_embedding", 2, source)[0],
        width=width,
        layers=_count(shapes, "transformer.resblocks", source),
        pooled_width=_shape(shapes, "transformer_proj.weight", 2, source)[0],
    )


def _unet_sizes(shapes: Shapes, source: str) -> UNetSizes:
    """The decoder tells all: each level but the last ends with a residual block that upsamples, behind the level's
    ordinary residual block and its attention."""
    blocks = _count(shapes, "output_blocks", source)
    upsampling = sum(
        f"output_blocks.{block}.{place}.in_layers.0.weight" in shapes for block in range(blocks) for place in (1, 2)
    )
    levels = upsampling + 1
    if blocks % levels:
        raise UserError(
            f"{source}: no checkpoint of a GLIDE model: {blocks} output blocks, {upsampling} of which upsample, do not "
            f"share out among {levels} levels"
        )
    first = range(0, blocks, blocks // levels)
    widths = [_shape(shapes, f"output_blocks.{block}.0.out_layers.3.weight", 4, source)[0] for block in first]
    attention = [f"output_blocks.{block}.1.qkv.weight" in shapes for block in first]
    for width, attends in zip(widths, attention, strict=True):
        if attends:
            _check_heads(width, "UNet", source)
    _check_heads(widths[0], "UNet", source)  # the middle block always attends
    return UNetSizes(
        in_channels=_shape(shapes, "input_blocks.0.0.weight", 4, source)[1],
        widths=tuple(reversed(widths)),
        attention=tuple(reversed(attention)),
        layers=blocks // levels - 1,
    )


def _shape(shapes: Shapes, name: str, dimensions: int, source: str) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"{source}: no checkpoint of a GLIDE model: it has no parameter {name!r}")
    if len(shapes[name]) != dimensions:
        raise UserError(
            f"{source}: {name!r} has shape {list(shapes[name])}; a GLIDE model's has {dimensions} dimensions"
        )
    return shapes[name]


def _count(shapes: Shapes, prefix: str, source: str) -> int:
    """How many modules PREFIX.0, PREFIX.1, ... there are."""
    numbers = {name.removeprefix(f"{prefix}.").split(".")[0] for name in shapes if name.startswith(f"{prefix}.")}
    if not numbers:
        raise UserError(f"{source}: no checkpoint of a GLIDE model: it has no parameter '{prefix}.0. ...'")
    return len(numbers)


def _check_heads(width: int, part: str, source: str) -> None:
    if width % HEAD:
        raise UserError(
            f"{source}: the {part} attends with {width} channels. A checkpoint does not say how many heads they are; "
            f"GLIDE's heads have {HEAD} channels each, and {width} is no multiple of {HEAD}"
        )
