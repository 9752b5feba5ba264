"""Do class names stand at their own folders? Two lists that are out of step spoil every number without a crash.

Names are compared with the folders' names (or official labels) by the three-letter pieces of their words. A name that
resembles another class's folder more than its own gives the mistake away. Numbers and codes resemble no name: they are
compared by what the raw data or the package calls them, and where neither has a word for them nothing is said.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import islice

from pipeline_lib.datasets.registry import fold
from pipeline_lib.errors import UserError

MARGIN = 0.25  # in similarity (0 to 1): curated names differ from folders by wording, and words are shared by classes
# A dictionary's words for codes (WordNet's: "cock", "eft") differ from curated names ("rooster", "newt") now and then,
# in 22 of ImageNet's 1000 classes; a list that is out of step differs nearly everywhere. A name that is the very word
# for another code is no matter of wording: of those none is tolerated.
TOLERATED_SHARE = 0.1
# As in 001.ak47. Without it "Bank Swallow" at 136.Barn_Swallow is seen to be the very name of 135.Bank_Swallow.
_CLASS_NUMBER = re.compile(r"^\d{3}\.")
_WORD_END_IN_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")


def check_names(
    dataset: str,
    names: Sequence[str],
    labels: Sequence[str],
    meant: Collection[str] = (),
    official_names: Mapping[str, str] | None = None,
) -> None:
    """Raise `UserError` where class names stand at folders (or labels) that other names of the data set belong to.

    Args:
        meant: names to pass over.
        official_names: what the raw data or the package calls each label, where labels are codes; alternatives
            separated by a comma and a blank. It may have more labels than the data set.
    """
    official_names = official_names or {}
    readable = [official_names.get(label, label) for label in labels]
    resembling = misplaced(names, readable, meant)
    if official_names and len(resembling) <= TOLERATED_SHARE * len(names):
        resembling = {}
    wrong = {position: f"resembles {readable[other]!r}" for position, other in resembling.items()}
    for position, other in _names_of_others(names, labels, official_names, meant).items():
        wrong[position] = f"is the name of {other!r}"
    if not wrong:
        return
    pairs = "; ".join(
        f"{names[position]!r} stands at {readable[position]!r} but {fault}"
        for position, fault in islice(wrong.items(), 5)
    )
    raise UserError(
        f"{dataset}: {len(wrong)} of {len(labels)} class names do not stand at their own folders or labels: {pairs}. "
        f"Bring class_names and class_folders into the same order; names that are meant as they are can be listed in "
        f"renamed, beside class_names"
    )


def misplaced(names: Sequence[str], labels: Sequence[str], meant: Collection[str] = ()) -> dict[int, int]:
    """Positions of names that resemble another position's label clearly more than their own, with that position.

    Clearly: by more than `MARGIN`, or the other label is the very name. Names in `meant` are passed over.
    """
    variants = [[_pieces(variant) for variant in label.split(", ")] for label in labels]
    holders: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for position, alternatives in enumerate(variants):
        for number, pieces in enumerate(alternatives):
            for piece in pieces:
                holders[piece].append((position, number))
    passed_over = {fold(name) for name in meant}
    found = {}
    for position, name in enumerate(names):
        if fold(name) in passed_over:
            continue
        pieces = _pieces(name)
        common = Counter(holder for piece in pieces for holder in holders[piece])
        similarity: dict[int, float] = defaultdict(float)
        for (other, number), shared in common.items():
            score = 2 * shared / (len(pieces) + len(variants[other][number]))
            similarity[other] = max(similarity[other], score)
        own = similarity.pop(position, 0.0)
        best = max(similarity, key=similarity.__getitem__, default=None)
        if best is not None and (similarity[best] > own + MARGIN or own < similarity[best] == 1):
            found[position] = best
    return found


def _names_of_others(
    names: Sequence[str], labels: Sequence[str], official_names: Mapping[str, str], meant: Collection[str]
) -> dict[int, str]:
    """Positions of names that are an official name of another label and not of their own, with that label."""
    holders: dict[frozenset[str], list[str]] = defaultdict(list)
    for label, official in official_names.items():
        for alternative in official.split(", "):
            holders[_pieces(alternative)].append(label)
    passed_over = {fold(name) for name in meant}
    found = {}
    for position, (name, label) in enumerate(zip(names, labels, strict=True)):
        others = holders.get(_pieces(name), []) if label in official_names and fold(name) not in passed_over else []
        if others and label not in others:
            found[position] = others[0]
    return found


def _pieces(text: str) -> frozenset[str]:
    """The three-letter pieces of a text's words; a word's ends count as letters."""
    text = _WORD_END_IN_CAMEL_CASE.sub(" ", _CLASS_NUMBER.sub("", text))
    words = re.findall(r"[^\W_]+", fold(text))
    return frozenset(f" {word} "[start : start + 3] for word in words for start in range(len(word)))
