"""The renderer against geometry done another way: projected points, closed formulas, the standard library's colours."""

from __future__ import annotations

import colorsys
import hashlib
import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial import Delaunay

from splitboard.zoo.data.factors import FACTORS, GRID, factors_at
from splitboard.zoo.data.render import (
    CAMERA_DISTANCE,
    CAMERA_HEIGHT,
    HALF_ANGLE,
    TARGET_HEIGHT,
    VERSION,
    Renderer,
    hue_to_rgb,
    light,
)

CUBE, CYLINDER, SPHERE, CAPSULE = range(4)


def surface(shape: int, scale: float) -> NDArray[np.float64]:
    """Points that span the solid: its silhouette is the convex hull of their projections."""
    turn = np.linspace(0, 2 * np.pi, 400)
    if shape == CUBE:
        return scale * np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (0, 1)])
    if shape == CYLINDER:
        return scale * np.array([[0.5 * np.cos(a), 0.5 * np.sin(a), z] for a in turn for z in (0, 1)])
    up, around = np.meshgrid(np.linspace(-np.pi / 2, np.pi / 2, 100), turn[::4])
    ball = np.stack([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)], -1).reshape(-1, 3)
    if shape == SPHERE:
        return scale * (0.5 * ball + [0, 0, 0.5])
    return scale * np.concatenate([0.35 * ball + [0, 0, 0.35], 0.35 * ball + [0, 0, 0.85]])


def project(points: NDArray[np.float64], degrees: float) -> NDArray[np.float64]:
    """Pinhole projection, right and up, where 1 is the edge of the picture."""
    angle = np.deg2rad(degrees)
    camera = np.array([CAMERA_DISTANCE * np.sin(angle), -CAMERA_DISTANCE * np.cos(angle), CAMERA_HEIGHT])
    forward = np.array([0, 0, TARGET_HEIGHT]) - camera
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right)
    seen = (points - camera) @ np.stack([right, np.cross(right, forward), forward], 1)
    return seen[:, :2] / seen[:, 2:] / np.tan(np.deg2rad(HALF_ANGLE))


def object_pixels(shape: int, scale: float, degrees: float, size: int) -> NDArray[np.bool_]:
    return light(scale, shape, degrees, size)[:, 2].reshape(size, size) > 0


@pytest.mark.parametrize("shape", [CUBE, CYLINDER, SPHERE, CAPSULE])
@pytest.mark.parametrize(("scale", "degrees"), [(0.75, -30.0), (1.0, 0.0), (1.25, 21.4)])
def test_silhouettes_are_projections(shape: int, scale: float, degrees: float) -> None:
    size = 96
    ticks = (np.arange(2 * size) + 0.5) / size - 1
    samples = np.stack(np.meshgrid(ticks, -ticks), -1)
    inside = Delaunay(project(surface(shape, scale), degrees)).find_simplex(samples) >= 0
    expected = inside.reshape(size, 2, size, 2).any(axis=(1, 3))
    found = object_pixels(shape, scale, degrees, size)
    assert expected.sum() > 300
    # The hull of finitely many points is a little smaller than what is round.
    assert np.sum(expected != found) <= 0.01 * expected.sum()


def test_the_area_of_the_sphere_is_the_closed_formula() -> None:
    """A ball under the angle a, off the axis by t: the ellipse has pi sin^2 a cos t / (cos^2 t - sin^2 a)^1.5."""
    size, scale = 256, 1.0
    centre = np.array([0, 0, 0.5 * scale])
    camera = np.array([0, -CAMERA_DISTANCE, CAMERA_HEIGHT])
    forward = np.array([0, 0, TARGET_HEIGHT]) - camera
    away = centre - camera
    sine = 0.5 * scale / np.linalg.norm(away)
    cosine = away @ forward / np.linalg.norm(away) / np.linalg.norm(forward)
    area = np.pi * sine**2 * cosine / (cosine**2 - sine**2) ** 1.5
    expected = area / (2 * np.tan(np.deg2rad(HALF_ANGLE))) ** 2
    table = light(scale, SPHERE, 0.0, size)
    touched = table[:, 2] > 0
    filled = touched & (table[:, [0, 1, 3]].sum(axis=1) == 0)
    assert (touched.mean() + filled.mean()) / 2 == pytest.approx(expected, rel=0.01)


def test_light_is_lambert() -> None:
    """The point of the ball that faces the light has all of it, a lid its cosine, and nothing less than the ambient."""
    full, ambient, upwards = 4 * 255, 0.45, 0.64
    ball = light(1.0, SPHERE, 0.0, 128)
    inner = ball[(ball[:, 2] > 0) & (ball[:, [0, 1, 3]].sum(axis=1) == 0)][:, 2]
    assert inner.max() == pytest.approx(full, rel=0.005)
    assert inner.min() == pytest.approx(full * ambient, rel=0.01)
    lid = light(1.0, CYLINDER, 0.0, 128)[:, 2]
    floor = light(1.0, CYLINDER, 0.0, 128)[:, 0]
    expected = 4 * round(255 * (ambient + (1 - ambient) * upwards))
    assert np.sum(lid == expected) > 100
    assert np.bincount(floor[floor > 0]).argmax() == expected


def test_colours_are_those_of_the_standard_library() -> None:
    for hue in (*FACTORS[0].values, 1 / 3, 2 / 3, 0.95):
        expected = [255 * value for value in colorsys.hsv_to_rgb(hue, 1, 1)]
        np.testing.assert_allclose(hue_to_rgb(hue), expected, atol=0.5 + 1e-9)


def test_each_hue_colours_its_region_alone() -> None:
    renderer = Renderer(64)
    table = light(FACTORS[3].values[5], CUBE, FACTORS[5].values[2], 64).reshape(64, 64, 4)
    base = np.array([[1, 4, 7, 5, CUBE, 2]])
    (plain,) = renderer.render(base)
    for region in range(3):
        other = base.copy()
        other[0, region] = 8
        changed = np.any(renderer.render(other)[0] != plain, axis=-1)
        assert not np.any(changed & (table[..., region] == 0))
        assert np.all(changed[table[..., region] > 200])
    alone = table[..., 0] == table.sum(axis=-1)  # pixels of the floor: its colour, darkened
    colour = np.array(hue_to_rgb(FACTORS[0].values[1]))
    np.testing.assert_allclose(plain[alone], table[alone][:, :1] / 1020 * colour, atol=0.51)


def test_turning_the_other_way_mirrors_the_outlines() -> None:
    left, right = (object_pixels(CUBE, 1.0, degrees, 64) for degrees in (-30.0, 30.0))
    assert np.sum(left != right[:, ::-1]) <= 2
    assert np.sum(left != object_pixels(CUBE, 1.0, 0.0, 64)) > 20


def test_a_larger_picture_shows_the_same() -> None:
    row = factors_at(np.array([123_456]))
    small, large = Renderer(48).render(row)[0], Renderer(96).render(row)[0]
    shrunk = large.reshape(48, 2, 48, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - shrunk).mean() < 1.5
    assert small.std() > 20


def test_pixels_are_the_same_on_every_machine() -> None:
    """Another digest is another data set: `VERSION` rises, or trainings on different machines cannot be compared."""
    images = Renderer(32).render(factors_at(np.arange(17, GRID, 4801)))
    digest = hashlib.sha256(images.tobytes()).hexdigest()
    assert (VERSION, digest) == (1, "fbf4513a4cd8dfbd4cead22eee6bfc5e78a3245c3c736943b539fbdadfdac777")


def test_scale_and_shape_change_what_is_seen() -> None:
    """All 32 kinds of object look different from each other under every orientation."""
    for degrees in FACTORS[5].values[::7]:
        outlines = {
            object_pixels(shape, scale, degrees, 64).tobytes() for shape in range(4) for scale in FACTORS[3].values
        }
        assert len(outlines) == 32
    assert math.isclose(FACTORS[3].values[-1], 1.25)
