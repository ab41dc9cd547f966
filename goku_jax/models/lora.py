"""Low-rank adapters of dense layers (LoRA, arXiv:2106.09685, section 4.1).

    y = x W + alpha / rank (x A) B,      W held still, B zero at first

The adapter of a layer `q` is its neighbour `q_lora`, with A and B for weights.
A run trains and saves these alone; merged, W + alpha / rank A B, they cost
nothing.
"""

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import traverse_util

from goku_jax.models import layers
from goku_jax.typing import UserError

SUFFIX = "_lora"


class Adapter(nn.Module):
  """alpha / rank (x A) B."""

  rank: int
  scale: float  # alpha / rank
  features: int
  dtype: Any

  @nn.compact
  def __call__(self, x):
    # As the released code: uniform, within the root of 1 / inputs.
    uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
    a = self.param("a", uniform, (x.shape[-1], self.rank))
    b = self.param("b", layers.zeros, (self.rank, self.features))
    x, a, b = (array.astype(self.dtype) for array in (x, a, b))
    return self.scale * ((x @ a) @ b)


def adapt(*, rank: int, alpha: float, targets: str):
  """A context in which layers have adapters.

  Args:
    rank: columns of A.
    alpha: what adapters count, over the rank.
    targets: finds the paths of layers that have one, a regular expression.

  Raises:
    UserError: a number that no adapter can have, or no expression.
  """
  if rank < 1:
    raise UserError(f"model.lora.rank={rank}: set 1 or more")
  if not alpha > 0:
    raise UserError(f"model.lora.alpha={alpha}: set a number above 0")
  try:
    targets = re.compile(targets)
  except re.error as error:
    raise UserError(
      f"model.lora.targets={targets!r} is no pattern: {error}"
    ) from error

  def add(next_fun, args, kwargs, context):
    y = next_fun(*args, **kwargs)
    layer = context.module
    is_dense = type(layer) is nn.Dense and context.method_name == "__call__"
    if not is_dense or not targets.search("/".join(layer.path)):
      return y
    adapter = Adapter(
      rank,
      alpha / rank,
      layer.features,
      layer.dtype,
      parent=layer.parent,
      name=layer.name + SUFFIX,
    )
    return y + adapter(*args)

  return nn.intercept_methods(add)


def split(params: dict) -> tuple[dict, dict]:
  """Adapters, and the weights that they adapt."""
  parts = {}, {}
  for path, array in traverse_util.flatten_dict(params).items():
    is_base = not any(name.endswith(SUFFIX) for name in path)
    parts[is_base][path] = array
  return tuple(map(traverse_util.unflatten_dict, parts))


def join(adapters: dict, base: dict | None) -> dict:
  """What `split` took apart; without a base, what there is."""
  if base is None:
    return adapters
  flat = traverse_util.flatten_dict
  return traverse_util.unflatten_dict(flat(base) | flat(adapters))


def merge(params: dict, *, rank: int, alpha: float, **_) -> dict:
  """The weights of a model without adapters that computes the same."""
  adapters, base = map(traverse_util.flatten_dict, split(params))
  for *path, name in adapters:
    if name == "a":
      a, b = (adapters[*path, name] for name in "ab")
      kernel = *path[:-1], path[-1].removesuffix(SUFFIX), "kernel"
      more = jnp.matmul(a, b, precision="highest")  # of each layer of a scan
      base[kernel] += alpha / rank * more
  return traverse_util.unflatten_dict(base)
