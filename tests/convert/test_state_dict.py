"""Files of tensors under our names; what does not fit is told in a line."""

import pickle
import sys

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

from goku_jax import files, weights
from goku_jax.convert import formats, i3d, inception, state_dict, tensors
from goku_jax.typing import UserError

LAYOUTS = {"inception_fid": inception.layout, "i3d": i3d.layout}


def theirs(name):
  """Tensors as in the published file, in half precision, each another."""
  abstract, place_of = LAYOUTS[name]()

  def fill(leaf):
    x = np.arange(np.prod(leaf.shape), dtype=np.int32) % 2048
    return x.reshape(leaf.shape)

  tree = jax.tree.map(fill, abstract)
  found = tensors.to_tensors(tree, place_of, "float16")
  norms = [n.removesuffix("running_var") for n in found if "running_var" in n]
  counts = {f"{n}num_batches_tracked": np.zeros((), int) for n in norms}
  return tree, found | counts


@pytest.mark.parametrize(
  ("name", "count", "kernel", "var"),
  [
    (
      "inception_fid",
      566,
      ("Mixed_6b.branch7x7_2.conv.weight", (128, 128, 1, 7)),
      "Conv2d_1a_3x3.bn.running_var",
    ),
    (
      "i3d",
      344,
      ("Mixed_4f.b1b.conv3d.weight", (320, 160, 3, 3, 3)),
      "Mixed_3b.b0.bn.running_var",
    ),
  ],
)
def test_tensors_come_out_under_our_names(name, count, kernel, var, tmp_path):
  tree, found = theirs(name)
  assert len(found) == count
  assert found[kernel[0]].shape == kernel[1]
  assert var in found
  path = tmp_path / "theirs.safetensors"
  safetensors.numpy.save_file(found, path)
  result = formats.convert(path, name, tmp_path / "ours", reverse=False)
  got, config = weights.load(tmp_path / "ours")
  tree.get("fc", {}).pop("bias", None)
  chex.assert_trees_all_equal(got, jax.tree.map(np.float32, tree))
  assert config == {
    "network": name,
    "source_sha256": files.digest_file(path),
    "bn_eps": {"inception_fid": 1e-3, "i3d": 1e-5}[name],
  }
  assert result["network"] == name


def test_all_that_differs_in_the_architecture_is_told_at_once(tmp_path):
  _, found = theirs("i3d")
  del found["Mixed_3b.b0.bn.weight"]
  found["logits.conv3d.more"] = np.zeros(3)
  found["logits.conv3d.bias"] = np.zeros(5)
  safetensors.numpy.save_file(found, tmp_path / "a.safetensors")
  with pytest.raises(UserError) as error:
    i3d.read(tmp_path / "a.safetensors")
  assert str(error.value) == (
    "the weights are not of this architecture: 1 missing"
    " (Mixed_3b.b0.bn.weight), 1 unexpected (logits.conv3d.more),"
    " 1 misshapen (logits.conv3d.bias (5,) for (400,))"
  )


def test_weights_that_are_not_finite_are_refused(tmp_path):
  _, found = theirs("i3d")
  found["Mixed_3c.b2a.bn.bias"][3] = np.nan
  safetensors.numpy.save_file(found, tmp_path / "a.safetensors")
  with pytest.raises(UserError, match=r"Mixed_3c\.b2a\.bias has NaN"):
    i3d.read(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("inception_fid", r"should be pt_inception-2015-12-05-6726825d\.pth of .*"),
    ("i3d", r"should be i3d_pretrained_400\.pt, which .*TATS"),
  ],
)
def test_a_missing_file_is_told_with_where_it_comes_from(name, words, tmp_path):
  words = f"none.pth: No such file or directory. It {words}"
  with pytest.raises(UserError, match=words):
    formats.FORMATS[name].read(tmp_path / "none.pth")


def test_a_wrong_digest_is_refused(tmp_path):
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file({"a": np.zeros(3)}, path)
  digest = files.digest_file(path)
  assert state_dict.read(path, "a file", digest.upper())[1] == digest
  with pytest.raises(UserError, match=f"has the sha256 {digest}, not --sha256"):
    state_dict.read(path, "a file", "00")


@pytest.mark.parametrize("size", [0, 50, -1])
def test_a_file_cut_short_is_refused(size, tmp_path):
  path = tmp_path / "a.safetensors"
  safetensors.numpy.save_file({"a": np.zeros(3)}, path)
  path.write_bytes(path.read_bytes()[:size])
  with pytest.raises(UserError, match="cut short or not safetensors"):
    state_dict.read(path, "a file")


def test_a_file_of_torch_needs_torch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)  # as where it is missing
  (tmp_path / "a.pth").write_bytes(b"any")
  with pytest.raises(UserError, match="or give the same tensors as"):
    read_torch(tmp_path / "a.pth")


def read_torch(path):
  return state_dict.read(path, "a file", files.digest_file(path))


class Harm:
  """Unpickled by another reader, it would make a file."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (str(self.path), "w")


def test_a_pickle_is_not_opened_before_its_digest_matched(
  tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "torch", None)  # nothing asks for it
  path = tmp_path / "a.pth"
  path.write_bytes(pickle.dumps(Harm(tmp_path / "harm")))
  digest = files.digest_file(path)
  for name in LAYOUTS:
    read = formats.FORMATS[name].read
    with pytest.raises(UserError, match=f"is a pickle.*has {digest}"):
      read(path)
    with pytest.raises(UserError, match="not --sha256=00"):
      read(path, "00")


@pytest.mark.parity
@pytest.mark.parametrize(
  "content", ["code", "cut", "old", "empty", "page", "module", "list"]
)
def test_what_is_no_dict_of_tensors_is_refused(content, tmp_path):
  import torch

  path = tmp_path / "a.pth"
  if content == "module":
    torch.save(torch.nn.Linear(2, 2), path)
  elif content == "list":
    torch.save([torch.ones(3)], path)
  else:
    torch.save({"a": torch.ones(3)}, path)
    data = {
      "code": pickle.dumps(Harm(tmp_path / "harm"), protocol=2),
      "cut": path.read_bytes()[:-40],
      "old": b"\x80\x02X\x09",  # before torch 1.6
      "empty": b"",
      "page": b"<!DOCTYPE html><html>Not found</html>",
    }
    path.write_bytes(data[content])
  with pytest.raises(UserError, match=r"a\.pth (is cut short|holds)") as error:
    read_torch(path)
  assert not (tmp_path / "harm").exists()
  assert len(str(error.value).splitlines()) == 1


@pytest.mark.parity
def test_tensors_of_torch_are_read_whatever_their_dtype(tmp_path):
  import torch

  found = {"a": torch.arange(3, dtype=torch.bfloat16), "b": torch.tensor(7)}
  torch.save(found, tmp_path / "a.pth")
  got, _ = read_torch(tmp_path / "a.pth")
  chex.assert_trees_all_equal(
    got, {"a": np.arange(3, dtype=np.float32), "b": np.float32(7)}
  )
