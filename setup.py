"""The package, its dependencies and its extras; tool settings: pyproject.toml.

The workflow runs what Python 3.11, 3.12 and 3.13 resolve within the bounds: the
lowest JAX on 3.11, the newest on the others. An upper bound stands before the
next release that may break.
"""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).parent

CORE = [
  "absl-py>=2.5.1,<3",
  "array-record>=0.8.6,<0.9",
  "av>=18.1.0,<20",
  "chex>=0.1.92,<0.2",
  "einops>=0.8.2,<0.9",
  "etils[epath]>=1.15.0,<2",
  "flax>=0.12.8,<0.13",
  "fsspec>=2026.9.0,<2027",
  "grain>=0.2.18,<0.3",
  "jax>=0.10.2,<0.13",
  "jaxtyping>=0.3.11,<0.4",
  "matplotlib>=3.11.2,<4",
  "ml-collections>=1.1.0,<2",
  "numpy>=2.4.6,<3",
  "optax>=0.2.8,<0.3",
  "orbax-checkpoint>=0.12.8,<0.13",
  "pillow>=12.3.0,<14",  # gradio holds 12; without it 13 is installed
  "safetensors>=0.8.0,<0.9",
  "tensorboardX>=2.6.5,<3",
  "tqdm>=4.70.1,<5",
  "xxhash>=3.5.0,<4",
]

EXTRAS = {
  # Accelerators: the same jax, with its plugin.
  "tpu": ["jax[tpu]>=0.10.2,<0.13"],
  "gpu": ["jax[cuda13]>=0.10.2,<0.13"],
  # Data and text that need more than the core.
  "data": ["pyarrow>=24,<27"],
  "text": ["sentencepiece>=0.2.3,<0.3", "tokenizers>=0.23.1,<0.25"],
  # Jobs that need more than the core.
  "curate": [
    "apache-beam>=2.77.0,<3",
    "ImageHash>=4.3.2,<5",
    "scenedetect-headless>=0.7.2,<0.8",
  ],
  "eval": ["scikit-image>=0.26.0,<0.28", "scipy>=1.17.1,<2"],
  # Checkpoints on Google Cloud Storage.
  "store": ["gcsfs>=2026.9.0,<2027"],
  "web": ["gradio>=6.31.0,<7"],
  # The references that parity tests compare with.
  "parity": [
    "torch==2.13.0",
    "diffusers>=0.42.1,<0.43",
    "transformers>=5.23.0,<6",
  ],
}
EXTRAS["dev"] = [
  "beartype>=0.22.9,<0.24",  # apache-beam holds 0.22
  "codespell>=2.4.3,<3",
  "gcp-storage-emulator>=2026.7.19,<2027",
  "packaging>=26.3,<27",
  "pre-commit>=4.7.0,<5",
  "pytest>=9.2.0,<10",
  "pytest-timeout>=2.4.0,<3",
  "pytest-xdist>=3.8.0,<4",
  "ruff>=0.17.6,<0.18",
  "tensorflow-datasets>=4.9.10,<5",
  *EXTRAS["data"],
  *EXTRAS["text"],
  *EXTRAS["curate"],
  *EXTRAS["eval"],
  *EXTRAS["store"],
  *EXTRAS["web"],
]


def version() -> str:
  """`__version__`, read without importing the package."""
  text = (ROOT / "goku_jax" / "__init__.py").read_text()
  return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


setuptools.setup(
  name="goku_jax",
  version=version(),
  description="Goku's joint image and video flow models, trained in JAX",
  license="Apache-2.0",
  python_requires=">=3.11,<3.14",
  packages=setuptools.find_packages(include=["goku_jax", "goku_jax.*"]),
  package_data={
    "goku_jax.data": ["assets/*"],
    "goku_jax.eval": ["assets/*"],
  },
  install_requires=CORE,
  extras_require=EXTRAS,
)
