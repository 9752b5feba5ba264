"""Batches that are halved when memory runs out."""

from collections.abc import Sequence

import pytest

from pipeline_lib.batches import Batches


class Limited:
    """Doubles its items, if they are no more than fit; notes how many it was given."""

    def __init__(self, room: int):
        self.room, self.sizes = room, []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.sizes.append(len(items))
        if len(items) > self.room:
            raise MemoryError
        return [2 * item for item in items]


@pytest.mark.parametrize(
    "n, size, room, sizes",
    [
        (7, 3, 9, [3, 3, 1]),
        (7, 9, 9, [7]),
        (7, 4, 2, [4, 2, 2, 2, 1]),
        (7, 100, 2, [7, 3, 1, 1, 1, 1, 1, 1, 1]),  # half of what there is, not of a size that never was
        (0, 4, 2, []),
    ],
)
def test_results_come_in_order_whatever_fits(n: int, size: int, room: int, sizes: list[int]):
    """Nothing is lost or done twice; the size that did not fit is not tried again."""
    limited, batches = Limited(room), Batches(size, "things")
    results = [item for batch in batches.map(limited, range(n)) for item in batch]
    assert results == [2 * item for item in range(n)]
    assert limited.sizes == sizes
    limited.sizes.clear()
    list(batches.map(limited, range(n)))
    assert all(size <= max(room, 1) for size in limited.sizes)


def test_one_item_that_does_not_fit_is_an_error():
    """There is nothing left to halve; another error is none of memory."""
    with pytest.raises(MemoryError):
        list(Batches(4, "things").map(Limited(0), range(4)))
    with pytest.raises(ZeroDivisionError):
        list(Batches(4, "things").map(lambda items: 1 // 0, range(4)))
