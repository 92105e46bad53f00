"""Counts what the rules said of many runs, as tables for people."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from benchmarks.rule_replay import Judgement

from image_classifier.debugging.rules.base import Rule
from image_classifier.debugging.schema import Verdict

MILD = "mild: "  # begins the name of a kind whose runs may be hardly sick: shown, not counted as missed


class Tally:
    """What the rules said of the runs of one kind."""

    def __init__(self, expected: Sequence[type[Rule]], *, mild: bool = False) -> None:
        self.expected = [rule.__name__ for rule in expected]
        self.mild = mild
        self.runs = 0
        self.fired: Counter[str] = Counter()  # at the end
        self.judged: Counter[str] = Counter()  # at the end, or on the way
        self.stops: defaultdict[str, list[float]] = defaultdict(list)  # shares of the steps

    def add(self, judgement: Judgement) -> None:
        """One run more."""
        self.runs += 1
        for result in judgement.results:
            silent = result.verdict in (Verdict.INSUFFICIENT_DATA, Verdict.ERROR)
            self.fired[result.rule] += result.verdict is Verdict.ISSUES
            self.judged[result.rule] += not silent or result.rule in judgement.stops
        for rule, share in judgement.stops.items():
            self.stops[rule].append(share)


def tables(
    expected: Mapping[str, Sequence[type[Rule]]], judgements: Iterable[tuple[str, Judgement]], rules: Sequence[Rule]
) -> list[str]:
    """A sentence, a table by rule, and a table by kind of run.

    Args:
        expected: kind of run -> rules that should fire; none for a healthy one.
        judgements: kind and judgement of every run.
    """
    tallies = {kind: Tally(rules_of_it, mild=kind.startswith(MILD)) for kind, rules_of_it in expected.items()}
    for kind, judgement in judgements:
        tallies[kind].add(judgement)
    healthy = [tally for tally in tallies.values() if not tally.expected]
    judged = sum(tally.judged.total() for tally in healthy)
    alarms = sum(tally.fired.total() for tally in healthy)
    stops = sum(len(shares) for tally in healthy for shares in tally.stops.values())
    return [
        f"{sum(tally.runs for tally in healthy)} healthy runs got {judged} verdicts: {alarms} false alarms at the end, "
        f"{stops} that would have stopped one. {sum(tally.runs for tally in tallies.values() if tally.expected)} runs "
        "were sick.",
        "",
        "| rule | missed | false alarms | would have stopped | caught after |",
        "|---|---|---|---|---|",
        *filter(None, (_row_of_rule(rule.name, list(tallies.values())) for rule in rules)),
        "",
        "| run | runs | expected rules, times fired | other rules that fired | only on the way |",
        "|---|---|---|---|---|",
        *(_row_of_kind(kind, tally) for kind, tally in tallies.items()),
        "",
    ]


def _row_of_rule(name: str, tallies: Sequence[Tally]) -> str:
    """Empty for a rule that has nothing to say of these runs."""
    sick = [tally for tally in tallies if name in tally.expected and not tally.mild]
    healthy = [tally for tally in tallies if not tally.expected]
    judged = sum(tally.judged[name] for tally in healthy)
    if not sick and not judged:
        return ""
    missed = sum(tally.runs - tally.fired[name] for tally in sick)
    of_sick = f"{missed} of {sum(tally.runs for tally in sick)}" if sick else "-"
    alarms = sum(tally.fired[name] for tally in healthy)
    stops = sum(len(tally.stops[name]) for tally in healthy)
    shares = [share for tally in sick for share in tally.stops[name]]
    caught = f"{median(shares):.0%} ({min(shares):.0%} .. {max(shares):.0%})".replace("%", " %") if shares else "-"
    return f"| {name} | {of_sick} | {alarms} of {judged} | {stops} of {judged} | {caught} |"


def _row_of_kind(kind: str, tally: Tally) -> str:
    hits = [f"{name} {tally.fired[name]}" for name in tally.expected]
    also = [f"{name} {count}" for name, count in tally.fired.items() if count and name not in tally.expected]
    taken_back = {name: len(shares) - tally.fired[name] for name, shares in tally.stops.items()}
    on_the_way = [f"{name} {count}" for name, count in taken_back.items() if count > 0]
    return f"| {kind} | {tally.runs} | {_or_dash(hits)} | {_or_dash(also)} | {_or_dash(on_the_way)} |"


def _or_dash(names: Sequence[str]) -> str:
    return ", ".join(names) or "-"
