"""What a model takes of a machine: the figures by which actors are placed, and a machine is examined."""

#: Bytes an actor needs per byte of weights: the weights, one fp32 accumulator, a gradient and activations.
WORKING_SET = 3.0
#: The same without accumulators, which can also live in main memory.
BARE_SET = 1.25
#: Bytes of an actor before it has a model: Python, torch, transformers.
PROCESS = 700 * 2**20
#: Share of a GPU's memory that an actor may fill.
GPU_SHARE = 0.9
#: Share of a node's memory that models may fill.
MEMORY_SHARE = 0.7
#: What a local cluster's object store is given, in bytes.
OBJECT_STORE = 200 * 2**20
