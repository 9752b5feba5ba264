"""GLIDE's text transformer."""

from typing import NamedTuple

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import nn

from pipeline_lib.generators.glide.sizes import HEAD, TextSizes


class TextFeatures(NamedTuple):
    """What a UNet is told about N texts."""

    tokens: torch.Tensor
    """[N, context, width]: every position, attended to by the UNet's attention."""
    pooled: torch.Tensor
    """[N, pooled_width]: the projected last position, added to the time embedding."""

    def rows(self, numbers: list[int]) -> "TextFeatures":
        """The features of some of the texts, in that order, repeated where a number is repeated."""
        return TextFeatures(self.tokens[numbers], self.pooled[numbers])


class GlideTextEncoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Pre-norm transformer without a causal mask, over a fixed number of positions (arXiv 2112.10741, section 4;
    original: `Text2ImUNet.get_text_emb` and `xf.py`).

    Positions behind the text hold a learned padding embedding, which is attended to like text.
    """

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, pooled_width: int):
        super().__init__()
        self.register_to_config(
            vocabulary=vocabulary, context=context, width=width, layers=layers, pooled_width=pooled_width
        )
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(context, width))
        self.padding_embedding = nn.Parameter(torch.zeros(context, width))
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.projection = nn.Linear(width, pooled_width)

    def forward(self, tokens: torch.Tensor, is_text: torch.Tensor) -> TextFeatures:
        """Token numbers int64 [N, context] and where they are text, bool [N, context] -> features."""
        embedded = self.token_embedding(tokens) + self.positional_embedding
        features = self.transformer(torch.where(is_text[..., None], embedded, self.padding_embedding))
        return TextFeatures(features, self.projection(features[:, -1]))


def build_text_encoder(sizes: TextSizes) -> GlideTextEncoder:
    """An untrained text transformer of these sizes."""
    return GlideTextEncoder(
        vocabulary=sizes.vocabulary,
        context=sizes.context,
        width=sizes.width,
        layers=sizes.layers,
        pooled_width=sizes.pooled_width,
    )
