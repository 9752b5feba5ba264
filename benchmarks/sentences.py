"""Time language enhancement: sentences of several classes. Run: python benchmarks/sentences.py (the miniature's model)

On a GPU, as many as the paper asks of 40 classes: python benchmarks/sentences.py --classes 40 --asked 250
--batch-size 1000 --model mrm8488/t5-base-finetuned-common_gen --revision 5c3010b4532b7834039c65580e688e9656626835
"""

from __future__ import annotations

import argparse
import time

from pipeline_lib.prompts import Request
from pipeline_lib.sentences import SentenceModel

WORDS = ("bag", "coat", "dress", "shirt", "sandal", "sneaker", "trouser", "pullover", "ankle boot", "t-shirt")


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pipeline_lib/miniature/weights/word_to_sentence")
    parser.add_argument("--revision")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--asked", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=256)
    options = parser.parse_args()
    model = SentenceModel(options.model, options.revision, options.batch_size, options.device)
    requests = [
        Request(words=(WORDS[i % len(WORDS)],), n=options.asked, top_p=0.95, top_k=0, temperature=1.0, seed=i)
        for i in range(options.classes)
    ]
    model.sample(requests[:1])  # warm up
    started = time.perf_counter()
    sentences = [sentence for sampled in model.sample(requests) for sentence in sampled]
    seconds = time.perf_counter() - started
    print(
        f"sentences: {len(sentences) / seconds:.0f}/s, {len(set(sentences))} of {len(sentences)} different; "
        f"{options.classes} classes, batches of {options.batch_size}, {options.model} on {model.device}"
    )


if __name__ == "__main__":
    main()
