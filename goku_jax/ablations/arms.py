"""What is compared: runs that differ from each other in one thing.

An arm is trained once a seed. Those of a part share data, their order, noise
and what judges them.
"""

from typing import Any, NamedTuple

from goku_jax.config import near
from goku_jax.typing import UserError


class Arm(NamedTuple):
  """One side of a comparison.

  Attributes:
    part: of the study.
    name: within it.
    steps: of training.
    changes: of the config, by dotted key.
    begins_at: the arm whose weights it takes; None: new ones.
    size: of the data, in the config's `sides`.
    is_judged: else it is but what others begin at.
  """

  part: str
  name: str
  steps: int
  changes: dict
  begins_at: Any = None
  size: str = "large"
  is_judged: bool = True


TIMES = "loss.time.weights"
UNIFORM = {f"{TIMES}.uniform": 1.0, f"{TIMES}.logit_normal": 0.0}
OBJECTIVES = {  # section 2.3; DDPM's times are uniform, as published
  "flow, uniform": UNIFORM,
  "flow, logit-normal": {},
  "DDPM, linear, epsilon": UNIFORM | {"loss.objective": "ddpm"},
  "DDPM, cosine, v": UNIFORM
  | {
    "loss.objective": "ddpm",
    "loss.schedule": "cosine",
    "loss.prediction": "v",
  },
}
WIDTHS = (64, 128, 256)  # 32 a head


def objectives(part: str, steps: int, size: str = "large") -> list[Arm]:
  """Table 2: what a model is trained to predict."""
  return [
    Arm(part, name, steps, changes, size=size)
    for name, changes in OBJECTIVES.items()
  ]


def joint(part: str, steps: int) -> list[Arm]:
  """Figure 5b: text-to-video from one text-to-image model."""
  share = lambda images: {"data.image_share": images}
  first = Arm(part, "images", steps, share(1.0), is_judged=False)
  return [
    first,
    Arm(part, "clips and images", steps, {}, first),
    Arm(part, "clips alone", steps, share(0.0), first),
  ]


def sizes(part: str, steps: int) -> list[Arm]:
  """Figure 5a: widths, at equal samples."""
  return [
    Arm(
      part,
      f"width {width}",
      steps,
      {"model.width": width, "model.num_heads": width // 32},
    )
    for width in WIDTHS
  ]


def positions(part: str, steps: int) -> list[Arm]:
  """Section 2.2: what a model makes of a higher resolution."""
  found = []
  for kind in ("rope", "sinusoidal"):
    changes = {"model.positions": kind}
    small = Arm(part, f"{kind}, small", steps, changes, None, "small", False)
    found += [small, Arm(part, kind, steps, changes, small)]
  return found


PARTS = {
  "images": lambda *args: objectives(*args, "images"),  # by class
  "clips": objectives,  # packed with images, by captions
  "joint": joint,
  "sizes": sizes,
  "positions": positions,
}


def read(config) -> list[Arm]:
  """The arms of a config's parts, each after what it begins at.

  Raises:
    UserError: a part that there is not.
  """
  found = []
  for part in dict.fromkeys(config.parts.split(",")):
    if part not in PARTS:
      raise UserError(f"parts: {part!r} is none{near(part, PARTS)}")
    found += PARTS[part](part, config.steps[part])
  return found


def checkpoints(arm: Arm, count: int) -> list[int]:
  """Steps at which an arm is judged: evenly, and where it begins."""
  even = [arm.steps * (i + 1) // count for i in range(count)]
  return ([0] if arm.begins_at else []) + even
