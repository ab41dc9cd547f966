"""Networks of torch with weights of a seed, and files that hold them."""

import safetensors.torch
import torch
from torch import nn


@torch.no_grad()
def make(kind, seed=0):
  """Weights that keep features alive, and no statistic at its start."""
  torch.manual_seed(seed)
  model = kind().eval()
  for module in model.modules():
    if isinstance(module, nn.Conv2d | nn.Conv3d):
      nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
      module.weight.uniform_(0.8, 1.2)
      module.bias.normal_(0, 0.1)
      module.running_mean.normal_(0, 0.1)
      module.running_var.uniform_(0.8, 1.2)
  return model


def write(model, folder):
  """The same tensors as torch's file and as safetensors."""
  paths = folder / "theirs.pth", folder / "theirs.safetensors"
  torch.save(model.state_dict(), paths[0])
  safetensors.torch.save_file(model.state_dict(), paths[1])
  return paths
