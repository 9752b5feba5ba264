"""Which of the paper's few-shot statements hold (paper, section 3.2)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pipeline_lib.few_shot_tables import (
    BATCH_NORM,
    METHODS,
    STRATEGIES,
    TRAININGS,
    as_columns,
    shots_text,
)
from pipeline_lib.metrics.few_shot import Contrast, contrast
from pipeline_lib.metrics.outcomes import Outcomes, Read, Terms
from pipeline_lib.records import FewShotCells
from pipeline_lib.tables import Row

_ROUNDING = 1e-9  # percentage points: weights such as 1/3 do not sum to 0 exactly


@dataclass(frozen=True)
class _Statement:
    """A statement of the paper: that `terms`, which need the cells of `methods` on `datasets`, sum to more than 0."""

    statement: str
    contrast: str
    methods: tuple[str, ...]
    datasets: Sequence[str]
    terms: Callable[[], Terms]


def findings(cells: Sequence[FewShotCells], read: Read, ablation_dataset: str) -> list[Row]:
    """The statements of the paper's section 3.2, each as a contrast with its interval and a verdict.

    cells: those of Figure 1 and, of ablation_dataset, those of Tables 5 to 7.
    """
    outcomes = Outcomes(cells, read)
    rows: list[Row] = []
    for one in _statements(outcomes, ablation_dataset):
        reasons = [outcomes.not_computed(dataset, method) for method in one.methods for dataset in one.datasets]
        reason = next(filter(None, reasons), None)
        terms = [] if reason else one.terms()
        found = contrast(terms) if terms else None
        rows.append(
            {
                **{"statement": one.statement, "contrast": one.contrast},
                **as_columns(("estimate", "low", "high"), found),
                "verdict": verdict(found) if found else f"not computed: {reason}",
                "datasets": len({run.dataset for _, run in terms}) or None,
                "seeds": found.n_seeds if found else None,
            }
        )
    return rows


def verdict(found: Contrast) -> str:
    """`holds` where the interval lies above 0, `does not hold` where it lies below; `open` where 0 is in it, or where
    there is no interval."""
    if found.low is not None and found.low > _ROUNDING:
        return "holds"
    if found.high is not None and found.high < -_ROUNDING:
        return "does not hold"
    return "open"


def _statements(outcomes: Outcomes, ablation_dataset: str) -> Iterator[_Statement]:
    datasets = [name for name in outcomes.datasets if (name, "ct_init") in outcomes.cells]
    shots = outcomes.shots(ablation_dataset, "ct_syn")
    few, most = shots[0], shots[-1]

    def gain(statement: str, methods: tuple[str, str], words: str, names: list[str], at: list[int]) -> _Statement:
        return _Statement(statement, words, methods, names, partial(outcomes.gain, *methods, names, at))

    over_all, over_datasets = "mean over shots and data sets", "mean over data sets"
    both, minus = ("ct_syn", "ct_init"), f"{METHODS['ct_syn']} minus {METHODS['ct_init']}"
    yield gain("Synthetic data helps", both, f"{minus}, {over_all}", datasets, shots)
    if few < most:
        for n in (few, most):
            words = f"{minus}, {shots_text(n)}, {over_datasets}"
            yield gain(f"Synthetic data helps at {shots_text(n)}", both, words, datasets, [n])
        yield _Statement(
            "The help shrinks with more shots",
            f"{minus}, {shots_text(few)} minus {shots_text(most)}, {over_datasets}",
            both,
            datasets,
            lambda: (
                outcomes.gain("ct_syn", "ct_init", datasets, [few])
                + outcomes.gain("ct_init", "ct_syn", datasets, [most])
            ),
        )
    # Not a statement of the paper: the control that tells what more steps on the real shots alone would give.
    for method in ("ct_syn", "ct_syn_b"):
        control, name = (method, "ct_init_chosen"), METHODS[method]
        if all((ablation_dataset, one) in outcomes.cells for one in control):
            words = f"{name} minus CT w. init with steps chosen on validation"
            statement = f"Control: {name} is better than more steps on real shots"
            yield gain(statement, control, f"{words}, {over_all}", datasets, shots)
            for n in (few, most) if few < most else ():
                yield gain(f"{statement}, {shots_text(n)}", control, f"{words}, {over_datasets}", datasets, [n])
    for other in ("tip_adapter_f", "coop"):
        words = f"CT w. Syn minus {METHODS[other]}, {over_all}"
        yield gain(f"CT w. Syn is better than {METHODS[other]}", ("ct_syn", other), words, datasets, shots)

    ablation, where = [ablation_dataset], f"{shots_text(most)}, {ablation_dataset}"
    for phases, name in (("syn_then_real", "synthetic then real"), ("real_then_syn", "real then synthetic")):
        words = f"mix minus {name}, mean over shots, {ablation_dataset}"
        yield gain(f"Mix training is better than {name}", (TRAININGS["mix"], phases), words, ablation, shots)
    for better, worse in (("RG", "RF"), ("RF", "B"), ("RG", "B")):
        methods = (STRATEGIES[better], STRATEGIES[worse])
        yield gain(f"{better} is better than {worse}", methods, f"{better} minus {worse}, {where}", ablation, [most])
    for data, n, words in (
        ("real", most, f"frozen minus trained, {where}"),
        ("synthetic", 0, f"frozen minus trained, {ablation_dataset}"),
    ):
        methods = (BATCH_NORM[data, "frozen"], BATCH_NORM[data, "trained"])
        yield gain(f"Frozen batch norm is better than trained on {data} images", methods, words, ablation, [n])
