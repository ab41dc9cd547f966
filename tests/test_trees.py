"""A leaf that cannot be saved, or is not what is wanted, is named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax import trees
from goku_jax.typing import UserError

KERNEL = jax.ShapeDtypeStruct((8, 16), "float32")
SAVED = {"params": {"block.kernel": trees.describe(KERNEL)}, "opt": {}}


def test_paths_go_through_dicts_lists_and_named_tuples():
  state = optax.adam(1e-3).init({"w": [jnp.ones(2)]})
  names = ["0.count", "0.mu.w.0", "0.nu.w.0"]
  assert list(trees.flatten(state, "opt")) == names
  assert list(trees.flatten(jnp.ones(2), "count")) == ["array"]


def donated():
  array = jnp.ones(3)
  array.delete()
  return array


@pytest.mark.parametrize(
  ("leaf", "message"),
  [
    ("text", "is a str"),
    (1.5, "is a float"),
    (np.array(["a"]), "dtype <U1"),
    (np.array([None]), "dtype object"),
    (jax.random.key(0), "dtype key"),
    (jnp.ones((0, 4)), "no elements"),
    (donated(), "was donated"),
  ],
)
def test_a_leaf_that_cannot_be_saved_is_named_before_orbax(leaf, message):
  with pytest.raises(ValueError, match=rf"params\.a\.0 .*{message}"):
    trees.flatten({"a": [leaf]}, "params")


def test_the_arrays_that_were_saved_are_accepted():
  trees.check_arrays("step", "params", SAVED, {"block.kernel": KERNEL})


@pytest.mark.parametrize(
  ("name", "wanted", "message"),
  [
    ("ema", {}, "no tree 'ema'; it has params, opt"),
    ("params", {"block.kernel": KERNEL, "b": KERNEL}, r"no array params\.b"),
    ("params", {}, r"an array params\.block\.kernel, which"),
    (
      "params",
      {"block.kernel": jax.ShapeDtypeStruct((8, 17), "float32")},
      r"params\.block\.kernel .* shape \[8, 16\], and \[8, 17\] is wanted",
    ),
    (
      "params",
      {"block.kernel": jax.ShapeDtypeStruct((8, 16), "bfloat16")},
      r"params\.block\.kernel .* dtype float32, and bfloat16 is wanted",
    ),
  ],
)
def test_what_was_not_saved_as_wanted_is_named(name, wanted, message):
  with pytest.raises(UserError, match=message):
    trees.check_arrays("step", name, SAVED, wanted)
