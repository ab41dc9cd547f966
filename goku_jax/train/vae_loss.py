"""The autoencoder's loss on clips and images together: L1, L2, KL and LPIPS.

Letters: B clips or images, T H W frames, height, width, C channels.
"""

import jax
import jax.numpy as jnp

from goku_jax.data.pipeline import KINDS
from goku_jax.flow import noise


def vae_loss(params, batch: dict, rng, *, apply_fns, model, **weights):
  """Summed loss of the samples, and sums with counts for the metrics."""
  outs = reconstruct(params, batch, rng, apply_fns=apply_fns, model=model)
  return reconstruction_loss(outs, batch, rng, **weights)


def reconstruct(params, batch: dict, rng, *, apply_fns, model) -> dict:
  """Decoded video, mean and log-variance of each kind, of a drawn posterior.

  Args:
    params: of the model.
    batch: as `pipeline.vae_batches` makes it.
    rng: the run's key.
    apply_fns: by kind, `(params, video, noise)` through the model.
    model: says the shape of latents.
  """
  outs = {}
  for kind in KINDS:
    video = pixels(batch, kind)
    keys_B = _keys(batch, kind, rng, noise.POSTERIOR)
    shape = model.latent_shape(video.shape)[1:]
    eps = jax.vmap(lambda key, s=shape: jax.random.normal(key, s))(keys_B)
    outs[kind] = apply_fns[kind](params, video, eps)
  return outs


def pixels(batch, kind):
  """The videos of a kind, in [-1, 1]."""
  return batch[f"{kind}_BTHWC"].astype(jnp.float32) / 127.5 - 1


def _keys(batch, kind, rng, purpose):
  index_B, visit_B = batch[f"{kind}_index_B"], batch[f"{kind}_visit_B"]
  return noise.sample_keys(rng, purpose, index_B, visit_B)


def reconstruction_loss(
  outs: dict,
  batch: dict,
  rng,
  *,
  kl_weight: float,
  l2_weight: float,
  l1_weight: float = 1.0,
  lpips_weight: float = 0.0,
  lpips_frames: int = 1,
  lpips_fn=None,
):
  """Summed loss of what `reconstruct` made, and sums for the metrics.

  Per sample, over pixels in [-1, 1]: `l1_weight` mean absolute error, plus
  `l2_weight` mean squared error, plus `kl_weight` times the mean KL of a
  latent number, plus `lpips_weight` times the mean LPIPS of `lpips_frames`
  frames drawn from the clip: the network that judges them costs more than the
  autoencoder.
  """
  total, count, metrics = 0.0, 0.0, {}
  for kind, (decoded, mean, logvar) in outs.items():
    video = pixels(batch, kind)
    each = lambda x: x.mean(tuple(range(1, x.ndim)))
    of_kind = {
      "l1": (l1_weight, each(jnp.abs(decoded - video))),
      "l2": (l2_weight, each(jnp.square(decoded - video))),
      "kl": (
        kl_weight,
        each(0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar)),
      ),
    }
    if lpips_weight:
      keys_B = _keys(batch, kind, rng, noise.FRAMES)
      lpips_B = _lpips(lpips_fn, video, decoded, keys_B, lpips_frames)
      of_kind["lpips"] = (lpips_weight, lpips_B)
    total += sum((weight * x_B).sum() for weight, x_B in of_kind.values())
    n = jnp.float32(len(video))
    count += n
    square_B = of_kind["l2"][1]
    psnr_B = 10 * jnp.log10(4 / jnp.maximum(square_B, 1e-12))
    metrics[f"psnr_{kind}"] = (psnr_B.sum(), n)
    for name in of_kind.keys() & {"kl", "lpips"}:
      metrics[f"{name}_{kind}"] = (of_kind[name][1].sum(), n)
  metrics["loss"] = (total, count)
  return total, metrics


def _lpips(lpips_fn, real_BTHWC, made_BTHWC, keys_B, num_frames):
  """Mean distance of frames drawn from each clip, each as often as another."""
  B, T, *rest = real_BTHWC.shape
  draw = lambda key: jax.random.randint(key, (num_frames,), 0, T)
  index_BF = jax.vmap(draw)(keys_B)
  take = jax.vmap(lambda video, index: video[index])
  flat = lambda video: take(video, index_BF).reshape(-1, *rest)
  distance = lpips_fn(flat(real_BTHWC), flat(made_BTHWC))
  return distance.reshape(B, num_frames).mean(1)
