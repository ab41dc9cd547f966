"""I3D of FVD out of the file that torch's evaluators of videos share."""

from goku_jax.convert import state_dict, tensors
from goku_jax.models.judges import i3d

BN_EPS = 1e-5  # with which those two compute; the file does not say
HEADS = {
  "logits/kernel": tensors.Place(("logits.conv3d.weight",), (1, 1, 1)),
  "logits/bias": tensors.Place(("logits.conv3d.bias",)),
}


def read(source, sha256: str | None = None) -> tuple[dict, dict]:
  """Parameters of `I3D`, and what a folder of weights says of them.

  Args:
    source: a .pt, or a .safetensors with the same tensors.
    sha256: the digest that it must have.

  Raises:
    UserError: it is missing, another file, or holds something else.
  """
  found, digest = state_dict.read(source, i3d.ORIGIN, sha256)
  tree = state_dict.to_tree(found, *layout())
  config = {"network": "i3d", "source_sha256": digest, "bn_eps": BN_EPS}
  return tree, config


def layout():
  """All that the file has, as shapes of ours, and where it is there."""
  abstract = i3d.abstract_params()
  return abstract, state_dict.place_fn(abstract, "conv3d", HEADS)
