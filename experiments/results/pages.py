"""A question's page and the index, as markdown made of tables alone."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence

from vmae.core.measure.statistics import Paired, holm
from vmae.experiments.answers import Answers, compare
from vmae.experiments.results.questions import ALL, BUILT_IN, COLUMNS, SETS, Column, Question, VideoSet
from vmae.experiments.results.ranks import Points, Rank
from vmae.experiments.results.table import SweepTable
from vmae.experiments.sweeps import definitions

_MADE = "<!-- Made by `vmae results build`; change experiments/results or the tables in data/ instead. -->"
_SHOWN = {"ssv2": "SSv2", "k400": "Kinetics-400"}
_NONE = "-"
_ENOUGH, _SETTINGS = 0.9, 12
"""The rank correlation that a monitor should reach, and over how many settings at least."""


def question_page(question: Question, tables: Mapping[str, SweepTable], strips: Sequence[str]) -> str:
    """Everything that is known of a question; `strips`: the sets of which there is a picture."""
    lines = [_MADE, f"# {question.title}", "", question.asks, "", f"![{question.title}]({question.name}.png)"]
    for on, table in tables.items():
        lines += ["", *_section(question, _set(on), table)]
        if on in strips:
            lines += [
                "",
                "One held-out clip by the first seed's models, the same 75 % of its tubes hidden from all of "
                "them. Nothing of the hidden pixels is used: the colours of normalised predictions are "
                "estimated from visible neighbours.",
                "",
                f"![Reconstructions](data/{question.name}-{on}.png)",
            ]
    lines += ["", "## What the paper reports", "", question.paper]
    lines += ["", *_reading(tables)]
    return "\n".join(lines) + "\n"


def _set(on: str) -> VideoSet:
    return SETS.get(on, VideoSet(name=on, title=on))


def _section(question: Question, on: VideoSet, table: SweepTable) -> list[str]:
    facts = table.facts
    folds = f" in {len(table.folds)} folds, each held out once" if table.folds else ""
    lines = [
        f"## {on.title}",
        "",
        f"{table.videos} held-out videos{folds}, {_count(len(table.seeds), 'seed')}; pre-trained on "
        f"{facts.trained_on} videos{' (all but the held-out fold, never on it)' if table.folds else ''}. "
        f"Clips of {facts.clip}; {facts.model}; {facts.schedule}. Measured by {facts.measured}; chance is "
        f"{_percent(table.chance)}.",
        "",
        *_results(question, table),
        "",
        *_verdicts(question, table),
    ]
    if on.name in question.notes:
        lines += ["", f"**What did not show, and why that may be.** {question.notes[on.name]}"]
    beside = " (with the random weights beside it)" if table.baseline is not None else ""
    return [*lines, "", f"All of it, or one row{beside}:", "", *_commands(table)]


def _results(question: Question, table: SweepTable) -> list[str]:
    answers = {i: table.answers(i) for i in range(len(table.settings))}
    against = {i: _rival(question, table, i) for i in answers}
    pairs = {i: compare(answers[i], answers[r])[0] for i, r in against.items() if r is not None}
    held = dict(zip(pairs, holm([p.p for p in pairs.values()]), strict=True))
    base = table.baseline
    others = {i: compare(answers[i], answers[base])[0] for i in answers if base not in (None, i)}
    ahead = dict(zip(others, holm([p.p for p in others.values()]), strict=True))
    published = list(dict.fromkeys(c for row in question.published.values() for c in row))
    shown = [c for c in question.columns if any(c in r.numbers for r in table.rows)]
    header = [_field(table), "accuracy [95 %]", "each seed", f"against {_rival_name(question, table)}"]
    header += ["against random weights"] * (base is not None) + [COLUMNS[c].heading for c in shown]
    header += [f"paper, {_SHOWN.get(c, c)}" for c in published]
    rows = []
    for i, setting in enumerate(table.settings):
        row = [
            "random weights" if setting.baseline else question.called(setting.overrides),
            answers[i].interval().text(),
            _each(answers[i]),
            _difference(pairs[i], held[i]) if i in pairs else _NONE,
        ]
        if base is not None:
            row.append(_difference(others[i], ahead[i]) if i in others else _NONE)
        row += [_cost(table.mean(i, c), COLUMNS[c]) for c in shown]
        row += [_number(question.published.get(table.label(i), {}).get(c, math.nan), 1) for c in published]
        rows.append(row)
    return markdown_table(header, rows)


def _rival(question: Question, table: SweepTable, setting: int) -> int | None:
    """The setting that this one is held against; None for the baseline and for the reference itself."""
    if table.settings[setting].baseline:
        return None
    if question.versus:
        own = table.settings[setting].overrides
        if str(own.get(question.versus)) == "True":
            return None
        wanted = {k: v for k, v in own.items() if k != question.versus}
        for i, other in enumerate(table.settings):
            rest = {k: v for k, v in other.overrides.items() if k != question.versus}
            if i != setting and not other.baseline and rest == wanted:
                return i
        return None
    reference = _reference(question, table)
    return None if setting == reference else reference


def _reference(question: Question, table: SweepTable) -> int:
    """The paper's setting where it was run, else the best."""
    shown = [i for i, s in enumerate(table.settings) if not s.baseline]
    named = [i for i in shown if table.label(i) == question.reference]
    return named[0] if named else max(shown, key=lambda i: table.answers(i).interval().mean)


def _rival_name(question: Question, table: SweepTable) -> str:
    if question.versus:
        return question.words.get(question.versus, {}).get("True", f"{question.versus}=True")
    return question.called(table.settings[_reference(question, table)].overrides)


def _verdicts(question: Question, table: SweepTable) -> list[str]:
    """Sentences that follow from the numbers: what is told apart and what is not."""
    shown = [i for i, s in enumerate(table.settings) if not s.baseline]
    names = {i: question.called(table.settings[i].overrides) for i in shown}
    answers = {i: table.answers(i) for i in range(len(table.settings))}
    lines = [
        "Bold differences hold for the whole column together (paired by video, 95 %, Holm's correction); the "
        "others may be luck."
    ]
    if len(table.seeds) == 1:
        lines.append("One seed: how far another would move them is not in these intervals.")
    if not question.versus:
        best = max(shown, key=lambda i: answers[i].interval().mean)
        reference = _reference(question, table)
        if question.reference and table.label(reference) != question.reference:
            lines.append(
                f"The paper's choice, {question.reference}, was not run; the best mean is {names[best]}'s."
            )
        elif not question.reference:
            lines.append(f"The best mean is {names[best]}'s.")
        elif best != reference:
            pair, seeds = compare(answers[best], answers[reference])
            apart = "told apart" if pair.told_apart else "not told apart"
            more = f"; about {seeds} seeds would" if not pair.told_apart and seeds is not None else ""
            lines.append(
                f"The best mean is {names[best]}'s, {pair.text()} against {names[reference]}: {apart} by "
                f"these {pair.videos} videos and {_count(len(table.seeds), 'seed')}{more}."
            )
        else:
            lines.append(f"The paper's choice, {names[best]}, has the best mean here too.")
    if table.baseline is not None:
        below = [
            names[i]
            for i in shown
            if not (p := compare(answers[i], answers[table.baseline])[0]).told_apart or p.mean < 0
        ]
        lines.append(
            f"Not shown to be better than the same network with random weights: {'; '.join(below)}."
            if below
            else "Every setting is better than the same network with random weights."
        )
    return [" ".join(lines)]


def _commands(table: SweepTable) -> list[str]:
    """The command that was run, and one for each row."""
    lines = ["```", table.facts.command]
    for setting in table.settings:
        if not setting.baseline:
            lines.append(row_command(table.facts.command, setting.overrides))
    return [*lines, "```"]


def row_command(command: str, overrides: Mapping[str, object]) -> str:
    """The sweep of one setting alone: the command with its values, under a name that is drawn."""
    words, kept = shlex.split(command), list[str]()
    while words:
        word = words.pop(0)
        if word.partition("=")[0] in ("--values", "--param", "--run-name"):
            words = words[0 if "=" in word and not word.startswith("--param=") else 1 :]
            continue
        kept.append(word)
    named = definitions.ALL[kept[2]]().path if kept[2:] and kept[2] in definitions.ALL else ""
    for path, value in overrides.items():
        # A value of the named sweep's own field may bring other settings with it.
        kept += ["--values", str(value)] if path == named else ["--param", f"{path}={value}"]
    return shlex.join(kept)


def monitors_page(
    question: Question, points: Mapping[str, Points], found: Mapping[str, Sequence[Rank]]
) -> str:
    """The page of the question that all other sweeps answer."""
    lines = [_MADE, f"# {question.title}", "", question.asks, "", f"![{question.title}]({question.name}.png)"]
    for on, ranks in found.items():
        best = ranks[0]
        asked = ", ".join(f"[{q}]({q}.md)" for q in dict.fromkeys(points[on].questions))
        reaches = "reaches" if best.rho >= _ENOUGH else "does not reach"
        few = best.settings < _SETTINGS
        lines += [
            "",
            f"## {_set(on).title}",
            "",
            f"{best.points} pre-trainings of {best.settings} settings (of {asked}); intervals are bootstraps "
            "over settings.",
            "",
            *markdown_table(
                ["monitor", "rank correlation with the probe [95 %]", "pre-trainings"],
                [[r.title, r.text(), str(r.points)] for r in ranks],
            ),
            "",
            f"{best.title} does best and {reaches} {_ENOUGH}, from which on it could stand for the probe."
            + f" Fewer than {_SETTINGS} settings: none is recommended yet." * few,
        ]
        if on in question.notes:
            lines += ["", question.notes[on]]
    lines += ["", "## What the papers report", "", question.paper]
    lines += ["", "To add points, run any of the other questions; a loss is turned round."]
    return "\n".join(lines) + "\n"


def index_page(answered: Mapping[str, Mapping[str, str]]) -> str:
    """All questions, with how much answered them on which set, and the commands of what was not run."""
    lines = [
        _MADE,
        "# Results",
        "",
        "The method's claims, asked of real runs of this code: a page a question, with intervals, the "
        "commands, and what the papers report beside them. Small models on small clips, trained on two CPU "
        "cores: heights cannot be compared with the papers', the order of settings can.",
        "",
        *markdown_table(
            ["question", *SETS],
            [
                [f"[{q.title}]({q.name}.md)" if answered.get(q.name) else q.title]
                + [answered.get(q.name, {}).get(on, "not run yet") for on in SETS]
                for q in ALL.values()
            ],
        ),
        "",
        "Intervals are bootstraps over held-out videos and seeds, differences are paired by video "
        "([evaluation.md](../evaluation.md)). Where folds are held out in turn, a fold's videos take no part "
        "in the pre-training that is measured on them. Operations and memory are counted; minutes and "
        "milliseconds are those of two CPU cores that other work shared. Tables: `data/`, one line a trial; "
        "they hold no frame and no name of a video.",
        "",
        "## To answer one",
        "",
        "```",
        f"{ALL['ratio'].command(SETS[BUILT_IN])}  # QUESTION-SET says what it answers",
        "vmae results export docs/results/data                     # every such sweep of ./runs",
        "vmae results build docs/results/data --out docs/results",
        "```",
    ]
    todo = [
        (q, on)
        for q in ALL.values()
        if q.sweep
        for on in SETS.values()
        if on.name not in answered.get(q.name, ())
    ]
    if todo:
        lines += ["", "## Not run yet", "", "```"]
        for q, on in todo:
            lines += [*([q.before] if q.before else []), q.command(on)]
        lines.append("```")
    return "\n".join(lines) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table, the first column to the left."""
    align = "|---|" + "---:|" * (len(header) - 1)
    return [f"| {' | '.join(header)} |", align, *(f"| {' | '.join(row)} |" for row in rows)]


def _reading(tables: Mapping[str, SweepTable]) -> list[str]:
    commits = sorted({t.facts.commit for t in tables.values() if t.facts.commit})
    names = ", ".join(f"[{t.name}.csv](data/{t.name}.csv)" for t in tables.values())
    return [f"Tables: {names}; code: {', '.join(commits) or 'not recorded'}."]


def _field(table: SweepTable) -> str:
    first = next(s for s in table.settings if not s.baseline)
    return ", ".join(p.rpartition(".")[2].replace("_", " ") for p in first.overrides)


def _each(answers: Answers) -> str:
    means = answers.table().mean(1)
    return ", ".join(f"{100 * m:.1f}" for m in means) if len(means) > 1 else _NONE


def _difference(pair: Paired, held: bool) -> str:
    text = pair.text().replace(" points", "")
    return f"**{text}**" if held else text


def _number(value: float, digits: int) -> str:
    return _NONE if math.isnan(value) else f"{value:.{digits}f}"


def _cost(value: float, column: Column) -> str:
    return _percent(value) if column.percent else _number(value, column.digits)


def _percent(value: float) -> str:
    return _NONE if math.isnan(value) else f"{value:.1%}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
