"""tf.train.Example is read as protocol buffers write it."""

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from goku_jax.data.tf_example import parse_example

INTEGERS = [0, 1, 127, 128, 300, -1, 2**31, 2**63 - 1, -(2**63)]
FLOATS = [0.0, -1.5, 3e38]
BYTES = [b"", b"a", b"x" * 70_000]


def message(**features):
  return tf_example_pb2.Example(
    features=tf_feature_pb2.Features(
      feature={k: tf_feature_pb2.Feature(**v) for k, v in features.items()}
    )
  )


@pytest.fixture
def data():
  return message(
    integers={"int64_list": {"value": INTEGERS}},
    floats={"float_list": {"value": FLOATS}},
    bytes={"bytes_list": {"value": BYTES}},
    **{"no/integers": {"int64_list": {}}, "nothing": {}},
  ).SerializeToString()


def test_every_kind_of_feature_is_read(data):
  example = parse_example(data)
  assert example["integers"].tolist() == INTEGERS
  np.testing.assert_array_equal(example["floats"], np.float32(FLOATS))
  assert example["bytes"] == BYTES
  assert len(example["no/integers"]) == len(example["nothing"]) == 0
  assert len(example) == 5


def test_numbers_that_are_not_packed_are_read():
  # 1: entry of (1: "n", 2: Feature of 3: Int64List of 1: 300, then 1: 5), each
  # number by itself, as old writers do; and floats likewise.
  integers = b"\x1a\x05\x08\xac\x02\x08\x05"
  floats = b"\x12\x0a" + b"\x0d" + np.float32(2).tobytes() * 1
  floats += b"\x0d" + np.float32(-3).tobytes()
  for feature, values in ((integers, [300, 5]), (floats, [2.0, -3.0])):
    entry = b"\x0a\x01n\x12" + bytes([len(feature)]) + feature
    entries = b"\x0a" + bytes([len(entry)]) + entry
    example = parse_example(b"\x0a" + bytes([len(entries)]) + entries)
    assert example["n"].tolist() == values


def test_a_record_cut_anywhere_is_an_error_or_says_less(data):
  whole = parse_example(data)
  for length in [*range(1, 200), len(data) - 1]:
    with pytest.raises(ValueError, match=r"tf\.train\.Example"):
      parse_example(data[:length])
  assert parse_example(b"") == {}
  assert len(whole) == 5


def test_bytes_of_another_kind_are_an_error():
  rng = np.random.default_rng(0)
  caught = 0
  for size in rng.integers(1, 99, 300):
    try:
      parse_example(rng.bytes(int(size)))
    except ValueError:
      caught += 1
  assert caught > 250
