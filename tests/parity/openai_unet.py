"""The U-Net of OpenAI's improved- and guided-diffusion in PyTorch, for tests: no package holds it.

Written from the papers' equations (Nichol and Dhariwal 2021; Dhariwal and Nichol 2021, sections 3 and 4), with the
names and shapes that the published state dicts have. Nothing of it is shared with the network tested.
"""

import math

import torch
from torch import nn
from torch.nn import functional


def norm(width):
    return nn.GroupNorm(32, width)


class Block(nn.Module):
    def __init__(self, inputs, outputs, told, scale_shift, resample=None):
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample or (lambda x: x)
        self.in_layers = nn.Sequential(norm(inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(told, outputs * (1 + scale_shift)))
        self.out_layers = nn.Sequential(
            norm(outputs), nn.SiLU(), nn.Dropout(0.0), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.skip_connection = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x, embedding):
        group_norm, activation, dropout, convolution = self.out_layers
        h = self.in_layers[2](self.resample(self.in_layers[1](self.in_layers[0](x))))
        values = self.emb_layers(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = values.tensor_split(2, dim=1)
            h = (1 + scale) * group_norm(h) + shift
        else:
            h = group_norm(h + values)
        return self.skip_connection(self.resample(x)) + convolution(dropout(activation(h)))


class Attention(nn.Module):
    def __init__(self, width, heads, order):
        super().__init__()
        self.heads, self.order = heads, order
        self.norm = norm(width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, _):
        n, width, *sides = x.shape
        qkv = self.qkv(self.norm(x).flatten(2))
        if self.order == "new":
            qkv = qkv.view(n, 3, self.heads, width // self.heads, -1)
        else:
            qkv = qkv.view(n, self.heads, 3, width // self.heads, -1).transpose(1, 2)
        # [n, heads, d, pixels] each
        logits = torch.einsum("nhdi,nhdj->nhij", qkv[:, 0], qkv[:, 1]) / math.sqrt(width // self.heads)
        attended = torch.einsum("nhij,nhdj->nhdi", logits.softmax(-1), qkv[:, 2])
        return x + self.proj_out(attended.reshape(n, width, -1)).view(n, width, *sides)


class Down(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, _):
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, _):
        return self.conv(repeat(x))


class First(nn.Conv2d):
    def forward(self, x, _):
        return super().forward(x)


def repeat(x):
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def halve(x):
    return functional.avg_pool2d(x, 2)


class OpenAIUNet(nn.Module):
    def __init__(
        self, size, channels, multipliers, num_blocks, attention, heads, order="legacy", scale_shift=True,
        resample_blocks=False, classes=0, learned=True, time_scale=1.0, images=3,
    ):  # fmt: skip
        super().__init__()
        self.channels, self.time_scale = channels, time_scale
        told = 4 * channels
        self.time_embed = nn.Sequential(nn.Linear(channels, told), nn.SiLU(), nn.Linear(told, told))
        if classes:
            self.label_emb = nn.Embedding(classes, told)

        def attend(width):
            return Attention(width, heads(width), order)

        widths = [int(channels * multiplier) for multiplier in multipliers]
        width = widths[0]
        kept = [width]
        rows = [[First(images, width, 3, padding=1)]]
        for level, wanted in enumerate(widths):
            for _ in range(num_blocks):
                rows.append([Block(width, wanted, told, scale_shift)])
                width = wanted
                if size >> level in attention:
                    rows[-1].append(attend(width))
                kept.append(width)
            if level + 1 < len(widths):
                rows.append([Block(width, width, told, scale_shift, halve) if resample_blocks else Down(width)])
                kept.append(width)
        self.input_blocks = nn.ModuleList(map(nn.ModuleList, rows))
        self.middle_block = nn.ModuleList(
            [Block(width, width, told, scale_shift), attend(width), Block(width, width, told, scale_shift)]
        )
        rows = []
        for level in reversed(range(len(widths))):
            for i in range(num_blocks + 1):
                rows.append([Block(width + kept.pop(), widths[level], told, scale_shift)])
                width = widths[level]
                if size >> level in attention:
                    rows[-1].append(attend(width))
                if level and i == num_blocks:
                    rows[-1].append(Block(width, width, told, scale_shift, repeat) if resample_blocks else Up(width))
        self.output_blocks = nn.ModuleList(map(nn.ModuleList, rows))
        self.out = nn.Sequential(norm(width), nn.SiLU(), nn.Conv2d(width, images * (1 + learned), 3, padding=1))

    def forward(self, x, time, label=None):
        half = self.channels // 2
        phase = self.time_scale * time[:, None] * 10000 ** (-torch.arange(half) / half)
        embedding = self.time_embed(torch.cat([phase.cos(), phase.sin()], 1))
        if label is not None:
            embedding = embedding + self.label_emb(label)
        kept = []
        for row in self.input_blocks:
            for part in row:
                x = part(x, embedding)
            kept.append(x)
        for part in self.middle_block:
            x = part(x, embedding)
        for row in self.output_blocks:
            x = torch.cat([x, kept.pop()], 1)
            for part in row:
                x = part(x, embedding)
        return self.out(x)


def randomize(model, seed=0):
    """Values under which every layer matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            spread = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
            is_scale = value.ndim == 1 and name.endswith("weight")
            value.copy_(is_scale + spread * torch.randn(value.shape, generator=generator))
    return model.eval()
