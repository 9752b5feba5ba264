"""Downloads with files that list the images of each split."""

import json
from pathlib import Path

from pipeline_lib.datasets.loaders.split import RealSplit, of_files, read_lines, read_table

Parts = dict[str, Path]


def sun397(parts: Parts, split: str) -> RealSplit:
    """SUN397 (Xiao et al., 2010), the first of its ten official partitions, on which CLIP and others report."""
    # /a/abbey/sun_aaalbzqrimafwbiv.jpg
    names = read_lines(parts["Testing_01.txt" if split == "test" else "Training_01.txt"])
    files = [parts["SUN397"] / name.lstrip("/") for name in names]
    return of_files(parts["SUN397"], files, [name.rpartition("/")[0] for name in names])


def aircraft(parts: Parts, split: str) -> RealSplit:
    """FGVC Aircraft (Maji et al., 2013), variants; train and validation images together are the train pool."""
    images, listed = parts["data/images"], "test" if split == "test" else "trainval"
    rows = read_table(parts[f"data/images_variant_{listed}.txt"], 2)  # 0062765 Boeing 707-320
    return of_files(images, [images / f"{name}.jpg" for name, _ in rows], [variant for _, variant in rows])


def birdsnap(parts: Parts, split: str) -> RealSplit:
    """Birdsnap (Berg et al., 2014): the images that its script still finds on the web, so files may be missing."""
    # url, md5, path (Acadian_Flycatcher/1.jpg), species_id, bounding box and parts
    paths = [row[2] for row in read_table(parts["images.txt"], 4, "\t")[1:]]
    test = set(read_lines(parts["test_images.txt"])[1:])
    chosen = [path for path in paths if (path in test) == (split == "test")]
    images = parts["download/images"]
    return of_files(
        images,
        [images / path for path in chosen],
        [_folder(path) for path in chosen],
        all_labels=frozenset(map(_folder, paths)),
        may_be_missing=True,
    )


def cub(parts: Parts, split: str) -> RealSplit:
    """CUB-200-2011 (Wah et al., 2011)."""
    classes = dict(read_table(parts["classes.txt"], 2))
    class_of = dict(read_table(parts["image_class_labels.txt"], 2))
    wanted = "0" if split == "test" else "1"
    in_split = {image for image, is_train in read_table(parts["train_test_split.txt"], 2) if is_train == wanted}
    rows = [(image, path) for image, path in read_table(parts["images.txt"], 2) if image in in_split]
    files = [parts["images"] / path for _, path in rows]
    labels = [classes[class_of[image]] for image, _ in rows]
    return of_files(parts["images"], files, labels, all_labels=frozenset(classes.values()))


def food(parts: Parts, split: str) -> RealSplit:
    """Food-101 (Bossard et al., 2014)."""
    names = read_lines(parts[f"meta/{split}.txt"])  # churros/1004234
    files = [parts["images"] / f"{name}.jpg" for name in names]
    return of_files(parts["images"], files, list(map(_folder, names)))


def pets(parts: Parts, split: str) -> RealSplit:
    """Oxford-IIIT Pets (Parkhi et al., 2012); an image's label is the breed in its file name."""
    listed = "test" if split == "test" else "trainval"
    names = [row[0] for row in read_table(parts[f"annotations/{listed}.txt"], 2)]  # Abyssinian_201 1 1 1
    files = [parts["images"] / f"{name}.jpg" for name in names]
    return of_files(parts["images"], files, [name.rpartition("_")[0] for name in names])


def dtd(parts: Parts, split: str) -> RealSplit:
    """Describable Textures (Cimpoi et al., 2014), the first of its ten official partitions; train and validation images
    together are the train pool."""
    lists = ("test1",) if split == "test" else ("train1", "val1")
    names = [name for listed in lists for name in read_lines(parts[f"labels/{listed}.txt"])]  # banded/banded_0002.jpg
    files = [parts["images"] / name for name in names]
    return of_files(parts["images"], files, list(map(_folder, names)))


def eurosat(parts: Parts, split: str) -> RealSplit:
    """EuroSAT (Helber et al., 2019), RGB. It has no official split; this is the one of CoOp (Zhou et al., 2022), on
    which CLIP adaptations report. Train and validation images together are the train pool."""
    # {"test": [["AnnualCrop/AnnualCrop_1048.jpg", 0, "Annual Crop Land"], ...], ...}
    lists = json.loads(parts["split_zhou_EuroSAT.json"].read_text(encoding="utf-8"))
    names = [str(row[0]) for key in (("test",) if split == "test" else ("train", "val")) for row in lists[key]]
    files = [parts["2750"] / name for name in names]
    return of_files(parts["2750"], files, list(map(_folder, names)))


def _folder(path: str) -> str:
    return path.partition("/")[0]
