"""What a path opens as, from disks and from gs://, by many threads."""

import concurrent.futures
import pathlib
import pickle
import tarfile

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from goku_jax.data import items
from goku_jax.typing import UserError


class Bucket(MemoryFileSystem):
  """What gs:// reads in these tests: a file system in memory."""

  protocol = ("gcs", "gs")
  store = {}  # noqa: RUF012
  pseudo_dirs = [""]  # noqa: RUF012

  @classmethod
  def _strip_protocol(cls, path):
    path = path.removeprefix("gs://").removeprefix("gcs://").strip("/")
    return f"/{path}" if path else ""


@pytest.fixture
def bucket():
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  Bucket.store.clear()
  return fsspec.filesystem("gcs", finalize_on_close=True)


def fill(root, n=40):
  """A folder of pictures with captions, a manifest of it, a tar and records."""
  folder = root / "folder"
  folder.mkdir()
  rng = np.random.default_rng(0)
  for i in range(n):
    (folder / f"{i:03d}.mp4").write_bytes(rng.bytes(int(rng.integers(1, 9999))))
    (folder / f"{i:03d}.txt").write_text(f"caption {i}")
  lines = [f"{i:03d}.mp4,caption {i}\n" for i in range(n)]
  (folder / "list.csv").write_text("path,caption\n" + "".join(lines))
  with tarfile.open(root / "x.tar", "w") as tar:
    for path in sorted(folder.iterdir()):
      tar.add(path, arcname=path.name)
  source = items.open_items(str(folder))
  items.write_records(root / "x.array_record", source)
  names = ("folder", "folder/list.csv", "x.tar", "x.array_record")
  return [str(root / name) for name in names]


def contents(source):
  read = lambda media: media
  if isinstance(source[0].media, str):
    read = lambda path: pathlib.Path(path).read_bytes()
  return [(i.key, read(i.media), i.captions) for i in source]


def test_a_folder_a_manifest_a_tar_and_records_hold_the_same(tmp_path):
  paths = fill(tmp_path)
  folder, *others = [contents(items.open_items(path)) for path in paths]
  assert len(folder) == 40
  assert others == [folder] * 3


def test_many_threads_may_read(tmp_path):
  for path in fill(tmp_path):
    source = items.open_items(path)
    order = np.random.default_rng(1).integers(0, 40, 500).tolist()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      read = list(pool.map(source.__getitem__, order))
    once = list(source)
    assert read == [once[i] for i in order]


def test_a_source_may_be_sent_to_another_process(tmp_path):
  for path in fill(tmp_path, n=3):
    source = items.open_items(path)
    again = pickle.loads(pickle.dumps(source))
    assert list(again) == list(source)
    assert again.digest() == source.digest()


def test_indices_are_those_of_a_list(tmp_path):
  for path in fill(tmp_path, n=3):
    source = items.open_items(path)
    assert source[np.int64(1)] == source[-2] == source[1]
    with pytest.raises(IndexError):
      source[3]


def test_folders_manifests_and_tars_are_read_from_a_bucket(tmp_path, bucket):
  paths = fill(tmp_path, n=5)[:3]
  (tmp_path / "folder" / "sub").mkdir()
  (tmp_path / "folder" / "sub" / "b.png").write_bytes(b"b")
  bucket.put(str(tmp_path) + "/", "gs://bucket/data/", recursive=True)
  for path in paths:
    local = items.open_items(path)
    remote = items.open_items(path.replace(str(tmp_path), "gs://bucket/data"))
    assert contents(remote) == contents(local)
  assert remote.digest() == local.digest()
  folder = items.open_items("gs://bucket/data/folder/")
  assert folder.digest() == items.open_items(paths[0]).digest()
  assert len(items.open_items("gs://bucket/data/*.tar")) == 5


def test_what_a_bucket_lacks_is_an_error_or_a_problem(tmp_path, bucket):
  (tmp_path / "list.csv").write_text("path\na.mp4\n../b.mp4\n")
  bucket.put(str(tmp_path) + "/", "gs://bucket/", recursive=True)
  first, second = items.open_items("gs://bucket/list.csv")
  assert first.problem.startswith("cannot be read")
  assert second.problem == "its path leads outside the folder"
  with pytest.raises(UserError, match="does not exist"):
    items.open_items("gs://bucket/none")
  bucket.pipe("gs://bucket/x.array_record", b"x")
  with pytest.raises(UserError, match="copy it there"):
    items.open_items("gs://bucket/x.array_record")


@pytest.mark.parametrize(
  ("path", "reason"),
  [
    ("none", "does not exist"),
    ("none.csv", "does not exist"),
    ("none*.tar", "does not exist"),
    ("a.mp4", "give the folder of a media file"),
    ("latents", "holds prepared latents"),
    ("empty", "0 files"),
  ],
)
def test_a_path_of_no_use_is_an_error(tmp_path, path, reason):
  (tmp_path / "a.mp4").write_bytes(b"x")
  (tmp_path / "empty").mkdir()
  (tmp_path / "latents").mkdir()
  for name in ("manifest.json", "shard-00000.array_record"):
    (tmp_path / "latents" / name).write_bytes(b"x")
  with pytest.raises(UserError, match=reason):
    items.open_items(str(tmp_path / path))
