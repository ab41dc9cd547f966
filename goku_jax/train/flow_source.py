"""Where a flow model's samples come from: what a config's `data` names.

Prepared latents (`data.path`, folders with commas between), files that are
decoded and encoded beside the step (`data.clips`), or digits as pixels.
"""

import contextlib
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from goku_jax import files, job, weights
from goku_jax.data import (
  clips,
  decoder,
  digits,
  items,
  shards,
  sources,
  tokenize,
)
from goku_jax.sample import codec as codecs
from goku_jax.sample import encoder
from goku_jax.sample import text as texts
from goku_jax.sample.restore import (
  LATENTS,
  load_text,
  read_start,
  reads_embeddings,
  restore_vae,
)
from goku_jax.train import encoded, init_from
from goku_jax.typing import UserError


class FlowSource(NamedTuple):
  """Samples, and all that goes with them."""

  source: Any  # as data/sources.py says
  codec: codecs.Codec
  names: tuple[str, ...]  # of its parts
  member: np.ndarray  # int [n], the part of each sample
  settle: Callable[[Any], None]  # see task.Task
  text: texts.TextEncoder | None = None  # where the model reads embeddings
  close: Callable[[], None] = lambda: None  # see task.Task


def open_source(config) -> FlowSource:
  """The source of a config of stage=flow."""
  data = config.data
  text = load_text(config.text) if reads_embeddings(config) else None
  if "clips" in data:
    return _open_files(config, text)
  if data.path:
    return _open_latents(config, text)
  if "digits" not in data:
    raise UserError("set --config.data.path to a folder that prepare wrote")
  raw = digits.Digits(seed=config.seed, **data.digits)
  return _one(
    sources.Pixels(raw), codecs.Codec(), "digits", lambda workdir: None
  )


def _one(source, codec, name, settle):
  member = np.zeros(len(source), int)
  return FlowSource(source, codec, (name,), member, settle)


def _open_latents(config, text):
  path, begun = config.data.path, init_from.open_codec(config)
  scale = begun and begun.statistics
  source = sources.open_latents(
    path, embedded=text is not None, statistics=scale
  )
  folders = [part.strip() for part in path.split(",")]
  parts = getattr(source, "sources", [source])
  identity = {"shards": [x.manifest["shards"] for x in parts]}
  carrier = folders[0]
  if begun:
    carrier = read_start(config).workdir
    identity["scale"] = scale
    if weights.digest(begun.params) != parts[0].manifest["vae"]["digest"]:
      raise UserError(
        f"{path} was prepared with another autoencoder than that of"
        f" config.init_from={config.init_from}: prepare it with the same"
      )
  if text:
    identity["text"] = text.digest
    if text.digest != parts[0].manifest["text"]["digest"]:
      raise UserError(
        "--config.text.path is not the text encoder that embedded the captions"
        f" of {path}"
      )

  def settle(workdir):
    _settle(workdir, identity, f"--config.data.path={path}")
    given = pathlib.Path(carrier) / codecs.FOLDER
    _keep(workdir, lambda partial: shutil.copytree(given, partial))

  return FlowSource(
    source,
    begun or codecs.load_codec(carrier),
    tuple(folders),
    getattr(source, "member", np.zeros(len(source), int)),
    settle,
    text,
  )


def _open_files(config, text):
  data = config.data
  for key, value in (
    ("data.path", data.path),
    ("vae.workdir", config.vae.workdir),
  ):
    if not value:
      raise UserError(f"set --config.{key}: training encodes the files itself")
  *restored, _ = restore_vae(**config.vae)
  pool = decoder.Decoder(**data.decoder)
  try:
    return _encode_files(config, text, restored, pool)
  except BaseException:
    pool.close()
    raise


def _encode_files(config, text, restored, pool):
  data, (model, about, params) = config.data, restored
  by = encoder.Encoder(model, params, **config.encode)
  by.check_multiple(data.clips.multiple)
  found = clips.Clips(items.open_items(data.path), pool, **data.clips)
  with job.Progress(len(found), 0, "probe") as progress:
    raw = clips.Windows(
      found,
      seed=config.seed,
      augment=data.augment,
      flip=data.flip,
      count=text.count if text else lambda c: len(tokenize.encode(c)),
      threads=data.decoder.workers,
      progress=progress.update,
    )
  _check_dropped(raw, len(found), config.max_dropped)
  names = ("latent_mean", "latent_std")
  statistics = {k: about[k] for k in names if k in about}
  begun = init_from.open_codec(config)
  if begun:
    statistics = begun.statistics
    if weights.digest(begun.params) != weights.digest(params):
      raise UserError(
        f"config.vae.workdir={config.vae.workdir} is another autoencoder than"
        f" that of config.init_from={config.init_from}"
      )
  if len(statistics) < len(names):
    statistics = encoded.measure(raw, by, data.statistics)
  source = encoded.Encoded(
    raw,
    by,
    statistics,
    text=text,
    max_shapes=data.max_shapes,
    max_dropped=config.max_dropped,
    ends="given" in data,
  )
  codec = codecs.Codec(
    stride=tuple(model.config.stride),
    channels=model.config.latent_channels,
    model=model,
    params=by.params,
    mean=np.asarray(statistics["latent_mean"], np.float32),
    std=np.asarray(statistics["latent_std"], np.float32),
  )
  identity = {"source": raw.digest(), "vae": weights.digest(params)}
  if text:
    identity["text"] = text.digest

  def settle(workdir):
    _settle(workdir, identity, f"--config.data.path={data.path}")
    about_vae = {**about, **statistics}
    _keep(workdir, lambda partial: weights.save(partial, params, about_vae))
    _check_statistics(workdir / codecs.FOLDER, statistics)
    source.log = workdir / shards.DROPPED
    if not source.log.exists():
      lines = "".join(json.dumps(item) + "\n" for item in raw.dropped)
      files.write_whole(source.log, lines.encode())

  opened = _one(source, codec, data.path, settle)
  return opened._replace(text=text, close=pool.close)


def _check_dropped(raw, count, most):
  table = f"left out, of {count}:\n{shards.tell(raw.dropped)}"
  if not len(raw):
    print(table)
    raise UserError(
      f"0 batches: none of the {count} items can be used, as the table says"
    )
  shards.check_dropped(raw.dropped, count, most)
  if raw.dropped:
    print(table)


def _settle(workdir, identity, named):
  """Refuses to go on with other latents than a run began with."""
  kept = workdir / LATENTS
  if not kept.exists():
    files.write_json(kept, identity)
  if json.loads(kept.read_text()) != json.loads(files.to_json(identity)):
    raise UserError(
      f"{named} holds other latents than this run began with: give those, or"
      " choose another --workdir"
    )


def _check_statistics(folder, statistics):
  """Refuses files whose latents are not scaled as those a run began with."""
  kept = weights.load(folder)[1]
  for name, found in statistics.items():
    if not np.allclose(kept[name], found, rtol=1e-2, atol=1e-2):
      raise UserError(
        f"the {name} of the files is not what it was when the run began: give"
        " the same files, or choose another --workdir"
      )


def _keep(workdir, write):
  """The autoencoder in the workdir, so that a run travels without its data."""
  folder = workdir / codecs.FOLDER
  if folder.exists():
    return
  partial = folder.with_suffix(".partial")  # a kill may cut the copy short
  with contextlib.suppress(FileNotFoundError):
    shutil.rmtree(partial)
  write(partial)
  partial.rename(folder)
