"""``report.md``: the report for people."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from dtp_deploy.report.schema import Basis, BudgetEntry, LatencyEntry, ParityEntry, Report, TargetEntry
from dtp_deploy.report.table import layer_rows, milliseconds, percent, points, quantity, summary_rows
from dtp_deploy.report.text import flat_rows

_SHOWN_LAYERS = 10
MASK_PHASE = "mask_phase.svg"
"""The picture beside the report."""
_BASIS_WORDS: dict[Basis, str] = {
    "measured": "measured on {target}",
    "predicted": "predicted, not measured",
    "computed": "computed exactly from the pruned model",
}


def headlines(report: Report) -> list[str]:
    """One line a budget, the first one first: whether it was met, what was reached, and how that is known."""
    return [_headline(report, budget) for budget in (report.budget, *report.further_budgets)]


def _headline(report: Report, budget: BudgetEntry) -> str:
    verdict = {True: "Budget met", False: "Budget NOT met", None: "Budget not checked"}[budget.met]
    basis = _BASIS_WORDS[budget.basis].format(target=report.target.name)
    what = {"latency": "p50 latency ", "size": "size "}.get(budget.kind, "")  # other units say what they are of
    if budget.achieved is None:
        return f"{verdict}: {what}at most {_limit(budget)}; what was reached is not known."
    if _only_limit_is_predicted(report, budget):
        return (
            f"{verdict}: {what}{quantity(budget.achieved, budget.unit)}, {basis}; the limit of {_limit(budget)} is "
            "predicted, as the dense model was not measured."
        )
    return f"{verdict}: {what}{quantity(budget.achieved, budget.unit)} of at most {_limit(budget)}, {basis}."


def render_markdown(report: Report) -> str:
    """The whole report as Markdown."""
    target = report.target
    threads = "" if target.threads is None else f", {target.threads} thread{'s' if target.threads != 1 else ''}"
    blocks = [
        f"# {_cell(report.model)}, pruned",
        *(f"**{line}**" for line in headlines(report)),
        f"Target: {target.name} ({_what_ran(target)}{threads}).",
        *_warnings(report),
        _table(("", "dense", "pruned", "pruned / dense"), summary_rows(report)),
        *_section("Latency", _latency(report)),
        *_section("Times of the pruned model's layers", _layer_times(report.pruned.latency)),
        *_section(
            "Accuracy along the run",
            _table(("stage", "accuracy (points)"), [(s.stage, points(s.accuracy)) for s in report.accuracy_stages]),
        ),
        *_section(
            "Channel groups",
            _table(
                ("group", "before", "learned", "after", "frozen because"),
                [
                    (g.name, g.width_before, learned, g.width_after, g.frozen_because or "")
                    for g, learned in zip(report.groups, _learned(report), strict=True)
                ],
            ),
        ),
        *_section(
            "Residual blocks",
            _table(("block", "", "because"), [(b.name, _removed(b.removed), b.reason) for b in report.blocks]),
        ),
        *_section("Mask phase", _mask_phase(report)),
        *_section(
            f"Layers ({report.granularity})",
            _table(
                ("layer", "weights", "not zero", "left because"),
                [(one.name, one.weights, one.kept, one.left_because or "") for one in report.layers],
            ),
        ),
        *_section(
            "Parity",
            _table(
                ("stage", "largest error", "relative", "tolerance", "passed"), [_parity_row(p) for p in report.parity]
            ),
        ),
        *_section(
            "Passes over the graph",
            _table(("pass", "applied", "why not"), [(p.name, _yes(p.applied), p.reason) for p in report.passes]),
        ),
        *_section("Stages", _table(("stage", "seconds"), [(s.name, f"{s.seconds:.1f}") for s in report.stages])),
        *_section("Settings", _mapping(report.settings)),
        *_section("Environment", _mapping(report.environment)),
        *_section("Notes", "\n".join(f"- {' '.join(note.split())}" for note in report.notes)),
        f"dtp-deploy {report.dtp_deploy_version}, schema {report.schema_version}. "
        f"SHA-256 of model.onnx: `{report.onnx_sha256}`",
    ]
    return "\n\n".join(blocks) + "\n"


def _mask_phase(report: Report) -> str:
    if not report.mask_phase:
        return ""
    rows = [
        (
            f"{entry.epoch:.3g}",
            percent(entry.cost_share),
            percent(entry.undecided),
            f"{entry.entropy_bits:.3f}",
            "not known" if entry.price is None else f"{entry.price / 100:.3g}",
            points(entry.accuracy_soft),
            points(entry.accuracy_hard),
        )
        for entry in report.mask_phase
    ]
    head = (
        "epoch",
        "cost",
        "undecided",
        "entropy (bits)",
        "price of 1 % cost (loss)",
        "soft (points)",
        "hard (points)",
    )
    return f"![How the masks were learned]({MASK_PHASE})\n\n{_table(head, rows)}"


def _only_limit_is_predicted(report: Report, budget: BudgetEntry) -> bool:
    return budget.kind == "latency" and budget.basis == "measured" and budget.relative and report.dense.latency is None


def _limit(budget: BudgetEntry) -> str:
    limit = quantity(budget.limit, budget.unit)
    return f"{limit} ({budget.requested} of the dense model)" if budget.relative else limit


def _warnings(report: Report) -> list[str]:
    unstable = [
        name
        for name, model in (("dense", report.dense), ("pruned", report.pruned))
        if model.latency is not None and not model.latency.stable
    ]
    warnings = []
    if report.pruned.latency is None and report.pruned.predicted_ms is not None:
        warnings.append("**Latency is predicted, not measured.**")
    if not unstable:
        return warnings
    return [
        *warnings,
        f"**The latency of the {' and the '.join(unstable)} model was unstable: repeat it on a quiet machine.**",
    ]


def _learned(report: Report) -> list[object]:
    """Of every group the channels whose masks were 0.5 or more in the end: what rounding and measuring started from."""
    widths = iter(report.mask_phase[-1].widths if report.mask_phase else ())
    return ["" if group.frozen_because is not None else next(widths, "") for group in report.groups]


def _what_ran(target: TargetEntry) -> str:
    if not target.runtime_version:
        return f"{target.runtime}: {target.device}"
    return f"{target.runtime} {target.runtime_version} on {target.device}"


def _latency(report: Report) -> str:
    rows = [
        (name, *_latency_row(model.latency))
        for name, model in (("dense", report.dense), ("pruned", report.pruned))
        if model.latency is not None
    ]
    return _table(("model", "p50", "p90", "p99", "samples", "variation", "drift", "spread", "stable"), rows)


def _latency_row(latency: LatencyEntry) -> tuple[str, ...]:
    return (
        milliseconds(latency.p50_ms),
        milliseconds(latency.p90_ms),
        milliseconds(latency.p99_ms),
        str(len(latency.samples_ms)),
        percent(latency.coefficient_of_variation),
        percent(latency.drift),
        percent(latency.spread),
        _yes(latency.stable),
    )


def _layer_times(latency: LatencyEntry | None) -> str:
    """The slowest layers; empty where none are known."""
    if latency is None or not latency.layer_times:
        return ""
    rows = layer_rows(latency.layer_times)[:_SHOWN_LAYERS]
    count = len(latency.layer_times)
    which = f"The {len(rows)} slowest of {count}" if len(rows) < count else f"All {count}"
    return f"{which}, by the runtime's profiler. It slows a run down: the shares count.\n\n" + _table(
        ("layer", "share", "mean", "median", "precision"), rows
    )


def _parity_row(parity: ParityEntry) -> tuple[str, ...]:
    errors = ("not comparable" if e is None else f"{e:.2g}" for e in (parity.max_abs_error, parity.max_rel_error))
    return (parity.stage, *errors, f"{parity.tolerance:.2g}", _yes(parity.passed))


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _removed(value: bool) -> str:
    return "removed" if value else "kept"


def _section(title: str, body: str) -> list[str]:
    """A title and its body; nothing for an empty body."""
    return [f"## {title}", body] if body else []


def _mapping(values: Mapping[str, JsonValue]) -> str:
    return _table(("name", "value"), flat_rows(values))


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; empty if there are no rows."""
    lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|" + "---|" * len(header), *lines]) if lines else ""


def _cell(value: object) -> str:
    """A text that stays inside of its cell, whatever it holds."""
    return " ".join(str(value).split()).replace("|", "\\|")
