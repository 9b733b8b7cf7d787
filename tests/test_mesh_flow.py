"Exact flow of a mesh: equal to an independent ray caster's, in flow, depth and occlusion."
import math

import numpy as np
import pytest
import torch

from srflow_nb.camera import Camera, orbit_rig
from srflow_nb.core import InputError
from srflow_nb.mesh_flow import mesh_flow

SIZE = dict(width=61, height=47)


def rotation(degrees, axis=(.3, 1., .2)):
    x, y, z = (np.array(axis)/np.linalg.norm(axis)).tolist()
    return torch.matrix_exp(torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]])*math.radians(degrees))


def camera(): return Camera.look_at((.1, .05, 1), focal=200., **SIZE)


def bumpy_sphere():
    "A sphere with a nose and ears, so that something hides behind something; vertices and faces."
    trimesh = pytest.importorskip('trimesh')
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=.09)
    v = mesh.vertices.copy()
    for centre, height in (((0, 0, 1), .05), ((1, .2, .3), .04), ((-1, -.2, .4), .04)):
        d = v/.09-np.array(centre)/np.linalg.norm(centre)
        v *= 1+height/.09*np.exp(-(d**2).sum(1)/.05)[:, None]
    return torch.from_numpy(v).float(), torch.from_numpy(np.array(mesh.faces))


class EveryTriangle:
    "Stands in for trimesh's spatial tree (which needs a further package): every triangle is a candidate for every ray."
    def __init__(self, triangles): self.n, self.bounds = len(triangles), np.r_[triangles.min((0, 1)), triangles.max((0, 1))]
    def intersection(self, bounds): return range(self.n)


def first_hits(vertices, faces, origins, directions):
    "trimesh's own rays (no code of ours): first hit's triangle (or -1), place, and distance along the direction."
    ray_triangle = pytest.importorskip('trimesh.ray.ray_triangle')
    face, distance, place = np.full(len(origins), -1), np.full(len(origins), np.inf), np.full((len(origins), 3), np.nan)
    for part in np.array_split(np.arange(len(origins)), 8):
        tri, ray, places = ray_triangle.ray_triangle_id(vertices[faces], origins[part], directions[part], tree=EveryTriangle(vertices[faces]), multiple_hits=True)
        ray = part[ray]
        t = ((places-origins[ray])*directions[ray]).sum(1)/(directions[ray]**2).sum(1)
        for i in np.argsort(-t): face[ray[i]], distance[ray[i]], place[ray[i]] = tri[i], t[i], places[i]
    return face, place, distance


def oracle(v0, v1, faces, cam0, cam1):
    "Flow and occlusion by ray casting in float64: hit, barycentric coordinates, moved point, projected; then a ray to the moved point."
    trimesh = pytest.importorskip('trimesh')
    v0, v1 = v0.double().numpy(), v1.double().numpy()
    K, m = cam0.K.double().numpy(), cam0.viewmat.double().numpy()
    y, x = np.meshgrid(np.arange(cam0.height)+.5, np.arange(cam0.width)+.5, indexing='ij')
    pixels = np.stack([x, y, np.ones_like(x)], -1).reshape(-1, 3)
    directions = pixels @ np.linalg.inv(K).T @ m[:3, :3]
    origin = -m[:3, :3].T @ m[:3, 3]
    face, place, depth = first_hits(v0, faces, np.repeat(origin[None], len(pixels), 0), directions)
    on = face >= 0
    b = trimesh.triangles.points_to_barycentric(v0[faces[face[on]]], place[on])
    moved = (v1[faces[face[on]]]*b[:, :, None]).sum(1)
    K1, m1 = cam1.K.double().numpy(), cam1.viewmat.double().numpy()
    p = moved @ m1[:3, :3].T + m1[:3, 3]
    uv = (p/p[:, 2:] @ K1.T)[:, :2]
    flow = np.full((len(pixels), 2), np.nan); flow[on] = uv-pixels[on, :2]
    origin1 = -m1[:3, :3].T @ m1[:3, 3]
    _, _, t = first_hits(v1, faces, np.repeat(origin1[None], len(moved), 0), moved-origin1)
    occluded = np.zeros(len(pixels), bool)
    occluded[on] = (t < 1-1e-6) | (uv < 0).any(1) | (uv[:, 0] >= cam1.width) | (uv[:, 1] >= cam1.height)
    shape = (cam0.height, cam0.width)
    return flow.T.reshape(2, *shape), depth.reshape(shape), occluded.reshape(shape)


@pytest.mark.parametrize('case', ['turn', 'turn far', 'bend', 'two cameras', 'leaves the picture'])
def test_mesh_flow_and_occlusion_equal_an_independent_ray_caster(case):
    v0, faces = bumpy_sphere()
    cam0 = cam1 = camera()
    v1 = v0 @ rotation(8).T
    if case == 'turn far': v1 = v0 @ rotation(70).T
    if case == 'bend': v1 = v0+.02*torch.sin(30*v0[:, [1, 2, 0]])
    if case == 'two cameras': cam1 = orbit_rig(3, yaw=25, fill=.9, **SIZE)[0]
    if case == 'leaves the picture': v1 = v0+torch.tensor([.1, -.04, 0])
    got = mesh_flow(v0, v1, faces, cam0, cam1)
    flow, depth, occluded = oracle(v0, v1, faces.numpy(), cam0, cam1)
    on = got.face.numpy() >= 0
    edge = on != ~np.isnan(flow[0])                             # a ray through an edge of the outline: either answer is right
    assert edge.sum() <= 3
    both = on & ~edge
    assert both.sum() > 300 and np.abs(got.flow.numpy()[:, both]-flow[:, both]).max() < 2e-3 and np.abs(got.depth.numpy()[both]-depth[both]).max() < 1e-4
    assert occluded[both].any() and (got.occluded.numpy() != occluded)[both].sum() <= 2
    assert torch.isnan(got.flow[:, ~torch.from_numpy(on)]).all() and torch.isinf(got.depth[~torch.from_numpy(on)]).all()


def test_both_sides_of_a_triangle_count_and_what_reaches_behind_the_camera_is_left_out():
    square = torch.tensor([[-.05, -.05, 0], [.05, -.05, 0], [.05, .05, 0], [-.05, .05, 0]])
    for faces in ([[0, 1, 2], [0, 2, 3]], [[0, 2, 1], [0, 3, 2]]):
        m = mesh_flow(square, square+torch.tensor([.01, 0, 0]), torch.tensor(faces), camera())
        assert (m.face >= 0).sum() > 300 and not m.occluded.any()
    behind = torch.tensor([[0, 0, 0.], [.1, 0, 0], [0, .1, 5]])
    assert (mesh_flow(behind, behind, torch.tensor([[0, 1, 2]]), camera()).face == -1).all()


def test_depth_order_decides_what_is_occluded():
    wall = torch.tensor([[-1., -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    patch = torch.tensor([[-.02, -.02, .1], [.02, -.02, .1], [.02, .02, .1], [-.02, .02, .1]])
    v0, faces = torch.cat([wall, patch]), torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    shift = torch.cat([torch.zeros(4, 3), torch.tensor([.03, 0, 0]).expand(4, 3)])
    cam = Camera.look_at((0, 0, 1), focal=200., **SIZE)
    m, after = mesh_flow(v0, v0+shift, faces, cam), mesh_flow(v0+shift, v0, faces, cam)
    front = m.face >= 2
    assert (m.flow[0, front]-200*.03/.9).abs().max() < 1e-4 and not m.occluded[front].any() and m.flow[:, ~front].abs().max() < 1e-9
    assert torch.equal(m.occluded, (after.face >= 2) & ~front)   # the wall where the patch will be, and was not


def test_occlusion_reaches_f1_of_95_percent_against_the_ray_caster():
    v0, faces = bumpy_sphere()
    cam, v1 = camera(), v0 @ rotation(25).T
    got, (_, _, occluded) = mesh_flow(v0, v1, faces, cam), oracle(v0, v1, faces.numpy(), cam, cam)
    found = got.occluded.numpy()
    assert occluded.sum() > 20 and 2*(found & occluded).sum()/(found.sum()+occluded.sum()) >= .95


def test_mistakes_are_named():
    with pytest.raises(InputError, match=r'v0 has shape \(4, 3\), v1 \(5, 3\)'): mesh_flow(torch.zeros(4, 3), torch.zeros(5, 3), torch.zeros(1, 3).long(), camera())
    with pytest.raises(InputError, match='v1: 3 of 12'): mesh_flow(torch.zeros(4, 3), torch.tensor([[torch.nan]*3]+[[0.]*3]*3), torch.zeros(1, 3).long(), camera())
