"""Reads tf.train.Example, a protocol buffer, without TensorFlow.

In its wire format a message is a sequence of (number << 3 | wire type, value):

  Example    1: Features      Features   1: entries of (1: name, 2: Feature)
  Feature    1: BytesList  2: FloatList  3: Int64List, of which 1: the values
"""

import numpy as np


def parse_example(data: bytes) -> dict[str, list[bytes] | np.ndarray]:
  """The features of a record: bytes, or arrays of float32 or int64.

  Raises:
    ValueError: it is no Example.
  """
  features = {}
  try:
    for entries in _values(memoryview(data), 1):
      for entry in _values(entries, 1):
        entry = dict(_fields(entry))
        name = bytes(entry[1]).decode()
        features[name] = _feature(entry.get(2, memoryview(b"")))
  except (IndexError, KeyError, TypeError) as error:
    raise ValueError("no tf.train.Example") from error
  return features


def _feature(data):
  for kind, values in _fields(data):
    chunks = list(_values(values, 1))
    if kind == 1:
      return [bytes(chunk) for chunk in chunks]
    if kind == 2:  # packed or one by one, it is the same bytes
      return np.frombuffer(b"".join(chunks), "<f4")
    if kind == 3:
      if all(isinstance(chunk, int) for chunk in chunks):
        chunks = np.array(chunks, np.uint64)
        return chunks.view(np.int64)
      return _varints(b"".join(chunks))
  return []


def _values(data, number):
  return (value for n, value in _fields(data) if n == number)


def _fields(data: memoryview):
  """Field numbers and their values: ints, or views of bytes."""
  at = 0
  while at < len(data):
    tag, at = _varint(data, at)
    wire = tag & 7
    if wire == 0:
      value, at = _varint(data, at)
    elif wire in (1, 2, 5):
      size, at = _varint(data, at) if wire == 2 else (8 if wire == 1 else 4, at)
      value, at = data[at : at + size], at + size
      if at > len(data):
        raise ValueError("no tf.train.Example: it ends early")
    else:
      raise ValueError("no tf.train.Example: an unknown wire type")
    yield tag >> 3, value


def _varint(data, at) -> tuple[int, int]:
  """Seven bits a byte, the low ones first; the top bit says that more come."""
  value = shift = 0
  while data[at] > 127:
    value |= (data[at] & 127) << shift
    at, shift = at + 1, shift + 7
  return value | data[at] << shift, at + 1


def _varints(data: bytes) -> np.ndarray:
  """All of them at once: a clip stored as integers has millions."""
  bytes_ = np.frombuffer(data, np.uint8)
  is_last = bytes_ < 128
  if not len(bytes_) or not is_last[-1]:
    raise ValueError("no tf.train.Example: a number ends early")
  starts = np.flatnonzero(np.concatenate([[True], is_last[:-1]]))
  lengths = np.diff(np.append(starts, len(bytes_)))
  shifts = 7 * (np.arange(len(bytes_)) - np.repeat(starts, lengths))
  parts = (bytes_ & 127).astype(np.uint64) << shifts.astype(np.uint64)
  return np.add.reduceat(parts, starts).view(np.int64)
