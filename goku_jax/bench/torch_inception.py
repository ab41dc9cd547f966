"""Inception-v3 of FID in torch, its tensors named as in the published files."""

import torch
from torch import nn
from torch.nn import functional as F


class Conv(nn.Module):
  """A window `k`, or rows and columns of one."""

  def __init__(self, before, width, k, stride=1, padding=0):
    super().__init__()
    self.conv = nn.Conv2d(before, width, k, stride, padding, bias=False)
    self.bn = nn.BatchNorm2d(width, eps=0.001)

  def forward(self, x):
    return F.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
  """Chains of convolutions by the start of their names, then a pool."""

  def __init__(self, **convs):
    super().__init__()
    for name, conv in convs.items():
      self.add_module(name, conv)

  def chain(self, x, stem):
    names = [n for n, _ in self.named_children() if n.startswith(stem)]
    for name in names:
      x = self.get_submodule(name)(x)
    return x


def average(x):
  """Means over 3x3, of what lies inside."""
  return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(Branches):
  """35x35 positions."""

  def __init__(self, before, pooled):
    super().__init__(
      branch1x1=Conv(before, 64, 1),
      branch5x5_1=Conv(before, 48, 1),
      branch5x5_2=Conv(48, 64, 5, padding=2),
      branch3x3dbl_1=Conv(before, 64, 1),
      branch3x3dbl_2=Conv(64, 96, 3, padding=1),
      branch3x3dbl_3=Conv(96, 96, 3, padding=1),
      branch_pool=Conv(before, pooled, 1),
    )

  def forward(self, x):
    stems = "branch1x1", "branch5x5", "branch3x3dbl"
    y = [self.chain(x, stem) for stem in stems]
    return torch.cat([*y, self.branch_pool(average(x))], 1)


class B(Branches):
  """35x35 positions to 17x17."""

  def __init__(self, before):
    super().__init__(
      branch3x3=Conv(before, 384, 3, 2),
      branch3x3dbl_1=Conv(before, 64, 1),
      branch3x3dbl_2=Conv(64, 96, 3, padding=1),
      branch3x3dbl_3=Conv(96, 96, 3, 2),
    )

  def forward(self, x):
    y = [self.branch3x3(x), self.chain(x, "branch3x3dbl")]
    return torch.cat([*y, F.max_pool2d(x, 3, 2)], 1)


class C(Branches):
  """17x17 positions."""

  def __init__(self, c):
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    super().__init__(
      branch1x1=Conv(768, 192, 1),
      branch7x7_1=Conv(768, c, 1),
      branch7x7_2=Conv(c, c, *row),
      branch7x7_3=Conv(c, 192, *column),
      branch7x7dbl_1=Conv(768, c, 1),
      branch7x7dbl_2=Conv(c, c, *column),
      branch7x7dbl_3=Conv(c, c, *row),
      branch7x7dbl_4=Conv(c, c, *column),
      branch7x7dbl_5=Conv(c, 192, *row),
      branch_pool=Conv(768, 192, 1),
    )

  def forward(self, x):
    stems = "branch1x1", "branch7x7_", "branch7x7dbl"
    y = [self.chain(x, stem) for stem in stems]
    return torch.cat([*y, self.branch_pool(average(x))], 1)


class D(Branches):
  """17x17 positions to 8x8."""

  def __init__(self):
    super().__init__(
      branch3x3_1=Conv(768, 192, 1),
      branch3x3_2=Conv(192, 320, 3, 2),
      branch7x7x3_1=Conv(768, 192, 1),
      branch7x7x3_2=Conv(192, 192, (1, 7), padding=(0, 3)),
      branch7x7x3_3=Conv(192, 192, (7, 1), padding=(3, 0)),
      branch7x7x3_4=Conv(192, 192, 3, 2),
    )

  def forward(self, x):
    y = [self.chain(x, "branch3x3"), self.chain(x, "branch7x7x3")]
    return torch.cat([*y, F.max_pool2d(x, 3, 2)], 1)


class E(Branches):
  """8x8 positions."""

  def __init__(self, before, pool):
    row, column = ((1, 3), 1, (0, 1)), ((3, 1), 1, (1, 0))
    super().__init__(
      branch1x1=Conv(before, 320, 1),
      branch3x3_1=Conv(before, 384, 1),
      branch3x3_2a=Conv(384, 384, *row),
      branch3x3_2b=Conv(384, 384, *column),
      branch3x3dbl_1=Conv(before, 448, 1),
      branch3x3dbl_2=Conv(448, 384, 3, padding=1),
      branch3x3dbl_3a=Conv(384, 384, *row),
      branch3x3dbl_3b=Conv(384, 384, *column),
      branch_pool=Conv(before, 192, 1),
    )
    self.pool = pool

  def forward(self, x):
    y = self.branch3x3_1(x)
    z = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
    parts = [
      self.branch1x1(x),
      self.branch3x3_2a(y),
      self.branch3x3_2b(y),
      self.branch3x3dbl_3a(z),
      self.branch3x3dbl_3b(z),
      self.branch_pool(self.pool(x)),
    ]
    return torch.cat(parts, 1)


class Inception(nn.Module):
  """Gives pool3, the 7 channels of sFID and logits without bias."""

  def __init__(self):
    super().__init__()
    self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2)
    self.Conv2d_2a_3x3 = Conv(32, 32, 3)
    self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
    self.Conv2d_3b_1x1 = Conv(64, 80, 1)
    self.Conv2d_4a_3x3 = Conv(80, 192, 3)
    self.Mixed_5b = A(192, 32)
    self.Mixed_5c = A(256, 64)
    self.Mixed_5d = A(288, 64)
    self.Mixed_6a = B(288)
    self.Mixed_6b = C(128)
    self.Mixed_6c = C(160)
    self.Mixed_6d = C(160)
    self.Mixed_6e = C(192)
    self.Mixed_7a = D()
    self.Mixed_7b = E(1280, average)
    self.Mixed_7c = E(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
    self.fc = nn.Linear(2048, 1008)

  def forward(self, x):
    x = self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))
    x = F.max_pool2d(self.Conv2d_2b_3x3(x), 3, 2)
    x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
    x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
    x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
    x = self.Mixed_6d(x)
    spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1)
    x = self.Mixed_7a(self.Mixed_6e(x))
    pool3 = self.Mixed_7c(self.Mixed_7b(x)).mean((2, 3))
    return pool3, spatial, pool3 @ self.fc.weight.T
