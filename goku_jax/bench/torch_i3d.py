"""I3D in torch, its tensors named as in the published file.

Zeros stand beyond the sides of a maximum too, as there.
"""

import torch
from torch import nn
from torch.nn import functional as F


def pad(x, window, stride):
  """TensorFlow's SAME, the odd one behind."""
  sides = []
  for n, k, s in zip(x.shape[2:], window, stride, strict=True):
    total = max(k - (n % s or s), 0)
    sides = [total // 2, total - total // 2, *sides]
  return F.pad(x, sides)


def pool(x, window, stride):
  """The largest of each window."""
  return F.max_pool3d(pad(x, window, stride), window, stride)


class Unit(nn.Module):
  """A convolution; but for the head, batch norm and ReLU."""

  def __init__(self, before, width, k=1, stride=1, is_head=False):
    super().__init__()
    self.window, self.stride = (k,) * 3, (stride,) * 3
    self.conv3d = nn.Conv3d(before, width, k, stride, bias=is_head)
    self.bn = None if is_head else nn.BatchNorm3d(width, eps=1e-5)

  def forward(self, x):
    x = self.conv3d(pad(x, self.window, self.stride))
    return F.relu(self.bn(x)) if self.bn else x


class Mixed(nn.Module):
  """Four branches side by side."""

  def __init__(self, before, a, b, c, d, e, f):
    super().__init__()
    self.b0 = Unit(before, a)
    self.b1a = Unit(before, b)
    self.b1b = Unit(b, c, 3)
    self.b2a = Unit(before, d)
    self.b2b = Unit(d, e, 3)
    self.b3b = Unit(before, f)

  def forward(self, x):
    pooled = pool(x, (3, 3, 3), (1, 1, 1))
    y = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x))
    return torch.cat([*y, self.b3b(pooled)], 1)


class I3D(nn.Module):
  """Gives logits averaged over time."""

  def __init__(self):
    super().__init__()
    self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
    self.Conv3d_2b_1x1 = Unit(64, 64)
    self.Conv3d_2c_3x3 = Unit(64, 192, 3)
    self.Mixed_3b = Mixed(192, 64, 96, 128, 16, 32, 32)
    self.Mixed_3c = Mixed(256, 128, 128, 192, 32, 96, 64)
    self.Mixed_4b = Mixed(480, 192, 96, 208, 16, 48, 64)
    self.Mixed_4c = Mixed(512, 160, 112, 224, 24, 64, 64)
    self.Mixed_4d = Mixed(512, 128, 128, 256, 24, 64, 64)
    self.Mixed_4e = Mixed(512, 112, 144, 288, 32, 64, 64)
    self.Mixed_4f = Mixed(528, 256, 160, 320, 32, 128, 128)
    self.Mixed_5b = Mixed(832, 256, 160, 320, 32, 128, 128)
    self.Mixed_5c = Mixed(832, 384, 192, 384, 48, 128, 128)
    self.logits = Unit(1024, 400, is_head=True)

  def forward(self, x):
    x = pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
    x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = self.Mixed_3c(self.Mixed_3b(x))
    x = pool(x, (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
      x = self.get_submodule(f"Mixed_4{letter}")(x)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    x = self.Mixed_5c(self.Mixed_5b(x))
    x = self.logits(F.avg_pool3d(x, (2, 7, 7), 1))
    return x.mean((2, 3, 4))
