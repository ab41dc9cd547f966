"""A device that computes wrong is found and named."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from goku_jax.train import replay, step

AUTO = (jax.sharding.AxisType.Auto,) * 2


@pytest.fixture(scope="module")
def mesh():
  return jax.make_mesh((2, 4), ("replica", "fsdp"), axis_types=AUTO)


def place(mesh, array, *spec):
  return jax.device_put(array, jax.NamedSharding(mesh, jax.P(*spec)))


def flip(array, device):
  """The same array, but for one bit of what one device has of it."""
  parts = []
  for shard in array.addressable_shards:
    data = np.array(shard.data)
    if shard.device == device:
      data.reshape(-1).view(np.uint8)[0] ^= 1
    parts.append(jax.device_put(data, shard.device))
  return jax.make_array_from_single_device_arrays(
    array.shape, array.sharding, parts
  )


def make_state(mesh, loss_fn):
  values = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
  params = {"split": place(mesh, values, "fsdp"), "whole": place(mesh, values)}
  settings = dict(loss_fn=loss_fn, tx=optax.sgd(0.1), ema_decay=0.9)
  state = jax.jit(lambda p: step.init_state(p, settings["tx"]))(params)
  state = state.replace(params=params)
  placed = jax.tree.map(lambda x: x.sharding, state)
  return state, replay.Replay(2, placed, **settings)


def steady(params, batch, rng):
  loss = sum(((x - batch["x"]) ** 2).sum() for x in params.values())
  return loss, {"loss": (loss, 1)}


def test_devices_that_agree_pass(mesh):
  state, check = make_state(mesh, steady)
  batch = {"x": place(mesh, np.float32(1))}
  assert [check.is_due(number) for number in range(5)] == [0, 0, 1, 0, 1]
  check.check(2, state, batch, jax.random.key(0))


@pytest.mark.parametrize("name", ["split", "whole"])
@pytest.mark.parametrize("which", [0, 5])
def test_a_copy_that_differs_is_named(mesh, name, which):
  state, check = make_state(mesh, steady)
  device = mesh.devices.flat[which]
  flipped = flip(state.params[name], device)
  state = state.replace(params={**state.params, name: flipped})
  batch = {"x": place(mesh, np.float32(1))}
  with pytest.raises(replay.CorruptionError) as error:
    check.check(4, state, batch, jax.random.key(0))
  assert f"step 4: {device} of process 0" in str(error.value) or name == "split"
  named = str(error.value).count(" of process ")
  # Of two copies none is believed, of eight seven are.
  assert named == {"split": 2, "whole": 1}[name]
  assert f"{device} of process 0" in str(error.value)


def test_a_step_that_gives_two_results_is_found(mesh):
  calls = []

  def drift(x):
    calls.append(1)
    return np.float32(1 + len(calls) * 1e-3)

  def loss_fn(params, batch, rng):
    scale = jax.pure_callback(
      drift, jax.ShapeDtypeStruct((), jnp.float32), batch["x"]
    )
    loss, sums = steady(params, batch, rng)
    return loss * scale, sums

  state, check = make_state(mesh, loss_fn)
  batch = {"x": place(mesh, np.float32(1))}
  with pytest.raises(replay.CorruptionError, match="or one of them did"):
    check.check(2, state, batch, jax.random.key(0))
