"""The command line: one command per stage, run by the workflow's rules or by hand, and commands that look at the store.

Nothing heavy is imported here: a command imports what it computes with.
"""

import errno
import json
import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from pipeline_lib.errors import UserError, printable
from pipeline_lib.generators.glide import TOKENIZER

app = typer.Typer(
    help="Synthetic images for image recognition, stage by stage.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StoreOption = Annotated[Path, typer.Option(help="Folder of the content-addressed artifacts.")]
ResultsOption = Annotated[Path, typer.Option(help="Folder of tables and pictures.")]
OverlayOption = Annotated[list[Path] | None, typer.Option(help="Overlay on params.yaml, as for --configfile.")]
_AT_MOST = 20  # lines of what is no fault

ParamsOption = Annotated[Path, typer.Option(help="Configuration.")]


def _stage_command(name: str, summary: str) -> None:
    @app.command(name, help=summary[:1].upper() + summary[1:], rich_help_panel="Stages")
    def command(
        spec: Annotated[Path, typer.Option(help="Spec file, written by the workflow to STORE/specs.")],
        out: Annotated[Path, typer.Option(help="Where the artifact goes.")],
        store: StoreOption = Path("store"),
        log: Annotated[Path | None, typer.Option(help="Also write the log to this file.")] = None,
        threads: Annotated[int, typer.Option(min=1, help="CPU threads of this process.")] = 1,
    ) -> None:
        _start(log, threads)
        run_stage(name, spec, out, store)


STAGE_HELP = {
    "prompts": "write the prompts of every class.",
    "images": "draw images with the text-to-image model.",
    "real_images": "bring real images into shards.",
    "embeddings": "encode images with the frozen CLIP encoder.",
    "heads": "make the zero-shot head from class prompts.",
    "scores": "score synthetic images with the zero-shot head.",
    "manifests": "decide which images are kept, and why.",
    "classifiers": "tune heads on the kept images.",
    "shots": "draw real training images.",
    "few_shot": "fit a method to real shots, and synthetic images.",
    "batch_norm": "tune heads with batch norm in train mode, and predict.",
    "predictions": "predict the real images' classes.",
    "metrics": "compute accuracies, the gain and its interval.",
    "few_shot_metrics": "compute a few-shot method's accuracies.",
    "tables": "gather cells into a table (CSV and Markdown) or figure.",
    "samples": "draw a contact sheet of images.",
}
for _name, _summary in STAGE_HELP.items():
    _stage_command(_name, _summary)


def run_stage(name: str, spec: Path, out: Path, store_root: Path) -> None:
    """Make the artifact of a spec file. Raises `UserError` where spec, stage and destination do not fit."""
    from pipeline_lib import stages, timings
    from pipeline_lib.files import storage_errors
    from pipeline_lib.store import Store, read_spec

    started = time.perf_counter()
    artifact = read_spec(spec)
    if artifact.spec["stage"] != name:
        raise UserError(f"{spec} is a spec of stage {artifact.spec['stage']!r}, not of {name!r}")
    store = Store(store_root)
    store.require(artifact)
    if name not in stages.RESULTS and out.resolve() != store.path(artifact).resolve():
        raise UserError(f"--out is {out}, but this spec's artifact belongs at {store.path(artifact)}")
    with storage_errors(out.parent):
        if name in stages.RESULTS:
            stages.RESULTS[name](artifact, store, out)
        else:
            stages.STAGES[name](artifact, store)
    with suppress(OSError):  # no room for a line: what was made counts
        timings.append(store.root / "timings.jsonl", name, artifact.key, time.perf_counter() - started)


@app.command(rich_help_panel="Store")
def show(
    path: Annotated[Path, typer.Argument(help="A table, a picture or an artifact.")],
    store: StoreOption = Path("store"),
    depth: Annotated[int, typer.Option(min=0, help="How many steps back to print.")] = 20,
    is_whole: Annotated[bool, typer.Option("--all", help="Print every unit, and long lists whole.")] = False,
) -> None:
    """Print how something was made, from a table cell back to prompts, seeds and model digests."""
    from pipeline_lib.provenance import provenance
    from pipeline_lib.store import Store

    for line in provenance(path, Store(store), depth, is_whole=is_whole):
        print(line)


@app.command(rich_help_panel="Store")
def files(
    path: Annotated[Path, typer.Argument(help="A table, a figure or a contact sheet of the results folder.")],
    stage: Annotated[list[str] | None, typer.Option(help="Only what this stage makes. May be given again.")] = None,
    params: ParamsOption = Path("params.yaml"),
    overlay: OverlayOption = None,
) -> None:
    """Print the files and folders of the store that a result rests on, whether they are here or not: what to pull."""
    from pipeline_lib.lineage import fewest_paths, of_stages, planned_result, sources
    from pipeline_lib.plan import Plan

    planned = Plan(_config(params, overlay or []))
    planned.require_models()
    wanted = of_stages(sources(planned_result(path, planned), planned), stage or [])
    for name in fewest_paths(wanted, planned.reached()):
        print(planned.store.path(name))


@app.command(rich_help_panel="Store")
def verify(
    context: typer.Context,
    store: StoreOption = Path("store"),
    results: ResultsOption = Path("results"),
    remove: Annotated[bool, typer.Option(help="Remove what is damaged and all that was made from it.")] = False,
) -> None:
    """Hash every artifact, result and shipped weights file again; name those whose content is not what it should be."""
    from pipeline_lib.maintenance import remove_all, verify_store
    from pipeline_lib.model_cards import shipped_faults
    from pipeline_lib.store import Store

    if remove:
        _be_alone(context, store)
    found = verify_store(Store(store), results)
    weights = shipped_faults()
    for fault in found.faults + weights:
        print(fault)
    for path in found.dependants:
        print(f"made from damaged input: {path}")
    for path in found.elsewhere:
        print(f"made elsewhere: {path} is whole; not all that it was made from is in {store}")
    for path in found.absent[:_AT_MOST]:
        print(f"not here: {path}, from which others were made")
    if len(found.absent) > _AT_MOST:
        print(f"not here: {len(found.absent) - _AT_MOST} more")
    print(f"{found.n_checked} artifacts checked, {len(found.faulty)} damaged, {len(found.dependants)} made from them")
    damaged = found.faulty + found.dependants
    if damaged and remove:
        remove_all(damaged, Store(store))
        print("Removed. The next run makes them again, and nothing else.")
    elif damaged:
        print("Run again with --remove, then the run that made them: it makes them again, and nothing else.")
    if weights:
        print("Weights cannot be made again by a run: fetch them again (git checkout -- FILE).")
    if weights or (damaged and not remove):
        raise typer.Exit(1)


@app.command(rich_help_panel="Store")
def objects(
    folders: Annotated[list[Path], typer.Argument(help="A DVC remote that is a folder, or a cache (.dvc/cache).")],
    remove: Annotated[bool, typer.Option(help="Remove them, so that dvc push and dvc pull bring them again.")] = False,
) -> None:
    """Hash the objects of DVC remotes and caches again; name those that are not whole, which DVC does not notice."""
    from pipeline_lib.dvc_objects import damaged_objects, remove_objects

    damaged = {folder: damaged_objects(folder) for folder in folders}
    for folder, paths in damaged.items():
        for path in paths:
            print(f"damaged: {path}")
        if remove:
            remove_objects(folder, paths)
    n_damaged = sum(map(len, damaged.values()))
    print(f"{n_damaged} objects damaged")
    if n_damaged and remove:
        print("Removed. Where the files are whole: dvc push. Where they are wanted: make restore.")
    elif n_damaged:
        print("Run again with --remove; then dvc push where the files are whole, make restore where they are wanted.")
        raise typer.Exit(1)


@app.command(rich_help_panel="Store")
def gc(
    context: typer.Context,
    params: ParamsOption = Path("params.yaml"),
    overlay: Annotated[
        list[Path] | None,
        typer.Option(help="Overlay of one more study on params.yaml: what it reaches is kept too. For each study one."),
    ] = None,
    results: ResultsOption = Path("results"),
    delete: Annotated[bool, typer.Option(help="Delete what is listed.")] = False,
) -> None:
    """List what none of the studies reaches (params.yaml and one per --overlay); with --delete, delete it."""
    from pipeline_lib.files import remove_abandoned
    from pipeline_lib.maintenance import remove_all, resting_on, studies, unreached

    plans = studies(_config(params, []), [_config(params, [path]) for path in overlay or []])
    if delete:
        _be_alone(context, plans[0].store.root)
    found = unreached(plans)
    for path, n_bytes in found:
        print(f"{n_bytes:>12} {path}")
    total = sum(n_bytes for _, n_bytes in found)
    names = ", ".join(dict.fromkeys(plan.config.study for plan in plans))
    print(f"{len(found)} artifacts, {total / 1e6:.1f} MB, are not reached by {names}")
    for result in resting_on([path for path, _ in found], results):
        print(f"{result} was made from some of them: to keep them, name its study with --overlay")
    if delete:
        remove_all([path for path, _ in found], plans[0].store)
        remove_abandoned(plans[0].store.root)  # the half-written files of killed runs
        print("Deleted.")


@app.command(rich_help_panel="Configuration")
def plan(params: ParamsOption = Path("params.yaml"), overlay: OverlayOption = None) -> None:
    """Print what the configuration asks for, how much of it is there, and what the rest costs."""
    from pipeline_lib.costs import amounts, summary
    from pipeline_lib.model_cards import require_intact
    from pipeline_lib.plan import Plan
    from pipeline_lib.readiness import not_here_yet

    planned = Plan(_config(params, overlay or []))
    config = planned.config
    require_intact(config.models)
    for message in not_here_yet(planned):
        print(f"Not here yet: {message}")
    n_encoders = len(config.models.encoders)
    print(f"study {config.study}: {len(config.datasets)} data sets, {n_encoders} encoder{'s' * (n_encoders > 1)}")
    for line in summary(amounts(planned), config.costs):
        print(line)


@app.command("datasets", rich_help_panel="Configuration")
def list_datasets(params: ParamsOption = Path("params.yaml"), overlay: OverlayOption = None) -> None:
    """List the data sets: what of each is here, what is missing, and where to get it."""
    from pipeline_lib.datasets.listing import describe_datasets

    for line in describe_datasets(_config(params, overlay or [])):
        print(line)


@app.command("convert-glide", rich_help_panel="Models")
def convert_glide(
    base: Annotated[Path, typer.Argument(help="OpenAI's checkpoint of the 64x64 base model (base.pt).")],
    upsample: Annotated[Path, typer.Argument(help="OpenAI's checkpoint of the 256x256 upsampler (upsample.pt).")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must not be there yet.")],
    tokenizer: Annotated[str, typer.Option(help="GPT-2's tokenizer: a folder, or a hub id.")] = TOKENIZER,
    tokenizer_revision: Annotated[
        str | None, typer.Option(help="Commit of the tokenizer's hub repository; default: the one checked.")
    ] = None,
) -> None:
    """Write GLIDE as a diffusers pipeline, from OpenAI's two checkpoints; nothing in them is executed."""
    from pipeline_lib.generators.glide.convert import convert
    from pipeline_lib.interrupts import end_as_python_does

    end_as_python_does()  # half a folder of models is removed
    convert(base, upsample, out, tokenizer, tokenizer_revision)
    print(f"{out} is written. In the configuration: models: {{generator: {out if out.is_absolute() else f'./{out}'}}}")


@app.command(rich_help_panel="Configuration")
def schema() -> None:
    """Print the JSON schema of params.yaml."""
    from pipeline_lib.config import Config

    print(json.dumps(Config.model_json_schema(), indent=2))


def _be_alone(context: typer.Context, store: Path) -> None:
    """For a command that removes artifacts: refused while a run is alive on the store; until it ends, runs are."""
    from pipeline_lib.presence import at_work

    if store.is_dir():
        context.with_resource(at_work(store, f"python -m pipeline_lib {context.info_name}", None))


def _config(params: Path, overlays: list[Path]):  # type: ignore[no-untyped-def]
    from pipeline_lib.config import read_config

    return read_config(params, *overlays)


class _PrintableFormatter(logging.Formatter):
    """Lines that a terminal shows and does not obey: names in them may be anyone's."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _start(log: Path | None, threads: int) -> None:
    """Set up threads (before torch is imported) and logging: plain lines to stderr and to the log file."""
    from pipeline_lib.files import storage_errors

    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if log is not None:
        with storage_errors(log.parent):
            log.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(log, mode="w", encoding="utf-8"))
    for handler in handlers:
        handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    logging.getLogger("pipeline_lib").setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # where there is no room for a line of the log, what is made counts


# What a wrong path leads to: a folder in a file's place, another user's file, links that go round in a circle.
_WRONG_PATH = frozenset(
    {errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EEXIST}
)


def _user_error(error: Exception) -> UserError:
    """What is to be said of an error that the user can mend; raises any other again."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in _WRONG_PATH and error.filename is not None:
        return UserError(f"{error.filename}: {error.strerror}; name another path, or mend this one")
    raise error


def main() -> None:
    """Run the command line; an error that the user can mend is printed without a traceback."""
    try:
        app()
    except Exception as exception:
        error = _user_error(exception)
        if logging.getLogger().handlers:  # a stage: the message belongs in its log as well
            logging.getLogger("pipeline_lib").error("Error: %s", error)
        else:
            print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)
