"""Items of a TFDS set that was built as array_record, without TensorFlow.

`tfds:NAME[:SPLIT][@DIR]`: NAME may hold a config and a version
(`ucf101/ucf101_1_256/2.0.0`), SPLIT is as TFDS writes it (`train[:1%]+test`;
`train` if left out), DIR is TFDS_DATA_DIR if left out. Of a record are taken

  media     the feature of kind Video, Image, or Tensor of uint8 [T, H, W, 3] or
            [H, W, 3], see `tfds_media`
  captions  Text of the name `caption`, `captions` or `text`, else the name of
            the class, with spaces
  scores    scalars, and the number of the class: of `label`, or of the first
            feature whose classes have names

The key is the split and the number in it, `train/0000012`.
"""

import bisect
import json
import os
import pathlib
import re
from collections.abc import Iterator

from goku_jax.data import tfds_media
from goku_jax.data.item_readers import (
  Item,
  Problem,
  Source,
  captions_and_scores,
)
from goku_jax.data.item_records import Shard
from goku_jax.data.tf_example import parse_example
from goku_jax.data.tfds_media import Feature
from goku_jax.typing import UserError

_CAPTIONS = ("caption", "captions", "text")
_SPEC = re.compile(r"tfds:([\w./-]+)(?::([^@]+))?(?:@(.+))?")
_PART = re.compile(r"([\w-]+)(?:\[(-?\d+%?)?:(-?\d+%?)?\])?")


class Tfds(Source):
  """The records of the splits that are named, in their order.

  Raises:
    UserError: no such set or split, none of array_record, or none with media.
  """

  def __init__(self, name: str):
    super().__init__(name)
    spec = _SPEC.fullmatch(name)
    if not spec:
      raise UserError(f"{name} is not of the form tfds:NAME[:SPLIT][@DIR]")
    folder = _find_folder(spec[1], spec[3])
    self._info = json.loads((folder / "dataset_info.json").read_text())
    if self._info.get("fileFormat") != "array_record":
      raise UserError(
        f"{folder} is not of array_record: {_prepare(spec[1], spec[3])}"
      )
    features = json.loads((folder / "features.json").read_text())
    features = list(_flatten(features))
    self._media = tfds_media.choose(features)
    if not self._media:
      found = ", ".join(f"{f.name} ({f.kind})" for f in features)
      raise UserError(
        f"{name} has no Video, Image or uint8 Tensor, but {found}"
      )
    self._texts = [
      f.name for f in features if f.kind == "Text" and f.base in _CAPTIONS
    ]
    self._scalars = [f for f in features if f.is_scalar]
    self.label, self.classes = _read_names(folder, self._scalars)
    splits = {split["name"]: split for split in self._info["splits"]}
    self._parts = _choose_records(name, spec[2] or "train", splits)
    self._shards = {
      split: _Shards(folder, self._info["name"], splits[split])
      for split, _ in self._parts
    }
    self._ends = []  # items in parts 0..k together
    for _, numbers in self._parts:
      self._ends.append(len(numbers) + (self._ends[-1] if self._ends else 0))
    if not len(self):
      raise UserError(f"0 records: {name} names none")

  def __len__(self) -> int:
    return self._ends[-1]

  def _place(self, i) -> tuple[str, int]:
    """Split and number of a record."""
    part = bisect.bisect_right(self._ends, i)
    split, numbers = self._parts[part]
    return split, numbers[i - self._ends[part]]

  def _key(self, i):
    split, number = self._place(i)
    return f"{split}/{number:07d}"

  def _read(self, i):
    split, number = self._place(i)
    record = self._shards[split][number]
    try:
      example = parse_example(record)
      row = {f.name: _scalar(example, f) for f in self._scalars}
      texts = [t.decode() for k in self._texts for t in example.get(k, ())]
    except UnicodeDecodeError:
      raise Problem("a caption is not UTF-8") from None
    except (ValueError, AttributeError):
      raise Problem("is no record of the features that the set has") from None
    captions, scores = captions_and_scores(row | {"captions": texts})
    label = row.get(self.label)
    if not self._texts and label is not None and 0 <= label < len(self.classes):
      captions = (self.classes[label],)
    media = tfds_media.encode(self._media, example, scores.get("fps"))
    return Item(self._key(i), media, captions, scores)

  def _identity(self):
    names = ("name", "configName", "version")
    yield [self._info.get(name) for name in names]
    for split, numbers in self._parts:
      yield [split, numbers.start, numbers.stop, self._shards[split].about]


class _Shards:
  """The records of a split by number."""

  def __init__(self, folder, name, split):
    self.about = split["shardLengths"], split.get("numBytes")
    lengths = list(map(int, split["shardLengths"]))
    self._ends = [sum(lengths[: k + 1]) for k in range(len(lengths))]
    template = split.get("filepathTemplate") or (
      "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    )
    self._shards = [
      Shard(folder / _file_name(template, name, split["name"], k, len(lengths)))
      for k in range(len(lengths))
    ]

  def __getitem__(self, number: int) -> bytes:
    k = bisect.bisect_right(self._ends, number)
    return self._shards[k][number - (self._ends[k - 1] if k else 0)]


def _file_name(template, name, split, shard, count):
  return template.format(
    DATASET=name,
    SPLIT=split,
    FILEFORMAT="array_record",
    SHARD_INDEX=f"{shard:05d}",
    NUM_SHARDS=f"{count:05d}",
    SHARD_X_OF_Y=f"{shard:05d}-of-{count:05d}",
  )


def _find_folder(name, data_dir) -> pathlib.Path:
  """The folder of a set: its newest version, its only config."""
  home = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  if "://" in home:
    raise UserError(f"{home}: ArrayRecord is read from a disk; copy it there")
  folder = pathlib.Path(home).expanduser() / name
  for depth in range(3):  # the version, one above it, two above it
    found = [
      path.parent for path in folder.glob("*/" * depth + "features.json")
    ]
    configs = sorted({str(path.parent) for path in found})
    if depth == 2 and len(configs) > 1:
      names = " ".join(pathlib.Path(config).name for config in configs)
      raise UserError(f"tfds:{name} has several configs, name one: {names}")
    if found:
      return max(found, key=_version)
  raise UserError(f"{folder} holds no TFDS set: {_prepare(name, data_dir)}")


def _version(path):
  return [int(number) for number in re.findall(r"\d+", path.name)]


def _prepare(name, data_dir):
  return f"bash launch/tfds_prepare.sh {name} {data_dir or ''}".strip()


def _flatten(feature, name="", repeated=False) -> Iterator[Feature]:
  """The leaves of features.json, in the order of their names."""
  kind = feature["pythonClassName"].rsplit(".", 1)[-1]
  content = {}  # of the one entry that says more than a description
  for value in feature.values():
    content |= value if isinstance(value, dict) else {}
  if "features" in content:
    for key, child in sorted(content["features"].items()):
      yield from _flatten(child, f"{name}/{key}" if name else key, repeated)
  elif "feature" in content:  # a sequence
    yield from _flatten(content["feature"], name, True)
  else:
    yield Feature(name, kind, content, repeated)


def _read_names(folder, scalars) -> tuple[str | None, list[str]]:
  """The feature that has classes, `label` before others, and their names."""
  for feature in sorted(scalars, key=lambda f: f.base != "label"):
    path = folder / f"{feature.name.replace('/', '-')}.labels.txt"
    if feature.kind == "ClassLabel" and path.exists():
      lines = path.read_text(encoding="utf-8").splitlines()
      names = [line.strip().replace("_", " ") for line in lines]
      return feature.name, names
  return None, []


def _scalar(example, feature):
  value = example.get(feature.name, ())
  return value[0].item() if len(value) else None


def _choose_records(name, spec, splits) -> list[tuple[str, range]]:
  """Splits and numbers of their records."""
  parts = []
  for text in spec.split("+"):
    part = _PART.fullmatch(text)
    if not part or part[1] not in splits:
      raise UserError(
        f"{name}: {text} is none of the splits {' '.join(splits)}"
      )
    total = sum(map(int, splits[part[1]]["shardLengths"]))
    begin, end = (_bound(bound, total) for bound in part.groups()[1:])
    parts.append((part[1], range(total)[begin:end]))
  numbers = [(split, n) for split, r in parts for n in r] if parts[1:] else []
  if len(set(numbers)) < len(numbers):
    raise UserError(f"{name} names some records twice")
  return parts


def _bound(text, total):
  if text and text.endswith("%"):
    return round(int(text[:-1]) * total / 100)  # to the nearest, as TFDS
  return int(text) if text else None
