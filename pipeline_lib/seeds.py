"""Seeds derived from what they are for, so that no result depends on batch size, order or what else runs."""

import hashlib


def derive_seed(*parts: str | int) -> int:
    """A 63-bit seed that is a function of `parts` alone.

    An image's seed is `derive_seed(run_seed, prompt_id, n)` for the n-th image of a prompt. The parts are hashed with
    their types and lengths, so ("a", "bc") and ("ab", "c"), or 1 and "1", give unrelated seeds. 63 bits: that is what
    an Arrow int64 column and `torch.Generator.manual_seed` both hold; torch's CPU generator draws from the
    lower 32 of them.
    """
    digest = hashlib.sha256()
    for part in parts:
        encoded = str(part).encode()
        digest.update(f"{type(part).__name__}:{len(encoded)}:".encode() + encoded)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
