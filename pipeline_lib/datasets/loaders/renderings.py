"""The renderings of Fashion-MNIST that the miniature study uses."""

from pathlib import Path

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.datasets.loaders.split import RealSplit
from pipeline_lib.errors import UserError

# Training images are those that no model of the package has learned from (see `fashion_mnist`).
_PARTS = {"test": "test", "train": "pool", "validation": "validation"}


def rendering(kind: str, split: str, class_names: list[str], folder: str | None, cache: str) -> RealSplit:
    """One rendering of the test, train or validation images; images keep their numbers in Fashion-MNIST's own split."""
    from pipeline_lib.miniature import targets

    try:
        found = fashion_mnist.find(Path(folder) if folder else None, cache=Path(cache))
    except fashion_mnist.FashionMnistError as error:
        raise UserError(str(error)) from error
    images, labels, indices = fashion_mnist.load_split(found, _PARTS[split])
    chosen, class_index = targets.select(kind, labels)
    rendered = targets.render(kind, images[chosen], indices[chosen])
    numbers = indices[chosen].tolist()
    return RealSplit(
        labels=[class_names[index] for index in class_index],
        paths=[f"{kind}/{number:06d}.png" for number in numbers],
        read=lambda index: rendered[index],
        source_ids=numbers,
        all_labels=frozenset(class_names),
    )
