"Test pairs from a plain z-buffer: exact, repeatable, and without a Gaussian anywhere."
import subprocess, sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from srflow_nb.avatar import LABELS as AVATAR_LABELS
from srflow_nb.core import InputError
from srflow_nb.mesh_faces import LABELS, MOTIONS, Mesh, MeshFaces, mesh_pair, sample_motion, sample_view, still_pairs
from srflow_nb.mesh_flow import mesh_flow
from srflow_nb.zbuffer import cast

SIZE = 128


@pytest.fixture(scope='module')
def mesh(): return Mesh()


@pytest.fixture(scope='module')
def pairs(): return list(MeshFaces(6, SIZE, seed=3, noise=2.))


def test_no_gaussian_is_loaded():
    code = "import sys, srflow_nb.mesh_faces; print([m for m in sys.modules if m.split('.')[-1] in ('gaussians', 'splat', 'avatar', 'hair', 'scene', 'film', 'appearance')])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == '[]'


def test_pairs_are_keyed_as_those_of_the_data_set(pairs):
    for p in pairs:
        assert p['frame1'].shape == p['frame2'].shape == (3, SIZE, SIZE) and p['flow'].shape == (2, SIZE, SIZE)
        assert all(p[k].shape == (SIZE, SIZE) and p[k].dtype == torch.bool for k in ('valid', 'mask', 'occlusion'))
        assert p['flow'].isfinite().all() and p['valid'].all() and (p['flow'][:, ~p['mask']] == 0).all()
        assert 0 <= p['frame1'].min() and p['frame1'].max() <= 1 and p['frame1'].dtype == p['flow'].dtype == torch.float32


def test_labels_are_those_of_the_data_set(pairs):
    assert LABELS == AVATAR_LABELS
    for p in pairs:
        assert torch.equal(p['labels'] > 0, p['mask']) and set(p['labels'].unique().tolist()) == {0, 1, 3, 4}
        size = [int((p['labels'] == k).sum()) for k in (1, 3, 4)]
        assert size[0] > 5*size[2] > 0 and size[0] > 20*size[1] > 0


def test_other_shapes_work():
    p = MeshFaces(1, (96, 160), seed=1)[0]
    assert p['frame1'].shape == (3, 160, 96) and p['flow'].shape == (2, 160, 96) and p['mask'].float().mean() > .1


def test_a_pair_depends_on_its_number_and_the_seed_alone(pairs):
    data = MeshFaces(40, SIZE, seed=3, noise=2.)
    for i in (4, 0): assert all(torch.equal(v, data[i][k]) for k, v in pairs[i].items() if torch.is_tensor(v)) and data[i]['name'] == pairs[i]['name']
    assert torch.equal(data[-1]['frame2'], data[39]['frame2']) and not torch.equal(data[0]['flow'], MeshFaces(1, SIZE, seed=4)[0]['flow'])
    frames = [p['frame1'] for p in pairs]
    assert all((a-b).abs().mean() > .02 for i, a in enumerate(frames) for b in frames[:i]), 'two people look alike'
    with pytest.raises(IndexError): data[40]


def back(p):
    "The second frame looked up along the flow."
    y, x = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in p['mask'].shape), indexing='ij')
    f = p['flow'].numpy()
    return torch.from_numpy(cv2.remap(p['frame2'].permute(1, 2, 0).numpy(), x+f[0], y+f[1], cv2.INTER_CUBIC)).permute(2, 0, 1)


def interior(p, px=3): return torch.from_numpy(cv2.dilate((~p['mask'] | p['occlusion']).numpy().astype(np.uint8), np.ones((2*px+1,)*2, np.uint8)) == 0)


@pytest.mark.parametrize('seed', [11, 13])
def test_the_flow_brings_the_second_frame_back_onto_the_first(mesh, seed):
    "Without lamps a point keeps its colour; half a pixel of wrong flow would be seen at once."
    p = mesh_pair(mesh, 256, 256, seed, lit=False); at = interior(p)
    gap = lambda q: float((back(q)-q['frame1'])[:, at].abs().mean())
    right = gap(p)
    assert at.sum() > 2000 and right < 1.5/255
    for shift in ((.5, 0.), (0., .5), (-.5, 0.), (0., -.5)): assert gap(p | dict(flow=p['flow']+torch.tensor(shift)[:, None, None])) > 1.5*right


@pytest.mark.parametrize('seed', range(3))
def test_the_flow_at_a_vertex_is_the_vertex_s_own(mesh, seed):
    "Shift the picture until a seen vertex lies on a pixel's centre: that pixel must say what the vertex does."
    camera = sample_view(256, 256, seed); v0, v1, _ = sample_motion(mesh, camera, seed)
    (uv0, depth), (uv1, _) = (camera.project(torch.from_numpy(v)) for v in (v0, v1))
    _, nearest, _ = cast(mesh.corners(v0, camera), uv0.numpy(), 256, 256)
    seen, hit = torch.nonzero((torch.from_numpy(nearest)-depth).abs() < 1e-6)[:, 0], 0
    for k in seen[torch.linspace(0, len(seen)-1, 40).long()]:
        K = camera.K.clone(); K[:2, 2] += (torch.tensor([2.5, 2.5])-uv0[k]).float()
        m = mesh_flow(torch.from_numpy(v0), torch.from_numpy(v1), torch.from_numpy(mesh.faces), replace(camera, K=K, width=5, height=5))
        if int(k) not in mesh.faces[m.face[2, 2]] or m.face[2, 2] < 0: continue                   # a vertex on an outline may slip off it
        hit += 1; assert torch.allclose(m.flow[:, 2, 2].double(), uv1[k]-uv0[k], atol=2e-4)
    assert len(seen) > 1000 and hit >= 30


def test_pixels_of_the_wall_that_the_head_will_cover_are_occluded():
    p = next(q for q in MeshFaces(30, SIZE, seed=0, noise=0.) if q['motion'] == 'turn')
    covered, changed = p['occlusion'] & ~p['mask'], (p['frame2']-p['frame1']).abs().amax(0) > .1
    still = ~p['mask'] & ~p['occlusion']
    assert covered.any() and changed[covered].float().mean() > changed[still].float().mean()+.3
    away = torch.from_numpy(cv2.dilate((~still).numpy().astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    assert torch.equal(p['frame1'][:, away], p['frame2'][:, away])


def test_motions_have_the_size_that_the_table_says(mesh):
    seen = set()
    for seed in range(16):
        camera = sample_view(256, 256, seed); v0, v1, kind = sample_motion(mesh, camera, seed); seen.add(kind)
        step = (camera.project(torch.from_numpy(v1))[0]-camera.project(torch.from_numpy(v0))[0])[mesh.face].norm(dim=1)
        low, high = (px*256/512 for px in MOTIONS[kind].pixels)
        assert step.max() < 1.1*high and (kind == 'expression' or step.max() > .45*low)           # a face can only do so much: units end at 1
    assert seen == set(MOTIONS)


def test_noise_is_of_the_strength_asked_for():
    clean, noisy = MeshFaces(1, SIZE, seed=5, noise=0.)[0], MeshFaces(1, SIZE, seed=5, noise=4.)[0]
    for k in ('frame1', 'frame2'): assert 3.3 < 255*(noisy[k]-clean[k]).std() < 4.5
    assert torch.equal(clean['flow'], noisy['flow'])


def test_nothing_moves_in_still_pairs():
    a, b = still_pairs(2, 64, seed=2), still_pairs(2, 64, seed=2, noise=3.)
    for p, q in zip(a, b):
        assert torch.equal(p['frame1'], p['frame2']) and not torch.equal(q['frame1'], q['frame2'])
        assert not p['flow'].any() and not q['flow'].any() and not q['occlusion'].any() and p['mask'].any()
        assert 3.5 < 255*(q['frame1']-q['frame2']).std() < 4.7 and (q['frame1']-p['frame1']).abs().mean() < .012


@pytest.mark.parametrize('wrong', [dict(n=0), dict(size=8), dict(size=(64, 64, 3)), dict(noise=-1.), dict(noise=(2, 1))])
def test_bad_settings_are_named(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))): MeshFaces(**(dict(n=1, size=64) | wrong))
