"""What a user asks for: prompts, sizes, files; checked before any work."""

import pathlib

from goku_jax import job
from goku_jax.data import schema, tokenize, video_io
from goku_jax.typing import UserError


def read_prompts(
  prompt: str | None, file: str | None, class_label: int | None = None
) -> list[str]:
  """The prompts of a flag or of a file with one a line.

  A class label may stand alone; its prompt is then "".

  Raises:
    UserError: none or both are given, or a prompt is empty or not UTF-8.
  """
  if prompt is file is None and class_label is not None:
    return [""]
  if (prompt is None) == (file is None):
    raise UserError(
      'give --prompt="..." or --prompts=FILE, one of the two; where the model'
      " has classes and no text, --class_label=N"
    )
  prompts = [prompt] if file is None else _read_lines(file)
  for line, text in enumerate(prompts, 1):
    where = "--prompt" if file is None else f"{file}, line {line}:"
    if not text.strip():
      raise UserError(f"{where} is empty: say what to show")
    tokenize.encode(text)  # refuses what is not UTF-8
  return prompts


def _read_lines(file: str) -> list[str]:
  try:
    text = pathlib.Path(file).read_bytes().decode()
  except OSError as error:
    raise UserError(f"--prompts={file}: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise UserError(
      f"--prompts={file} is not valid UTF-8 at byte {error.start}: save it as"
      " UTF-8"
    ) from error
  lines = [line for line in text.splitlines() if line.strip()]
  if not lines:
    raise UserError(f"--prompts={file} has no prompt: write one a line")
  return lines


def count_pieces(prompt: str) -> int:
  """Text tokens of a model with an encoder of its own."""
  return len(tokenize.encode(prompt))


def check_length(prompt: str, max_text: int, count=count_pieces):
  """Refuses a prompt that the model would have to cut."""
  length = count(prompt)
  if length > max_text:
    raise UserError(
      f"the prompt {prompt[:24]!r}... has {length} tokens and this model reads"
      f" {max_text}: shorten it"
    )


def check_condition(model, prompts: list[str], labels: list[int] | None):
  """Refuses prompts and class labels that the model does not take."""
  num_classes = model.config.num_classes
  if labels is not None and not num_classes:
    raise UserError("this model has no classes: leave class_label out")
  for label in labels or ():
    if not 0 <= label < num_classes:
      raise UserError(
        f"class_label={label} is not one of the model's, 0 to {num_classes - 1}"
      )
  reads_text = model.config.text_width > 0
  if not reads_text and any(prompts):
    raise UserError("this model reads no text: give class_label, no prompt")
  # With text too: training drops both or none, never the class alone.
  if num_classes and labels is None:
    raise UserError(f"give class_label, one of 0 to {num_classes - 1}")
  if reads_text and not all(prompts):
    raise UserError("this model reads text: give a prompt")
  if labels is not None and len(labels) != len(prompts):
    raise UserError(
      f"{len(prompts)} prompts have {len(labels)} class labels: give each one"
    )


def name_files(out: str, prompts: list[str], num_frames: int, *, many: bool):
  """The file of each prompt: `out` itself, or numbered ones in that folder.

  Raises:
    UserError: the frames are not 4k+1, or `out` cannot be written.
  """
  schema.check_frames(num_frames)
  suffix = ".png" if num_frames == 1 else ".mp4"
  if many:
    names = (f"{i:04d}{suffix}" for i in range(len(prompts)))
    files = [pathlib.Path(out) / name for name in names]
  else:
    files = [pathlib.Path(out)]
  video_io.check_suffix(files[0])
  if num_frames > 1 and files[0].suffix == ".png":
    raise UserError(f"--out={out} is an image: use .mp4, or --num_frames=1")
  job.make_folder(str(files[0].parent), "out")
  return files
