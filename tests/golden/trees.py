"""Names and shapes of the debug models' parameters, as JSON.

python tests/golden/trees.py --write    # after a change that is meant
"""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp

from goku_jax.data import schema
from goku_jax.models import goku, vae

PATH = pathlib.Path(__file__).with_name("trees.json")


def trees() -> dict[str, dict[str, list[int]]]:
  """By model and parameter path, the shape."""
  text = dict(width=32, depth=1, num_heads=2)
  model = goku.make_goku("debug", text=text, num_classes=10)
  packs = schema.empty_packs(B=1, L=4, P=model.config.patch_width, S=4, G=2)
  batch = jax.tree.map(jnp.asarray, packs)
  t, dropped = jnp.zeros((1, 2)), jnp.zeros((1, 2), bool)
  rng = jax.random.key(0)
  video = jnp.zeros((1, 5, 16, 16, 3))
  of = {
    "goku": jax.eval_shape(
      model.init, rng, batch["tokens_BLP"], t, batch, dropped
    ),
    "vae": jax.eval_shape(vae.make_vae("debug").init, rng, video),
  }
  return {name: paths(tree["params"]) for name, tree in of.items()}


def paths(tree) -> dict[str, list[int]]:
  """`{"blocks/mlp/up/kernel": [2, 32, 128], ...}`."""
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
  return {name(path): list(x.shape) for path, x in leaves}


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit(__doc__)
  PATH.write_text(json.dumps(trees(), indent=1) + "\n")
