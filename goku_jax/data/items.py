"""Items of a user's data: media files or their bytes, captions and scores.

What `open_items` takes:

  FOLDER                  mp4 mkv webm mov avi gif png jpg jpeg webp below it,
                          captions in .txt or .json files of the same stem
  FILE.csv .jsonl .json .parquet   a manifest: path, caption(s), scores
  FILE.tar, DIR/*.tar, a folder of tars      WebDataset
  FILE.array_record, DIR/*.array_record, a folder of them    `write_records`
  tfds:NAME[:SPLIT][@DIR]         what `launch/tfds_prepare.sh` built

Folders, manifests and tars may lie on gs://. Every file or row is an item, also
one that cannot be used: it says why in `problem`.
"""

from etils import epath

from goku_jax.data import item_readers, manifests, tars, tfds_items
from goku_jax.data.item_readers import Item as Item
from goku_jax.data.item_records import Records
from goku_jax.data.item_records import write_records as write_records
from goku_jax.typing import UserError

_LATENTS = "manifest.json"  # in a folder that prepare finished


def open_items(path: str) -> item_readers.Source:
  """The source of items at a path.

  Raises:
    UserError: there is nothing, or nothing of these kinds.
  """
  if path.startswith("tfds:"):
    return tfds_items.Tfds(path)
  try:
    return _open(path, epath.Path(path))
  except ImportError as error:  # fsspec asks for gcsfs, s3fs, ...
    raise UserError(f"{path} cannot be opened: {error}") from error


def _open(name, path):
  if path.is_dir():
    return _open_folder(name, path)
  paths = [path] if path.exists() else sorted(path.parent.glob(path.name))
  if not paths:
    raise UserError(f"{name} does not exist")
  suffix = path.suffix.lower()
  if suffix in manifests.SUFFIXES and paths == [path]:
    return manifests.Manifest(name)
  if suffix == ".tar":
    return tars.Tars(name, paths)
  if suffix == ".array_record":
    return _open_records(name, paths)
  raise UserError(
    f"{name} is no folder, manifest ({' '.join(manifests.SUFFIXES)}), .tar or "
    ".array_record: give the folder of a media file"
  )


def _open_folder(name, path):
  tree = item_readers.Tree(str(path))
  files = tree.files()
  of = lambda suffix: [path / f for f in files if f.endswith(suffix)]
  records = of(".array_record")
  if records and _LATENTS in files:
    raise UserError(f"{name} holds prepared latents, not media: set data.path")
  if not any(map(item_readers.is_media, files)):
    if of(".tar"):
      return tars.Tars(name, of(".tar"))
    if records:
      return _open_records(name, records)
  return item_readers.Folder(name, tree, files)


def _open_records(name, paths):
  if "://" in name:
    raise UserError(f"{name}: ArrayRecord is read from a disk; copy it there")
  return Records(name, paths)
