"""CLIP's towers (arXiv:2103.00020): images and texts as unit-length vectors.

Transformers with a norm before each part; the image is read off a class token,
the text off the token that ends it, before which alone a token looks.

Letters: N images or texts, H W height and width, P patches, S tokens, Z as
keys, D width, h heads, K head width, E numbers in an embedding.
"""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

ORIGIN = (
  "model.safetensors, config.json and tokenizer.json of"
  " huggingface.co/openai/clip-vit-base-patch32, or of another size"
)

MASKED = -1e30  # beside it any logit is lost: such keys weigh exactly zero

# Accelerators would round to fewer bits than published figures have.
_dense = functools.partial(nn.Dense, precision="highest")
_einsum = functools.partial(jnp.einsum, precision="highest")


@dataclasses.dataclass(frozen=True)
class Tower:
  """Sizes of one of the two transformers."""

  width: int
  depth: int
  num_heads: int
  mlp_width: int
  eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
  """Sizes of both, and of what they share."""

  image: Tower
  text: Tower
  embedding: int  # numbers in one
  image_size: int  # pixels of a side
  patch: int  # pixels of a side
  vocab_size: int
  max_text: int  # tokens

  @property
  def name(self) -> str:
    """As its authors name the sizes that they published: ViT-B/32."""
    width, depth = self.image.width, self.image.depth
    published = {(768, 12): "B", (1024, 24): "L"}
    letter = published.get((width, depth), f"{width}x{depth}")
    suffix = "" if self.image_size == 224 else f"@{self.image_size}px"
    return f"ViT-{letter}/{self.patch}{suffix}"


def from_dict(sizes: dict) -> CLIPConfig:
  """What `dataclasses.asdict` made of a config."""
  towers = {name: Tower(**sizes[name]) for name in ("image", "text")}
  return CLIPConfig(**sizes | towers)


class Block(nn.Module):
  """One layer: self-attention and MLP, each added to what it was given."""

  config: Tower

  @nn.compact
  def __call__(self, x_NSD, bias_SZ):
    cfg = self.config
    norm = lambda name: nn.LayerNorm(epsilon=cfg.eps, name=name)
    qkv = _dense(3 * cfg.width, name="qkv")(norm("attn_norm")(x_NSD))
    heads = cfg.num_heads, cfg.width // cfg.num_heads
    q, k, v = jnp.moveaxis(qkv.reshape(*x_NSD.shape[:2], 3, *heads), 2, 0)
    logits_NhSZ = _einsum("NShK,NZhK->NhSZ", q, k) * heads[1] ** -0.5
    weight_NhSZ = jax.nn.softmax(logits_NhSZ + bias_SZ, -1)
    out_NShK = _einsum("NhSZ,NZhK->NShK", weight_NhSZ, v)
    x_NSD += _dense(cfg.width, name="out")(out_NShK.reshape(x_NSD.shape))
    h = _dense(cfg.mlp_width, name="up")(norm("mlp_norm")(x_NSD))
    h = h * nn.sigmoid(1.702 * h)  # "quick" GELU
    return x_NSD + _dense(cfg.width, name="down")(h), None


class ImageTower(nn.Module):
  """Embeddings of images."""

  config: CLIPConfig

  @nn.compact
  def __call__(
    self, images_NHWC: Float[Array, "N H W 3"]
  ) -> Float[Array, "N E"]:
    """Takes images in CLIP's own units, of `image_size` pixels a side."""
    cfg = self.config
    x = nn.Conv(
      cfg.image.width,
      (cfg.patch,) * 2,
      strides=cfg.patch,
      padding="VALID",
      use_bias=False,
      precision="highest",
      name="patches",
    )(images_NHWC)
    x_NPD = x.reshape(len(x), -1, cfg.image.width)
    class_D = self.param("class", nn.initializers.normal(), x.shape[-1:])
    class_N1D = jnp.broadcast_to(class_D, (len(x), 1, cfg.image.width))
    x_NSD = jnp.concatenate([class_N1D, x_NPD], 1)
    x_NSD += _places(self, x_NSD.shape[1:])
    norm = lambda name: nn.LayerNorm(epsilon=cfg.image.eps, name=name)
    x_NSD = norm("first_norm")(x_NSD)
    x_NSD = _blocks(cfg.image)(x_NSD, jnp.zeros(()))
    x_ND = norm("norm")(x_NSD[:, 0])
    return _unit(_dense(cfg.embedding, use_bias=False, name="head")(x_ND))


class TextTower(nn.Module):
  """Embeddings of texts."""

  config: CLIPConfig

  @nn.compact
  def __call__(
    self, ids_NS: Int[Array, "N S"], end_N: Int[Array, " N"]
  ) -> Float[Array, "N E"]:
    """Reads each text up to its last token, which is in place `end_N`.

    What stands behind touches nothing.
    """
    cfg = self.config
    x_NSD = nn.Embed(cfg.vocab_size, cfg.text.width, name="pieces")(ids_NS)
    S = ids_NS.shape[1]
    x_NSD += _places(self, (cfg.max_text, cfg.text.width))[:S]
    place = np.arange(S)
    bias_SZ = np.where(place[None, :] > place[:, None], MASKED, 0.0)
    x_NSD = _blocks(cfg.text)(x_NSD, jnp.asarray(bias_SZ, jnp.float32))
    x_ND = jnp.take_along_axis(x_NSD, end_N[:, None, None], 1)[:, 0]
    x_ND = nn.LayerNorm(epsilon=cfg.text.eps, name="norm")(x_ND)
    return _unit(_dense(cfg.embedding, use_bias=False, name="head")(x_ND))


def _places(module, shape):
  return module.param("places", nn.initializers.normal(), shape)


def _blocks(cfg):
  """All layers as one scan, their parameters along a first axis."""
  layers = nn.scan(
    Block,
    variable_axes={"params": 0},
    split_rngs={"params": True},
    in_axes=nn.broadcast,
    length=cfg.depth,
  )(cfg, name="blocks")
  return lambda x, bias: layers(x, bias)[0]


def _unit(x_NE):
  return x_NE / jnp.linalg.norm(x_NE, axis=-1, keepdims=True)


def abstract_params(config: CLIPConfig) -> dict:
  """Shapes and dtypes of the parameters of both towers: `image`, `text`."""
  side = config.image_size
  image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  end = jax.ShapeDtypeStruct((1,), jnp.int32)
  shapes = lambda model, *args: jax.eval_shape(
    model.init, jax.random.key(0), *args
  )["params"]
  return {
    "image": shapes(ImageTower(config), image),
    "text": shapes(TextTower(config), ids, end),
  }
