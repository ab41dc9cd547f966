"""What cannot be drawn is refused in one line, before any work."""

import pytest

from goku_jax.models import goku
from goku_jax.sample import requests
from goku_jax.typing import UserError


def test_a_prompt_or_a_file_of_them_is_read(tmp_path):
  assert requests.read_prompts("five", None) == ["five"]
  file = tmp_path / "prompts.txt"
  file.write_text("five\n\n  \nsix — шесть\n")
  assert requests.read_prompts(None, str(file)) == ["five", "six — шесть"]


@pytest.mark.parametrize(
  ("prompt", "data", "says"),
  [
    (None, None, "one of the two"),
    ("five", b"six", "one of the two"),
    ("", None, "--prompt is empty"),
    (" \n", None, "--prompt is empty"),
    ("a\0b", None, "NUL"),
    ("\udcff", None, "not valid UTF-8"),
    (None, b"", "has no prompt"),
    (None, b"\n \n", "has no prompt"),
    (None, b"five\n\xff", "not valid UTF-8 at byte 5"),
  ],
)
def test_what_is_no_prompt_is_refused(tmp_path, prompt, data, says):
  file = None
  if data is not None:
    file = str(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_bytes(data)
  with pytest.raises(UserError, match=says):
    requests.read_prompts(prompt, file)


def test_a_file_that_is_not_there_is_named(tmp_path):
  with pytest.raises(UserError, match=r"none\.txt: No such file"):
    requests.read_prompts(None, f"{tmp_path}/none.txt")


def test_a_class_label_may_stand_alone():
  assert requests.read_prompts(None, None, 3) == [""]
  assert requests.read_prompts("five", None, 3) == ["five"]


TEXT = dict(width=32, depth=1, num_heads=2)


@pytest.mark.parametrize(
  ("sizes", "prompts", "labels", "says"),
  [
    (dict(text=TEXT), ["five"], [3], "has no classes: leave class_label out"),
    (dict(text=TEXT), [""], None, "reads text: give a prompt"),
    (dict(num_classes=10), ["five"], None, "reads no text: give class_label"),
    (dict(num_classes=10), ["five"], [5], "reads no text: give class_label"),
    (dict(num_classes=10), [""], None, "give class_label, one of 0 to 9"),
    (dict(num_classes=10), [""], [10], "class_label=10 is not one of"),
    (dict(num_classes=10), [""], [-1], "class_label=-1 is not one of"),
    (dict(num_classes=10, text=TEXT), [""], [5], "reads text: give a prompt"),
    (dict(num_classes=10, text=TEXT), ["five"], None, "give class_label, one"),
    (
      dict(num_classes=10, text=TEXT),
      ["a", "b"],
      [5],
      "2 prompts have 1 class",
    ),
  ],
)
def test_conditions_that_a_model_does_not_take_are_refused(
  sizes, prompts, labels, says
):
  with pytest.raises(UserError, match=says):
    requests.check_condition(goku.make_goku("debug", **sizes), prompts, labels)


def test_conditions_that_a_model_takes_pass():
  text, both, none = dict(text=TEXT), dict(text=TEXT, num_classes=10), {}
  for sizes, prompt, labels in (
    (text, "five", None),
    (both, "five", [9]),
    (dict(num_classes=10), "", [0]),
    (none, "", None),
  ):
    model = goku.make_goku("debug", **sizes)
    requests.check_condition(model, [prompt], labels)


def test_a_prompt_of_ten_thousand_characters_is_counted():
  with pytest.raises(
    UserError, match="has 2501 tokens and this model reads 32"
  ):
    requests.check_length("a" * 10_000, 32)
  requests.check_length("the digit five moves left", 32)


def test_files_are_named_and_refused(tmp_path):
  name = lambda out, frames=5, many=False: [
    str(file)
    for file in requests.name_files(
      f"{tmp_path}/{out}", ["a", "b"], frames, many=many
    )
  ]
  assert name("x.mp4") == [f"{tmp_path}/x.mp4"]
  assert name("d", 1, True) == [f"{tmp_path}/d/000{i}.png" for i in (0, 1)]
  for out, says in (("x.avi", "avi"), ("x", "suffix|x"), ("x.png", "an image")):
    with pytest.raises(UserError, match=says):
      name(out)
