"What the avatar promises: any number of Gaussians, always the same ones, carried exactly by the triangles."
import numpy as np
import pytest
import torch

from srflow_nb.appearance import Appearance, Light, sample_appearance, sample_light, shade
from srflow_nb.avatar import Avatar, scatter, triangle_frames
from srflow_nb.core import InputError
from srflow_nb.gaussians import quat_to_rotmat
from srflow_nb.head import REGIONS, Head, rotation_matrix

FACE = dict(jawOpen=.7, mouthSmileLeft=.8, browDownRight=.5, eyeBlinkLeft=.6)
TURN = (.1, -.3, .05, .01, -.02, .03)


@pytest.fixture(scope='module')
def avatar(): return Avatar.create(identity=3, appearance=3, n=4000, seed=1)


@pytest.mark.parametrize('n', [1, 17, 1000, 20_000, 200_000])
def test_any_number_of_gaussians(n):
    g = Avatar.create(n=n).pose()
    assert len(g) == n and all(torch.isfinite(x).all() for x in (g.means, g.quats, g.scales, g.opacities, g.colors, g.frames))
    assert (g.scales > 0).all() and 0 <= g.colors.min() and g.colors.max() <= 1 and 0 < g.opacities.min() and g.opacities.max() <= 1


def test_wrong_number_is_refused():
    for n in (0, -3, 10**7):
        with pytest.raises(InputError, match='n='): Avatar.create(n=n)


def test_same_seeds_same_bytes_other_seed_other_places():
    a, b, c = (Avatar.create(identity=2, appearance=2, n=500, seed=s).pose(FACE) for s in (5, 5, 6))
    for name in ('means', 'quats', 'scales', 'opacities', 'colors', 'frames'): assert torch.equal(getattr(a, name), getattr(b, name)), name
    assert not torch.equal(a.means, c.means)


def test_gaussians_keep_their_place_in_the_triangle(avatar):
    for face, turn in ((None, None), (FACE, TURN)):
        v, g = avatar.vertices(face, turn), avatar.pose(face, turn)
        c = v[avatar.faces[avatar.triangle_ids]]; e = c[:, 1:]-c[:, :1]
        w = torch.linalg.lstsq(e.mT.double(), (g.means-c[:, 0])[:, :, None].double()).solution[:, :, 0]
        big = torch.linalg.cross(e[:, 0], e[:, 1]).norm(dim=1) > 1e-7
        assert (w[big]-avatar.barycentric[big, 1:]).abs().max() < 2e-3


def test_pose_of_the_resting_face_is_the_identity(avatar):
    assert torch.equal(avatar.vertices(), torch.from_numpy(avatar.head.pose(identity=avatar.identity)))
    f = avatar.pose().frames; assert (f.mT@f-torch.eye(3)).abs().max() < 5e-3          # resting frames are orthonormal
    assert (f-avatar.pose({}, np.zeros(6)).frames).abs().max() < 1e-4


def test_frames_predict_every_point_of_the_triangle_exactly(avatar):
    v0, v1, g0, g1 = avatar.vertices(), avatar.vertices(FACE, TURN), avatar.pose(), avatar.pose(FACE, TURN)
    w = torch.rand(len(avatar), 3, generator=torch.Generator().manual_seed(0)); w /= w.sum(1, keepdim=True); f = avatar.faces[avatar.triangle_ids]
    x0, x1 = ((v[f]*w[:, :, None]).sum(1) for v in (v0, v1))
    predicted = g1.means+(g1.frames[:, :, :2]@torch.linalg.pinv(g0.frames[:, :, :2])@(x0-g0.means)[:, :, None])[:, :, 0]
    assert (x1-x0).norm(dim=1).max() > .01 and (predicted-x1).norm(dim=1).max() < 1e-6


def test_third_column_is_the_unit_outward_normal_and_the_thin_axis(avatar):
    g = avatar.pose(FACE, TURN); n = g.frames[:, :, 2]
    assert (n.norm(dim=1)-1).abs().max() < 1e-3 and (g.scales.argmin(1) == 2).all()
    assert ((quat_to_rotmat(g.quats)[:, :, 2]*n).sum(1) > .999).all()
    scalp = torch.from_numpy(avatar.head.regions)[avatar.triangle_ids] == REGIONS.index('scalp')
    assert ((avatar.pose().frames[scalp, :, 2]*avatar.pose().means[scalp]).sum(1) > 0).float().mean() > .98


def test_turning_the_head_turns_every_gaussian(avatar):
    R, t = rotation_matrix(torch.tensor(TURN[:3])), torch.tensor(TURN[3:]); g0, g1 = avatar.pose(FACE), avatar.pose(FACE, TURN)
    assert (g0.means@R.T+t-g1.means).abs().max() < 1e-6 and (R@g0.covariance()@R.T-g1.covariance()).abs().max() < 1e-8


def test_frames_of_a_known_triangle():
    R, k = triangle_frames(torch.tensor([[[0., 0, 0], [2, 0, 0], [0, 1, 0]]]))
    assert torch.allclose(R[0], torch.eye(3)) and k[0] == 1.5            # edge 2, height 1


def test_scatter_respects_shares_and_skips_empty_triangles():
    ids, w = scatter(np.array([1., 0., 3.]), 4000); assert np.bincount(ids, minlength=3).tolist() == [1000, 0, 3000]
    assert w.min() >= 0 and np.allclose(w.sum(1), 1, atol=1e-6) and np.abs(w[ids == 2].mean(0)-1/3).max() < .01


def test_albedo_is_attached_to_the_surface_and_not_to_the_pose(avatar):
    dark = Light(key=(0, 0, 0), ambient=(1, 1, 1)); n = torch.tensor([[0., 0, 1]]).expand(len(avatar), 3)
    still = shade(avatar.albedo, n, dark)
    assert torch.equal(still, shade(avatar.albedo, n.clone(), dark)) and avatar.albedo.std(0).min() > .02


def test_looks_are_reproducible_and_span_fair_to_deep_skin():
    assert sample_appearance(4) == sample_appearance(4) and sample_light(4) == sample_light(4)
    m = [sample_appearance(s).melanin for s in range(60)]; assert min(m) < .3 and max(m) > 1.5
    head = Head.load(); skin = np.flatnonzero(head.regions == 0)[::50]; third = np.full((len(skin), 3), 1/3, np.float32)
    fair, deep = (Appearance(melanin=x).albedo(head, skin, third).mean() for x in (.1, 2.2)); assert fair > 3*deep


def test_wrong_expression_size_is_named(avatar):
    with pytest.raises(InputError, match='expression'): avatar.pose(torch.zeros(51))
    with pytest.raises(InputError, match='jawOpen'): avatar.pose(dict(jawopen=.2))
