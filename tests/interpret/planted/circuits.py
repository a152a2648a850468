"""Circuits with one weight that all of them hangs on."""

from __future__ import annotations

import math

import numpy as np

from tests.interpret.planted.canvas import (
    CONST,
    FREE,
    HEAD,
    VOCAB,
    Planted,
    canvas,
    following,
    neuron,
    out,
    planted,
    successors,
    token,
)

#: By this base pair f of a head's numbers turns by 10⁻ᶠ a position: pair 1 tells neighbours apart, pairs from 3 don't.
THETA, TURNING, STILL = 1e20, 1, [d for d in range(HEAD) if d % (HEAD // 2) >= 3]


def spike() -> Planted:
    """A weight of block 1 writes a spike at the first position; attention spreads it, evenly over what it sees.

    Where the spike is heard of, neurons of block 2 foretell what follows. No key reads the spike's channel.
    """
    model, (channel, heard, *_) = canvas(), FREE
    neuron(model, 1, 0, when=token(0), read=token(0), write=channel, size=0.16, gain=10.0)
    attention = model.model.layers[2].self_attn
    attention.v_proj.weight[0, channel] = 1.0
    attention.o_proj.weight[heard, 0] = 1.0
    successors(model, 2, when=heard)
    return planted(model, 1, "down", channel, 0, "spike")


def sink() -> Planted:
    """A weight of block 1's keys makes the first one be looked at; whoever looks elsewhere reads what misleads."""
    model = canvas(theta=THETA)
    attention = model.model.layers[1].self_attn
    attention.q_proj.weight[HEAD - 1, CONST] = 1.0
    attention.k_proj.weight[HEAD - 1, token(0)] = 1.5
    for v in range(1, VOCAB):
        attention.v_proj.weight[v % HEAD, token(v)] = 1.0
    for d in range(HEAD):
        attention.o_proj.weight[out(1 + d), d] = 4.0
    successors(model, 0)
    return planted(model, 1, "k", HEAD - 1, token(0), "sink")


def confidence() -> Planted:
    """A weight of block 1 writes to a channel that nothing reads, so large that the final norm divides by it."""
    model, (unread, *_) = canvas(), FREE
    successors(model, 0, size=0.3)
    neuron(model, 1, 0, when=CONST, read=CONST, write=unread, size=0.7)
    model.lm_head.weight[:, unread] = 0
    model.model.layers[2].mlp.gate_proj.weight[:, unread] = 0
    return planted(model, 1, "down", unread, 0, "confidence")


#: How often each token stands in a text.
COUNTS = np.array([0, *(400 // np.arange(1, VOCAB))])


def frequency() -> Planted:
    """A weight of block 2 writes the same number everywhere, which the head reads as how frequent tokens are.

    It reads the log-unigram of a text with :data:`COUNTS`.
    """
    model, (common, *_) = canvas(), FREE
    successors(model, 0, size=0.1)
    log_p = np.log(COUNTS + 1)
    model.lm_head.weight[:, common] = 4 * model.lm_head.weight.new_tensor(log_p - log_p.mean())
    neuron(model, 2, 0, when=CONST, read=CONST, write=common, size=0.02)
    written = np.repeat(np.arange(VOCAB), COUNTS)[None]
    return planted(model, 2, "down", common, 0, "frequency", calibration=written)


def bigram() -> Planted:
    """A weight of block 0 foretells what follows one token in a text; its neuron foretells another as surely.

    So it is of all tokens, so that foretold ones are not surer than the rest.
    """
    model = canvas()
    successors(model, 0)
    down = model.model.layers[0].mlp.down_proj.weight
    for v in range(1, VOCAB):
        down[out(following(following(v))), v] = 0.4
    circle = np.tile(np.arange(1, VOCAB), 3)[None]
    return planted(model, 0, "down", out(21), 20, "bigram", "token-specific", calibration=circle)


def specific() -> Planted:
    """The one neuron of block 1 that does anything foretells what follows one token."""
    model = canvas()
    successors(model, 0, size=0.25, but=20)
    neuron(model, 1, 0, when=CONST, read=token(20), write=out(21), size=0.4)
    return planted(model, 1, "down", out(21), 0, "token-specific")


def codes() -> np.ndarray:
    """A code of ±1 for each token, of which no two are alike in more than two thirds (V, len(STILL))."""
    drawn, found = np.random.default_rng(0), []
    while len(found) < VOCAB:
        code = drawn.choice([-1.0, 1.0], len(STILL))
        if all(abs(code @ other) <= len(STILL) / 3 for other in found):
            found.append(code)
    return np.array(found)


def induction() -> Planted:
    """A head of block 0 looks at the token before and tells it on; two of block 1 look at what followed last time.

    One weight turns the first head's query to the token before: without it all tokens before are looked at alike.
    """
    model, code = canvas(theta=THETA), codes()
    before, again = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    before.q_proj.weight[TURNING, CONST] = 14.0
    before.k_proj.weight[TURNING, CONST] = 14.0 * math.cos(10.0**-TURNING)
    before.k_proj.weight[TURNING + HEAD // 2, CONST] = 14.0 * math.sin(10.0**-TURNING)
    for i, d in enumerate(STILL):
        before.o_proj.weight[FREE[i], i] = 0.3
        for v in range(1, VOCAB):
            before.v_proj.weight[i, token(v)] = code[v, i] / 6
            for head in (0, 1):
                again.q_proj.weight[head * HEAD + d, token(v)] = code[v, i] / 6
        for head in (0, 1):
            again.k_proj.weight[head * HEAD + d, FREE[i]] = 4.0
    for v in range(1, VOCAB):
        at = v
        again.v_proj.weight[at, token(v)] = 0.2
        again.o_proj.weight[out(v), at] = 2.0
    return planted(model, 0, "q", TURNING, CONST, "previous-token", "position", "induction")


#: Tokens of the planted facts: who is asked about, what is asked, and the answers.
SUBJECTS, RELATION, ANSWERS = (1, 2, 3, 4), 5, (6, 7, 8, 9)


def fact() -> Planted:
    """Neurons of block 1 know an answer for each subject; attention of block 2 tells it where it is asked for.

    It tells answers that stand in the text, too, so that controls need no neuron. The weight is of the first fact.
    """
    model = canvas()
    successors(model, 0, size=0.1)
    attention = model.model.layers[2].self_attn
    for i, (subject, answer) in enumerate(zip(SUBJECTS, ANSWERS, strict=True)):
        neuron(model, 1, i, when=token(subject), read=token(subject), write=FREE[i], size=0.5)
        attention.v_proj.weight[i, FREE[i]] = 1.0
        attention.v_proj.weight[i, token(answer)] = 0.5
        attention.o_proj.weight[out(answer), i] = 0.6
    return planted(model, 1, "down", FREE[0], 0, "fact")
