"""A card for each leading weight: what it is, what it costs, what it does, and what the model says without it."""

from __future__ import annotations

from typing import Any

from analysis.report import wording
from analysis.report.figures.roles import CARD_MAPS
from analysis.report.parts import Bar, Card, Figure, Section, Table
from analysis.report.questions import question
from analysis.report.sections.roles import called, damaged_words, ends, mediated_words, of_intact, place
from analysis.roles.assigned import TOP
from analysis.roles.cards import Told, told
from analysis.study import Study

#: Tokens that a card names, and kinds of damage beside the first.
TOKENS, OTHERS = 10, 6
#: Role whose mediator is a bottleneck → what that means.
UNTOLD = {"bigram": ", as it does of any weight in block 0"}
COLUMNS = ["<role", "change", "intact", "change/intact", "× matched", "q", "<undone by holding",
           "<by the mediator alone", "<specific", "<holds"]  # fmt: skip


@question("roles", *CARD_MAPS)
def role_cards(study: Study) -> Section | None:
    """The leading weights one by one, the costliest first."""
    found = told(study)
    if not found:
        return None
    cards = [card(t, number) for number, t in enumerate(found, 1)]
    names = [[str(t.damage["rank"]), place(t.damage), cost(t.damage), _share(t), _held(t)] for t in found]
    return Section(
        "role_cards", "What is the weight that costs the most?", f"{cards[0].title}: {cards[0].answer}",
        f"Of the {TOP} leading weights, the costliest first ({damaged_words(study)}). Tokens are those of the "
        "evaluation windows whose loss rises the most in sum; the text is continued greedily. × matched: over the "
        "change that matched weights of the tensor make. Undone: MF, the share of the damage that holding the role's "
        "mediator at its intact value undoes; by the mediator alone: the converse.",
        [], [Table(["rank by score", "<weight", "<costs, nats per token", "share of the damage", "<roles"], names,
                   "All leading weights")],
        cards,
    )  # fmt: skip


def card(t: Told, number: int) -> Card:
    """The card of one weight; the first few have a picture of attention."""
    r = t.damage
    shown = [x for x in t.roles if x["mediated"] is not None]
    bars = [Bar(x["role"], x["mediated"], mediated_words(x), sure=bool(x["holds"])) for x in shown]
    picture = Figure(
        f"attention_of_{number}", "Change of attention to the first key by block and head",
        "What its damage changes of attention to the first key, by block and head.",
    )  # fmt: skip
    return Card(
        f"weight-{r['rank']}", place(r), [called(x["role"]) for x in t.held] or [unheld(t)], answer(t), _facts(t),
        bars, "Share of the damage that holding the role's mediator undoes" if bars else "",
        [Table(COLUMNS, [_row(x) for x in t.roles], "Roles")], [picture] if number <= len(CARD_MAPS) else [], _texts(t),
    )  # fmt: skip


def unheld(t: Told) -> str:
    """What is said of a weight without a role."""
    if any(r["missing"] for r in t.roles):
        return "can't be told yet: mediators weren't held"
    return "unassigned" if t.counts else "costs nothing that could be told"


def cost(r: dict[str, Any]) -> str:
    """What a damage costs, with its interval."""
    if r["cost"] == float("inf"):
        return "the loss isn't finite"
    return wording.signed(r["cost"]) + (
        "" if r["cost_low"] is None else f" {wording.interval(r['cost_low'], r['cost_high'])}"
    )


def _share(t: Told) -> str:
    return "–" if t.mass is None else wording.percent(t.mass)


def _held(t: Told) -> str:
    return ", ".join(r["role"] for r in t.held) or ("–" if t.counts else "within noise")


def answer(t: Told) -> str:
    """A weight in two sentences: what it costs, and what it does."""
    r = t.damage
    lost = (
        "the loss isn't finite" if r["cost"] == float("inf") else f"the loss rises by {cost(r)} nats per token"
        if t.counts else f"the loss changes by no more than noise ({cost(r)} nats per token)"
    )  # fmt: skip
    mass = f", {wording.percent(t.mass)} of what all leading weights cost" if t.mass and t.mass >= 0.001 else ""
    return f"{_done(r['edit'])} {lost}{mass}. {_does(t)}"


def _done(edit: str) -> str:
    return {"zero": "Set to zero,", "sign_flip-1": "With its sign flipped,"}.get(edit, f"Damaged by {edit},")


def _does(t: Told) -> str:
    if t.held:
        parts = [
            f"{_article(called(r['role']))}: holding {short(r['mediator'])} undoes {mediated_words(r)} of the damage"
            + _alone(r) + _warned(r) for r in t.held
        ]  # fmt: skip
        return f"It is {'; and '.join(parts)}."
    if not t.counts:
        return "It is in no denominator."
    near = [r for r in t.roles if r["necessary"]]
    if not near:
        tested = [r for r in t.roles if r["p"] is not None]
        return f"No role is assigned: none of {len(tested)} metrics changes more than by damage to matched weights."
    if any(r["missing"] for r in near):
        return f"Its roles {unheld(t)}; it changes {', '.join(r['role'] for r in near)} more than matched weights do."
    best = max(near, key=lambda r: -1.0 if r["mediated"] is None else r["mediated"])
    why = (
        f"holding {short(best['mediator'])} undoes {mediated_words(best)} of the damage{UNTOLD.get(best['role'], '')}"
        if best["mediated"] is not None
        else f"whether {best['role']} explains it can't be told ({mediated_words(best)})"
    )  # fmt: skip
    return (
        f"No role is assigned: it changes {', '.join(r['role'] for r in near)} more than matched weights do, but {why}"
        + (": the mediator does something of its own" if best["overshoots"] else "")
        + (", as of matched weights’" if best["enough"] and best["specific"] is False else "") + "."
    )  # fmt: skip


def _warned(r: dict[str, Any]) -> str:
    """What stands against a role that is held: holding undoes more than there is, or might undo any damage."""
    over = ", more than there is: the mediator does something of its own, too" if (r["mediated_low"] or 0) > 1 else ""
    return over + (", and whether it would of any weight can't be told" if r["untold"] else "")


def short(mediator: str) -> str:
    """A mediator without what is added to its name.

    >>> short("the first key, after rotation; not its value")
    'the first key'
    """
    return mediator.partition(";")[0].partition(" (")[0].partition(", ")[0]


def _alone(r: dict[str, Any]) -> str:
    if r["converse"] is None:
        return ""
    return f", and the mediator alone does {wording.percent(r['converse']).replace('-', '−')} of it"


def _article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _facts(t: Told) -> list[tuple[str, str]]:
    r = t.damage
    facts = [("tensor", r["tensor"]), ("rank by score", f"{r['rank']}" + (
        "" if r["score"] is None else f" ({wording.significant(r['score'])})"))]  # fmt: skip
    if r["weight"] is not None:
        facts.append(("weight", wording.significant(r["weight"])))
    facts.append((f"costs by {r['edit']}", f"{cost(r)} nats per token"))
    for other in t.others[:OTHERS]:
        what = f"its {other['unit']}" if other["unit"] != r["unit"] else f"by {other['edit']}"
        seed = f", seed {other['seed']}" if other["seed"] != r["seed"] else ""
        facts.append((f"{what}{seed}", f"{cost(other)} nats per token"))
    if t.hurt:
        said = ", ".join(f"“{shown(token)}” {wording.percent(share)}" for token, share in t.hurt[:TOKENS])
        facts.append(("tokens it hurts most", said))
    return facts


def shown(token: str) -> str:
    """A token with its white space seen.

    >>> shown(" the\\n")
    '␣the⏎'
    """
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥") or "(empty)"


def _row(r: dict[str, Any]) -> list[str]:
    if r["p"] is None and r["change"] is None:
        return [r["role"], *["–"] * 5, r["why_not"] or "–", "–", "–", "can't be told"]
    converse = "–" if r["converse"] is None else (
        f"{wording.percent(r['converse'])} {ends(r['converse_low'], r['converse_high'])}"
    )  # fmt: skip
    specific = {True: "yes", False: "no", None: "–"}[r["specific"]]
    times = "–" if r["times"] is None else f"×{wording.significant(r['times'])}"
    undone = mediated_words(r) if r["recovered"] is not None or r["why_unmediated"] else "–"
    return [
        r["role"], wording.signed(r["change"]), wording.significant(r["intact"]), of_intact(r), times,
        wording.p_value(r["q"]), undone,
        converse.replace("-", "−"), specific, "yes" if r["holds"] else "can't be told" if r["missing"] else "no",
    ]  # fmt: skip


def _texts(t: Told) -> list[tuple[str, str]]:
    names = {"prompt": "the text begins", "before": "the model goes on", "after": "without the weight"}
    if t.damage["edit"] != "zero":
        names["after"] = f"after {t.damage['edit']}"
    return [(names[name], text) for name, text in t.texts.items()] if len(t.texts) == 3 else []
