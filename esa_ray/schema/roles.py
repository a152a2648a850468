"""Tables of what damaged weights do: to roles, through mediators, to attention, and where facts are."""

from __future__ import annotations

import pyarrow as pa

from esa_ray.schema.columns import FLOAT, INT, OUTCOME, REFUSED, TEXT, WEIGHT, WHAT, schema

_RUN = {name: OUTCOME[name] for name in ("status", "error", "seconds", "device", "worker", "version", "created")}
#: What was damaged: the same of all four tables but that of facts.
_SUBJECT = {
    "subject": (TEXT, "the damaged weight or set in short, as files name it; the same in all tables"),
    "unit": (TEXT, "weight, or row, col, neuron or head where a whole set was damaged"),
    "group": (TEXT, "super: leading weights; matched_k: those that share tensor and size with them, the null"),
    "draw": (INT, "which draw of the null, from 0; null of leading weights"),
    "rank": (INT, "rank of the leading weight, or of the one that a matched one stands for, from 1"),
    **WEIGHT,
    "row": (INT, "output index of the weight, or of the one that a set is the set of"),
    "col": (INT, "its input index; null of a row that a list names"),
    "weight": (FLOAT, "the weight before; null of sets"),
    "score": (FLOAT, "its score; null of matched and of listed weights, and of sets"),
    "metric": (TEXT, "the score that chose it"),
    "seed": (INT, "seed of the calibration windows that it was chosen by, and of what texts are drawn"),
    "edit": (TEXT, "the damage: zero, sign_flip, …"),
}
#: Loss and metric of each window of a role's text.
_LISTS = pa.list_(FLOAT)

ROLES_TABLE = schema(
    role_id=(TEXT, "identity of the damage: 16 hex digits; its rows are one a role"),
    **WHAT,
    **_SUBJECT,
    role=(
        TEXT,
        "spike, sink, confidence, frequency, bigram, induction, previous-token, position, token-specific, fact",
    ),
    measured=(TEXT, "what the metric is, with its unit"),
    change=(FLOAT, "mean change of the metric over the role's windows"),
    changes=(_LISTS, "change of the metric in each window of the role's text; null where a window has no such thing"),
    intact=(FLOAT, "mean of the metric in the intact model; null of metrics of a change"),
    first_order=(FLOAT, "the change that one backward pass foretells; null where the metric has no gradient"),
    condition=(
        FLOAT,
        "confidence: Kendall's τ of the ranks kept; bigram: change of KL(bigram table ‖ model), nats; null of others",
    ),
    delta_nll=(_LISTS, "change of the loss in each window of the role's text, nats per token"),
    hurt=(pa.list_(TEXT), "token-specific: the types of token that the damage hurts most, first the worst, as text"),
    hurt_share=(_LISTS, "token-specific: the share of the loss's rise that each of them bears"),
    prompt=(TEXT, "token-specific: the beginning of an evaluation window that is continued"),
    before=(TEXT, "token-specific: how the intact model continues it, greedily"),
    after=(TEXT, "token-specific: how the damaged model does"),
    **_RUN,
    refused=REFUSED,
)

MEDIATIONS = schema(
    mediation_id=(TEXT, "identity of the damage and role: 16 hex digits"),
    **WHAT,
    **_SUBJECT,
    role=(TEXT, "the role whose mediator is held"),
    mediator=(TEXT, "the place in the forward pass that is held, in short"),
    delta_nll=(_LISTS, "change of the loss in each window, nats per token: damaged"),
    held_nll=(_LISTS, "the same with the mediator held at its intact value while the weight is damaged"),
    converse_nll=(_LISTS, "the same with the weight intact and the mediator held at its damaged value"),
    **_RUN,
    refused=REFUSED,
)

ATTENTION = schema(
    attention_id=(TEXT, "identity of the damage: 16 hex digits; its rows are one a block"),
    **WHAT,
    **_SUBJECT,
    block=(INT, "the block whose attention this is, from 0"),
    sink=(_LISTS, "mean attention of each head to the first key, over windows and positions after it"),
    sink_intact=(_LISTS, "the same of the intact model"),
    elsewhere=(_LISTS, "mean attention of each head, over windows, to the other key that gets most: where sinks go"),
    elsewhere_intact=(_LISTS, "the same of the intact model"),
    entropy=(_LISTS, "mean entropy of each head's attention over windows and positions after the first, nats"),
    entropy_intact=(_LISTS, "the same of the intact model"),
    previous=(_LISTS, "mean attention of each head to the token before, over windows and positions after the first"),
    previous_intact=(_LISTS, "the same of the intact model"),
    spike=(FLOAT, "largest |h| of a channel over the median |h| at its position after the block, mean over windows"),
    spike_intact=(FLOAT, "the same of the intact model"),
    spike_channel=(INT, "the channel of that activation, in most windows"),
    spike_channel_intact=(INT, "the same of the intact model"),
    spike_first=(FLOAT, "share of windows in which it stands at the first position"),
    spike_first_intact=(FLOAT, "the same of the intact model"),
    delta_z=(
        FLOAT,
        "RMS change of the logits over tokens and vocabulary, mean-centred: how much the damage does at all",
    ),
    delta_nll=(_LISTS, "change of the loss in each window, nats per token"),
    **_RUN,
    refused=REFUSED,
)

FACTS_TABLE = schema(
    fact_id=(TEXT, "identity of the fact's tracing: 16 hex digits"),
    **WHAT,
    fact=(TEXT, "the fact in short: source, subject and relation"),
    source=(TEXT, "countries, elements, or the file's name"),
    relation=(TEXT, "what is asked of the subject"),
    paraphrase=(INT, "which way of asking, from 0"),
    prompt=(TEXT, "the prompt"),
    subject=(TEXT, "the subject as the prompt has it"),
    answer=(TEXT, "the answer"),
    alternative=(TEXT, "an answer of the same type for another subject"),
    known=(pa.bool_(), "whether the model prefers the answer to the alternative, and to every other one asked about"),
    corruption=(TEXT, "subject or noise"),
    seed=(INT, "seed of what is drawn"),
    clean=(FLOAT, "logit of the answer less that of the alternative, intact prompt"),
    corrupted=(FLOAT, "the same of the corrupted prompt; of noise the mean over draws"),
    position=(TEXT, "first, middle or last token of the subject, after it, or the prompt's last token"),
    block=(INT, "the block around which a state was restored, from 0"),
    sublayer=(TEXT, "residual, attention or ffn: whose output was restored"),
    restored=(INT, "how many neighbouring blocks were restored at once"),
    effect=(FLOAT, "indirect effect: what the restoration gives back of the logit difference"),
    share=(FLOAT, "the same over what the corruption took; null where it took nothing"),
    sensitivity=(FLOAT, "Σ|g·w| of the place's last matrix on the study's calibration windows; null of the residual"),
    **_RUN,
    refused=REFUSED,
)
