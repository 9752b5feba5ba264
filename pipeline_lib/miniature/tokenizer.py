"""One small byte-level BPE tokenizer (Sennrich et al., 2016), in the two dresses the small models need.

Words of the corpus become one token each; any other Unicode text becomes pieces or bytes, never an error.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast

CONTEXT = 20  # tokens of a caption, with begin and end
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def train(texts: list[str], merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn merges from texts; returns vocabulary and merges. Begin and end have the two highest numbers,
    because `open_clip` takes the text feature where the number is highest."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = _pre_tokenizer()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    learned = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][:merges]
    vocabulary = {piece: number for number, piece in enumerate(alphabet + [letter + "</w>" for letter in alphabet])}
    for left, right in learned:
        vocabulary.setdefault(left + right, len(vocabulary))
    vocabulary[BEGIN] = len(vocabulary)
    vocabulary[END] = len(vocabulary)
    return vocabulary, [(left, right) for left, right in learned]


def _pre_tokenizer() -> Any:
    """CLIP's word pattern, then bytes."""
    from tokenizers import Regex, pre_tokenizers

    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def save(folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> None:
    """Write vocabulary and merges as JSON, for the two functions below."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"vocabulary": vocabulary, "merges": merges}, ensure_ascii=False)
    (folder / "bpe.json").write_text(text, encoding="utf-8")


def _load(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    found = json.loads((folder / "bpe.json").read_text(encoding="utf-8"))
    return found["vocabulary"], [(left, right) for left, right in found["merges"]]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer for CLIP and text-to-image: begin, text, end, padded with end."""
    from transformers import CLIPTokenizer

    vocabulary, merges = _load(folder)
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def t5_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer for word-to-sentence: text, end; `<pad>` is 0 and `</s>` is 1, as T5 has them."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _load(folder)
    pieces = [piece for piece in vocabulary if piece not in (BEGIN, END)]
    shifted = {piece: number for number, piece in enumerate(["<pad>", "</s>", "<unk>", *pieces])}
    tokenizer = Tokenizer(models.BPE(vocab=shifted, merges=merges, end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = _pre_tokenizer()
    # "t - shirt" is written "t-shirt" again.
    tokenizer.decoder = decoders.Sequence(
        [decoders.BPEDecoder(suffix="</w>"), decoders.Fuse(), decoders.Replace(" - ", "-")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def main() -> None:
    """`python -m pipeline_lib.miniature.tokenizer --corpus FOLDER --out FOLDER`."""
    from pipeline_lib.miniature import corpus
    from pipeline_lib.miniature.training import SETTINGS, settings

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="the web corpus")
    parser.add_argument("--settings", type=Path, default=SETTINGS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    chosen = settings(args.settings, "tokenizer")
    texts = corpus.load(args.corpus).captions[: chosen["captions"]]
    save(args.out, *train(texts, chosen["merges"]))


if __name__ == "__main__":
    main()
