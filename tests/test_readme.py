"""The README shows what the commands make."""

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("table", ["table1", "findings"])
def test_the_readmes_tables_are_the_committed_ones(table: str) -> None:
    """A table in the README is, line for line, the one in results/*.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(rf"<!-- {table}:.*?-->\n(.*?)<!-- /{table} -->", readme, re.DOTALL)
    assert shown is not None
    made = [line for line in (ROOT / f"results/{table}.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(made) > 3
    assert [line for line in shown[1].splitlines() if line[:1] == "|"] == made


def test_files_that_the_readme_links_to_exist() -> None:
    """Every relative link and picture of the README is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_your_own_images_as_the_readme_shows_it(tmp_path: Path) -> None:
    """The files and the commands of the section, as they stand there, give a table of the new data set."""
    pytest.importorskip("snakemake")
    pytest.importorskip("diffusers")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"<!-- own -->\n(.*?)<!-- /own -->", readme, re.DOTALL)
    assert section is not None
    script, study, commands = re.findall(r"```\w*\n(.*?)```", section[1], re.DOTALL)
    for file in (script, study):
        name = file.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(file, encoding="utf-8")
    for name in ("Snakefile", "params.yaml", "pipeline_lib", "profiles", "workflow"):
        (tmp_path / name).symlink_to(ROOT / name)
    done = subprocess.run(
        ["bash", "-e", "-c", commands],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = list(csv.DictReader((tmp_path / "results/garments/table1.csv").open()))
    assert [(row["dataset"], row["n_classes"], row["n_test"]) for row in rows[:1]] == [("garments", "3", "300")]
    assert float(rows[0]["clip_syn"]) > 60  # 33 by chance
