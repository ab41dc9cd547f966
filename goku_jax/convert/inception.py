"""Inception-v3 of FID out of the file that torch's evaluators share."""

import jax
import jax.numpy as jnp

from goku_jax.convert import state_dict, tensors
from goku_jax.models.judges import inception

HEADS = {
  "fc/kernel": tensors.Place(("fc.weight",)),
  "fc/bias": tensors.Place(("fc.bias",)),
}


def read(source, sha256: str | None = None) -> tuple[dict, dict]:
  """Parameters of `Inception`, and what a folder of weights says of them.

  Args:
    source: a .pth, or a .safetensors with the same tensors.
    sha256: the digest that it must have.

  Raises:
    UserError: it is missing, another file, or holds something else.
  """
  found, digest = state_dict.read(source, inception.ORIGIN, sha256)
  tree = state_dict.to_tree(found, *layout())
  del tree["fc"]["bias"]
  config = {
    "network": "inception_fid",
    "source_sha256": digest,
    "bn_eps": inception.BN_EPS,
  }
  return tree, config


def layout():
  """All that the file has, as shapes of ours, and where it is there."""
  bias = jax.ShapeDtypeStruct((inception.CLASSES,), jnp.float32)
  abstract = inception.abstract_params()
  # No score adds it.
  abstract = abstract | {"fc": abstract["fc"] | {"bias": bias}}
  return abstract, state_dict.place_fn(abstract, "conv", HEADS)
