"""TFDS sets built on the spot, by TFDS itself and without TensorFlow.

Only a Video feature needs TensorFlow to build: its records are written here by
hand beside the features.json that TFDS wrote, and by TFDS in a slow test.
"""

import io
import json
import os
import pathlib
import pickle
import subprocess

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from goku_jax.data import media
from goku_jax.data.clips import Clips
from goku_jax.data.decoder import Decoder
from goku_jax.data.items import open_items
from goku_jax.typing import UserError

ROOT = pathlib.Path(__file__).parents[2]
NAMES = ["golden_fish", "white_shark"]
VIDEO_FEATURES = {
  "featuresDict": {
    "features": {
      "fps": {
        "pythonClassName": "tensorflow_datasets.core.features.tensor_feature.Tensor",  # noqa: E501
        "tensor": {"dtype": "float32", "encoding": "none", "shape": {}},
      },
      "label": {
        "classLabel": {"numClasses": "2"},
        "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",  # noqa: E501
      },
      "video": {
        "pythonClassName": "tensorflow_datasets.core.features.video_feature.Video",  # noqa: E501
        "video": {
          "dtype": "uint8",
          "encodingFormat": "png",
          "shape": {"dimensions": ["-1", "8", "10", "3"]},
        },
      },
    }
  },
  "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",  # noqa: E501
}


def encoded(image, kind="PNG"):
  file = io.BytesIO()
  Image.fromarray(image).save(file, kind)
  return file.getvalue()


def picture(i):
  return np.random.default_rng(i).integers(0, 256, (8, 10, 3), np.uint8)


def build(data_dir, name, features, examples, config=None, splits=("train",)):
  """A set of TFDS: `features(tfds.features)` and a list of examples."""
  import tensorflow_datasets as tfds
  from etils import epath

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(data_dir)
    code_path = None  # of which checksums would be sought
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=features(tfds.features)
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples() for split in splits}

    def _generate_examples(self):
      yield from enumerate(examples)

  Builder.name = name
  builder = Builder(data_dir=data_dir, file_format="array_record")
  builder.download_and_prepare()
  return pathlib.Path(builder.data_path)


def images(data_dir, n=6, **more):
  features = lambda f: f.FeaturesDict({
    "image": f.Image(),
    "label": f.ClassLabel(names=NAMES),
    "file_name": f.Text(),
    "aesthetic": f.Scalar(np.float32),
  })  # fmt: skip
  examples = [
    {
      "image": io.BytesIO(encoded(picture(i))),
      "label": i % 2,
      "file_name": f"{i}.png",
      "aesthetic": i / 2 if i else float("nan"),
    }
    for i in range(n)
  ]
  return build(data_dir, "tiny", features, examples, **more)


def clips(data_dir, shape, encoding, examples):
  import tensorflow_datasets as tfds

  tensor = tfds.features.Tensor(shape=shape, dtype=np.uint8, encoding=encoding)
  features = lambda f: f.FeaturesDict(
    {"clip": {"pixels": tensor}, "captions": f.Sequence({"text": f.Text()})}
  )
  build(data_dir, "films", features, [
    {"clip": {"pixels": video}, "captions": [{"text": t} for t in texts]}
    for video, texts in examples
  ])  # fmt: skip
  return open_items(f"tfds:films@{data_dir}")


def write_videos(data_dir, examples, shards=(2, 1)):
  """A set with a Video feature, as TFDS lays it out."""
  from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

  folder = data_dir / "films" / "cut" / "2.0.0"
  folder.mkdir(parents=True)
  (folder / "features.json").write_text(json.dumps(VIDEO_FEATURES))
  (folder / "label.labels.txt").write_text("\n".join(NAMES) + "\n")
  split = {"name": "train", "shardLengths": list(map(str, shards))}
  split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
  info = {"fileFormat": "array_record", "name": "films", "splits": [split]}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  examples = iter(examples)
  for k, length in enumerate(shards):
    path = folder / f"films-train.array_record-{k:05d}-of-{len(shards):05d}"
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for _ in range(length):
      kinds = {"fps": "float_list", "label": "int64_list"}
      feature = {
        k: tf_feature_pb2.Feature(**{kinds.get(k, "bytes_list"): {"value": v}})
        for k, v in next(examples).items()
      }
      features = tf_feature_pb2.Features(feature=feature)
      example = tf_example_pb2.Example(features=features)
      writer.write(example.SerializeToString())
    writer.close()
  return folder


def pixels(item):
  """All frames of an item as the decoder gives them."""
  probe = media.probe(item.media)
  times = [i / probe.fps if probe.fps else 0.0 for i in range(probe.frames)]
  return media.read(item.media, times, (probe.height, probe.width))


def test_a_set_of_images_is_read_as_encoded(tmp_path):
  images(tmp_path)
  source = open_items(f"tfds:tiny@{tmp_path}")
  assert source.classes == [name.replace("_", " ") for name in NAMES]
  items = list(source)
  assert [item.key for item in items] == [f"train/{i:07d}" for i in range(6)]
  encoded_images = [encoded(picture(i)) for i in range(6)]
  order = [encoded_images.index(item.media) for item in items]
  assert sorted(order) == list(range(6))
  for i, item in zip(order, items, strict=True):
    assert item.captions == (NAMES[i % 2].replace("_", " "),)
    aesthetic = {"aesthetic": i / 2} if i else {}
    assert item.scores == {"label": i % 2, **aesthetic}
    np.testing.assert_array_equal(pixels(item)[0], picture(i))
  assert list(pickle.loads(pickle.dumps(source))) == items


def test_labels_are_the_classes_of_clips(tmp_path):
  images(tmp_path)
  source = open_items(f"tfds:tiny@{tmp_path}")
  settings = dict(fps=0.0, min_frames=5, max_frames=5, step_frames=4)
  settings |= dict(pictures=True, pixels=64, multiple=8, clips_per_file=1)
  settings |= dict(captions="required", motion_score=False)
  with Decoder(1) as decoder:
    clips = Clips(source, decoder, **settings)
    assert clips.num_classes == 2
    for i, item in enumerate(source):
      (clip,) = clips.cut(i)
      assert clip["class"] == NAMES.index(item.captions[0].replace(" ", "_"))


def test_splits_are_chosen_as_tfds_writes_them(tmp_path):
  images(tmp_path, splits=("train", "test"))
  keys = lambda spec: [
    item.key for item in open_items(f"tfds:tiny:{spec}@{tmp_path}")
  ]
  train, test = (
    [f"{split}/{i:07d}" for i in range(6)] for split in ("train", "test")
  )
  assert keys("test+train") == test + train
  assert keys("train[:50%]") == train[:3]
  assert keys("train[40%:]") == train[2:]
  assert keys("train[1:-2]+train[5:]") == train[1:4] + train[5:]
  for split, reason in [
    ("val", "none of the splits train test"),
    ("train[0:2:1]", "none of the splits"),
    ("train[:0]", "0 records"),
    ("train[:3]+train[2:]", "names some records twice"),
  ]:
    with pytest.raises(UserError, match=reason):
      keys(split)


def test_the_place_may_come_from_the_environment(tmp_path, monkeypatch):
  images(tmp_path, n=1)
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
  digests = {open_items("tfds:tiny").digest()}
  digests.add(open_items("tfds:tiny/1.0.0:train").digest())
  assert len(digests) == 1


def test_a_set_that_is_not_there_says_how_to_build_it(tmp_path):
  command = f"bash launch/tfds_prepare.sh ucf101 {tmp_path}"
  with pytest.raises(UserError, match=f"no TFDS set: {command}"):
    open_items(f"tfds:ucf101@{tmp_path}")
  with pytest.raises(UserError, match="not of the form"):
    open_items("tfds:")


def test_the_only_config_and_the_newest_version_are_found(tmp_path):
  folder = images(tmp_path, n=2, config="small")
  (folder / "x").mkdir()
  folder.rename(folder.parent / "9.0.0")
  images(tmp_path, n=3, config="small").rename(folder.parent / "10.0.0")
  assert len(open_items(f"tfds:tiny@{tmp_path}")) == 3
  assert len(open_items(f"tfds:tiny/small/9.0.0@{tmp_path}")) == 2
  images(tmp_path, n=1, config="large")
  with pytest.raises(UserError, match="several configs, name one: large small"):
    open_items(f"tfds:tiny@{tmp_path}")
  assert len(open_items(f"tfds:tiny/large@{tmp_path}")) == 1


def test_a_set_of_another_format_or_without_media_is_an_error(tmp_path):
  folder = images(tmp_path, n=1)
  features = json.loads((folder / "features.json").read_text())
  del features["featuresDict"]["features"]["image"]
  (folder / "features.json").write_text(json.dumps(features))
  with pytest.raises(UserError, match=r"no Video, .*aesthetic \(Scalar\)"):
    open_items(f"tfds:tiny@{tmp_path}")
  info = json.loads((folder / "dataset_info.json").read_text())
  info["fileFormat"] = "tfrecord"
  (folder / "dataset_info.json").write_text(json.dumps(info))
  with pytest.raises(UserError, match="is not of array_record: bash launch"):
    open_items(f"tfds:tiny@{tmp_path}")


@pytest.mark.parametrize(
  ("shape", "encoding"),
  [
    ((3, 8, 10, 3), "none"),
    ((None, 8, 10, 3), "none"),
    ((None, None, None, 3), "bytes"),
    ((3, 8, 10, 3), "zlib"),
  ],
)
def test_tensors_become_films_without_loss(tmp_path, shape, encoding):
  videos = [np.stack([picture(3 * i + t) for t in range(3)]) for i in range(2)]
  texts = [["short 0", "dense"], []]
  source = clips(tmp_path, shape, encoding, zip(videos, texts, strict=True))
  for item in source:
    assert item.problem is None
    i = 0 if item.captions else 1
    assert item.captions == tuple(texts[i])
    np.testing.assert_array_equal(pixels(item), videos[i])
    assert media.probe(item.media).fps == pytest.approx(25)


def test_a_tensor_of_one_frame_is_a_picture(tmp_path):
  example = picture(0), ["x"]
  (item,) = clips(tmp_path, (8, 10, 3), "none", [example])
  assert item.media.startswith(b"\x89PNG")
  np.testing.assert_array_equal(pixels(item)[0], picture(0))


def test_frames_of_a_video_become_a_film_without_loss(tmp_path):
  videos = [[picture(4 * i + t) for t in range(i + 2)] for i in range(2)]
  jpegs = [encoded(np.full((16, 24, 3), (200, 90, 30), np.uint8), "JPEG")] * 3
  rows = [[encoded(frame) for frame in video] for video in videos] + [jpegs]
  examples = [
    {"video": row, "label": [i % 2], "fps": [12.5, 0, 24][i : i + 1]}
    for i, row in enumerate(rows)
  ]
  write_videos(tmp_path, examples)
  source = open_items(f"tfds:films@{tmp_path}")
  for video, item, fps in zip(videos, source, (12.5, 25), strict=False):
    np.testing.assert_array_equal(pixels(item), np.stack(video))
    assert media.probe(item.media).fps == pytest.approx(fps)
  assert source[0].captions == ("golden fish",)
  shown = pixels(source[2]).astype(int)
  assert shown.shape == (3, 16, 24, 3)
  assert np.abs(shown - (200, 90, 30)).max() < 4


def test_a_bad_record_is_a_problem(tmp_path):
  good = {"video": [encoded(picture(0))], "label": [1], "fps": [8]}
  examples = [
    good | {"label": [-1]},
    good | {"video": []},
    good | {"video": [b"GIF8", b"GIF8"]},
    good | {"video": [*good["video"], b"\xff\xd8\xff"]},
    good | {"video": [b"\x89PNG and no more"]},
    {"label": [0]},
  ]
  folder = write_videos(tmp_path, examples, shards=(5, 1, 0))
  path = folder / "films-train.array_record-00002-of-00003"
  path.write_bytes(b"")
  info = json.loads((folder / "dataset_info.json").read_text())
  info["splits"][0]["shardLengths"] = [5, 1, 2]
  (folder / "dataset_info.json").write_text(json.dumps(info))
  items = list(open_items(f"tfds:films@{tmp_path}"))
  assert (items[0].captions, items[0].problem) == ((), None)
  assert [item.problem for item in items[1:6]] == [
    "has no video",
    "its frames are neither all PNG nor all JPEG",
    "its frames are neither all PNG nor all JPEG",
    "its first frame cannot be read",
    "has no video",
  ]
  assert all(
    f"record {i} of {path.name} cannot be read" in items[6 + i].problem
    for i in range(2)
  )
  assert len(items) == 8


def test_a_record_of_something_else_is_a_problem(tmp_path):
  folder = images(tmp_path, n=2)
  (path,) = folder.glob("*.array_record-*")
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  for data in (b"hello", b""):
    writer.write(data)
  writer.close()
  reasons = [item.problem for item in open_items(f"tfds:tiny@{tmp_path}")]
  assert reasons == [
    "is no record of the features that the set has", "has no image"
  ]  # fmt: skip


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {
      "video": tfds.features.Video(shape=(None, 8, 10, 3)),
      "image": tfds.features.Image(),
      "label": tfds.features.ClassLabel(names=["golden_fish", "white_shark"]),
    }
    return self.dataset_info_from_configs(
      features=tfds.features.FeaturesDict(features)
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i in range(4):
      video = np.full((i + 1, 8, 10, 3), 9 * i, np.uint8)
      yield i, {"video": video, "image": video[0], "label": i % 2}
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_the_script_builds_is_read_without_tensorflow(tmp_path):
  package = tmp_path / "tiny_film"
  package.mkdir()
  (package / "__init__.py").touch()
  (package / "tiny_film_dataset_builder.py").write_text(BUILDER)
  script = ["bash", str(ROOT / "launch" / "tfds_prepare.sh")]
  subprocess.run(
    [*script, "tiny_film", "built"], cwd=tmp_path, check=True, env=os.environ
  )
  items = list(open_items(f"tfds:tiny_film@{tmp_path / 'built'}"))
  assert len(items) == 4
  for item in items:
    video = pixels(item)
    assert video.shape[1:] == (8, 10, 3)
    i = len(video) - 1
    assert (video == 9 * i).all()
    assert item.captions == (NAMES[i % 2].replace("_", " "),)
