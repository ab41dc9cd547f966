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
"""

from goku_jax.plan import topology

topology.set_environment()  # before JAX is imported

from absl import flags  # noqa: E402

from goku_jax import job  # noqa: E402

flags.DEFINE_string("topology", None, "a slice, as v5p:8x8x4")
flags.DEFINE_integer("slices", 1, "of them, that a slower network joins")


def main(config, topology, slices):
  """Returns the plan."""
  if config.get("stage") != "flow" or "plan" not in config:
    raise job.UserError(
      "--config is not of stage=flow with a section `plan`: give one as"
      " configs/joint.py"
    )
  from goku_jax.plan import plan

  return plan.make_plan(config, topology, slices)


if __name__ == "__main__":
  job.run(main, config="required")
