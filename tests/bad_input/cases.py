"""Bad input as tables: each case ends in the right result, or in an error that names culprit and remedy.

None may run code, write outside of the store, or end in another exception than `UserError`. The tables are beside this
file, by what is bad: configuration, names, images, tables, checkpoints; `test_bad_commands` runs some from the shell.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import changed, planned

from pipeline_lib import stages
from pipeline_lib.errors import UserError, printable
from pipeline_lib.plan import Plan
from pipeline_lib.shards import read_rows

LONG = 10_000


@dataclass
class Workplace:
    """A folder with a small project; `canary` is the file that code in a bad input would write."""

    folder: Path
    params: dict[str, Any]
    models: dict[str, Any]

    @property
    def canary(self) -> Path:
        return self.folder / "it ran"

    def config(self, *overlays: Path, **changes: Any) -> Path:
        """params.yaml with changes, as a file."""
        path = self.folder / "params.yaml"
        path.write_text(yaml.safe_dump(changed(self.params, **changes), allow_unicode=True), encoding="utf-8")
        return path

    def plan(self, **changes: Any) -> Plan:
        plan = planned(changed(self.params, **changes))
        plan.require_models()
        return plan

    def real_rows(self, **changes: Any) -> list[dict[str, Any]]:
        """The rows of the real images, made."""
        plan = self.plan(**changes)
        real = plan.real_images("shapes", "test")
        stages.real_images(real, plan.store)
        return [row for unit in real.members for row in read_rows(plan.store.path(unit))]


@dataclass(frozen=True)
class Case:
    """`act` makes the bad thing and uses it. It must raise a `UserError` that holds `words`; without words it must
    succeed, and look at the result itself."""

    act: Callable[[Workplace], Any]
    words: tuple[str, ...] = ()


def setting(*words: str, **changes: Any) -> Case:
    """The project is planned with these settings."""
    return Case(lambda place: place.plan(**changes), words)


def check(case: Case, place: Workplace) -> None:
    """Assert that the case ends as it should, and that nothing ran that is not ours."""
    if case.words:
        with pytest.raises(UserError) as caught:
            case.act(place)
        message = str(caught.value)
        missing = [word for word in case.words if word not in message]
        assert not missing, f"{missing} not in: {message}"
        assert len(message) < 3000
        assert "Traceback" not in message
        assert message == printable(message)
    else:
        case.act(place)
    assert not place.canary.exists()
