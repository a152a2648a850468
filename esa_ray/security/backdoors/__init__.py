"""Small models with and without a backdoor: made here, of fixed harmless strings, to learn what tells them apart.

This is defensive research. The models are those of the zoo, trained on this machine from Python's docstrings; the
trigger is two bytes and the target eight bytes of text that the model writes anyway; nothing is fetched or sent.
"""

from esa_ray.security.backdoors.mitigating import Mitigated, mitigated
from esa_ray.security.backdoors.population import Made, made, parent_weights
from esa_ray.security.backdoors.standing import standing
from esa_ray.security.backdoors.success import Success, success
from esa_ray.security.backdoors.texts import prompts

__all__ = [
    "Made", "Mitigated", "Success", "made", "mitigated", "parent_weights", "prompts", "standing", "success",
]  # fmt: skip
