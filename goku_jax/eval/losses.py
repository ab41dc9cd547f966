"""The validation loss, at fixed noise and times.

Held-out samples, each with noise of its own that never changes, are measured
at the middle of each bin of t (0 noise, 1 data), so that a difference between
two checkpoints is one between models. Images and videos are apart: their losses
differ by more than training changes either.

Letters: B packs, G segments of a pack.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import weights
from goku_jax.data import digits, given, packing, sources, tokenize
from goku_jax.data.pipeline import TEXT
from goku_jax.flow import noise, objective
from goku_jax.parallel.batch import fetch
from goku_jax.sample.restore import Restored, process_of
from goku_jax.typing import UserError


def run(
  run: Restored, *, path: str | None, num_samples: int, bins: int, seed: int
) -> dict:
  """Mean losses of images, of videos and of all, over all t and by bin.

  Args:
    run: the model.
    path: a folder that `prepare` wrote, of samples that training never sees.
    num_samples: the first of them.
    bins: of t.
    seed: of noise.

  Raises:
    UserError: there are no such samples, a setting that nothing can follow, or
      a model that gives no numbers.
  """
  if num_samples < 1 or bins < 1:
    raise UserError(
      f"evals.losses: num_samples={num_samples} and bins={bins} must be 1 or"
      " more"
    )
  noise.check_seed(seed, "evals.losses.seed")
  source = open_held_out(run, path)
  count = min(num_samples, len(source))
  kinds = np.asarray(source.is_video[:count])
  losses, process = np.zeros((bins, count)), process_of(run.config)
  rng = jax.random.key(seed)
  for batch in batches(run, source, count):
    index_BG = batch["sample_index_BG"]
    here = index_BG >= 0
    for b in range(bins):
      t = np.float32((b + 0.5) / bins)
      found_BG = fetch(_losses(run.model, process, run.params, batch, rng, t))
      losses[b, index_BG[here]] = found_BG[here]
  if not np.isfinite(losses).all():
    raise UserError(
      f"the validation loss of step {run.step} is not finite: take an earlier"
      " checkpoint"
    )
  return {"num_samples": count, **summarise(losses, kinds)}


def summarise(losses, is_video) -> dict:
  """Means of losses [bins, samples] by kind of sample and bin."""
  kinds = {"all": is_video | True, "image": ~is_video, "video": is_video}
  means = {
    kind: losses[:, which].mean(1).tolist()
    for kind, which in kinds.items()
    if which.any()
  }
  t = [f"t={(b + 0.5) / len(losses):.3g}" for b in range(len(losses))]
  return {
    "loss": {kind: float(np.mean(x)) for kind, x in means.items()},
    "by_t": {kind: dict(zip(t, x, strict=True)) for kind, x in means.items()},
  }


def open_held_out(run: Restored, path: str | None):
  """Samples that training does not see, scaled as the run's latents are."""
  codec, data = run.codec, run.config.data
  if path:
    if codec.model is None:
      raise UserError(
        f"evals.losses.path={path} has latents, and this run reads pixels:"
        " leave it out"
      )
    source = sources.Latents(
      path,
      embedded=run.text is not None,
      statistics=codec.statistics,
    )
    if source.manifest["vae"]["digest"] != weights.digest(codec.params):
      raise UserError(
        f"{path} was prepared with another autoencoder than the run's: run"
        " prepare again with the same"
      )
    return source
  if codec.model is None and "digits" in data:
    held_out = dict(data.digits) | {"split": "test"}
    return sources.Pixels(digits.Digits(**held_out))
  raise UserError(
    "set --config.evals.losses.path to a folder that prepare wrote of samples"
    " that training does not see"
  )


def batches(run: Restored, source, count: int):
  """The first samples of a source in packs, as many at once as there are ranks.

  Yields:
    dict: arrays of `schema.FLOW`; index -1 where no sample is.
  """
  cfg = run.model.config
  patch_size = tuple(cfg.patch_size)
  sizes = source.sizes(patch_size, run.config.data.max_text)[:count]
  least, pack = sizes.max(0), run.config.data.pack
  capacity = packing.Capacity(
    max(pack.tokens, least[0]), max(pack.text, least[1] + 1), pack.segments
  )

  conditions = None
  if cfg.conditioned:
    conditions = given.Given(run.config.seed, **run.config.data.given)

  def read(index):
    sample = source.read(index, 0)
    text = {k: tokenize.cut(sample[k], int(sizes[index, 1])) for k in TEXT}
    if conditions:
      text["condition"] = conditions.draw(sample, 0)
    return {**sample, **text, "visit": 0}

  def make(members):
    return packing.pack(
      [read(i) for i in members],
      capacity,
      patch_size=patch_size,
      channels=source.channels,
      null_text=source.null_text,
      conditioned=cfg.conditioned,
    )

  dealt = packing.deal(sizes, capacity)
  dealt += [[]] * (-len(dealt) % run.ranks)
  for start in range(0, len(dealt), run.ranks):
    packs = [make(members) for members in dealt[start : start + run.ranks]]
    yield {k: np.concatenate([p[k] for p in packs]) for k in packs[0]}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _losses(model, process, params, batch, rng, t):
  ends = objective.draw_ends(batch, rng)
  t_BG = jnp.full(batch["sample_index_BG"].shape, t)
  kept_BG = jnp.zeros(t_BG.shape, bool)
  return objective.segment_losses(
    model, process, params, batch, *ends, t_BG, kept_BG
  )
