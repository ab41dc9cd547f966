"""Goku's block and its inputs in plain torch, and what they give.

Written from the released code's description (section 2.2 of the paper and the
block of Saiyan-World/goku), with the pieces of diffusers where it has them:
RMSNorm, the application of rotary tables, the 3-D tables of CogVideoX and the
timestep features.

  python tests/golden/goku_block.py --write    # needs the extra `parity`
"""

import pathlib
import sys

import numpy as np

PATH = pathlib.Path(__file__).with_name("goku_block.npz")
WIDTH, HEADS, TEXT = 128, 2, 24  # heads of 64, split 16/24/24
GRID = (2, 2, 3)
TIMES = np.array([0.0, 0.137, 0.5, 1.0], np.float32)


def numbers(seed: int, *shape: int) -> np.ndarray:
  """Floats in [-1, 1) by splitmix64: the same on every machine, for good."""
  z = np.arange(1, 1 + np.prod(shape), dtype=np.uint64)
  z = (z + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
  z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  z ^= z >> np.uint64(31)
  unit = (z >> np.uint64(40)).astype(np.float32) / 2**23 - 1
  return unit.reshape(shape).astype(np.float32)


def inputs() -> dict[str, np.ndarray]:
  """Hidden state, conditioning vector and text embeddings of one sample."""
  return dict(
    x=numbers(1, 1, np.prod(GRID), WIDTH),
    c=numbers(2, 1, WIDTH),
    text=numbers(3, 1, 5, TEXT),
  )


def parameters(bias: bool) -> dict:
  """The block's parameters, under our names, kernels [in, out]."""
  seeds = iter(range(10, 100))
  weight = lambda i, o: numbers(next(seeds), i, o) * np.float32(i**-0.5)
  scale = lambda: {"scale": 1 + 0.3 * numbers(next(seeds), WIDTH)}

  def dense(i, o, bias=True):
    return {"kernel": weight(i, o)} | (
      {"bias": 0.3 * numbers(next(seeds), o)} if bias else {}
    )

  def attention(width):
    tree = {"q": dense(WIDTH, WIDTH, bias), "out": dense(WIDTH, WIDTH, bias)}
    tree |= {name: dense(width, WIDTH, bias) for name in ("k", "v")}
    return tree | {"q_norm": scale(), "k_norm": scale()}

  return {
    "adaln": dense(WIDTH, 6 * WIDTH),
    "self_attn": attention(WIDTH),
    "cross_norm": scale(),
    "cross_attn": attention(TEXT),
    "mlp_norm": scale(),
    "mlp": {"up": dense(WIDTH, 4 * WIDTH), "down": dense(4 * WIDTH, WIDTH)},
  }


def rope_tables():
  """CogVideoX's cosines and sines on GRID, in the order of our tokens."""
  from diffusers.models.embeddings import get_3d_rotary_pos_embed

  t, h, w = GRID
  cos, sin = get_3d_rotary_pos_embed(
    embed_dim=WIDTH // HEADS,
    crops_coords=((0, 0), (h, w)),
    grid_size=(h, w),
    temporal_size=t,
  )
  return cos.float(), sin.float()


def time_features(width=256):
  """Of TIMES, scaled to 0..1000: cosines first, no shift of frequencies."""
  import torch
  from diffusers.models.embeddings import get_timestep_embedding

  return get_timestep_embedding(
    torch.tensor(1000 * TIMES),
    width,
    flip_sin_to_cos=True,
    downscale_freq_shift=1,
  )


def block(bias: bool, rotate_cross_queries: bool):
  """The block's output on `inputs()`, by torch."""
  import torch
  import torch.nn.functional as F
  from diffusers.models.embeddings import apply_rotary_emb
  from diffusers.models.normalization import RMSNorm

  params, rope = parameters(bias), rope_tables()
  x, c, text = (torch.tensor(a) for a in inputs().values())

  def linear(p, y):
    bias = torch.tensor(p["bias"]) if "bias" in p else None
    return F.linear(y, torch.tensor(p["kernel"]).T, bias)

  def rms(p, y):
    norm = RMSNorm(WIDTH, eps=1e-6)
    norm.weight.data = torch.tensor(p["scale"])
    return norm(y)

  def attend(p, y, source, rotate_q, rotate_k):
    split = lambda z: z.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    turn = lambda z: apply_rotary_emb(z, rope, use_real_unbind_dim=-1)
    q = split(rms(p["q_norm"], linear(p["q"], y)))
    k = split(rms(p["k_norm"], linear(p["k"], source)))
    q, k = turn(q) if rotate_q else q, turn(k) if rotate_k else k
    out = F.scaled_dot_product_attention(q, k, split(linear(p["v"], source)))
    return linear(p["out"], out.transpose(1, 2).flatten(2))

  with torch.no_grad():
    parts = linear(params["adaln"], F.silu(c)).unsqueeze(1).chunk(6, -1)
    shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = parts
    h = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
    x = x + gate * attend(params["self_attn"], h, h, True, True)
    h = rms(params["cross_norm"], x)
    x = x + attend(params["cross_attn"], h, text, rotate_cross_queries, False)
    h = rms(params["mlp_norm"], x) * (1 + scale_mlp) + shift_mlp
    h = F.gelu(linear(params["mlp"]["up"], h), approximate="tanh")
    x = x + gate_mlp * linear(params["mlp"]["down"], h)
  return x


def reference() -> dict[str, np.ndarray]:
  """Everything that is compared, by name."""
  cos, sin = rope_tables()
  out = {"cos": cos, "sin": sin, "time_features": time_features()}
  for bias in (False, True):
    for rotate in (False, True):
      out[f"block_{bias:d}{rotate:d}"] = block(bias, rotate)
  return {name: array.numpy() for name, array in out.items()}


if __name__ == "__main__":
  if sys.argv[1:] != ["--write"]:
    sys.exit(__doc__)
  np.savez_compressed(PATH, **reference())
