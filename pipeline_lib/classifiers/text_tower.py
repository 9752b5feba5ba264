"""The text transformer of a CLIP model as a function of token embeddings, for prompts whose words are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import Tensor

from pipeline_lib.clip_models import KEY, load_clip
from pipeline_lib.devices import resolve
from pipeline_lib.errors import NotComputableError

_PLACEHOLDER = "X"  # its token stands where a learned vector is; only that it is a word matters


@dataclass(frozen=True, eq=False)
class Prompts:
    """N prompts with room for n vectors before their words, as `TextTower.prompts` makes them.

    tokens: int64 [N, context_length], a placeholder for each vector; start: float32 [s, width], embeddings before the
    vectors, the same for all prompts (s: 1, the start token; 0 where a tokenizer has none); ends: float32
    [N, r, width], embeddings after them; last: int64 [N], the end tokens' positions, behind the last of which `ends`
    is cut; None where a model looks at other positions, too.
    """

    tokens: Tensor
    start: Tensor
    ends: Tensor
    last: Tensor | None


class TextTower:
    """The text tower of an open_clip model, frozen, float32; `clip_models.load_clip` says what the model can be.

    device is what was resolved; context_length: positions of a prompt; width: of a token's embedding; logit_scale:
    exp(model.logit_scale), the factor of cosines in logits.

    Raises `NotComputableError` for a model whose text tower is not open_clip's own transformer, or whose tokenizer puts
    something behind the words; `UserError` for one that cannot be loaded, and for a GPU that is asked for and absent.
    """

    def __init__(self, model: str, pretrained: str | None, revision: str | None = None, device: str = "auto"):
        self.device = resolve(device)
        loaded, _, self._tokenizer = load_clip(model, pretrained, revision)
        self._text: Any = loaded if isinstance(loaded, open_clip.CLIP) else getattr(loaded, "text", None)
        if not isinstance(self._text, open_clip.CLIP | TextTransformer):
            raise NotComputableError(
                f"{KEY}: {model!r} has a text encoder of another library ({type(self._text).__name__}); CoOp learns "
                f"vectors in place of words and knows how to with open_clip's own text transformer only (as of CLIP, "
                f"SigLIP, CoCa): name such a model"
            )
        if getattr(self._tokenizer, "tokenizer_mode", ""):  # it puts a token behind the padding
            raise NotComputableError(
                f"{KEY}: {model!r} has a tokenizer of the mode {self._tokenizer.tokenizer_mode!r}; CoOp can place its "
                f"vectors with the usual ones only: name another model"
            )
        loaded.visual = torch.nn.Identity()  # the image tower is not needed
        self._model: Any = loaded.to(self.device).requires_grad_(False)
        self._shares_start = _shares_start(self._text)
        self.logit_scale = float(self._model.logit_scale.exp())
        self.width = int(self._text.positional_embedding.shape[1])
        first, second = self._tokenizer(["a", "b"])
        self.context_length = len(first)
        self._n_start = int((first != second).nonzero()[0])  # tokens before the words

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Positions that each text takes, start and end token included."""
        wide = self._tokenizer(list(texts), context_length=4 * self.context_length)
        # What follows the last change of token is padding, except for one end token where that is the padding, too.
        changes = wide[:, 1:] != wide[:, :-1]
        found = changes.shape[1] - changes.flip(1).int().argmax(dim=1)
        longest = int(found.max())
        if not torch.equal(self._tokenizer(list(texts), context_length=longest), wide[:, :longest]):
            found += 1  # cut there, the longest text lost its last word to the end token
        return [int(length) for length in found]

    def prompts(self, texts: Sequence[str], n_vectors: int) -> Prompts:
        """Prompts of `n_vectors` vectors and then the words of each text.

        Raises ValueError where they take more than `context_length` positions.
        """
        longest = max(self.lengths(texts))
        if n_vectors + longest > self.context_length:
            raise ValueError(f"{n_vectors} vectors and {longest} tokens; there are {self.context_length} positions")
        words = self._tokenizer(list(texts), context_length=self.context_length - n_vectors)
        placeholder = self._tokenizer([_PLACEHOLDER])[:, self._n_start].expand(len(words), n_vectors)
        before, after = words[:, : self._n_start], words[:, self._n_start :]
        tokens = torch.cat([before, placeholder, after], dim=1).to(self.device)
        last = _last(self._text, tokens) if self._shares_start else None
        embeddings = self._text.token_embedding(tokens if last is None else tokens[:, : int(last.max()) + 1])
        start, ends = embeddings[0, : self._n_start], embeddings[:, self._n_start + n_vectors :]
        return Prompts(tokens, start, ends, last)

    def features(self, prompts: Prompts, vectors: Tensor) -> Tensor:
        """L2-normalised text features, float32 [N, d], of prompts with these vectors, float32 [n, width]; gradients
        flow to the vectors."""
        start = torch.cat([prompts.start, vectors])
        if prompts.last is not None:
            return F.normalize(_embed_sharing_start(self._text, start, prompts.ends, prompts.last), dim=-1)
        given = torch.cat([start.expand(len(prompts.ends), -1, -1), prompts.ends], dim=1)
        hook = self._text.token_embedding.register_forward_hook(lambda *_: given)
        try:
            return F.normalize(self._model.encode_text(prompts.tokens), dim=-1)
        finally:
            hook.remove()


def _shares_start(text: Any) -> bool:
    """Whether the positions at which prompts are equal come out equal, and those behind the pooled one do not matter:
    each position sees itself and those before it alone, in blocks that are known here."""
    return (
        text.attn_mask is not None
        and getattr(text, "cls_emb", None) is None
        and _pool_type(text) in ("argmax", "eos")
        and all(type(block) is ResidualAttentionBlock for block in text.transformer.resblocks)
    )


def _pool_type(text: Any) -> str:
    return str(text.text_pool_type if isinstance(text, open_clip.CLIP) else text.pool_type)


def _last(text: Any, tokens: Tensor) -> Tensor:
    """The position of the end token, as open_clip looks for it: int64 [N]."""
    if _pool_type(text) == "argmax":
        return tokens.argmax(dim=-1)
    is_end: Tensor = tokens == (text.text_eos_id if isinstance(text, open_clip.CLIP) else text.eos_id)
    return is_end.int().argmax(dim=-1)


def _embed_sharing_start(text: Any, start: Tensor, ends: Tensor, last: Tensor) -> Tensor:
    """What open_clip gives for the prompts start + ends[i], float32 [N, d], without computing the start N times.

    start: [s, width]; ends: [N, r, width]; last: the end tokens' positions, s to s + r - 1.

    All positions are rows of one matrix: the s of the start, then r of each prompt. With 1,000 classes, 16 vectors and
    names of a few tokens that is a tenth of 1,000 x 77 positions. In the last block only the end tokens go on.
    """
    n, r, s = *ends.shape[:2], len(start)
    positions = text.positional_embedding
    x: Tensor = torch.cat([start + positions[:s], (ends + positions[s : s + r]).reshape(n * r, -1)])
    mask = torch.ones(r, s + r, dtype=torch.bool, device=x.device).tril(s)  # an end sees the start and what is before
    *blocks, final = text.transformer.resblocks
    for block in blocks:
        query, key, value = _projected(block, x)
        of_start = _attention(block, query[:s], key[:s], value[:s], is_causal=True)
        keys, values = _with_start(key, s, n), _with_start(value, s, n)
        of_ends = _attention(block, query[s:].view(n, r, -1), keys, values, attn_mask=mask)
        x = _residual(block, x, torch.cat([of_start, of_ends.reshape(n * r, -1)]))
    query, key, value = _projected(final, x)
    ending = torch.arange(n, device=x.device) * r + last  # rows of the end tokens: s + (number * r) + (last - s)
    pooled = _attention(
        final,
        query[ending, None],
        _with_start(key, s, n),
        _with_start(value, s, n),
        attn_mask=mask[last - s, None, None],
    )
    x = text.ln_final(_residual(final, x[ending], pooled[:, 0]))
    if text.text_projection is None:
        return x
    linear = isinstance(text.text_projection, torch.nn.Linear)
    projected: Tensor = text.text_projection(x) if linear else x @ text.text_projection
    return projected


def _projected(block: Any, x: Tensor) -> tuple[Tensor, ...]:
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)


def _with_start(rows: Tensor, s: int, n: int) -> Tensor:
    """Rows of the start and of n prompts as those of n whole prompts: [s + n * r, width] to [n, s + r, width]."""
    return torch.cat([rows[:s].expand(n, -1, -1), rows[s:].view(n, -1, rows.shape[1])], dim=1)


def _attention(block: Any, query: Tensor, key: Tensor, value: Tensor, **mask: Any) -> Tensor:
    """Multi-head attention before its output projection; [..., positions, width]."""
    n = block.attn.num_heads
    query, key, value = (torch.unflatten(part, -1, (n, -1)).transpose(-2, -3) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, **mask).transpose(-2, -3).flatten(-2)


def _residual(block: Any, x: Tensor, attended: Tensor) -> Tensor:
    x = x + block.ls_1(block.attn.out_proj(attended))
    output: Tensor = x + block.ls_2(block.mlp(block.ln_2(x)))
    return output
