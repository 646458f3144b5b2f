"""Paints the plans of a batch on the device that holds the images, all by tensor operations of fixed shapes.

Every canvas pixel finds the last tile that covers it, the place in that tile, and reads the source pixels around it:
nothing is painted twice, and nothing depends on the data but the numbers themselves, so that nothing waits for the host
and `torch.compile` makes one kernel of it. Numbers are float32; against OpenCV, which counts in 32nds of a pixel where
images are turned and in 2048ths of a weight elsewhere, results differ by rounding.

Legend: B images, L layers of an image (two with mixup), Q tiles of a layer, S side of the canvas in pixels, M pixels of
all images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from anchorite.data.device_plan import DRAWN, HELD, MAP, REACH, SEEN

Channels = tuple[Tensor, Tensor, Tensor]  # red, green, blue: (B, S, S) float32, whole numbers in 0..255


class Source(NamedTuple):
    """Where each canvas pixel is read: coordinates x, y, half sides of the area averaged, start and row length of the
    image; each (B, S, S)."""

    x: Tensor
    y: Tensor
    reach_x: Tensor
    reach_y: Tensor
    start: Tensor
    width: Tensor


def render(
    pixels: Tensor,
    starts: Tensor,
    tiles: Tensor,
    widths: Tensor,
    colours: Tensor,
    size: int,
    taps: int,
    jitters: bool,
) -> Tensor:
    """The images (B, 3, S, S) uint8, channels last in memory, of a `BatchPlan`.

    pixels: (M,) int32, see `DeviceStore`; starts: (B, L, Q) int64, where each tile's image begins there.
    """
    channels = _layer(pixels, starts[:, 0], tiles[:, 0], widths[:, 0], size, taps)
    for layer in range(1, tiles.shape[1]):
        others = _layer(pixels, starts[:, layer], tiles[:, layer], widths[:, layer], size, taps)
        channels = blended(channels, others, colours[:, 0, None, None])
    if jitters:
        hue, saturation, value = (colours[:, column, None, None] for column in (1, 2, 3))
        channels = jittered(channels, hue, saturation, value)
    return torch.stack([channel.to(torch.uint8) for channel in channels], dim=-1).permute(0, 3, 1, 2)


def _layer(pixels: Tensor, starts: Tensor, tiles: Tensor, widths: Tensor, size: int, taps: int) -> Channels:
    """One canvas an image from its tiles (B, Q, 20)."""
    source = find_sources(starts, tiles, widths, size)
    sums = _interpolated(pixels, source) if taps == 2 else _weighted(pixels, source, taps)
    red, green, blue = ((channel + 0.5).floor() for channel in sums)
    return red, green, blue


def find_sources(starts: Tensor, tiles: Tensor, widths: Tensor, size: int) -> Source:
    """What each canvas pixel shows: of the last tile that covers it, else the first of all, the canvas's colour."""
    num_images, num_tiles = starts.shape
    across = torch.arange(size, device=tiles.device, dtype=torch.float32)[None, None, :]
    down = torch.arange(size, device=tiles.device, dtype=torch.float32)[None, :, None]
    nothing = tiles.new_zeros((num_images, size, size))
    nowhere = starts.new_zeros((num_images, size, size))
    source = Source(nothing, nothing, nothing, nothing, nowhere, nowhere)
    for place in range(num_tiles):
        numbers = tiles[:, place, :, None, None]
        x_of_x, x_of_y, shift_x, y_of_x, y_of_y, shift_y = numbers[:, MAP].unbind(1)
        x = across * x_of_x + (down * x_of_y + shift_x)
        y = across * y_of_x + (down * y_of_y + shift_y)
        left, top, right, bottom = numbers[:, SEEN].unbind(1)
        lowest_x, lowest_y, bound_x, bound_y = numbers[:, DRAWN].unbind(1)
        covers = ((across >= left) & (across < right)) & ((down >= top) & (down < bottom))
        covers = covers & (x >= lowest_x) & (x < bound_x) & (y >= lowest_y) & (y < bound_y)
        least_x, least_y, most_x, most_y = numbers[:, HELD].unbind(1)
        x, y = x.clamp(least_x, most_x), y.clamp(least_y, most_y)
        reach_x, reach_y = numbers[:, REACH].unbind(1)
        start, width = starts[:, place, None, None], widths[:, place, None, None]
        found = (x, y, reach_x, reach_y, start, width)
        source = Source(*(torch.where(covers, new, old) for new, old in zip(found, source, strict=True)))
    return source


def _interpolated(pixels: Tensor, source: Source) -> Channels:
    """Each canvas pixel between the four source pixels around it."""
    column, row = source.x.floor(), source.y.floor()
    right, lower = source.x - column, source.y - row
    first = source.start + row.long() * source.width + column.long()
    upper_pair = _between(_read(pixels, first), _read(pixels, first + 1), right)
    below = first + source.width
    lower_pair = _between(_read(pixels, below), _read(pixels, below + 1), right)
    return _between(upper_pair, lower_pair, lower)


def _between(first: Channels, second: Channels, share: Tensor) -> Channels:
    red, green, blue = (one + (other - one) * share for one, other in zip(first, second, strict=True))
    return red, green, blue


def _weighted(pixels: Tensor, source: Source, taps: int) -> Channels:
    """Each canvas pixel as a weighted sum of `taps` x `taps` source pixels: averages of areas, or interpolation."""
    columns, weights_x = _tap_weights(source.x, source.reach_x, taps)
    rows, weights_y = _tap_weights(source.y, source.reach_y, taps)
    red = green = blue = torch.zeros_like(source.x)
    for row, weight_y in zip(rows, weights_y, strict=True):
        first = source.start + row.long() * source.width
        for column, weight_x in zip(columns, weights_x, strict=True):
            weight = weight_x * weight_y
            values = _read(pixels, first + column.long())
            red, green, blue = red + values[0] * weight, green + values[1] * weight, blue + values[2] * weight
    return red, green, blue


def _tap_weights(place: Tensor, reach: Tensor, taps: int) -> tuple[list[Tensor], list[Tensor]]:
    """The pixels to read along one axis, and their weights: the overlap with the area averaged, or 1 - distance."""
    averages = reach > 0
    first = torch.where(averages, (place - reach + 0.5).floor(), place.floor())
    length = torch.where(averages, 2 * reach, torch.ones_like(reach))
    numbers, weights = [], []
    for tap in range(taps):
        number = first + tap
        overlap = torch.minimum(place + reach, number + 0.5) - torch.maximum(place - reach, number - 0.5)
        nearness = 1 - (place - number).abs()
        numbers.append(number)
        weights.append(torch.where(averages, overlap, nearness).clamp_min(0) / length)
    return numbers, weights


def _read(pixels: Tensor, index: Tensor) -> Channels:
    """The channels at places of the flat store; those beyond its ends have weight 0 and are read at its ends."""
    packed = pixels[index.clamp(0, pixels.shape[0] - 1)]
    return (packed & 255).float(), (packed >> 8 & 255).float(), (packed >> 16 & 255).float()


def blended(first: Channels, second: Channels, share: Tensor) -> Channels:
    """Two canvases blended, `share` of the first (mixup)."""
    red, green, blue = ((one * share + other * (1 - share)).round() for one, other in zip(first, second, strict=True))
    return red, green, blue


def jittered(channels: Channels, hue: Tensor, saturation: Tensor, value: Tensor) -> Channels:
    """Colours with the hue (in half degrees) shifted, saturation and value scaled, saturating.

    hue, saturation, value: (B, 1, 1) of each image. Rounded at each step as OpenCV rounds uint8 images, whose quotients
    are tables of 4096ths, and which drops the fraction on the way back.
    """
    red, green, blue = channels
    brightest = torch.maximum(torch.maximum(red, green), blue)
    spread = brightest - torch.minimum(torch.minimum(red, green), blue)
    chroma = _by_4096ths(spread, 255, brightest)
    sixths = torch.where(
        brightest == red,
        green - blue,
        torch.where(brightest == green, blue - red + 2 * spread, red - green + 4 * spread),
    )
    angle = (_by_4096ths(sixths, 30, spread) + hue) * (1 / 30)  # in sixths of the circle
    chroma = (chroma * saturation).round().clamp_max(255) * (1 / 255)
    brightest = (brightest * value).round().clamp_max(255) * (1 / 255)
    changed = []
    for turn in (5, 3, 1):  # each channel is a trapezium of the angle
        along = angle + turn
        along = along - 6 * (along / 6).floor()
        lack = torch.minimum(along, 4 - along).clamp(0, 1)
        changed.append((brightest * (1 - chroma * lack) * 255).floor())
    return changed[0], changed[1], changed[2]


def _by_4096ths(number: Tensor, factor: int, divisor: Tensor) -> Tensor:
    """number * factor / divisor (0 divides as 1) to the nearest whole number, the quotient first to 4096ths."""
    quotient = (factor * 4096 / divisor.clamp_min(1)).round()
    return ((number * quotient + 2048) / 4096).floor()
