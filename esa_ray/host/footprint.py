"""What a model takes of a machine: the figures by which actors are placed, and a machine is examined."""

#: Bytes an actor needs per byte of weights: the weights, one fp32 accumulator, a gradient and activations.
WORKING_SET = 3.0
#: The same of one that trains all weights: in fp32 these are their own masters, with a gradient, Adam's two moments,
#: Fisher information and activations; in 16 bits all of that is twice as wide as they are, and so are the masters.
TRAINING_SET = {"fp32": 6.0, "bf16": 12.0, "fp16": 12.0}
#: As the first, without accumulators, which can also live in main memory.
BARE_SET = 1.25
#: Bytes of an actor before it has a model: Python, torch, transformers.
PROCESS = 700 * 2**20
#: Share of a GPU's free memory that actors may fill; the rest is for CUDA's contexts.
GPU_SHARE = 0.9
#: Share of that which weights may fill where a model is spread over several GPUs; the rest is for scoring.
SPREAD_SHARE = 0.85
#: The share by which GPUs are counted for that: blocks aren't divided, so that each GPU ends with some room unused.
SPREAD_PLAN = 0.7
#: The same where not even all GPUs hold the weights: most are on their way anyway, and scoring wants its room.
OFFLOAD_SHARE = 0.5
#: CPU threads that an actor on a GPU can use, at most: it computes little on the host.
HOST_THREADS = 8
#: Share of a node's memory that models may fill.
MEMORY_SHARE = 0.7
#: What a local cluster's object store is given, in bytes.
OBJECT_STORE = 200 * 2**20
