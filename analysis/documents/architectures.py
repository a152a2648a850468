"""The document of the model types that were tried: which work, and what is the matter with the others."""

from __future__ import annotations

from typing import Any

#: Check → what it says, in the order of the columns.
COLUMNS = {
    "loads": "loads by esa-ray's own road, twice with the same bits, with those of plain `from_pretrained`; the intact "
    "loss is that of cross-entropy on plain logits within 1e-5 nats a token; a window alone has the loss that it has "
    "in a batch; no logit depends on a later token; running the model changes no weight",
    "coverage": "share of the parameters that are matrices (or norms) of known components; the rest is listed as "
    "`other`, or is biases and other vectors; no parameter with two axes or more is left out",
    "proofs": "one edit a component changes exactly what it must",
    "scores": "`grad_x_weight` and `grad_squared` of every addressed weight are those of plain autograd, a window at a "
    "time, within 2e-4 of the tensor's largest",
    "activations": "`act_mag` is |W|·‖X‖ of what a hook sees go into each matrix",
    "damage": "damage of the top 5 weights by `grad_x_weight` and by `magnitude` has a finite, repeatable cost, the "
    "divergence is that of the logits, and all is restored bit for bit",
    "foreseen": "the config alone tells the same weights as the loaded model, and how long a window may be",
    "continues": "greedy continuations are the most likely token of a full forward pass each",
    "resumed": "the loss measured from the damaged block on is that of a full forward pass; where a model can't be "
    "resumed, full forward passes are taken",
}
#: Popular types that a researcher would try first.
NAMED = {
    "Llama 4": ("llama4", "llama4_text"),
    "GPT-OSS": ("gpt_oss",),
    "DeepSeek V2, V3": ("deepseek_v2", "deepseek_v3"),
    "Qwen 2 MoE, 3 MoE, 3 Next": ("qwen2_moe", "qwen3_moe", "qwen3_next"),
    "Gemma 1–3": ("gemma", "gemma2", "gemma3", "gemma3_text"),
    "Cohere": ("cohere", "cohere2"),
    "Falcon": ("falcon",),
    "MPT": ("mpt",),
    "StarCoder": ("gpt_bigcode", "starcoder2"),
    "BLOOM": ("bloom",),
    "GPT-J, GPT-Neo": ("gptj", "gpt_neo"),
    "Persimmon": ("persimmon",),
    "Granite and its hybrid": ("granite", "granitemoe", "granitemoeshared", "granitemoehybrid"),
    "Mamba 1, 2": ("mamba", "mamba2"),
    "Bamba": ("bamba",),
    "Jamba": ("jamba",),
    "Falcon-H1": ("falcon_h1",),
    "LFM2": ("lfm2", "lfm2_moe"),
    "MiniMax": ("minimax", "minimax_m2"),
    "RWKV": ("rwkv",),
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _mark(row: dict[str, Any], check: str) -> str:
    found = row["checks"][check]
    if found["status"] != "ok":
        return "–" if found["status"] == "–" else "**no**"
    return f"{found['known']:.0%}" if check == "coverage" else "ok"


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| type | " + " | ".join(COLUMNS) + " | components |", "| :-- " * (len(COLUMNS) + 2) + "|"]
    for row in rows:
        cells = [row["type"], *(_mark(row, check) for check in COLUMNS)]
        components = ", ".join(row["checks"]["coverage"].get("components", ()))
        lines.append("| " + " | ".join([*cells, components]) + " |")
    return lines


def _said(rows: list[dict[str, Any]], status: str) -> list[str]:
    """What checks say that didn't hold, or had nothing to do, a line a type."""
    lines = []
    for row in rows:
        said = [f"{n}: {c['note']}" for n, c in row["checks"].items() if c["status"] == status]
        said = [s for s in said if ": as " not in s]
        lines += [f"- `{row['type']}`: {_cell('; '.join(said))}"] if said else []
    return lines


def _names(rows: list[dict[str, Any]], field: str) -> list[str]:
    """What the catalogue lists, a line a type."""
    lines = []
    for row in rows:
        names = row["checks"].get("coverage", {}).get(field) or []
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        lines += [f"- `{row['type']}`: {', '.join(f'`{_cell(n)}`' for n in names[:8])}{more}"] if names else []
    return lines


def _folded(title: str, lines: list[str]) -> list[str]:
    return ["<details><summary>" + title + "</summary>", "", *lines, "", "</details>", ""] if lines else []


def _named(rows: dict[str, dict[str, Any]]) -> list[str]:
    def one(kind: str) -> str:
        return f"{kind} works" if rows.get(kind, {}).get("works") else f"**{kind} doesn't**"

    return [f"- {name}: {', '.join(map(one, kinds))}" for name, kinds in NAMED.items()]


def document(title: str, command: str, found: dict[str, Any]) -> str:
    """The document that says which model types work."""
    rows, versions = found["types"], found["environment"]
    absent = [row for row in rows if row.get("absent")]
    tried = [row for row in rows if row not in absent]
    ended = [row for row in tried if row.get("ended")]
    checked = [row for row in tried if row not in ended]
    works, fails = [r for r in checked if r["works"]], [r for r in checked if not r["works"]]
    lines = [
        f"# {title}", "",
        f"Made by `make docs` from what `{command}` found. Not to be edited by hand.", "",
        f"Transformers {versions['transformers']} makes causal language models of **{len(rows)} types**. A tiny random "
        f"one each was tried ({', '.join(f'{k} {v}' for k, v in versions.items() if k != 'date')}; "
        f"{versions['date']}). **{len(tried)} can be made here, and {len(works)} of them work: "
        f"{len(works) / max(1, len(tried)):.1%}.** A type works if all that is checked below holds, but for resuming.",
        "",
        *(f"- **{name}**: {what}." for name, what in COLUMNS.items()), "",
        "## The popular ones", "", *_named({row["type"]: row for row in rows}), "",
    ]  # fmt: skip
    if fails or ended:
        lines += ["## Types that don't work", "", *_said(fails, "failed")]
        lines += [f"- `{row['type']}`: {_cell(row['ended'])}" for row in ended] + [""]
        lines += [*_rows(fails), ""] if fails else []
    lines += ["## Types that work", "", *_folded(f"{len(works)} types", _rows(works))]
    variants = found.get("variants", [])
    lines += ["## Variants of types", "", *_said(variants, "failed"), *_rows(variants), ""] if variants else []
    lines += ["## What doesn't apply, or is left to full forward passes", "", *_folded("by type", _said(works, "–"))]
    unknown, unaddressed = _names(checked, "unknown"), _names(checked, "unaddressed")
    lines += ["## What is `other`: addressed, and scored where its name is asked for", ""]
    lines += _folded(f"{len(unknown)} types", unknown) or ["None.", ""]
    lines += ["## What of two axes or more isn't addressed, and why", ""]
    lines += _folded(f"{len(unaddressed)} types", unaddressed) or ["None.", ""]
    lines += ["## Types that can't be made here", ""]
    lines += [f"- `{row['type']}`: {_cell(row['absent'])}" for row in absent]
    return "\n".join(lines).rstrip() + "\n"
