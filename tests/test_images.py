"""Drawing images: what a request is, what is drawn once, what is taken over, and what happens when something fails."""

import io
import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_generator import FakeGenerator
from PIL import Image
from small_project import SHAPES, changed, planned

from pipeline_lib import stages
from pipeline_lib.batches import Batches
from pipeline_lib.images import Request, is_valid, make_shards, requests
from pipeline_lib.plan import Plan
from pipeline_lib.seeds import derive_seed
from pipeline_lib.sets import make_set
from pipeline_lib.shards import encode_image, image_row, read_rows, write_shard
from pipeline_lib.store import Artifact

Params = dict[str, Any]


def ready(params: Params, **changes: Any) -> Plan:
    """A plan whose basic prompts are written."""
    plan = planned(changed(params, **changes))
    for prompts in plan.prompts("basic"):
        stages.prompts(prompts, plan.store)
    return plan


def draw(plan: Plan, generator: FakeGenerator | None = None, batch_size: int = 4) -> FakeGenerator:
    """Make the basic images of `shapes`; returns the generator, which knows what it drew."""
    generator = generator or FakeGenerator()
    batches = Batches(batch_size, "images")
    for images in plan.images("shapes", "basic"):
        make_set(images, plan.store, lambda units: make_shards(units, plan.store, lambda: generator, batches))
    return generator


def units(plan: Plan) -> list[Artifact]:
    return [shard for images in plan.images("shapes", "basic") for shard in images.members]


def rows(plan: Plan) -> dict[str, dict[str, Any]]:
    """All rows of the shards, by image id."""
    return {row["image_id"]: row for shard in units(plan) for row in pq.read_table(plan.store.path(shard)).to_pylist()}


# --- requests ---------------------------------------------------------------------------------------------------------


def test_requests_cycle_through_the_prompts(params: Params, monkeypatch: pytest.MonkeyPatch):
    """Image i shows prompt i mod P for the (i div P)-th time, and its seed comes from (run seed, prompt, i div P)."""
    plan = ready(params, images__per_class=5, images__per_shard=5, seed=7)
    prompts = pa.Table.from_pylist(
        [{"prompt_id": f"p{i}", "class_name": "red/square", "prompt": f"prompt {i}", "sentence": None} for i in (0, 1)]
    )
    monkeypatch.setattr("pipeline_lib.images.pq.read_table", lambda _: prompts)
    found = requests(units(plan)[0], plan.store)
    assert [request.prompt_id for request in found] == ["p0", "p1", "p0", "p1", "p0"]
    assert [request.seed for request in found] == [
        derive_seed(7, "p0", 0),
        derive_seed(7, "p1", 0),
        derive_seed(7, "p0", 1),
        derive_seed(7, "p1", 1),
        derive_seed(7, "p0", 2),
    ]


def test_no_two_images_share_id_or_seed(params: Params):
    """Every image of every class has its own seed and its own id."""
    plan = ready(params, images__per_class=20)
    found = [request for shard in units(plan) for request in requests(shard, plan.store)]
    assert len(found) == len({request.image_id for request in found}) == len({request.seed for request in found}) == 60


# --- what an image depends on -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cut",
    [
        {"batch_size": 1},
        {"batch_size": 100},
        {"images__per_shard": 1},
        {"images__per_shard": 100},
        {"images__per_class": 9},
        {"images__classes_per_job": 1},
    ],
    ids=str,
)
def test_an_image_depends_on_its_recipe_and_number_alone(params: Params, tmp_path: Path, cut: dict[str, int]):
    """Not on batch size, shard layout, how many are asked for, or how the work is cut into jobs."""
    reference = ready(params, store=str(tmp_path / "a"))
    draw(reference)
    cut = dict(cut)
    batch_size = cut.pop("batch_size", 4)
    other = ready(params, store=str(tmp_path / "b"), **cut)
    draw(other, batch_size=batch_size)
    expected, found = rows(reference), rows(other)
    assert len(expected) == 12
    assert {image_id: found[image_id] for image_id in expected} == expected


def test_batches_mix_prompts_and_shards(params: Params):
    """12 images of 3 classes in 6 shards are drawn in 3 full batches, not one batch per shard."""
    generator = draw(ready(params), batch_size=5)
    assert [len(seeds) for _, seeds in generator.batches] == [5, 5, 2]
    assert any(len(set(prompts)) > 1 for prompts, _ in generator.batches)


def test_shard_holds_prompt_seed_and_pixels(params: Params):
    """A row says what was asked for, and its image is what the generator drew, to the rounding of 8 bits."""
    plan = ready(params)
    draw(plan)
    generator = FakeGenerator()
    for row in rows(plan).values():
        assert row["prompt"] == f"a photo of a {row['class_name']}"
        assert row["class_name"] in SHAPES
        assert row["valid"] is True
        assert row["source_id"] is None
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert pixels.shape == (row["height"], row["width"], 3) == (12, 12, 3)
        np.testing.assert_array_equal(pixels, np.round(generator.generate([row["prompt"]], [row["seed"]])[0] * 255))


def test_the_same_run_gives_the_same_bytes(params: Params, tmp_path: Path):
    """Two stores made from one configuration hold the same files, byte for byte, receipts included."""
    plans = [ready(params, store=str(tmp_path / name)) for name in "ab"]
    for plan, batch_size in zip(plans, (4, 7), strict=True):
        draw(plan, batch_size=batch_size)
    first, second = plans
    for artifact in (*units(first), *first.images("shapes", "basic")):
        assert first.store.path(artifact).read_bytes() == second.store.path(artifact).read_bytes()


@pytest.mark.parametrize("threads", [1, 8])
def test_bytes_do_not_depend_on_the_threads_that_encode(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
):
    """However late an image is encoded, it stands in its place: the slowest here are the first ones."""
    reference = ready(params, store=str(tmp_path / "a"))
    draw(reference)
    number = itertools.count()

    def slowly(pixels: np.ndarray, image_format: str) -> bytes:
        time.sleep(0.02 / (1 + next(number)))
        return encode_image(pixels, image_format)

    monkeypatch.setattr("pipeline_lib.images.encode_image", slowly)
    monkeypatch.setattr("pipeline_lib.images.ENCODING_THREADS", threads)
    other = ready(params, store=str(tmp_path / "b"))
    draw(other)
    for shard in units(reference):
        assert reference.store.path(shard).read_bytes() == other.store.path(shard).read_bytes()


# --- only the difference ----------------------------------------------------------------------------------------------


def test_a_second_run_draws_nothing_and_loads_nothing(params: Params):
    """With all shards there, the model is not even loaded."""
    plan = ready(params)
    draw(plan)

    def load() -> FakeGenerator:
        pytest.fail("the generator was loaded although nothing is to be drawn")

    for images in plan.images("shapes", "basic"):
        assert (
            make_set(images, plan.store, lambda units: make_shards(units, plan.store, load, Batches(4, "images"))) == 0
        )


def test_more_images_draw_the_difference(params: Params):
    """From 4 to 8 images per class inside a partial shard: 4 are drawn, the others taken over byte for byte."""
    few, many = ready(params), ready(params, images__per_class=8)
    assert draw(few).n_drawn == 12
    before = rows(few)
    assert draw(many).n_drawn == 12
    after = rows(many)
    assert len(after) == 24
    assert {image_id: after[image_id] for image_id in before} == before
    drawn = {shard.path: many.store.record(shard).details["n_drawn"] for shard in units(many)}
    assert {(Path(path).stem, n) for path, n in drawn.items()} == {
        ("000000-000003", 3),  # from the first run
        ("000003-000006", 2),  # one was there
        ("000006-000008", 2),
    }


def test_images_taken_over_are_read_when_their_shard_is_written(params: Params, monkeypatch: pytest.MonkeyPatch):
    """Until then only their names are in memory: at 2,000 images per class the images would be gigabytes."""
    few, many = ready(params), ready(params, images__per_class=8)
    draw(few)
    events: list[str] = []
    generator = FakeGenerator()
    generate = generator.generate

    def sample(prompts: Sequence[str], seeds: Sequence[int], references: None) -> np.ndarray:
        events.append("sample")
        return generate(prompts, seeds, references)

    def read(path: Path) -> Iterator[dict[str, Any]]:
        events.append("read")
        return read_rows(path)

    monkeypatch.setattr(generator, "generate", sample)
    monkeypatch.setattr("pipeline_lib.images.read_rows", read)
    draw(many, generator, batch_size=100)
    assert events == ["sample", "read", "read", "read"]  # one shard of each class takes one image over


def test_invalid_images_are_counted_where_they_are_taken_over(params: Params, tmp_path: Path):
    """The new shard's record knows of them as the old one's did; those of other ranges do not count."""

    def invalid(plan: Plan) -> list[int]:
        return [plan.store.record(shard).details["n_invalid"] for shard in units(plan)]

    few, many = (ready(params, images__per_class=n, store=str(tmp_path / "up")) for n in (4, 6))
    generator = FakeGenerator()
    generator.blank = {0, 3}  # of the first class: number 0, and number 3, which the longer shard takes over
    draw(few, generator)
    draw(many)
    assert invalid(many) == [1, 1, 0, 0, 0, 0]

    few, many = (ready(params, images__per_class=n, store=str(tmp_path / "down")) for n in (4, 6))
    generator = FakeGenerator()
    generator.blank = {3, 5}  # number 5 is beyond the shorter shard
    draw(many, generator)
    draw(few)
    assert invalid(few) == [0, 1, 0, 0, 0, 0]


def test_fewer_images_are_taken_from_longer_shards(params: Params):
    """From 6 to 4 images per class nothing is drawn: the partial shard is cut from the whole one."""
    many, few = ready(params, images__per_class=6), ready(params)
    draw(many)
    assert draw(few).n_drawn == 0
    assert len(rows(few)) == 12


def test_damaged_shards_give_nothing_to_others(params: Params):
    """Images are taken over only from shards whose content is what their record says."""
    few, many = ready(params), ready(params, images__per_class=6)
    draw(few)
    partial = units(few)[1]
    path = few.store.path(partial)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))
    assert draw(many).n_drawn == 6 + 1


def test_a_damaged_shard_is_drawn_again_with_a_warning(params: Params, caplog: pytest.LogCaptureFixture):
    """A flipped bit costs that shard, and the new one is the old one."""
    plan = ready(params)
    draw(plan)
    damaged = units(plan)[2]
    path = plan.store.path(damaged)
    good = path.read_bytes()
    path.write_bytes(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    assert draw(plan).n_drawn == 3
    assert path.read_bytes() == good
    assert "made again" in caplog.text


# --- real guidance ----------------------------------------------------------------------------------------------------


def real_shots(plan: Plan, seed: int = 0, n_shots: int = 3) -> tuple[str, str]:
    """Write what a seed draws of three images per class, and these images in one shard, with pixels that tell class,
    number and seed; returns the paths of both."""
    store = plan.store
    shots: dict[str, list[dict[str, Any]]] = {name: [] for name in SHAPES}
    images = []
    for source_id, (number, name) in enumerate(itertools.product(range(3), SHAPES)):
        image_id = f"shapes-train-{seed}{source_id:06d}"
        if number < n_shots:
            shots[name].append({"image_id": image_id, "source_id": source_id, "path": f"{source_id}.png"})
        pixels = np.full((12, 12, 3), colour(name, number, seed), np.uint8)
        encoded = encode_image(pixels, "png")
        images.append(image_row(image_id, encoded, "png", 12, 12, class_name=name, source_id=source_id))
    drawn = Artifact("shots/shapes", {"seed": seed, "n_shots": n_shots}, ".json")
    with store.making(drawn) as path:
        record = {"dataset": "shapes", "split": "train", "seed": seed, "shots": shots, "validation": {}}
        path.write_text(json.dumps(record), encoding="utf-8")
    real = Artifact("real_images/shapes", {"shots": drawn.path}, ".parquet", inputs=(drawn.path,))
    with store.making(real) as path:
        write_shard(images, path, real.spec)
    return drawn.path, real.path


def colour(class_name: str, number: int, seed: int = 0) -> int:
    """Of a class's real image."""
    return 10 + 60 * list(SHAPES).index(class_name) + 15 * number + 5 * seed


def guided(plan: Plan, per_class: int, n_shots: int = 2, start: float = 0.25, seed: int = 0) -> list[Artifact]:
    """Shards of images that start from the first shots of a seed, with basic prompts."""
    shots, real = real_shots(plan, seed)
    guidance = {"start": start, "n_shots": n_shots, "shots": shots, "images": real}
    prompts = [unit for made in plan.prompts("basic") for unit in made.members]
    return [
        shard for unit in prompts for shard in plan.image_shards(unit, "guided", per_class, guidance, [shots, real])
    ]


def draw_guided(plan: Plan, shards: Sequence[Artifact], start: float = 0.25, batch_size: int = 4) -> FakeGenerator:
    """Make them in one call, as a job does; returns the generator."""
    generator = FakeGenerator(start=start)
    made = plan.set("images", "guided", list(shards))
    make_set(
        made, plan.store, lambda units: make_shards(units, plan.store, lambda: generator, Batches(batch_size, "images"))
    )
    return generator


def guided_rows(plan: Plan, shards: Sequence[Artifact]) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for shard in shards for row in read_rows(plan.store.path(shard))}


@pytest.mark.parametrize(("n_prompts", "n_shots"), [(1, 2), (1, 3), (2, 3), (3, 2), (4, 2), (2, 2), (3, 3)])
def test_every_prompt_meets_every_shot(params: Params, monkeypatch: pytest.MonkeyPatch, n_prompts: int, n_shots: int):
    """Before it meets one again; shots are used equally often. Prompt and seed are those without guidance."""
    n = n_prompts * n_shots
    plan = ready(params, images__per_class=2 * n, images__per_shard=2 * n, seed=7)
    plain, shard = units(plan)[0], guided(plan, 2 * n, n_shots)[0]
    prompts = pa.Table.from_pylist(
        [
            {"prompt_id": f"p{i}", "class_name": "red/square", "prompt": f"prompt {i}", "sentence": None}
            for i in range(n_prompts)
        ]
    )
    monkeypatch.setattr("pipeline_lib.images.pq.read_table", lambda _: prompts)
    found = requests(shard, plan.store)
    pairs = [(request.prompt_id, reference_of(request)) for request in found]
    assert len(set(pairs[:n])) == n
    assert set(pairs[n:]) == set(pairs[:n])
    first = [shot for _, shot in pairs[:n_shots]]
    assert first == shot_ids("red/square", n_shots)
    unguided = requests(plain, plan.store)
    assert [(r.prompt_id, r.seed) for r in found] == [(r.prompt_id, r.seed) for r in unguided]
    assert all(request.reference is None for request in unguided)


def reference_of(request: Request) -> str:
    assert request.reference is not None
    return request.reference.image_id


def shot_ids(class_name: str, n_shots: int, seed: int = 0) -> list[str]:
    """The first shots that `real_shots` writes of a class."""
    position = list(SHAPES).index(class_name)
    return [f"shapes-train-{seed}{number * len(SHAPES) + position:06d}" for number in range(n_shots)]


def test_a_row_names_the_real_image_that_its_image_started_from(params: Params):
    """The pixels are that image's, mixed with the noise of the row's own seed. Without guidance it names none."""
    plan = ready(params)
    shards = guided(plan, 4)
    generator = draw_guided(plan, shards)
    assert generator.n_drawn == 12
    found = guided_rows(plan, shards)
    noise = FakeGenerator()
    for row in found.values():
        shots = shot_ids(row["class_name"], 2)
        number = [0, 1, 1, 0][int(row["image_id"][-6:])]
        assert row["reference_id"] == shots[number]
        expected = 0.25 * noise.generate([row["prompt"]], [row["seed"]])[0]
        expected += 0.75 * colour(row["class_name"], number) / 255
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        np.testing.assert_array_equal(pixels, np.round(expected * 255))
        assert row["source_id"] is None
    draw(plan)
    assert {row["reference_id"] for row in rows(plan).values()} == {None}


def test_guided_images_are_taken_over(params: Params):
    """As any others: from 4 to 8 per class the difference is drawn; references and all, the rest stays."""
    plan = ready(params)
    few, many = guided(plan, 4), guided(plan, 8)
    assert draw_guided(plan, few).n_drawn == 12
    before = guided_rows(plan, few)
    assert draw_guided(plan, many).n_drawn == 12
    after = guided_rows(plan, many)
    assert len(after) == 24
    assert {image_id: after[image_id] for image_id in before} == before
    other = guided(plan, 4, start=0.5)
    assert {shard.folder for shard in other}.isdisjoint(shard.folder for shard in few)
    assert draw_guided(plan, other, start=0.5).n_drawn == 12


def test_shots_of_several_seeds_are_drawn_together(params: Params, monkeypatch: pytest.MonkeyPatch):
    """In batches that mix them. Each file is read once, and of the real images those that are needed."""
    plan = ready(params)
    shards = [shard for seed in (0, 1) for shard in guided(plan, 4, seed=seed)]
    read = reads_of_real_images(monkeypatch)
    generator = draw_guided(plan, shards, batch_size=5)
    assert [len(seeds) for _, seeds in generator.batches] == [5, 5, 5, 5, 4]
    for seed in (0, 1):
        own = guided_rows(plan, shards[6 * seed : 6 * seed + 6])
        wanted = {shot for name in SHAPES for shot in shot_ids(name, 2, seed)}
        assert {row["reference_id"] for row in own.values()} == wanted
        for row in own.values():
            number = shot_ids(row["class_name"], 2, seed).index(row["reference_id"])
            brightness = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).min()
            assert brightness >= np.floor(0.75 * colour(row["class_name"], number, seed))
    assert sorted(read) == sorted({plan.store.path(shard.spec["real_guidance"]["images"]) for shard in shards})


def reads_of_real_images(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Fills with their shards' paths as they are read."""
    read: list[Path] = []
    read_table = pq.read_table

    def noting(path: Path, **options: Any) -> pa.Table:
        if "real_images" in path.parts:
            read.append(path)
        return read_table(path, **options)

    monkeypatch.setattr(pq, "read_table", noting)
    return read


def test_shards_of_one_call_have_one_start(params: Params):
    """It is the generator's."""
    plan = ready(params)
    shards = [*guided(plan, 3, start=0.25), *guided(plan, 3, start=0.5)]
    with pytest.raises(ValueError, match="start at"):
        draw_guided(plan, shards)
    with pytest.raises(ValueError, match="start at"):
        draw_guided(plan, [*guided(plan, 3), units(plan)[0]])


def test_without_anything_to_draw_no_reference_is_read(params: Params, monkeypatch: pytest.MonkeyPatch):
    """Where all images are in other shards."""
    plan = ready(params)
    draw_guided(plan, guided(plan, 8))
    read = reads_of_real_images(monkeypatch)
    assert draw_guided(plan, guided(plan, 4)).n_drawn == 0
    assert read == []


# --- failures ---------------------------------------------------------------------------------------------------------


def test_blank_and_non_finite_images_are_marked_and_counted(params: Params, caplog: pytest.LogCaptureFixture):
    """They are stored as black images, marked invalid, and counted in the record and the log."""
    plan = ready(params)
    generator = FakeGenerator()
    generator.blank, generator.not_finite = {0, 5}, {1}
    draw(plan, generator)
    invalid = [row for row in rows(plan).values() if not row["valid"]]
    assert len(invalid) == 3
    for row in invalid:
        assert not np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).any()
    assert sum(plan.store.record(shard).details["n_invalid"] for shard in units(plan)) == 3
    assert "2 of 3 images are blank or not finite" in caplog.text


@pytest.mark.parametrize(
    ("pixels", "valid"),
    [
        (np.full((4, 4, 3), 0.3), False),
        (np.full((4, 4, 3), np.inf), False),
        (np.linspace(0, 1, 48).reshape(4, 4, 3), True),
        (np.where(np.arange(48) == 7, np.nan, np.linspace(0, 1, 48)).reshape(4, 4, 3), False),
        (np.where(np.arange(48) == 7, 1 / 255, 0.0).reshape(4, 4, 3), False),  # a difference nobody sees
        (np.where(np.arange(48) == 7, 0.1, 0.0).reshape(4, 4, 3), True),
    ],
)
def test_what_counts_as_blank(pixels: np.ndarray, valid: bool):
    """An image is valid if all its values are finite and some differ visibly."""
    assert is_valid(pixels.astype(np.float32)) is valid


def test_out_of_memory_halves_the_batch_and_goes_on(params: Params, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A device that holds 3 images draws the same images as one that holds 8, with a warning."""
    roomy, tight = (ready(params, store=str(tmp_path / name)) for name in "ab")
    draw(roomy, batch_size=8)
    generator = draw(tight, FakeGenerator(memory=3), batch_size=8)
    assert [len(seeds) for _, seeds in generator.batches] == [2] * 6
    assert rows(tight) == rows(roomy)
    assert "halved to 4" in caplog.text
    assert "halved to 2" in caplog.text


def test_a_batch_once_halved_stays_so(params: Params, caplog: pytest.LogCaptureFixture):
    """In the later rounds of a job too: memory runs out once, not once per round."""
    plan, generator, batches = ready(params), FakeGenerator(memory=3), Batches(4, "images")
    for images in plan.images("shapes", "basic"):
        make_set(images, plan.store, lambda units: make_shards(units, plan.store, lambda: generator, batches), 2)
    assert generator.n_drawn == 12
    assert caplog.text.count("halved") == 1
    assert batches.size == 2


def test_out_of_memory_at_one_image_is_an_error(params: Params):
    """It does not go on for ever."""
    with pytest.raises(MemoryError):
        draw(ready(params), FakeGenerator(memory=0))


def test_an_interrupted_run_keeps_its_finished_shards(params: Params):
    """After a failure in mid-run the next run draws what is missing; no receipt vouched for the unfinished set."""
    plan = ready(params)
    with pytest.raises(RuntimeError, match="taken away"):
        draw(plan, FakeGenerator(fail_after=8), batch_size=2)
    finished = [shard for shard in units(plan) if plan.store.is_complete(shard)]
    kept = sum(shard.spec["stop"] - shard.spec["start"] for shard in finished)
    assert finished
    assert len(finished) < len(units(plan))
    assert not any(plan.store.is_complete(images) for images in plan.images("shapes", "basic"))
    assert not list(plan.store.root.rglob("*.tmp"))
    assert draw(plan).n_drawn == 12 - kept


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5, 12])
def test_a_shard_is_on_the_disk_before_more_is_drawn(params: Params, batch_size: int):
    """Whenever a batch is asked for, all images drawn before it are in shards, but for those of a shard that the batch
    goes on with: whoever is killed loses one shard, and what of the batch reaches into the next."""
    plan = ready(params, images__per_class=6, images__per_shard=3)
    n_images = sum(shard.spec["stop"] - shard.spec["start"] for shard in units(plan))
    seen = []

    class WatchedGenerator(FakeGenerator):
        def generate(self, *arguments: Any) -> np.ndarray:
            written = sum(plan.store.is_complete(shard) for shard in units(plan))
            assert written == self.n_drawn // 3
            seen.append(self.n_drawn)
            return super().generate(*arguments)

    draw(plan, WatchedGenerator(), batch_size)
    assert seen == list(range(0, n_images, batch_size))


def test_a_failed_write_stops_the_run(params: Params, monkeypatch: pytest.MonkeyPatch):
    """A full disk is reported, not swallowed by the thread that writes."""
    plan = ready(params)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline_lib.images.write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        draw(plan)
    assert not any(plan.store.is_complete(shard) for shard in units(plan))


# --- the stage --------------------------------------------------------------------------------------------------------


def test_the_stage_loads_the_generator_of_the_plan(params: Params, monkeypatch: pytest.MonkeyPatch):
    """Once per job, on a device of its own, with the images' settings; with nothing to draw it claims no device."""
    plan = ready(params, images__steps=7, device="cuda")
    loaded, generator = [], FakeGenerator()

    def load(model: str, revision: str | None, settings: Any, *, device: str, compile: bool) -> FakeGenerator:
        loaded.append((model, revision, settings["steps"], device, compile))
        return generator

    monkeypatch.setattr("pipeline_lib.generators.load_generator", load)
    monkeypatch.setattr("pipeline_lib.stages.claimed", lambda device: f"claimed {device}")
    for _ in range(2):
        for images in plan.images("shapes", "basic"):
            stages.images(images, plan.store)
    assert loaded == [(params["models"]["generator"], None, 7, "claimed cuda", False)]
    assert generator.n_drawn == 12
    assert {plan.store.record(shard).details["safety_checker"] for shard in units(plan)} == {"off"}


# --- side by side -----------------------------------------------------------------------------------------------------


def test_two_threads_draw_each_image_once(params: Params):
    """Two jobs that need the same set at the same time share the work."""
    plan = ready(params, images__per_class=30, images__per_shard=2)
    generators = [FakeGenerator(), FakeGenerator()]
    side_by_side([threading.Thread(target=draw, args=(plan, generator, 2)) for generator in generators])
    assert sum(generator.n_drawn for generator in generators) == 90
    assert len(rows(plan)) == 90


def draw_and_count(params: Params, counts: Any) -> None:
    counts.put(draw(planned(params), batch_size=2).n_drawn)


def test_two_processes_draw_each_image_once(params: Params):
    """The locks hold between processes."""
    plan = ready(params, images__per_class=30, images__per_shard=2)
    context = multiprocessing.get_context("spawn")
    counts: Any = context.Queue()
    wanted = changed(params, images__per_class=30, images__per_shard=2)
    side_by_side([context.Process(target=draw_and_count, args=(wanted, counts)) for _ in range(2)])
    assert counts.get(timeout=5) + counts.get(timeout=5) == 90
    assert len(rows(plan)) == 90


def test_two_threads_mend_a_damaged_shard_once(params: Params):
    """Neither removes what the other has just made."""
    plan = ready(params)
    draw(plan)
    for shard in units(plan):
        path = plan.store.path(shard)
        path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    generators = [FakeGenerator(), FakeGenerator()]
    side_by_side([threading.Thread(target=draw, args=(plan, generator, 2)) for generator in generators])
    assert sum(generator.n_drawn for generator in generators) == 12
    assert all(plan.store.is_intact(shard) for shard in units(plan))


def side_by_side(workers: list[Any]) -> None:
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=60)
        assert not worker.is_alive()
