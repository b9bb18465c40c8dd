"""What a study says, in sentences made from its numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curvfluence.report.figures.cost import total_seconds
from curvfluence.study.finished import Finished
from curvfluence.study.words import (
    interval,
    listed,
    number,
    percent,
    resolved,
    short,
    times,
)

CLOSE = 0.02  # LDS; rungs nearer than this and not resolved count as equally good


@dataclass(frozen=True)
class Verdict:
    """Which rung is worth it, how far it can be trusted, what more would cost, and what to doubt.

    `rung` is the name of the chosen rung.
    """

    rung: str
    headline: str
    sentences: tuple[str, ...]
    cautions: tuple[str, ...]


def verdict(study: Finished) -> Verdict:
    """Choose the cheapest rung that is not resolved from the most accurate and within .02 of it."""
    top = max(study.ladder, key=lambda rung: rung["lds"])
    equals = [rung for rung in study.ladder if rung is not top and _equal(study, top, rung)]
    chosen = min([top, *equals], key=lambda rung: (_seconds(rung), -rung["lds"]))
    said = (
        _trust(study, chosen),
        _size(study, chosen),
        _dearer(study, chosen),
        _cheaper(study, chosen),
        _lost(study),
    )
    return Verdict(
        rung=chosen["name"],
        headline=_headline(study, chosen),
        sentences=tuple(sentence for sentence in said if sentence),
        cautions=_cautions(study),
    )


def difference(study: Finished, a: str, b: str) -> tuple[float, tuple[float, float]] | None:
    """LDS of a less LDS of b, with its paired interval, where the study has it."""
    for found in study.results.get("differences", []):
        low, high = found["interval"]
        if (found["a"], found["b"]) == (a, b):
            return found["difference"], (low, high)
        if (found["b"], found["a"]) == (a, b):
            return -found["difference"], (-high, -low)
    return None


def _equal(study: Finished, top: dict[str, Any], rung: dict[str, Any]) -> bool:
    found = difference(study, top["name"], rung["name"])
    return found is not None and not resolved(found[1]) and abs(found[0]) <= CLOSE


def _seconds(rung: dict[str, Any]) -> float:
    found = total_seconds(rung)
    return float("inf") if found is None else found


def _headline(study: Finished, chosen: dict[str, Any]) -> str:
    if len(study.ladder) == 1:
        return f"{chosen['full_name']} was the only rung measured: LDS {number(chosen['lds'], 2)}."
    best = study.results["truth"].get("best_lds", {}).get("matched")
    reach = f" of about {number(best, 2)} that can be reached" if best is not None else ""
    lds = number(chosen["lds"], 2)
    return f"{chosen['full_name']} is the rung to use here: its LDS is {lds}{reach}."


def _trust(study: Finished, chosen: dict[str, Any]) -> str:
    truth = study.results["truth"]
    best = truth.get("best_lds", {})
    text = (
        f"It ranks what leaving {percent(1 - truth['alpha'])} of the data out does to a query with "
        f"a mean rank correlation of {number(chosen['lds'])} (95% interval "
        f"{interval(chosen['interval'])})"
    )
    if best.get("matched"):
        share = chosen["lds"] / best["matched"]
        text += f", {percent(share)} of what the noise in the truth allows"
    other = chosen.get("lds_independent")
    if other is not None:
        text += f"; for a model from other initial weights, {number(other)}"
        if best.get("independent"):
            text += f", {percent(other / best['independent'])} of what is allowed there"
    return text + "."


def _size(study: Finished, chosen: dict[str, Any]) -> str:
    line, alpha = chosen.get("calibration"), study.results["truth"]["alpha"]
    if not line:
        return ""
    if chosen["name"] == "Identity":
        return "Its values carry no units, so only their order means anything."
    ratio = line["slope"] * alpha
    fit = "less than" if ratio < 0.8 else "in line with what" if ratio < 2 else "more than"
    return (
        f"True changes are {short(line['slope'])} times the predicted ones (r = "
        f"{number(line['r'], 2)}), {fit} removing {percent(1 - alpha)} leads one to expect: about "
        f"{short(1 / alpha)} or more. Read its values as an order first, as sizes second."
    )


def _dearer(study: Finished, chosen: dict[str, Any]) -> str:
    """What more accuracy would cost."""
    dearer = [rung for rung in study.ladder if _seconds(rung) > _seconds(chosen)]
    gains: list[str] = []
    open_ones: list[str] = []
    for rung in dearer:
        found = difference(study, rung["name"], chosen["name"])
        if found is None or (found[0] <= 0 and resolved(found[1])):
            continue
        gain = f"{number(found[0], signed=True)} ({interval(found[1], signed=True)})"
        text = f"{times(_seconds(rung) / max(_seconds(chosen), 1e-9))} the time for {gain}"
        (gains if resolved(found[1]) else open_ones).append(f"{rung['full_name']}, {text}")
    if gains:
        return f"More accuracy can be had: {'; '.join(gains)}."
    if len(study.ladder) == 1:
        return ""
    text = "More time buys no accuracy that this study could resolve"
    return f"{text}: {'; '.join(open_ones)}." if open_ones else f"{text}."


def _cheaper(study: Finished, chosen: dict[str, Any]) -> str:
    """What the best of the cheaper rungs would save and lose."""
    cheaper = [rung for rung in study.ladder if _seconds(rung) < _seconds(chosen)]
    if not cheaper:
        return ""
    next_best = max(cheaper, key=lambda rung: rung["lds"])
    found = difference(study, chosen["name"], next_best["name"])
    saved = times(_seconds(chosen) / max(_seconds(next_best), 1e-9))
    text = f"The best cheaper rung is {next_best['full_name']}: {saved} faster"
    if found is None:
        return text + "."
    state = "" if resolved(found[1]) else ", not resolved"
    return f"{text}, and {number(found[0])} of LDS lost ({interval(found[1])}{state})."


def _lost(study: Finished) -> str:
    steps: list[dict[str, Any]] = study.results["steps"]
    if not steps:
        return ""
    most = max(steps, key=lambda step: step["lds_lost"])
    text = (
        f"Down the ladder most is lost from {most['from']} to {most['to']}: "
        f"{number(most['lds_lost'])} ({interval(most['interval'])})"
    )
    if not resolved(most["interval"]):
        return text + ", which is not resolved."
    gained = [s for s in steps if s["interval"][1] < 0]
    open_ones = [s for s in steps if not resolved(s["interval"])]
    if gained:
        verb = "gains" if len(gained) == 1 else "gain"
        text += f"; {listed([_name(s) for s in gained])} {verb} instead of losing"
    if open_ones:
        verb = "is" if len(open_ones) == 1 else "are"
        text += f"; {listed([_name(s) for s in open_ones])} {verb} not resolved"
    return text + "."


def _name(step: dict[str, Any]) -> str:
    return f"{step['from']} → {step['to']}"


def _cautions(study: Finished) -> tuple[str, ...]:
    truth = study.results["truth"]
    said = list(truth.get("notes", []))
    edge = [rung["full_name"] for rung in study.rungs if rung.get("damping_on_edge")]
    if edge:
        said.append(
            f"The best damping lies on the edge of the grid for {listed(edge)}: see the sweep for "
            "whether it is flat there."
        )
    for rung in study.rungs:
        if rung.get("undefined"):
            said.append(
                f"{rung['full_name']}: {rung['undefined']} queries have constant predictions or "
                "truth and no rank correlation."
            )
        said += [f"{rung['full_name']}: {note}" for note in rung.get("notes", [])]
        fallback = [line for line in rung.get("coverage", []) if line.get("fallback")]
        if fallback:
            blocks = listed([f"{line['block']} ({line['rule']})" for line in fallback])
            said.append(f"{rung['full_name']} covers by a fallback: {blocks}.")
    response = study.results.get("bregman")
    if response and response.get("converged") is False:
        dropped = response.get("groups_dropped")
        said.append(
            "The proximal Bregman response did not converge."
            if not dropped
            else f"The proximal Bregman response did not converge for {dropped} groups, which are "
            "left out of its LDS."
        )
    if truth["subsets"] < 30:
        said.append(f"Only {truth['subsets']} subsets: intervals are wide and hold less than 95%.")
    return tuple(dict.fromkeys(said))
