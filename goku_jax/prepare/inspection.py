"""What prepared shards hold: tables, and a sheet of their clips."""

import json
import pathlib

import numpy as np
import safetensors.numpy
from grain.sources import ArrayRecordDataSource

from goku_jax import job
from goku_jax.data import shards, video_io
from goku_jax.sample import codec as codecs

SHEET = "contact_sheet.png"
SHOWN = 12  # clips on the sheet, evenly over the folder


def inspect(workdir) -> dict:
  """Prints tables of a folder's whole shards; draws a sheet if it is whole.

  Raises:
    UserError: there is no whole shard.
  """
  folder = pathlib.Path(workdir)
  found = [
    json.loads(p.read_text()) for p in sorted(folder.glob("shard-*.json"))
  ]
  if not found:
    raise job.UserError(f"{folder} holds no whole shard: run prepare first")
  rows = [row for shard in found for row in shard["rows"]]
  dropped = [item for shard in found for item in shard["dropped"]]
  print("records  frames x height x width of latents")
  for shape, count in shards.count_shapes(r["size"] for r in rows).items():
    print(f"{count:>7}  {shape}")
  print(f"  items  left out because\n{shards.tell(dropped)}", flush=True)
  result = {
    "shards": len(found),
    "records": len(rows),
    "dropped": len(dropped),
    "seconds": sum(row["seconds"] for row in rows),
    "whole": (folder / shards.MANIFEST).exists(),
  }
  if result["whole"]:
    manifest = shards.read_manifest(folder)
    shards.check_digests(folder, manifest)
    _draw(folder, manifest)
    result["sheet"] = str(folder / SHEET)
  return result


def _draw(folder, manifest):
  """Some clips of the folder, decoded, under their captions."""
  names = [str(folder / shard["name"]) for shard in manifest["shards"]]
  records = ArrayRecordDataSource(names)
  places = np.linspace(0, len(records) - 1, min(SHOWN, len(records)))
  found = [safetensors.numpy.load(records[int(i)]) for i in places]
  codec = codecs.load_codec(folder)
  latents = [
    (x["mean"].astype(np.float32) - codec.mean) / codec.std for x in found
  ]
  videos = codecs.decode(codec, latents)
  captions = [
    json.loads(x["about"].tobytes())["captions"][0] or "no caption"
    for x in found
  ]
  rows = range(0, len(videos), 2)
  video_io.contact_sheet(
    [videos[i : i + 2] for i in rows],
    [captions[i : i + 2] for i in rows],
    folder / SHEET,
  )
