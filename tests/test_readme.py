"""The README shows what the commands make."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_readmes_table_is_the_committed_table() -> None:
    """The table in the README is, line for line, the one in results/table1.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- table1:.*?-->\n(.*?)<!-- /table1 -->", readme, re.DOTALL)
    assert shown is not None
    made = [line for line in (ROOT / "results/table1.md").read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert len(made) > 3
    assert [line for line in shown[1].splitlines() if line[:1] == "|"] == made


def test_files_that_the_readme_links_to_exist() -> None:
    """Every relative link and picture of the README is there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
