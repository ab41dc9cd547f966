"""Films are cut where the picture jumps, and nothing of a shot is lost."""

import numpy as np
import pytest

from goku_jax import config, job
from goku_jax.data import video_io
from goku_jax.prepare import __main__ as prepare_main
from tests import runs


@pytest.fixture(scope="module")
def film(real_videos, tmp_path_factory):
  """Two shots of real films, one after the other, and a flash of a third."""
  take = lambda name, n: video_io.read_frames(
    real_videos[name], range(n), (96, 128)
  )
  path = tmp_path_factory.mktemp("films") / "film.mp4"
  parts = [take("bikes", 30), take("carphone_pristine", 20)]
  parts.append(np.zeros_like(parts[0][:3]))
  video_io.write_video(path, np.concatenate(parts), fps=24)
  return path


def prepare(workdir, path):
  found = config.read_config(f"{runs.ROOT}/configs/vae.py:shots")
  with found.unlocked():
    found.data.path = path
    found.data.shots.resolution = 48
  return prepare_main.main(str(workdir), False, found)


def test_a_film_is_cut_into_its_shots(film, workdir):
  result = prepare(workdir, str(film.parent))
  assert (result["films"], result["shots"], result["frames"]) == (1, 2, 50)
  names = sorted(path.name for path in workdir.glob("*.mp4"))
  assert names == ["film-000000.mp4", "film-000030.mp4"]
  assert not list(workdir.glob("*.partial"))
  whole = video_io.read_frames(film, range(50), (48, 64))
  for name, first, frames in zip(names, (0, 30), (30, 20), strict=True):
    assert video_io.probe(workdir / name) == (frames, 48, 64, 24.0)
    shot = video_io.read_frames(workdir / name, range(frames))
    error = np.abs(shot.astype(int) - whole[first : first + frames])
    assert error.mean((1, 2, 3)).max() < 4


def test_no_folder_is_one_line(workdir):
  with pytest.raises(job.UserError, match=r"set --config.data.path to a"):
    prepare(workdir, None)


def test_a_list_under_the_name_of_a_film_is_refused(film, workdir, tmp_path):
  text = f"ffconcat version 1.0\nfile {film.name}\n"
  (tmp_path / "a.mp4").write_text(text)
  (tmp_path / film.name).symlink_to(film)
  with pytest.raises(job.UserError, match=r"a\.mp4: cannot read it"):
    prepare(workdir, str(tmp_path))
  assert not list(workdir.glob("a-*"))
