"""A run's autoencoder without the run, its latents measured on data."""

import jax
import numpy as np
import pytest

from goku_jax import checkpoint, job, weights
from goku_jax.convert import formats
from goku_jax.data import shards, sources, video_io
from goku_jax.models import vae, vae_stream
from goku_jax.prepare import latents
from goku_jax.sample import codec, restore
from goku_jax.typing import UserError
from tests import runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A workdir of an untrained autoencoder, and what is in it."""
  folder = tmp_path_factory.mktemp("vae")
  config = runs.read_config("vae")
  job.save_config(folder, config)
  model = vae.make_vae(**config.model)
  init = jax.jit(model.init)
  params = init(jax.random.key(0), np.zeros((1, 1, 16, 16, 3)))["params"]
  with checkpoint.Checkpointer(folder / "checkpoints") as checkpointer:
    checkpointer.save(2, {"ema": params}, {})
  return folder, model, params


def convert(trained, out, **options):
  return formats.convert(str(trained[0]), "run", out, reverse=False, **options)


def test_latents_are_measured_on_the_runs_digits(trained, tmp_path):
  _, model, params = trained
  result = convert(trained, tmp_path / "out", data="digits", num_samples=12)
  tree, config = weights.load(tmp_path / "out")
  runs.assert_near(tree, params, 1e-7)
  assert config["step"] == 2
  raw = runs.digits.Digits(num_frames=5, canvas=16, num_samples=12)
  moments = shards.Moments()
  for i in range(len(raw)):
    mean, logvar = vae_stream.encode(model, params, raw[i]["video"][None])
    moments.add(mean[0], logvar[0])
  np.testing.assert_allclose(config["latent_mean"], moments.mean, atol=1e-4)
  np.testing.assert_allclose(config["latent_std"], moments.std, rtol=1e-4)
  assert result["latent_std"] == config["latent_std"]


def test_latents_are_measured_on_a_folder_of_any_sizes(trained, tmp_path):
  rng = np.random.default_rng(0)
  for name, shape in (("a.npz", (7, 9, 13)), ("b.png", (1, 8, 8))):
    video = rng.integers(0, 255, (*shape, 3)).astype(np.uint8)
    video_io.write_video(tmp_path / "films" / name, video)
  films = str(tmp_path / "films")
  one, two = (
    convert(trained, tmp_path / "out", data=films, num_samples=n)["latent_mean"]
    for n in (1, 2)
  )
  assert len(one) == 4
  assert one != two
  with pytest.raises(UserError, match="holds no video or picture"):
    convert(trained, tmp_path / "out", data=str(tmp_path / "none"))
  with pytest.raises(UserError, match="needs --data=FOLDER"):
    convert(trained, tmp_path / "out")
  tiny = np.zeros((1, 2, 9, 3), np.uint8)  # padded to what the stride divides
  video_io.write_video(tmp_path / "tiny" / "x.png", tiny)
  assert convert(trained, tmp_path / "out", data=str(tmp_path / "tiny"))


@pytest.mark.parametrize(
  "variant", ["run", pytest.param("wan_debug", marks=pytest.mark.slow)]
)
def test_prepare_and_sample_take_a_folder_of_weights(
  variant, trained, tmp_path
):
  """The scale that came with the weights goes with them, unmeasured."""
  model, sizes, params = trained[1], {"variant": "debug"}, trained[2]
  if variant != "run":
    sizes = {"variant": variant, "multipliers": [1, 1, 1]}
    model = vae.make_vae(**sizes)
    init = jax.jit(model.init)
    params = init(jax.random.key(0), np.zeros((1, 3, 8, 8, 3)))["params"]
  channels = model.config.latent_channels
  stats = {"latent_mean": [0.5] * channels, "latent_std": [2.0] * channels}
  weights.save(tmp_path / "vae", params, {"model": sizes, **stats})
  config = runs.read_config(
    "prepare",
    vae__workdir=str(tmp_path / "vae"),
    data__digits__num_samples=4,
  )
  (tmp_path / "latents").mkdir()
  latents.prepare(config, tmp_path / "latents")
  source = sources.Latents(tmp_path / "latents")
  assert source.manifest["latent_mean"] == stats["latent_mean"]
  loaded = codec.load_codec(tmp_path / "latents")
  assert loaded.model == model
  assert loaded.std.tolist() == stats["latent_std"]
  video = codec.decode(loaded, [source.read(0, 0)["mean"]])[0]
  assert video.shape[1:] == (16, 16, 3)
  with pytest.raises(UserError, match="has no steps"):
    restore.restore_vae(tmp_path / "vae", step=3)


def test_weights_of_another_kind_are_no_autoencoder(tmp_path):
  weights.save(tmp_path, {"w": np.ones(3)}, {})
  with pytest.raises(UserError, match="weights, but of no autoencoder"):
    restore.restore_vae(tmp_path)
  with pytest.raises(UserError, match="weights, but of no autoencoder"):
    formats.convert(tmp_path, "wan_vae", tmp_path / "out", reverse=True)
  model = vae.make_vae("debug")
  tree = jax.tree.map(
    lambda x: np.zeros(x.shape, np.float32), vae.abstract_params(model)
  )
  tree["encoder"]["other"] = tree["encoder"].pop("patch_in")
  tree["decoder"]["conv_in"]["bias"] = np.zeros(1, np.float32)
  weights.save(tmp_path, tree, {"model": {"variant": "debug"}})
  with pytest.raises(UserError, match="lacks latent_mean and latent_std"):
    restore.restore_vae(tmp_path)
  stats = {f"latent_{name}": [1.0] * 4 for name in ("mean", "std")}
  weights.save(tmp_path, tree, {"model": {"variant": "debug"}, **stats})
  with pytest.raises(UserError) as error:
    restore.restore_vae(tmp_path)
  assert str(error.value).endswith(
    "are not of this architecture: 2 missing (encoder/patch_in/bias), 2"
    " unexpected (encoder/other/bias), 1 misshapen (decoder/conv_in/bias (1,)"
    " for (16,))"
  )
