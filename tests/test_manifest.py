"""The manifest guards itself, to the byte."""

import pytest

from goku_jax import manifest


def test_every_byte_of_the_manifest_counts(tmp_path):
  manifest.write(tmp_path, {"position": {"a b": [1, 2.5, None, "é"]}})
  path = tmp_path / "manifest.json"
  data = path.read_bytes()
  assert manifest.read(tmp_path)["position"] == {"a b": [1, 2.5, None, "é"]}
  for place in range(len(data)):
    for flipped in (data[place] ^ 0x01, data[place] ^ 0x29):
      path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
      with pytest.raises(manifest.BrokenError, match=r"manifest\.json"):
        manifest.read(tmp_path)


def test_a_folder_is_as_its_manifest_says(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "x").write_bytes(b"12345")
  manifest.write(tmp_path, {})
  files = manifest.read(tmp_path)["files"]
  assert list(files) == ["a/x"]
  manifest.check(tmp_path, files)
  (tmp_path / "a" / "x").write_bytes(b"12344")
  manifest.check(tmp_path, files, digests=False)
  with pytest.raises(manifest.BrokenError, match="a/x differs"):
    manifest.check(tmp_path, files)
  (tmp_path / "a" / "x").write_bytes(b"1234")
  with pytest.raises(manifest.BrokenError, match="a/x has 4 bytes, not 5"):
    manifest.check(tmp_path, files, digests=False)
