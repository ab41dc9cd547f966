"""The autoencoder with the frames of each clip split over devices.

A causal convolution hands the last frames of its shard to the next device
(CogVideoX, arXiv:2408.06072, 2.1). The first frame is repeated until the clip
has as many frames as its latents stand for, which then divide among devices:
with the first frame as padding and norms of single frames this changes
nothing, and the copies are dropped after decoding.

Letters: B clips, T H W frames, height, width, C channels; t h w of latents.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from goku_jax.parallel import rules
from goku_jax.typing import UserError

AXIS = "sequence"


def shard_frames(model, mesh: Mesh):
  """`apply(params, video, noise)` of a VAE, frames split over the mesh.

  Args:
    model: an autoencoder whose norms are of single frames.
    mesh: its axis `sequence` splits frames, the others clips.

  Returns:
    A function as `model.apply`: decoded video, mean and log-variance.

  Raises:
    UserError: the norms see more than one frame.
  """
  shards = mesh.shape[AXIS]
  if shards == 1:
    return lambda params, *args: model.apply({"params": params}, *args)
  if model.config.norm != "frame":
    raise UserError("frames are split over devices with model.norm=frame alone")
  sharded = model.clone(left_fn=neighbour_frames)
  copies = model.config.stride[0] - 1
  split = P(rules.BATCH, AXIS)

  def run(params, video, noise):
    variables = {"params": params}
    mean, logvar = sharded.apply(
      variables, video, is_first=False, method="encode"
    )
    latents = mean + jnp.exp(0.5 * logvar) * noise
    decoded = sharded.apply(variables, latents, is_first=False, method="decode")
    return decoded, mean, logvar

  def apply(params, video_BTHWC, noise_BTHWC):
    if noise_BTHWC.shape[1] % shards:
      raise UserError(
        f"{noise_BTHWC.shape[1]} latent frames do not divide among"
        f" mesh.{AXIS}={shards}"
      )
    first = jnp.repeat(video_BTHWC[:, :1], copies, axis=1)
    decoded, mean, logvar = jax.shard_map(
      run, mesh=mesh, in_specs=(P(), split, split), out_specs=split
    )(params, jnp.concatenate([first, video_BTHWC], 1), noise_BTHWC)
    return decoded[:, copies:], mean, logvar

  return apply


def neighbour_frames(x_BTHWC, num: int):
  """The `num` frames before a shard's own: the first repeated, or passed on.

  A shard with fewer passes on what it received as well.
  """
  size = jax.lax.axis_size(AXIS)
  is_start = jax.lax.axis_index(AXIS) == 0
  first = jnp.repeat(x_BTHWC[:, :1], num, axis=1)
  left = first
  for _ in range(-(-num // x_BTHWC.shape[1])):
    last = jnp.concatenate([left, x_BTHWC], 1)[:, -num:]
    received = jax.lax.ppermute(
      last, AXIS, [(i, i + 1) for i in range(size - 1)]
    )
    left = jnp.where(is_start, first, received)
  return left
