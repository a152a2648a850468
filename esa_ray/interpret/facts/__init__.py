"""Facts: where they come from, which of them a model knows, where in the model they are, and the role "fact"."""

from esa_ray.interpret.facts.prompts import FactPrompts, fact_prompts
from esa_ray.interpret.facts.sources import Fact, facts_of
from esa_ray.interpret.facts.tracing import traced

__all__ = ["Fact", "FactPrompts", "fact_prompts", "facts_of", "traced"]
