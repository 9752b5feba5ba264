"""Which parameter of the original implementation becomes which of ours (openai/glide-text2im: `unet.py`, `xf.py`,
`text2im_model.py`)."""

from collections.abc import Iterator
from dataclasses import dataclass

from pipeline_lib.generators.glide.sizes import UNetSizes


@dataclass(frozen=True)
class Move:
    """Where one parameter of the original goes."""

    theirs: str
    ours: tuple[str, ...]
    """One name; or, of projections that the original fuses, the name of each."""
    fused: int = 1
    """Projections fused into it, head by head: the first head's queries, keys, values, then the second head's, ..."""
    pointwise: bool = False
    """A convolution of width one in the original, a matrix here."""


def text_moves(layers: int) -> list[Move]:
    """All parameters of a text transformer with that many layers."""
    return [
        Move("token_embedding.weight", ("token_embedding.weight",)),
        Move("positional_embedding", ("positional_embedding",)),
        Move("padding_embedding", ("padding_embedding",)),
        *_both("transformer_proj", "projection"),
        *_both("final_ln", "transformer.norm"),
        *(move for layer in range(layers) for move in _text_layer(layer)),
    ]


def _text_layer(layer: int) -> Iterator[Move]:
    theirs, ours = f"transformer.resblocks.{layer}", f"transformer.layers.{layer}"
    for kind in ("weight", "bias"):
        yield Move(f"{theirs}.attn.c_qkv.{kind}", (f"{ours}.self_attn.in_proj_{kind}",), fused=3)
    yield from _both(f"{theirs}.attn.c_proj", f"{ours}.self_attn.out_proj")
    yield from _both(f"{theirs}.ln_1", f"{ours}.norm1")
    yield from _both(f"{theirs}.ln_2", f"{ours}.norm2")
    yield from _both(f"{theirs}.mlp.c_fc", f"{ours}.linear1")
    yield from _both(f"{theirs}.mlp.c_proj", f"{ours}.linear2")


def unet_moves(sizes: UNetSizes) -> list[Move]:
    """All parameters that a UNet of these sizes can have: whether a residual block has a `conv_shortcut` depends on its
    input's width."""
    return [
        *_both("time_embed.0", "time_embedding.linear_1"),
        *_both("time_embed.2", "time_embedding.linear_2"),
        *_both("input_blocks.0.0", "conv_in"),
        *_encoder(sizes),
        *_residual("middle_block.0", "mid_block.resnets.0"),
        *_attention("middle_block.1", "mid_block.attentions.0"),
        *_residual("middle_block.2", "mid_block.resnets.1"),
        *_decoder(sizes),
        *_both("out.0", "conv_norm_out"),
        *_both("out.2", "conv_out"),
    ]


def _encoder(sizes: UNetSizes) -> Iterator[Move]:
    block = 1  # block 0 is the first convolution
    for level, attends in enumerate(sizes.attention):
        for layer in range(sizes.layers):
            yield from _residual(f"input_blocks.{block}.0", f"down_blocks.{level}.resnets.{layer}")
            if attends:
                yield from _attention(f"input_blocks.{block}.1", f"down_blocks.{level}.attentions.{layer}")
            block += 1
        if level < len(sizes.widths) - 1:
            yield from _residual(f"input_blocks.{block}.0", f"down_blocks.{level}.downsamplers.0")
            block += 1


def _decoder(sizes: UNetSizes) -> Iterator[Move]:
    per_level = sizes.layers + 1
    for level, attends in enumerate(reversed(sizes.attention)):
        for layer in range(per_level):
            block = level * per_level + layer
            yield from _residual(f"output_blocks.{block}.0", f"up_blocks.{level}.resnets.{layer}")
            if attends:
                yield from _attention(f"output_blocks.{block}.1", f"up_blocks.{level}.attentions.{layer}")
        if level < len(sizes.widths) - 1:
            last = (level + 1) * per_level - 1
            yield from _residual(f"output_blocks.{last}.{2 if attends else 1}", f"up_blocks.{level}.upsamplers.0")


def _residual(theirs: str, ours: str) -> Iterator[Move]:
    yield from _both(f"{theirs}.in_layers.0", f"{ours}.norm1")
    yield from _both(f"{theirs}.in_layers.2", f"{ours}.conv1")
    yield from _both(f"{theirs}.emb_layers.1", f"{ours}.time_emb_proj")
    yield from _both(f"{theirs}.out_layers.0", f"{ours}.norm2")
    yield from _both(f"{theirs}.out_layers.3", f"{ours}.conv2")
    yield from _both(f"{theirs}.skip_connection", f"{ours}.conv_shortcut")


def _attention(theirs: str, ours: str) -> Iterator[Move]:
    yield from _both(f"{theirs}.norm", f"{ours}.group_norm")
    for kind in ("weight", "bias"):
        pointwise = kind == "weight"
        itself = tuple(f"{ours}.to_{part}.{kind}" for part in "qkv")
        text = tuple(f"{ours}.add_{part}_proj.{kind}" for part in "kv")
        yield Move(f"{theirs}.qkv.{kind}", itself, fused=3, pointwise=pointwise)
        yield Move(f"{theirs}.encoder_kv.{kind}", text, fused=2, pointwise=pointwise)
        yield Move(f"{theirs}.proj_out.{kind}", (f"{ours}.to_out.0.{kind}",), pointwise=pointwise)


def _both(theirs: str, ours: str) -> Iterator[Move]:
    for kind in ("weight", "bias"):
        yield Move(f"{theirs}.{kind}", (f"{ours}.{kind}",))
