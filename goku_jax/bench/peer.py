"""The transformer's step beside PyTorch's, at equal sizes and on this CPU.

A step is a forward pass and the gradients of all parameters, float32, without
recomputation or optimizer, on one segment without padding. Ours is the whole
network of a variant, as training runs it; PyTorch's is diffusers' Wan blocks,
eager, between the same two linear layers of patches. Width, depth, heads, MLP
and tokens are equal, and so are the kernels of attention and MLP; beyond them
Wan has biases everywhere and one adaLN table a block, where ours has a linear
layer for each block, rotates cross-attention's queries and embeds the time.

Letters: B packs, L tokens, P numbers a token, S text tokens, D width, K head
width.
"""

import contextlib
import math
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from goku_jax import costs
from goku_jax.bench import sides
from goku_jax.models.goku import make_goku
from goku_jax.typing import UserError

TOKENS = 1560  # of a clip of 13 frames at 120x208, in patches of 8x8 pixels
TEXT = 64
ROUND_SECONDS = 1.0  # that each side computes in a round, or longer: one call
TOKEN_KERNELS = (  # in the order of a block
  *(("self_attn", name) for name in ("q", "k", "v", "out")),
  *(("cross_attn", name) for name in ("q", "out")),
  *(("mlp", name) for name in ("up", "down")),
)
TEXT_KERNELS = (("cross_attn", "k"), ("cross_attn", "v"))


def compare(rounds: int, variant: str, tokens: int = TOKENS) -> dict:
  """Seconds and GFLOP/s of a step of both sides, and what linear layers reach.

  The model's FLOPs (`costs`) count for both. `matmul_gflops` is of a product
  [tokens, width] x [width, MLP width], `linear_gflops` of the products with
  all the kernels of the blocks' attention and MLP, forward and backward, those
  of tokens in a chain with nothing between them; both by XLA, in the process of
  our step. `linear_share` is the second over the first.

  Args:
    rounds: the fastest call of all rounds counts; the first of each compiles
      and does not count.
    variant: of the model; embeddings of text are as wide as it is.
    tokens: of the one segment.

  Raises:
    UserError: PyTorch is missing, the device is no CPU, or there is no such
      variant.
  """
  if jax.default_backend() != "cpu":
    raise UserError("--suite=peer is of CPUs: set JAX_PLATFORMS=cpu")
  versions, config = sides.versions(), make_model(variant).config
  sizes = dict(variant=variant, tokens=tokens, text_tokens=TEXT)
  with contextlib.ExitStack() as stack:
    start = lambda serve: stack.enter_context(
      sides.start(serve, variant, tokens)
    )
    ours, peer = start(_ours), start(_peer)
    asked = [(ours, "step"), (peer, "step"), (ours, "linear"), (ours, "matmul")]
    for one in asked:
      sides.ask(*one)
    found = [[sides.ask(*one) for one in asked] for _ in range(rounds)]
  seconds, peer_seconds, linear, matmul = np.min(found, 0).tolist()
  flops = costs.training_flops([tokens], [TEXT], **costs.sizes_of(config))
  linear_rate = linear_flops(config, tokens) / linear
  matmul_rate = 2 * tokens * config.width**2 * config.mlp_ratio / matmul
  return {
    **sizes,
    **versions,
    "seconds": seconds,
    "peer_seconds": peer_seconds,
    "ratio": peer_seconds / seconds,
    "model_flops": flops,
    "gflops": flops / seconds / 1e9,
    "peer_gflops": flops / peer_seconds / 1e9,
    "matmul_gflops": matmul_rate / 1e9,
    "linear_gflops": linear_rate / 1e9,
    "linear_share": linear_rate / matmul_rate,
  }


def make_peer(config):
  """PyTorch's modules, in the order in which they run.

  Args:
    config: the sizes (`TransformerConfig`).
  """
  from diffusers.models.transformers.transformer_wan import WanTransformerBlock
  from torch import nn

  D, P = config.width, config.patch_width
  blocks = (
    WanTransformerBlock(
      D, config.mlp_ratio * D, config.num_heads, cross_attn_norm=True
    )
    for _ in range(config.depth)
  )
  return nn.ModuleDict(
    {
      "patch_in": nn.Linear(P, D),
      "blocks": nn.ModuleList(blocks),
      "norm": nn.LayerNorm(D),
      "patch_out": nn.Linear(D, P),
    }
  )


def block_kernels(params) -> list[dict]:
  """The kernels of each block's attention and MLP, by module and name."""
  blocks = params["params"]["transformer"]["blocks"]
  stacked = {
    (module, name): blocks[module][name]["kernel"]
    for module, name in TOKEN_KERNELS + TEXT_KERNELS
  }
  depth = len(stacked["mlp", "up"])
  return [{key: x[i] for key, x in stacked.items()} for i in range(depth)]


def make_model(variant: str):
  """A model of the variant's sizes that takes text, as both sides have it."""
  width = make_goku(variant).config.width
  return make_goku(variant, text_width=width, num_classes=0, remat="none")


def linear_flops(config, tokens: int) -> int:
  """FLOPs of `chain`: a product, and one for each gradient; text has none."""
  of_tokens = 3 * (6 + 2 * config.mlp_ratio) * tokens
  of_text = 2 * 2 * TEXT
  return 2 * config.depth * (of_tokens + of_text) * config.width**2


def _serve(connection, fns):
  while True:
    fn = fns[connection.recv()]
    best, begin = math.inf, time.perf_counter()
    while (start := time.perf_counter()) - begin < ROUND_SECONDS:
      fn()
      best = min(best, time.perf_counter() - start)
    connection.send(best)


def _ours(connection, variant, tokens):
  model = make_model(variant)
  params, args = init(model, tokens)
  kernels = block_kernels(params)
  text_SD, x_LD = args[3][0], _normal(tokens, model.config.width)
  # Gates are zero at first: what they multiply would not matter.
  params = jax.tree.map(lambda x: x + 0.02 * _normal(*x.shape), params)

  def loss(params, *args):
    return jnp.square(model.apply(params, *args, method="velocity")).mean()

  step = jax.jit(jax.grad(loss))
  linear = jax.jit(jax.grad(chain, (0, 1)))
  matmul = jax.jit(jnp.dot)
  calls = {
    "step": lambda: step(params, *args),
    "linear": lambda: linear(kernels, x_LD, text_SD),
    "matmul": lambda: matmul(x_LD, kernels[0]["mlp", "up"]),
  }
  wait = lambda call: lambda: jax.block_until_ready(call())
  _serve(connection, {name: wait(call) for name, call in calls.items()})


def init(model, tokens: int):
  """Parameters, and what else the model's `velocity` takes: one segment."""
  cfg = model.config
  ones = lambda length: jnp.ones((1, length), jnp.int32)
  batch = {
    "segment_ids_BL": ones(tokens),
    "positions_BL3": jnp.zeros((1, tokens, 3), jnp.int32),
    "text_segment_ids_BS": ones(TEXT),
    "class_BG": None,
  }
  args = (_normal(1, tokens, cfg.patch_width), jnp.full((1, 1), 0.5), batch)
  args += (_normal(1, TEXT, cfg.width), jnp.zeros((1, 1), bool))
  make = lambda rng: model.init(rng, *args, method="velocity")
  return jax.jit(make)(jax.random.key(0)), args


def _normal(*shape):
  return jax.random.normal(jax.random.key(0), shape)


def chain(kernels: list[dict], x_LD, text_SD):
  """A number that depends on every product, and no other work of size."""
  total = 0.0
  for block in kernels:
    for key in TEXT_KERNELS:
      total += jnp.square(text_SD @ block[key]).sum()
    for key in TOKEN_KERNELS:
      x_LD = x_LD @ block[key]
  return total + jnp.square(x_LD).sum()


def _peer(connection, variant, tokens):
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  torch.manual_seed(0)
  config = make_model(variant).config
  D, K = config.width, config.width // config.num_heads
  model = make_peer(config)
  modulation = torch.randn(1, 6, D, requires_grad=True)
  tokens_BLP = torch.randn(1, tokens, config.patch_width)
  text_BSD = torch.randn(1, TEXT, D)
  turn = (torch.ones(1, tokens, 1, K), torch.zeros(1, tokens, 1, K))

  def step():
    model.zero_grad()
    modulation.grad = None
    x_BLD = model["patch_in"](tokens_BLP)
    for block in model["blocks"]:
      x_BLD = block(x_BLD, text_BSD, modulation, turn)
    model["patch_out"](model["norm"](x_BLD)).square().mean().backward()

  _serve(connection, {"step": step})
