"""The word-to-sentence model of language enhancement: T5-style, sampled for many classes together."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging as transformers_logging

from pipeline_lib.batches import Batches
from pipeline_lib.devices import memory_errors, resolve
from pipeline_lib.errors import UserError
from pipeline_lib.foreign_code import refuse_code
from pipeline_lib.hub import hub_folder
from pipeline_lib.prompts import Request

KEY = "models.sentences"
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")
_MAX_TOKENS = 48  # of a sentence


class SentenceModel:
    """A sequence-to-sequence model that transformers loads: concept words in, a sentence that holds them out.

    `model` is a folder or a hub id at commit `revision`; `batch_size` sentences are written together, halved when
    memory runs out. Computes in float32: T5's activations overflow float16.

    Raises `UserError` for a model that cannot be loaded and for a GPU that is asked for and absent.
    """

    def __init__(self, model: str, revision: str | None, batch_size: int, device: str = "auto"):
        self.device = resolve(device)
        self._batches = Batches(batch_size, "sentences")
        folder = Path(model) if Path(model).is_dir() else hub_folder(model, revision, _WEIGHTS, key=KEY)
        refuse_code(folder, KEY)
        transformers_logging.disable_progress_bar()
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            # Without safetensors a pickle is read, by torch's reader of weights alone, which runs no code.
            loaded, report = AutoModelForSeq2SeqLM.from_pretrained(
                folder, local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{KEY}: {model!r} is a pickle that holds more than weights: loading it could run code, so it was not "
                f"read; use a safetensors file of the same weights"
            ) from error
        except Exception as error:  # transformers, torch and safetensors have a class for every fault
            raise UserError(f"{KEY}: {model!r} cannot be loaded: {str(error) or type(error).__name__}") from error
        if missing := sorted(report["missing_keys"]):  # filled with random numbers
            raise UserError(
                f"{KEY}: {model!r} cannot be loaded: {len(missing)} weights are not in its files, the first is "
                f"{missing[0]}; its config.json is of another model, or the download broke off: get it again"
            )
        if damaged := [name for name, weight in loaded.state_dict().items() if not torch.isfinite(weight).all()]:
            raise UserError(
                f"{KEY}: {model!r}: {len(damaged)} weights are not finite, the first is {damaged[0]}; the file is "
                f"damaged: get it again"
            )
        self._model = loaded.to(self.device).eval()

    def sample(self, requests: Sequence[Request]) -> list[list[str]]:
        """The sentences of each request.

        Requests share batches; which ones does not matter to a sentence but for rounding. Its random numbers come from
        a generator of its own request, on the CPU whatever the device.
        """
        rows = [
            _Row(request, uniforms)
            for request in requests
            for uniforms in torch.rand(
                request.n, _MAX_TOKENS, dtype=torch.float64, generator=torch.Generator().manual_seed(request.seed)
            )
        ]
        sentences = iter([sentence for batch in self._batches.map(self._write, rows) for sentence in batch])
        return [[next(sentences) for _ in range(request.n)] for request in requests]

    @memory_errors
    @torch.inference_mode()
    def _write(self, rows: Sequence["_Row"]) -> list[str]:
        texts = list(dict.fromkeys(row.text for row in rows))
        inputs = self._tokenizer(texts, padding=True, return_tensors="pt").to(self.device)
        # The words of a class are encoded once, however many sentences it gets.
        encoded = self._model.get_encoder()(**inputs).last_hidden_state
        text = torch.tensor([texts.index(row.text) for row in rows], device=self.device)
        outputs = self._model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=encoded[text]),
            attention_mask=inputs["attention_mask"][text],
            logits_processor=LogitsProcessorList([_Sampling(rows, self.device)]),
            do_sample=False,
            num_beams=1,
            max_new_tokens=_MAX_TOKENS,
        )
        return list(self._tokenizer.batch_decode(outputs, skip_special_tokens=True))


@dataclass(frozen=True, eq=False)
class _Row:
    """One sentence to write, with the uniform random number of each of its tokens: float64 [_MAX_TOKENS]."""

    request: Request
    uniforms: Tensor

    @property
    def text(self) -> str:
        return ", ".join(self.request.words)


class _Sampling(LogitsProcessor):  # type: ignore[misc]
    """Draws the next tokens of a batch, and leaves a greedy decoder no other choice.

    `generate` itself samples all rows from one random stream, so that a sentence would depend on its neighbours.
    """

    def __init__(self, rows: Sequence[_Row], device: str):
        self._uniforms = torch.stack([row.uniforms for row in rows]).to(device)
        requests = [row.request for row in rows]
        self._settings = {
            "temperature": torch.tensor([[request.temperature] for request in requests], device=device).double(),
            "top_k": torch.tensor([[request.top_k] for request in requests], device=device),
            "top_p": torch.tensor([[request.top_p] for request in requests], device=device).double(),
        }
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = draw_tokens(scores, self._uniforms[:, self._step, None], **self._settings)
        self._step += 1
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)


def draw_tokens(logits: Tensor, uniforms: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """One token a row, int64 [N, 1], drawn from softmax(logits / temperature) by inversion of its cumulative mass.

    The distribution is first cut to the top_k most probable tokens (Fan et al. 2018; 0: all), then to its nucleus, the
    fewest most probable tokens whose share of the rest reaches top_p (Holtzman et al. 2020, section 3.1).

    logits: float [N, vocabulary]; uniforms in [0, 1), temperature and top_p: float64 [N, 1]; top_k: int64 [N, 1].
    """
    ordered, tokens = logits.sort(dim=1, descending=True, stable=True)
    cumulative = torch.softmax(ordered.double() / temperature, dim=1).cumsum(dim=1)
    n_top = top_k.where(top_k > 0, logits.shape[1]).clamp(max=logits.shape[1])
    cumulative /= cumulative.gather(1, n_top - 1)
    # The nucleus ends with the first token that makes up top_p with those before it, and where the top_k end.
    n_nucleus = ((cumulative < top_p).sum(dim=1, keepdim=True) + 1).minimum(n_top)
    rank = (cumulative <= uniforms * cumulative.gather(1, n_nucleus - 1)).sum(dim=1, keepdim=True)
    return tokens.gather(1, rank.minimum(n_nucleus - 1))
