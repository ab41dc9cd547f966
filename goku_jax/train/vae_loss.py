"""The autoencoder's loss on clips and images together: L1, L2 and KL.

Letters: B clips or images, T H W frames, height, width, C channels.
"""

import jax
import jax.numpy as jnp

from goku_jax.flow import noise

KINDS = ("video", "image")


def vae_loss(params, batch: dict, rng, *, model, kl_weight, l2_weight):
  """Summed loss of the samples, and sums with counts for the metrics.

  Per sample: mean absolute error plus `l2_weight` mean squared error over
  pixels in [-1, 1], plus `kl_weight` times the mean KL of a latent number.
  """
  total, metrics = 0.0, {"loss": (0.0, 0.0)}
  for kind in KINDS:
    video = batch[f"{kind}_BTHWC"].astype(jnp.float32) / 127.5 - 1
    keys_B = noise.sample_keys(
      rng,
      noise.POSTERIOR,
      batch[f"{kind}_index_B"],
      batch[f"{kind}_visit_B"],
    )
    shape = model.latent_shape(video.shape)[1:]
    eps = jax.vmap(lambda key, s=shape: jax.random.normal(key, s))(keys_B)
    decoded, mean, logvar = model.apply({"params": params}, video, eps)
    each = lambda x: x.mean(tuple(range(1, x.ndim)))
    square_B = each(jnp.square(decoded - video))
    kl_B = each(0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar))
    loss_B = each(jnp.abs(decoded - video)) + l2_weight * square_B
    loss_B += kl_weight * kl_B
    total += loss_B.sum()
    n = jnp.float32(len(video))
    psnr_B = 10 * jnp.log10(4 / jnp.maximum(square_B, 1e-12))
    metrics[f"psnr_{kind}"] = (psnr_B.sum(), n)
    metrics[f"kl_{kind}"] = (kl_B.sum(), n)
    metrics["loss"] = (
      metrics["loss"][0] + loss_B.sum(),
      metrics["loss"][1] + n,
    )
  return total, metrics
