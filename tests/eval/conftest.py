"""The judge of digits that tests share."""

import pickle

import jax
import pytest

from goku_jax.eval import digits

# Tests compile without optimisation, which pays but for what runs this often.
OPTIMISED = {"_step": ("num_steps",), "_forward": (), "_features": ()}


@pytest.fixture(scope="session")
def judge(made_once):
  """A judge as good as that of the suite, at a third of its price."""

  def train(path):
    trained = digits.train_judge(num_steps=300, batch_size=64)
    path.write_bytes(pickle.dumps(jax.device_get(trained)))

  with pytest.MonkeyPatch.context() as patch:
    for name, static in OPTIMISED.items():
      fn = jax.jit(
        getattr(digits, name).__wrapped__,
        static_argnames=static,
        compiler_options={"xla_backend_optimization_level": 2},
      )
      patch.setattr(digits, name, fn)
    yield pickle.loads(made_once("judge.pickle", train).read_bytes())
