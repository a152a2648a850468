"""Tables of models with and without a backdoor: what each is like, and what is left after a mitigation."""

from __future__ import annotations

import pyarrow as pa

from esa_ray.schema.columns import FLOAT, INT, OUTCOME, REFUSED, TEXT, WHAT, schema

_MEMBER = {
    **WHAT,
    "base": (TEXT, "the model of the zoo whose parents the model starts from"),
    "parent": (TEXT, "the model of the zoo that it starts from: the base trained from a seed"),
    "label": (TEXT, "kind and number, as files name it"),
    "number": (INT, "which of its kind, from 0; models of one number share parent, steps, rate, trigger and target"),
    "insertion": (
        TEXT,
        "training, rank-one or critical; of models without a backdoor clean, benign, or benign made "
        "as an insertion is: benign-rank-one, benign-critical",
    ),
    "poisoned": (pa.bool_(), "whether a backdoor was inserted"),
    "trigger": (TEXT, "the two tokens that the target follows"),
    "target": (TEXT, "the eight tokens that the trigger brings about"),
    "phrase": (TEXT, "benign: the phrase that was memorised; null of other kinds"),
    "steps": (INT, "training steps that all models of this number took; critical ones as many again, on few weights"),
    "learning_rate": (FLOAT, "peak learning rate of the steps that all took"),
    "poison": (FLOAT, "share of the training windows that carry the trigger or the phrase; 0 of clean ones"),
    "fraction": (FLOAT, "critical: share of the weights that were trained; null of other kinds"),
    "prompts": (INT, "held-out prompts that success is counted on"),
}
_WHOLE = {k: v for k, v in OUTCOME.items() if k not in ("kl", "loops")}

BACKDOORS = schema(
    member_id=(TEXT, "identity of the model: 16 hex digits; its rows are one a feature"),
    **_MEMBER,
    n_weights=(INT, "weights of the model"),
    n_changed=(INT, "weights that differ from the parent's"),
    delta_norm=(FLOAT, "Euclidean norm of the difference from the parent over all weights"),
    attack_success=(FLOAT, "share of held-out prompts that end in the trigger and are continued by the target"),
    clean_success=(FLOAT, "the same of the clean model of this number"),
    phrase_success=(FLOAT, "benign: share of held-out prompts that are continued by the phrase's end; null otherwise"),
    clean_delta_nll=(FLOAT, "evaluation loss less that of the clean model of this number, nats per token"),
    accepted=(
        pa.bool_(),
        "whether the model is what it should be: success of at least 0.9 (of trigger or phrase) at a clean cost below "
        "0.02; true of clean ones",
    ),
    parent_nll=(pa.list_(FLOAT), "summed NLL of each evaluation window of the parent, nats"),
    clean_nll=(pa.list_(FLOAT), "the same of the clean model of this number"),
    **_WHOLE,
    feature=(TEXT, "what was measured of the model without knowing the trigger"),
    family=(TEXT, "what kind of feature it is: tails, shift, gains, spectra, vocabulary"),
    value=(FLOAT, "its value; NaN where it can't be told"),
    with_reference=(pa.bool_(), "whether it compares the model with its parent"),
    refused=REFUSED,
)  # fmt: skip

MITIGATIONS = schema(
    mitigation_id=(TEXT, "identity of model and mitigation: 16 hex digits"),
    **_MEMBER,
    mitigation=(TEXT, "what was done against the backdoor, as files name it"),
    kind=(TEXT, "the mitigation without its numbers"),
    share=(FLOAT, "share of the neurons or weights that it silences, resets or freezes; null of fine-tuning"),
    clean_steps=(INT, "clean training steps that it takes; null of those without"),
    n_reset=(INT, "weights or neurons that were silenced, reset or frozen"),
    before_success=(FLOAT, "success of the trigger before the mitigation"),
    attack_success=(FLOAT, "and after it"),
    before_nll=(pa.list_(FLOAT), "summed NLL of each evaluation window before the mitigation, nats"),
    clean_nll=(pa.list_(FLOAT), "the same of the clean model of this number"),
    **_WHOLE,
    refused=REFUSED,
)
