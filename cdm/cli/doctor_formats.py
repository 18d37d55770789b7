"""What ``cdm doctor`` found, for monitoring: a line for Nagios and its relatives, metrics for Prometheus. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from cdm.doctor.finding import Finding, FindingKind, Severity, worst
from cdm.doctor.picture import Picture
from cdm.log import printable

NAGIOS = {
    Severity.OK: ("OK", 0),
    Severity.NOTE: ("OK", 0),
    Severity.WARNING: ("WARNING", 1),
    Severity.CRITICAL: ("CRITICAL", 2),
}
"""Each severity as plugins of Nagios tell it: a word, and the exit code."""


def nagios(findings: Sequence[Finding]) -> tuple[str, int]:
    """The output of a plugin, and its exit code."""
    word, code = NAGIOS[worst(findings)]
    count = Counter(each.severity for each in findings)
    troubles = [each for each in findings if each.severity in (Severity.WARNING, Severity.CRITICAL)]
    first = _plain(troubles[0]) if troubles else "nothing to mend"
    more = f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else ""
    counts = " ".join(f"{severity}={count[severity]}" for severity in reversed(Severity))
    lines = [f"CDM {word} - {first}{more} | {counts}"]
    lines += [f"{NAGIOS[each.severity][0]}: {_plain(each)}" for each in troubles]
    return "\n".join(lines), code


def nagios_failed(problem: str, *, reachable: bool) -> tuple[str, int]:
    """The same, where the cluster could not be looked at."""
    word, code = ("UNKNOWN", 3) if reachable else NAGIOS[Severity.CRITICAL]
    return f"CDM {word} - {_line(problem)}", code


def prometheus(findings: Sequence[Finding], picture: Picture) -> str:
    """Metrics in the text format, for the node exporter's textfile collector."""
    kinds = {kind: [each for each in findings if each.kind is kind] for kind in FindingKind}
    count = Counter(each.severity for each in findings)
    same = Counter((each.kind, each.severity, each.where) for each in findings if each.severity is not Severity.OK)
    nodes = sorted(picture.nodes.items())
    vitals = [(node, each.registration.vitals) for node, each in nodes]
    return "".join(
        line
        for lines in (
            _metric(
                "severity",
                "How bad it is, of each kind that was looked at: 0 ok, 1 note, 2 warning, 3 critical.",
                [({"kind": str(kind)}, worst(each).rank) for kind, each in kinds.items() if each],
            ),
            _metric(
                "findings", "How many findings there are.", [({"severity": each}, count[each]) for each in Severity]
            ),
            _metric(
                "finding",
                "What was found, and how often; nothing where all is well.",
                [
                    ({"kind": kind, "severity": severity, "where": where}, number)
                    for (kind, severity, where), number in same.items()
                ],
            ),
            _metric(
                "clock_ahead_seconds",
                "By how much a node's clock is ahead of the server's.",
                [({"node": node}, round(each.ahead, 3)) for node, each in nodes if each.ahead is not None],
            ),
            _metric(
                "disk_free_bytes",
                "What is free where a node's folder is.",
                [({"node": node}, each.disk_free) for node, each in vitals if each and each.disk_free is not None],
            ),
            _metric(
                "heard_seconds",
                "How long ago a node was heard.",
                [({"node": node}, round(each.heard, 3)) for node, each in nodes],
            ),
        )
        for line in lines
    )


def _metric(name: str, told: str, samples: Iterable[tuple[dict[str, str], float]]) -> Iterator[str]:
    yield f"# HELP cdm_doctor_{name} {told}\n# TYPE cdm_doctor_{name} gauge\n"
    for labels, value in samples:
        shown = ",".join(f'{label}="{_escaped(each)}"' for label, each in labels.items())
        yield f"cdm_doctor_{name}{{{shown}}} {value}\n" if shown else f"cdm_doctor_{name} {value}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _plain(finding: Finding) -> str:
    where = f" {finding.where}" if finding.where else ""
    return _line(f"{finding.kind}{where}: {finding.what}")


def _line(text: str) -> str:
    """One line without the sign that begins figures."""
    return printable(text).replace("|", "/")
