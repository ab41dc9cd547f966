"""Captions to latents: packs the requests and integrates the velocity.

Each sample's noise comes from the seed and its own index, and attention never
leaves a segment, so a sample does not depend on what it was packed with.

Letters: B packs, L tokens, P numbers in a token, S text tokens, G segments of
a pack.
"""

import functools

import einops
import jax
import jax.numpy as jnp
import numpy as np

from goku_jax.data import packing, schema, tokenize
from goku_jax.flow import guidance, noise, times
from goku_jax.parallel.batch import fetch

NUM_PACKS = 8  # integrated at once; under a mesh its devices share them


def sample_latents(
  model,
  params,
  captions: list[str],
  shapes: list[tuple[int, int, int, int]],
  *,
  capacity: packing.Capacity,
  seed: int,
  num_steps: int,
  guidance_scale: float,
  solve,
  shift: float = 1.0,
  max_text: int,
  embed=None,
  labels: list[int] | None = None,
  indices: list[int] | None = None,
  conditions: list[np.ndarray] | None = None,
  ranks: int = 1,
  progress=None,
) -> list[np.ndarray]:
  """Normalised latents `[t, h, w, c]` of each caption.

  Args:
    model: a `Goku`.
    params: its parameters.
    captions: what to show; "" for a model without text.
    shapes: of the latents, one for each caption.
    capacity: of a pack; enlarged where one sample needs more.
    seed: of the noise.
    num_steps: intervals from noise to data.
    guidance_scale: 1 samples the model itself, above follows captions more.
    solve: one of a `Process.solvers`.
    shift: above 1 takes more steps near noise.
    max_text: longest caption in tokens.
    embed: captions to embeddings [s, E], for a model that reads those.
    labels: classes to show; without them the class counts as dropped.
    indices: whose noise each sample gets; its place in the list by default.
    conditions: of a model that is told of given frames (data/given.py); nothing
      is given by default.
    ranks: of the mesh, which share the packs.
    progress: called with the number of samples done.
  """
  patch_size = tuple(model.config.patch_size)
  indices = range(len(captions)) if indices is None else indices
  if labels is None:
    labels = [model.config.num_classes] * len(captions)  # the dropped row
  texts = [tokenize.encode(caption, max_text) for caption in captions]
  embeddings = [np.zeros((len(text), 0), np.float16) for text in texts]
  null_text = schema.NO_TEXT
  if embed:
    # In the precision in which training has them.
    null_text, *embeddings = [
      x.astype(np.float16) for x in embed(["", *captions])
    ]
    texts = [np.full(len(x), tokenize.EOS, np.int32) for x in embeddings]
  samples = [
    dict(
      mean=np.zeros(shape, np.float32),
      logvar=np.full(shape, schema.NO_LOGVAR, np.float32),
      text_ids=text,
      text_embeddings=embedding,
      index=index,
      visit=0,
      **{"class": label},
    )
    for text, embedding, shape, label, index in zip(
      texts, embeddings, shapes, labels, indices, strict=True
    )
  ]
  for sample, condition in zip(samples, conditions or (), strict=False):
    sample["condition"] = condition
  sizes = np.array(
    [
      (np.prod(s["mean"].shape[:3]) // np.prod(patch_size), len(s["text_ids"]))
      for s in samples
    ]
  )
  capacity = packing.Capacity(
    max(capacity.tokens, sizes[:, 0].max()),
    max(capacity.text, sizes[:, 1].max() + 1),
    capacity.segments,
  )
  L, S, G = capacity
  cfg = model.config
  sizes_of_pack = dict(
    L=L,
    P=cfg.patch_width,
    S=S,
    G=G,
    E=null_text.shape[1],
    K=cfg.condition_width,
  )
  packs = packing.deal(sizes, capacity)
  num_packs = min(NUM_PACKS, 1 << (len(packs) - 1).bit_length())
  num_packs = -(-num_packs // ranks) * ranks
  latents, done = [None] * len(samples), 0
  for start in range(0, len(packs), num_packs):
    here = packs[start : start + num_packs]
    full = [
      packing.pack(
        [samples[i] for i in p],
        capacity,
        patch_size=patch_size,
        channels=model.config.latent_channels,
        null_text=null_text,
        conditioned=cfg.conditioned,
      )
      for p in here
    ]
    empty = schema.empty_packs(B=num_packs - len(here), **sizes_of_pack)
    batch = {k: np.concatenate([p[k] for p in (*full, empty)]) for k in empty}
    # Of several processes each gives all of the batch.
    batch["tokens_BLP"] = fetch(
      integrate(
        model,
        params,
        batch,
        jax.random.key(seed),
        np.float32(guidance_scale),
        np.float32(shift),
        num_steps,
        solve,
        guidance_scale != 1,
      )
    )
    for members, found in zip(
      here, packing.unpack(batch, patch_size=patch_size), strict=False
    ):
      for i, sample in zip(members, found, strict=True):
        latents[i] = sample["mean"]
    done += sum(map(len, here))
    if progress:
      progress(done)
  return latents


@functools.partial(jax.jit, static_argnums=(0, 6, 7, 8))
def integrate(
  model,
  params,
  batch,
  rng,
  guidance_scale,
  shift,
  num_steps,
  solve,
  is_guided=True,
):
  """Tokens at t = 1 of a batch of packs, at half the cost if not guided."""

  def draw(rng, purpose):
    return noise.grid_normal(
      noise.sample_keys(
        rng, purpose, batch["sample_index_BG"], batch["visit_BG"]
      ),
      batch["segment_ids_BL"],
      batch["positions_BL3"],
      batch["tokens_BLP"].shape[-1],
    )

  # The branches with and without captions are one batch of twice the packs.
  branches = 1 + is_guided
  variables = {"params": params}
  text_BSE = model.apply(variables, batch, method="encode_text")
  repeat = lambda x: einops.repeat(x, "B ... -> (n B) ...", n=branches)
  repeated, text_BSE = jax.tree.map(repeat, (batch, text_BSE))
  B, G = batch["sample_index_BG"].shape
  dropped_BG = jnp.repeat(jnp.arange(branches) == 1, B)[:, None]
  dropped_BG = jnp.broadcast_to(dropped_BG, (branches * B, G))

  def predict(x_BLP, t):
    v_BLP = model.apply(
      variables,
      repeat(x_BLP),
      jnp.full(dropped_BG.shape, t),
      repeated,
      text_BSE,
      dropped_BG,
      method="velocity",
    )
    if not is_guided:
      return v_BLP
    return guidance.guide(v_BLP[:B], v_BLP[B:], guidance_scale)

  return solve(
    predict,
    draw(rng, noise.START),
    times.spaced(num_steps, shift),
    lambda i: draw(jax.random.fold_in(rng, i), noise.FRESH),
  )
