"""Captions to embeddings by a frozen encoder in a folder of Hugging Face.

  <folder>/config.json                   its kind and sizes, as transformers has
  <folder>/model.safetensors             or the shards of its .index.json
  <folder>/tokenizer.json, spiece.model  either; the first, where both are

Of the weights only the encoder's are read. Kinds: FLAN-T5 (`t5`), which Goku
has, and BERT (`bert`), MiniLM for one. The empty string is the null text: the
marks alone that every caption has.

Letters: B captions, S text tokens, E text width.
"""

import contextlib
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from goku_jax import files, trees
from goku_jax.data import tokenize
from goku_jax.models import layers
from goku_jax.models.t5 import abstract_params
from goku_jax.parallel import batch, rules
from goku_jax.parallel import mesh as meshes
from goku_jax.sample.text_kinds import KINDS, Kind
from goku_jax.typing import UserError

ROWS = 8  # captions encoded at once; under a mesh, rounded up to its devices
LENGTHS = (32, 128, 512)  # captions are padded to one of them


class Tokenizer(NamedTuple):
  """Pieces of text as numbers."""

  path: pathlib.Path
  ids_of: Callable[[str], list[int]]  # without its marks
  begin: list[int]  # marks before each text
  end: list[int]  # and after it


class TextEncoder:
  """A loaded encoder; `load` makes one.

  Attributes:
    width: numbers in an embedding.
    max_text: longest caption in tokens, its marks among them; of a longer one
      stay beginning and end (`data.tokenize.cut`).
  """

  def __init__(self, model, params, tokenizer, weights, max_text, mesh):
    self.width, self.max_text = model.config.width, max_text
    self._params, self._tokenizer, self._weights = params, tokenizer, weights
    self._mesh, self._rows = mesh, ROWS
    if mesh is not None:
      devices = math.prod(mesh.shape[axis] for axis in rules.BATCH)
      self._rows = -(-ROWS // devices) * devices
    self._lengths = *(n for n in LENGTHS if n < max_text), max_text
    # On TPUs and GPUs float32 would else be multiplied as something shorter.
    is_exact = model.config.dtype == jnp.float32
    self._precision = "highest" if is_exact else "default"
    self._apply = jax.jit(
      lambda params, text_ids_BS, text_mask_BS: model.apply(
        {"params": params}, text_ids_BS, text_mask_BS
      )
    )

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 in hexadecimal over the files of weights and tokenizer."""
    paths = [*self._weights, self._tokenizer.path]
    digests = [files.digest_file(path) for path in paths]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()

  def count(self, caption: str) -> int:
    """Tokens of a caption, its marks among them, at most `max_text`."""
    return len(self._ids(caption))

  def encode(self, captions: list[str]) -> list[np.ndarray]:
    """Embeddings float32 `[n, width]` of each caption's `count` tokens.

    A caption is padded to a length of its own, in batches of one size, so that
    nothing compiles twice and its numbers are its own.
    """
    ids = [self._ids(caption) for caption in captions]
    length_of = lambda i: next(n for n in self._lengths if n >= len(ids[i]))
    embeddings = [None] * len(ids)
    for length in self._lengths:
      places = [i for i in range(len(ids)) if length_of(i) == length]
      for start in range(0, len(places), self._rows):
        here = places[start : start + self._rows]
        rows = self._encode([ids[i] for i in here], length)
        for i, row in zip(here, rows, strict=False):
          embeddings[i] = row[: len(ids[i])].copy()
    return embeddings

  def _encode(self, ids, length) -> np.ndarray:
    """Embeddings `[rows, length, width]`; the rows beyond `ids` are empty."""
    text = {
      "text_ids_BS": np.zeros((self._rows, length), np.int32),
      "text_mask_BS": np.zeros((self._rows, length), np.bool_),
    }
    for row, tokens in enumerate(ids):
      text["text_ids_BS"][row, : len(tokens)] = tokens
      text["text_mask_BS"][row, : len(tokens)] = True
    with contextlib.ExitStack() as stack:
      stack.enter_context(jax.default_matmul_precision(self._precision))
      if self._mesh is not None:
        stack.enter_context(meshes.use(self._mesh))
        text = batch.place(self._mesh, text)
      return np.asarray(self._apply(self._params, **text))

  def _ids(self, caption):
    _, ids_of, begin, end = self._tokenizer
    ids = [*begin, *ids_of(caption), *end]
    return tokenize.cut(ids, self.max_text)


def load(
  folder, *, dtype: str = "float32", max_text: int = 512, mesh=None
) -> TextEncoder:
  """The encoder in a local folder like that of google/flan-t5-xl.

  Args:
    folder: what `save_pretrained` writes, with its tokenizer.
    dtype: of matrix products, and of their parameters: float32 or bfloat16.
    max_text: longest caption in tokens, at least 1.
    mesh: of this process's devices; they share parameters and captions.

  Raises:
    UserError: a file is missing or damaged, or belongs to another model, or a
      library that reads it is not installed.
  """
  folder = pathlib.Path(folder)
  if dtype not in layers.DTYPES:
    raise UserError(f"dtype={dtype!r} is not one of {', '.join(layers.DTYPES)}")
  if max_text < 1:
    raise UserError(f"max_text={max_text}: set 1 or more")
  kind, config = read_config(folder, jnp.dtype(dtype))
  most = getattr(config, "places", max_text)
  if max_text > most:
    raise UserError(
      f"max_text={max_text}: {folder} reads {most} tokens at most"
    )
  model = kind.model(config)
  tokenizer = read_tokenizer(folder, config.vocab_size, kind)
  weights = _find_weights(folder)
  abstract = abstract_params(model)
  tensors = _find_tensors(folder, kind, weights, abstract)
  params = _read_params(kind, tensors, abstract, config.dtype, mesh)
  return TextEncoder(model, params, tokenizer, weights, max_text, mesh)


def read_config(folder: pathlib.Path, dtype) -> tuple[Kind, Any]:
  """The kind and the sizes in config.json."""
  path = folder / "config.json"
  config = _read_json(path)
  kind = KINDS.get(config.get("model_type"))
  needs = kind.needs if kind else {"model_type": " or ".join(KINDS)}
  for name, value in needs.items():
    if config.get(name) != value:
      raise UserError(
        f"{path} has {name}={config.get(name)!r}, not {value}: name a folder of"
        " T5 v1.1, FLAN-T5 or a BERT"
      )
  missing = [name for name in kind.sizes.values() if name not in config]
  if missing:
    raise UserError(f"{path} lacks {', '.join(missing)}")
  sizes = {field: config[name] for field, name in kind.sizes.items()}
  return kind, kind.config(**sizes, dtype=dtype)


def read_tokenizer(
  folder: pathlib.Path, vocab_size: int, kind: Kind
) -> Tokenizer:
  """What turns text into ids below `vocab_size`."""
  paths = [folder / "tokenizer.json", folder / "spiece.model"]
  path = next((path for path in paths if path.is_file()), None)
  if path is None:
    raise UserError(f"{folder} has neither tokenizer.json nor spiece.model")
  read = _read_tokenizers if path.suffix == ".json" else _read_sentencepiece
  try:
    ids_of, id_of, size = read(str(path))
    begin, end = ([id_of(m) for m in marks] for marks in (kind.begin, kind.end))
  except ImportError as error:
    raise UserError(
      f"{path} needs {error.name}: pip install goku_jax[text]"
    ) from error
  except Exception as error:  # the libraries' own, derived from nothing else
    raise UserError(f"{path} is cut short or no tokenizer: {error}") from error
  if None in (*begin, *end):
    marks = " and ".join((*kind.begin, *kind.end))
    raise UserError(f"{path} has no {marks}: it is of another model")
  if size > vocab_size:
    raise UserError(
      f"{path} has {size} pieces, but the weights only {vocab_size}"
    )
  return Tokenizer(path, ids_of, begin, end)


def _read_tokenizers(path):
  import tokenizers

  tokenizer = tokenizers.Tokenizer.from_file(path)
  tokenizer.no_truncation()  # which the file may ask for, as for padding
  tokenizer.no_padding()
  ids_of = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
  return ids_of, tokenizer.token_to_id, tokenizer.get_vocab_size()


def _read_sentencepiece(path):
  import sentencepiece

  model = sentencepiece.SentencePieceProcessor(model_file=path)
  known = lambda piece: model.id_to_piece(model.piece_to_id(piece)) == piece
  id_of = lambda piece: model.piece_to_id(piece) if known(piece) else None
  return model.encode, id_of, model.get_piece_size()


def _find_weights(folder) -> list[pathlib.Path]:
  """The file of the weights, or its shards."""
  whole = folder / "model.safetensors"
  index = folder / "model.safetensors.index.json"
  if whole.is_file():
    return [whole]
  if index.is_file():
    names = _read_json(index).get("weight_map", {}).values()
    return [folder / name for name in sorted(set(names))]
  if any(folder.glob("pytorch_model*.bin")):
    raise UserError(
      f"{folder} has its weights as pytorch_model.bin, which may run code: save"
      " them as model.safetensors, as save_pretrained of transformers does"
    )
  raise UserError(f"{folder} has no {whole.name}: name a folder of an encoder")


def _find_tensors(folder, kind, weights, abstract) -> dict:
  """File and name of each of the encoder's tensors, by the name we know."""
  tensors, found = {}, {}
  for path in weights:
    with _open(path) as file:
      for name in file.keys():  # noqa: SIM118, it is no dict
        if known := kind.known(name):
          tensors[known] = path, name
          found[known] = tuple(file.get_slice(name).get_shape())
  wanted = {}
  for path, shape in trees.shapes(abstract).items():
    for names in _names(kind, path, shape):
      wanted |= dict.fromkeys(names, _torch_shape(path, shape, len(names)))
  trees.check_shapes(found, wanted, f"the weights in {folder}")
  return tensors


def _read_params(kind, tensors, abstract, dtype, mesh):
  """Parameters on the devices; one at a time is in memory besides."""

  def read(keys, leaf, *sharding):
    path = trees.path_of(keys)
    is_product = path.endswith(("kernel", "embedding"))
    out = np.empty(leaf.shape, dtype if is_product else leaf.dtype)
    slices = out if rules.is_scanned(path) else out[None]
    for layer, names in zip(
      slices, _names(kind, path, leaf.shape), strict=True
    ):
      parts = np.split(layer, len(names), -1)
      for part, name in zip(parts, names, strict=True):
        tensor = _read_tensor(*tensors[name])
        part[...] = tensor.T if path.endswith("kernel") else tensor
    return jax.device_put(out, *sharding)

  placed = () if mesh is None else (rules.shardings(mesh, abstract),)
  return jax.tree.map_with_path(read, abstract, *placed)


def _read_tensor(path, name) -> np.ndarray:
  with _open(path) as file:
    return file.get_tensor(name)


def _names(kind, path, shape) -> list[list[str]]:
  """Of each layer that an array of ours has, the tensors it is made of."""
  depth = shape[0] if rules.is_scanned(path) else 1
  return [[n.format(i) for n in kind.places[path]] for i in range(depth)]


def _torch_shape(path, shape, parts):
  """Of each of the tensors side by side in one layer of an array of ours."""
  *lead, last = shape[1:] if rules.is_scanned(path) else shape
  of_layer = (*lead, last // parts)
  return of_layer[::-1] if path.endswith("kernel") else of_layer


def _open(path):
  try:
    return safetensors.safe_open(path, "numpy")
  except (OSError, safetensors.SafetensorError) as error:
    raise UserError(
      f"{path} is missing, cut short or not safetensors: {error}"
    ) from error


def _read_json(path) -> dict:
  try:
    return dict(json.loads(path.read_bytes()))
  except (OSError, ValueError, TypeError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error
