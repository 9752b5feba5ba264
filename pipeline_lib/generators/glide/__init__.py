"""GLIDE (Nichol et al., 2021, arXiv 2112.10741), the paper's generator, as a diffusers pipeline.

A base model draws 64 x 64 pixels, an upsampler makes 256 x 256 of them; each has a text transformer of its own. "The
original" is OpenAI's implementation, github.com/openai/glide-text2im.
"""

# The tokenizer is GPT-2's. Its vocabulary is the original's file by file (SHA-256 of encoder.json: 196139668be6..., of
# vocab.bpe: 1ce1664773c5...).
TOKENIZER = "openai-community/gpt2"
TOKENIZER_REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
