"""A room with a coloured floor and walls and an object in its middle: the scene of 3D Shapes, by analytic ray casting.

The picture of a scene is linear in its colours: each pixel is a sum over the regions (floor, wall, object, sky) of the
region's light in that pixel times its colour. The light depends on scale, shape and orientation alone, so 480 tables of
it serve all 480,000 images, and an image is one small matrix product.

All of it is additions, products, quotients and square roots of IEEE numbers, one operation at a time, and sums of
integers: the pixels do not depend on the machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from splitboard.zoo.data.factors import COUNTS, FACTORS, FLOOR_HUE, OBJECT_HUE, ORIENTATION, SCALE, SHAPE, WALL_HUE

Floats = NDArray[np.float64]

VERSION = 1
"""Rises when any pixel changes; part of a data set's identity."""

CAMERA_DISTANCE = 3.6
"""From the axis of the object, along the floor."""

CAMERA_HEIGHT = 1.9

TARGET_HEIGHT = 0.55
"""The camera looks at this point of the object's axis."""

HALF_ANGLE = 24.0
"""Of the field of view, degrees, across and down alike."""

_ROOM = 2.7
"""The walls' distance from the object."""

_WALL_HEIGHT = 2.1

_LIGHT = (0.48, -0.6, 0.64)
"""Towards the light, length 1. It does not turn with the camera, so each wall has a brightness of its own."""

_AMBIENT = 0.45
"""What is lit without the light; the rest follows Lambert's cosine."""

_SAMPLES = 2
"""Rays per pixel along each axis."""

_SKY = (150, 200, 235)

_FULL = 255 * _SAMPLES**2
"""Light of a pixel that one region fills at full brightness."""

_FLOOR, _WALL, _OBJECT, _OPEN = range(4)
"""Regions."""


@dataclass(frozen=True)
class Hits:
    """Where rays meet a solid.

    Attributes:
        distance: ``[n]``, in lengths of the ray; infinite where it misses.
        normal: ``[n, 3]``, length 1, outwards; anything where it misses.
    """

    distance: Floats
    normal: Floats


def _dot(a: Floats, b: Floats) -> Floats:
    # Not a matrix product: libraries differ in the order of its sums.
    return np.asarray(a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2])


def _first(*hits: Hits) -> Hits:
    """The nearest of several."""
    distances = np.stack([hit.distance for hit in hits])
    nearest = distances.argmin(axis=0)
    rays = np.arange(len(nearest))
    return Hits(distances[nearest, rays], np.stack([hit.normal for hit in hits])[nearest, rays])


def _root(a: Floats, half_b: Floats, c: Floats) -> Floats:
    """The smaller root of a t^2 + 2 half_b t + c, infinite where there is none."""
    square = half_b * half_b - a * c
    return np.where(square >= 0, (-half_b - np.sqrt(np.maximum(square, 0))) / a, np.inf)


def _points(origin: Floats, rays: Floats, distance: Floats) -> Floats:
    return origin + np.where(np.isfinite(distance), distance, 0)[:, None] * rays


def _ball(origin: Floats, rays: Floats, radius: float, height: float) -> Hits:
    """A ball whose centre is at this height above the origin of the room."""
    centre = np.array([0.0, 0.0, height])
    towards = origin - centre
    distance = _root(_dot(rays, rays), _dot(rays, towards), _dot(towards, towards) - radius * radius)
    return Hits(distance, (_points(origin, rays, distance) - centre) / radius)


def _tube(origin: Floats, rays: Floats, radius: float, low: float, high: float) -> Hits:
    """The upright side of a cylinder, from one height to another."""
    flat, start = rays * [1, 1, 0], origin * [1, 1, 0]
    distance = _root(_dot(flat, flat), _dot(flat, start), _dot(start, start) - radius * radius)
    points = _points(origin, rays, distance)
    inside = (points[:, 2] >= low) & (points[:, 2] <= high)
    return Hits(np.where(inside, distance, np.inf), points * [1, 1, 0] / radius)


def _lid(origin: Floats, rays: Floats, radius: float, height: float) -> Hits:
    """A disc that faces upwards; the camera is above it."""
    with np.errstate(divide="ignore"):
        distance = np.where(rays[:, 2] < 0, (height - origin[2]) / rays[:, 2], np.inf)
    points = _points(origin, rays, distance) * [1, 1, 0]
    return Hits(
        np.where(_dot(points, points) <= radius * radius, distance, np.inf),
        np.broadcast_to([0.0, 0.0, 1.0], rays.shape),
    )


def _cube(origin: Floats, rays: Floats, scale: float) -> Hits:
    low, high = scale * np.array([-0.5, -0.5, 0.0]), scale * np.array([0.5, 0.5, 1.0])
    with np.errstate(divide="ignore"):
        one, other = (low - origin) / rays, (high - origin) / rays
    enters, leaves = np.minimum(one, other), np.maximum(one, other)
    axis = enters.argmax(axis=1)
    distance = enters.max(axis=1)
    normal = -np.sign(rays) * np.eye(3)[axis]
    return Hits(np.where(distance <= leaves.min(axis=1), distance, np.inf), normal)


def _cylinder(origin: Floats, rays: Floats, scale: float) -> Hits:
    radius = 0.5 * scale
    return _first(_tube(origin, rays, radius, 0.0, scale), _lid(origin, rays, radius, scale))


def _sphere(origin: Floats, rays: Floats, scale: float) -> Hits:
    return _ball(origin, rays, 0.5 * scale, 0.5 * scale)


def _capsule(origin: Floats, rays: Floats, scale: float) -> Hits:
    radius, height = 0.35 * scale, 1.2 * scale
    return _first(
        _tube(origin, rays, radius, radius, height - radius),
        _ball(origin, rays, radius, radius),
        _ball(origin, rays, radius, height - radius),
    )


_SOLIDS: tuple[Callable[[Floats, Floats, float], Hits], ...] = (_cube, _cylinder, _sphere, _capsule)
"""In the order of the classes of the factor ``shape``."""


def _camera(degrees: float, size: int) -> tuple[Floats, Floats]:
    """The camera's place and its rays ``[(size * _SAMPLES)^2, 3]``, row by row; it circles the object."""
    # Rounded, since the last digit of a sine is the one thing here that differs from machine to machine.
    sine, cosine = round(math.sin(math.radians(degrees)), 12), round(math.cos(math.radians(degrees)), 12)
    origin = np.array([CAMERA_DISTANCE * sine, -CAMERA_DISTANCE * cosine, CAMERA_HEIGHT])
    drop = CAMERA_HEIGHT - TARGET_HEIGHT
    length = math.sqrt(CAMERA_DISTANCE * CAMERA_DISTANCE + drop * drop)
    across, down = CAMERA_DISTANCE / length, drop / length
    forward = np.array([-across * sine, across * cosine, -down])
    right = np.array([cosine, sine, 0.0])
    up = np.array([-down * sine, down * cosine, across])
    count = size * _SAMPLES
    place = round(math.tan(math.radians(HALF_ANGLE)), 12) * ((2 * np.arange(count) + 1) / count - 1)
    rays = forward + place[None, :, None] * right - place[:, None, None] * up
    return origin, rays.reshape(-1, 3)


def _brightness(normal: Floats) -> Floats:
    cosine = np.maximum(_dot(normal, np.array(_LIGHT)), 0)
    return np.asarray(_AMBIENT + (1 - _AMBIENT) * cosine)


def _room(origin: Floats, rays: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Region and brightness of what each ray meets where there is no object."""
    with np.errstate(divide="ignore"):
        sides = (np.sign(rays[:, :2]) * _ROOM - origin[:2]) / rays[:, :2]
        floor = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
    axis, wall = sides.argmin(axis=1), sides.min(axis=1)
    height = origin[2] + wall * rays[:, 2]
    region = np.where(floor <= wall, _FLOOR, np.where(height <= _WALL_HEIGHT, _WALL, _OPEN))
    normal = np.where((region == _WALL)[:, None], -np.sign(rays) * np.eye(3)[axis], [0.0, 0.0, 1.0])
    return region, np.where(region == _OPEN, 1.0, _brightness(normal))


def light(scale: float, shape: int, degrees: float, size: int) -> NDArray[np.uint16]:
    """The light of every region in every pixel.

    Args:
        scale: of the object.
        shape: class of the factor ``shape``.
        degrees: orientation of the camera.
        size: rows and columns of the picture.

    Returns:
        ``[size * size, 4]``: floor, wall, object, sky; a pixel that one region fills has 255 times the rays of a pixel
        at full brightness.
    """
    origin, rays = _camera(degrees, size)
    region, bright = _room(origin, rays)
    hits = _SOLIDS[shape](origin, rays, scale)
    # The object stands on the floor, inside the walls: what meets it meets it first.
    met = np.isfinite(hits.distance)
    region, bright = np.where(met, _OBJECT, region), np.where(met, _brightness(hits.normal), bright)
    levels = np.floor(255 * bright + 0.5)
    by_region = np.where(region[:, None] == np.arange(4), levels[:, None], 0)
    pixels = by_region.reshape(size, _SAMPLES, size, _SAMPLES, 4).sum(axis=(1, 3))
    return np.asarray(pixels.reshape(size * size, 4), np.uint16)


def hue_to_rgb(hue: float) -> tuple[int, int, int]:
    """The full colour of a hue (a fraction of the circle: 0 red, 1/3 green, 2/3 blue), 0 to 255 each."""
    red = abs(hue * 6 - 3) - 1
    green = 2 - abs(hue * 6 - 2)
    blue = 2 - abs(hue * 6 - 4)
    red, green, blue = (math.floor(255 * min(max(value, 0.0), 1.0) + 0.5) for value in (red, green, blue))
    return red, green, blue


def _palette() -> NDArray[np.float32]:
    return np.array([hue_to_rgb(hue) for hue in FACTORS[FLOOR_HUE].values], np.float32)


@dataclass(frozen=True)
class Renderer:
    """Renders images of the grid at one size; tables of light are made when first needed and kept.

    Attributes:
        size: rows and columns. All tables together take ``3840 * size * size`` bytes.
    """

    size: int
    _lights: dict[tuple[int, int, int], NDArray[np.uint16]] = field(default_factory=dict, repr=False, compare=False)
    _colours: NDArray[np.float32] = field(default_factory=_palette, repr=False, compare=False)

    def render(self, factors: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Renders images.

        Args:
            factors: ``[n, 6]``, indices of the factors' values.

        Returns:
            ``[n, size, size, 3]``.
        """
        made = np.empty((len(factors), self.size * self.size, 3), np.uint8)
        for image, row in zip(made, factors, strict=True):
            colours = np.concatenate([self._colours[row[[FLOOR_HUE, WALL_HUE, OBJECT_HUE]]], [_SKY]], dtype=np.float32)
            # Integers below 2^24: the product is exact in float32, whatever the order of its sums.
            amount = self._light(int(row[SCALE]), int(row[SHAPE]), int(row[ORIENTATION])).astype(np.float32) @ colours
            np.add(amount * np.float32(1 / _FULL), np.float32(0.5), out=image, casting="unsafe")
        return made.reshape(-1, self.size, self.size, 3)

    def _light(self, scale: int, shape: int, orientation: int) -> NDArray[np.uint16]:
        view = (scale, shape, orientation)
        if view not in self._lights:
            values = FACTORS[SCALE].values[scale], shape, FACTORS[ORIENTATION].values[orientation]
            self._lights[view] = light(*values, self.size)
        return self._lights[view]


assert COUNTS[SHAPE] == len(_SOLIDS)
