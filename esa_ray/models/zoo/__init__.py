"""A zoo of small language models that anyone can train in minutes, without a model hub.

Three architectures and an instruction-tuned variant, five sizes each, byte-level tokens, all trained on the same text
in the same order, so that what differs between them is what their recipes say.
"""
