"""Compiles a config's training step for a TPU slice that is not there.

  python -m goku_jax.plan --config=configs/joint.py:variant=8b,res=720p \
    --topology=v5p:8x8x4 --json=FILE

Tells what a device holds (`hbm_share`, of all of it; a plan should stay under
0.9), what devices exchange, and how fast the step can be at most
(`mfu_ceiling`, `token_exchange_share`): the floor of its time is by formula and
by the compiler's schedule of the attention kernel, not by any clock (see
goku_jax/plan/report.py). The extra `tpu` brings the compiler. Without it
pretend CPU devices compile, which fit and exchange otherwise: memory and
ceilings are then unknown.

The mesh is that of `config.topologies` where the slice stands there, else
`config.mesh`; a pack is taken to hold what `config.plan` says. --slices joins
several such slices by a slower network, and `mesh.replica` is a multiple.

`hbm_seconds` is what memory takes to pass all arrays and the state, each
written and read once; `interconnect_seconds` what links take. The largest of
these and `compute_seconds` bounds the step.

--job=sample plans the way from noise to latents instead: the clip of
`config.sample` by as many steps as it says, with and without captions, one for
every rank. --job=vae plans the step of an autoencoder (configs/vae.py), whose
speed has no formula. --search=N ranks other meshes, remat and micro-batches by
their ceilings, compiles from the best on, and tells the first N that fit.
"""

from goku_jax.plan import topology

topology.set_environment()  # before JAX is imported

from absl import flags  # noqa: E402

from goku_jax import job as jobs  # noqa: E402

flags.DEFINE_string("topology", None, "a slice, as v5p:8x8x4")
flags.DEFINE_integer("slices", 1, "of them, that a slower network joins")
flags.DEFINE_string("job", "train", "what is planned: train, sample, vae")
flags.DEFINE_integer("search", 0, "best ways to find", lower_bound=0)


def main(config, topology, slices, job, search):
  """Returns the plan."""
  stage = config.get("stage")
  if job == "vae" and stage != "vae":
    raise jobs.UserError("--config is not of stage=vae: give configs/vae.py")
  if job != "vae" and (stage != "flow" or "plan" not in config):
    raise jobs.UserError(
      "--config is not of stage=flow with a section `plan`: give one as"
      " configs/joint.py; for an autoencoder's set --job=vae"
    )
  from goku_jax.plan import plan
  from goku_jax.plan import search as searches

  if search and job != "train":
    raise jobs.UserError("--search is of --job=train: leave one of them out")
  if search:
    return searches.search(config, topology, slices, search)
  return plan.make_plan(config, topology, slices, job)


if __name__ == "__main__":
  jobs.run(main, config="required")
