"""Encodes a raw source with an autoencoder, and its captions too."""

import collections
import concurrent.futures
import contextlib
import pathlib
import shutil
import uuid

import numpy as np

from goku_jax import job, weights
from goku_jax.data import clips, decoder, digits, items, shards
from goku_jax.data.media import Unreadable
from goku_jax.sample import encoder
from goku_jax.sample.restore import load_text, restore_vae
from goku_jax.typing import UserError

STATISTICS = ("latent_mean", "latent_std")
NAMED = {"video", "captions", "about"}  # of a clip; the rest are numbers
WINDOW = 1 << 27  # bytes of pixels that are encoded together
AT_ONCE = 64  # items among them


def prepare(config, workdir, task: int = 0, num_tasks: int = 1) -> dict:
  """Writes the latents of a config's source; returns what the folder holds.

  Args:
    config: of stage=prepare.
    workdir: the folder, which other tasks may write in at the same time.
    task: the number of this task, which writes shards task, task + num_tasks,
      ...
    num_tasks: how many there are.

  Raises:
    UserError: a setting; more items are left out than `max_dropped`.
  """
  if not 0 <= task < num_tasks:
    raise UserError(f"task={task} is not one of {num_tasks}: count from 0")
  folder = pathlib.Path(workdir)
  if (folder / shards.MANIFEST).exists():
    print(f"{folder} is whole already", flush=True)
    return _summary(folder)
  if config.threads < 1:
    raise UserError(f"threads={config.threads} read nothing: set 1 or more")
  if not config.vae.workdir:
    raise UserError(
      "set --config.vae.workdir to a run of stage=vae or a folder of weights"
    )
  model, about, params, step = restore_vae(**config.vae)
  # What came with the weights stays, so that their latents are everybody's.
  given = {k: about[k] for k in STATISTICS if k in about}
  encode_by = encoder.Encoder(model, params, **config.encode)
  text = load_text(config.text) if config.text.path else None
  with _open_raw(config, encode_by) as raw:
    writer = shards.ShardWriter(
      folder,
      items=len(raw),
      items_per_shard=config.items_per_shard,
      about={
        "source": raw.digest(),
        "vae": {"step": step, "digest": weights.digest(params)},
        "text": text and {"width": text.width, "digest": text.digest},
        "classes": list(raw.classes),
        **given,
      },
    )
    job.save_config(folder, config)
    own = range(task, len(writer), num_tasks)
    _write(writer, own, raw, encode_by, text, config)

  def settle(statistics):
    _save_vae(folder / "vae", params, {**statistics, **about})
    if text:
      _save_null_text(folder / shards.NULL_TEXT, text)

  if not writer.finish(settle):
    print(f"{len(own)} shards are whole: other tasks write the rest")
    return {"shards": len(own), "whole": False}
  return _summary(folder)


@contextlib.contextmanager
def _open_raw(config, encode_by):
  """What is encoded: digits, or clips of files; refuses odd shapes."""
  data = config.data
  if "digits" in data:
    raw = digits.Digits(seed=config.seed, **data.digits)
    encode_by.check((raw.num_frames, raw.canvas, raw.canvas, 3))
    yield raw
    return
  if not data.path:
    raise UserError(
      "set --config.data.path to a folder of videos and pictures, a manifest,"
      " tars, or tfds:NAME"
    )
  encode_by.check_multiple(data.clips.multiple)
  with decoder.Decoder(**data.decoder) as pool:
    yield clips.Clips(items.open_items(data.path), pool, **data.clips)


def _write(writer, own, raw, encode_by, text, config):
  """Writes the shards of a task that are not whole."""
  found = {number: writer.done(number) for number in own}
  todo = [number for number in own if not found[number]]
  total = sum(len(writer.items(number)) for number in own)
  before = total - sum(len(writer.items(number)) for number in todo)
  if before:
    print(f"goes on from item {before} of {total}", flush=True)
  left_out = [item for x in found.values() if x for item in x["dropped"]]
  shards.check_dropped(left_out, total, config.max_dropped)
  seen = collections.Counter(items=before)
  with (
    job.Progress(total, before, "prepare", unit="clips") as progress,
    concurrent.futures.ThreadPoolExecutor(config.threads) as pool,
  ):
    for number in todo:
      dropped = []
      cuts = _read_ahead(pool, raw, writer.items(number), 2 * config.threads)
      records = _records(cuts, encode_by, text, dropped, seen, progress)
      writer.write(number, records, dropped)
      left_out += dropped
      shards.check_dropped(left_out, total, config.max_dropped)


def _read_ahead(pool, raw, numbers, depth):
  """Key, clips and reason of each item, in order, a few read ahead."""

  def cut(index):
    try:
      return raw.key(index), raw.cut(index), None
    except Unreadable as error:
      return raw.key(index), [], str(error)

  ahead = collections.deque()
  for index in numbers:
    ahead.append(pool.submit(cut, index))
    if len(ahead) > depth:
      yield ahead.popleft().result()
  while ahead:
    yield ahead.popleft().result()


def _records(cuts, encode_by, text, dropped, seen, progress):
  """Records of the clips of items; what gives none goes to `dropped`."""
  for window in _windows(cuts):
    samples = [sample for _, samples, _ in window for sample in samples]
    moments = iter(_encode(encode_by, samples))
    embeddings = _embed(text, samples)
    for key, clips_of_item, reason in window:
      own = [next(moments) for _ in clips_of_item]
      finite = all(np.isfinite(x).all() for one in own for x in one.values())
      reason = reason or (None if finite else "latents that are not finite")
      if reason:
        dropped.append({"key": key, "reason": reason})
        continue
      for sample, arrays in zip(clips_of_item, own, strict=True):
        captions = sample["captions"]
        about = {"captions": list(captions), **sample["about"]}
        numbers = {k: sample[k] for k in sorted(sample.keys() - NAMED)}
        record = {**arrays, **numbers, "about": about}
        if text:
          record["text"] = [embeddings[c] for c in captions]
        yield record
    seen.update(items=len(window), clips=len(samples))
    progress.update(seen["items"], made=seen["clips"])


def _windows(cuts):
  """Items whose clips are encoded together; a function of the items alone."""
  window, size = [], 0
  for cut in cuts:
    window.append(cut)
    size += sum(sample["video"].nbytes for sample in cut[1])
    if size >= WINDOW or len(window) == AT_ONCE:
      yield window
      window, size = [], 0
  if window:
    yield window


def _encode(encode_by, samples):
  """Moments of clips, and of the first and last frame of each, alone."""
  videos = [sample["video"] for sample in samples]
  moving = [i for i, video in enumerate(videos) if len(video) > 1]
  ends = {"first": np.s_[:1], "last": np.s_[-1:]}
  alone = [(i, name) for i in moving for name in ends]
  frames = [videos[i][ends[name]] for i, name in alone]
  found = encoder.encode(encode_by, videos + frames)
  arrays = [dict(mean=m, logvar=v) for m, v in found[: len(videos)]]
  for (i, name), moments in zip(alone, found[len(videos) :], strict=True):
    kinds = (f"{name}_mean", f"{name}_logvar")
    arrays[i] |= dict(zip(kinds, moments, strict=True))
  return arrays


def _embed(text, samples):
  """Embeddings float16 [tokens, width] by caption."""
  if not text:
    return {}
  captions = list(dict.fromkeys(c for s in samples for c in s["captions"]))
  found = text.encode(captions)
  return {c: x.astype(np.float16) for c, x in zip(captions, found, strict=True)}


def _save_vae(path, params, about):
  """The autoencoder of the latents; another task may do it at the same time."""
  partial = path.with_suffix(f".{uuid.uuid4().hex}.partial")
  weights.save(partial, params, about)
  try:
    partial.rename(path)
  except OSError:  # it is there, of this or an earlier go
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
      partial.rename(path)
    shutil.rmtree(partial, ignore_errors=True)


def _save_null_text(path, text):
  (null,) = text.encode([""])
  partial = path.with_suffix(f".{uuid.uuid4().hex}.npy")
  np.save(partial, null.astype(np.float16))
  partial.replace(path)


def _summary(folder) -> dict:
  manifest = shards.read_manifest(folder)
  dropped = (folder / shards.DROPPED).read_text().splitlines()
  names = ("items", "records", "dropped", "seconds", "shapes", *STATISTICS)
  return {name: manifest[name] for name in names} | {
    "shards": len(manifest["shards"]),
    "whole": True,
    "left_out": f"{folder / shards.DROPPED}" if dropped else "nothing",
  }
