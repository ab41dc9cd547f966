"""Where every array of the state and of a batch lives.

One table from the path of a parameter to its spec. Moments and averages keep
the end of their parameter's path, so one row places them all. Each path must
match exactly one row.

The state lies over `fsdp` and `sequence` together. A step works on weights
that lie over `fsdp` alone (`weights=True`): inside the scan over layers the
compiler gathers over one axis, and over two it would by all-reduce.
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH = ("replica", "fsdp")  # the mesh axes that split packs and clips
TOKENS = "sequence"  # splits the tokens of a pack, and the frames of a clip
HEADS = "tensor"  # splits heads and the width of the MLP
STATE = ("fsdp", TOKENS)  # split the state
SPLIT = (HEADS, TOKENS)  # the dim of a kernel that heads or the MLP own
ACTIVATIONS = (("batch", BATCH), ("tokens", TOKENS))

# Kernels are [in, out]; convolutions [t, h, w, in, out].
# Those of the scan have an axis for each dim, `fsdp` the first: a gradient that
# is summed over both axes the compiler then splits, one dim after the other.
TABLE = (
  (r"/(q|k|v|qkv|up)/kernel$", P("fsdp", SPLIT)),
  (r"attn(_\d)?/out/kernel$|/down/kernel$", P((HEADS, "fsdp"), TOKENS)),
  (r"/adaln/kernel$", P("fsdp", TOKENS)),
  (r"/condition/mix/kernel$", P()),
  (r"/patch_in/kernel$", P(None, STATE)),
  (r"/patch_out/kernel$|(?<!attn)(?<!attn_\d)/out/kernel$", P(STATE, None)),
  (r"/(class|bytes|pieces|places|kinds)/embedding$", P(None, STATE)),
  (r"/(conv_(in|\d)|encoder/conv_out)/kernel$", P(*[None] * 4, STATE)),
  (r"/decoder/conv_out/kernel$", P(*[None] * 3, STATE, None)),
  (r"/conv2d/kernel$", P(None, None, None, STATE)),
  (r"/time/kernel$", P(None, None, STATE)),
  (r"/(shortcut|linear|modulation|quant)/kernel$", P(None, STATE)),
  (r"_lora/a$", P(STATE, None)),
  (r"_lora/b$", P(None, STATE)),
  (r"/(bias|scale|step|count|ns_coeffs)$|/window/", P()),
)


def spec_for(path: str, *, weights: bool = False) -> P:
  """The spec of the one row that matches `path`."""
  hits = [spec for pattern, spec in TABLE if re.search(pattern, path)]
  if len(hits) != 1:
    raise ValueError(f"{len(hits)} sharding rules match {path!r}; want one")
  spec = hits[0]
  if weights:
    spec = P(*map(_without_tokens, spec))
  return P(None, *spec) if is_scanned(path) else spec


def _without_tokens(axes):
  axes = (axes,) if isinstance(axes, str) else axes or ()
  return tuple(axis for axis in axes if axis != TOKENS)


def is_scanned(path: str) -> bool:
  """Whether the array has a first axis of layers, which one scan runs over."""
  return "blocks" in path.split("/")


def shardings(mesh: Mesh, state):
  """A sharding for every leaf of `state` (arrays or their shapes)."""

  place = lambda path, _: NamedSharding(mesh, spec_for(_name(path)))
  return jax.tree.map_with_path(place, state)


def lay_out(mesh: Mesh, init, rng):
  """Shapes of what `init` makes of a key, with where they lie; that alone."""
  shapes = jax.eval_shape(init, rng)
  placed = shardings(mesh, shapes)
  return jax.tree.map(abstract, shapes, placed), placed


def abstract(x, sharding) -> jax.ShapeDtypeStruct:
  """The shape of an array that lies so."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def constrain(state, *, weights: bool = False):
  """`state` inside of a compiled step, laid out as `shardings` says.

  Without a mesh in use it stays as it is, and on one of a single device, where
  a constraint would only change what is fused, and so the last bits.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return state
  place = lambda path, x: jax.lax.with_sharding_constraint(
    x, spec_for(_name(path), weights=weights)
  )
  return jax.tree.map_with_path(place, state)


@jax.custom_vjp
def scatter_gradients(weights):
  """The weights of one layer, whose gradients are laid out as the state is.

  Inside the scan over layers the compiler then sums and splits them at once,
  over one axis after the other; left alone it sums over all devices, and each
  keeps a part.
  """
  return weights


def _scatter(_, grads):
  return (constrain(constrain(grads, weights=True)),)


scatter_gradients.defvjp(lambda weights: (weights, None), _scatter)


def _name(path) -> str:
  return "/" + jax.tree_util.keystr(path, simple=True, separator="/")


def batch_spec(name: str) -> P:
  """The spec of an array of a batch: rows, and tokens where it has them.

  The letters of its name tell, as `data/schema.py` says.
  """
  letters = name.rsplit("_", 1)[-1]
  return P(BATCH, TOKENS) if letters[1:2] == "L" else P(BATCH)
