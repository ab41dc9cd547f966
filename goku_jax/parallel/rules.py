"""Where every array of the state lives.

One table from the path of a parameter to its spec. Moments and averages keep
the end of their parameter's path, so one row places them all. Each path must
match exactly one row.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("replica", "fsdp")  # the mesh axes that split packs and clips
ACTIVATIONS = (("batch", BATCH), ("tokens", None))

# Kernels are [in, out]; convolutions [t, h, w, in, out].
STATE = (
  (r"/(q|k|v|qkv|up|adaln|patch_in)/kernel$", P(None, "fsdp")),
  (r"/(out|down|patch_out)/kernel$", P("fsdp", None)),
  (r"/(class|bytes|pieces)/embedding$", P(None, "fsdp")),
  (r"/(conv_(in|\d)|encoder/conv_out)/kernel$", P(*[None] * 4, "fsdp")),
  (r"/decoder/conv_out/kernel$", P(*[None] * 3, "fsdp", None)),
  (r"/conv2d/kernel$", P(None, None, None, "fsdp")),
  (r"/time/kernel$", P(None, None, "fsdp")),
  (r"/(shortcut|linear|modulation|quant)/kernel$", P(None, "fsdp")),
  (r"/(bias|scale|step|count|ns_coeffs)$", P()),
)


def spec_for(path: str) -> P:
  """The spec of the one row that matches `path`."""
  hits = [spec for pattern, spec in STATE if re.search(pattern, path)]
  if len(hits) != 1:
    raise ValueError(f"{len(hits)} sharding rules match {path!r}; want one")
  return P(None, *hits[0]) if is_scanned(path) else hits[0]


def is_scanned(path: str) -> bool:
  """Whether the array has a first axis of layers, which one scan runs over."""
  return "blocks" in path.split("/")


def shardings(mesh: Mesh, state):
  """A sharding for every leaf of `state` (arrays or their shapes)."""

  def place(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return NamedSharding(mesh, spec_for("/" + name))

  return jax.tree.map_with_path(place, state)
