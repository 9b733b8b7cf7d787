"What the avatar promises: any number of Gaussians, always the same ones, carried exactly by the triangles."
import numpy as np
import pytest
import torch

from srflow_nb.appearance import Appearance, sample_appearance
from srflow_nb.avatar import LABELS, Avatar, Rig, _carried, _carried_fast, sample_person, scatter, triangle_frames
from srflow_nb.core import InputError
from srflow_nb.gaussians import quat_to_rotmat
from srflow_nb.head import REGIONS, Head, rotation_matrix, traits
from srflow_nb.light import Light, sample_light, shade

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
        n = len(avatar.sizes); c = v[avatar.faces[avatar.triangle_ids[:n]]]; e = c[:, 1:]-c[:, :1]
        w = torch.linalg.lstsq(e.mT.double(), (g.means[:n]-c[:, 0])[:, :, None].double()).solution[:, :, 0]
        big = torch.linalg.cross(e[:, 0], e[:, 1]).norm(dim=1) > 1e-7
        assert (w[big]-avatar.barycentric[:n][big, 1:]).abs().max() < 2e-3


def test_pose_of_the_resting_face_is_the_identity(avatar):
    assert torch.equal(avatar.vertices(), torch.from_numpy(avatar.head.pose(identity=avatar.identity)))
    f = avatar.pose().frames; assert (f.mT@f-torch.eye(3)).abs().max() < 5e-3          # resting frames are orthonormal, hair too
    assert (f-avatar.pose({}, np.zeros(6)).frames).abs().max() < 1e-4


def test_frames_predict_every_point_of_the_triangle_exactly(avatar):
    v0, v1, g0, g1 = avatar.vertices(), avatar.vertices(FACE, TURN), avatar.pose(), avatar.pose(FACE, TURN)
    n = len(avatar.sizes); g0, g1 = g0[:n], g1[:n]                        # strands are carried rigidly: see below
    w = torch.rand(n, 3, generator=torch.Generator().manual_seed(0)); w /= w.sum(1, keepdim=True); f = avatar.faces[avatar.triangle_ids[:n]]
    x0, x1 = ((v[f]*w[:, :, None]).sum(1) for v in (v0, v1))
    predicted = g1.means+(g1.frames[:, :, :2]@torch.linalg.pinv(g0.frames[:, :, :2])@(x0-g0.means)[:, :, None])[:, :, 0]
    assert (x1-x0).norm(dim=1).max() > .01 and (predicted-x1).norm(dim=1).max() < 1e-6


def test_third_column_is_the_unit_outward_normal_and_the_thin_axis(avatar):
    g = avatar.pose(FACE, TURN); n = g.frames[:, :, 2]
    s = slice(len(avatar.sizes)); assert (n.norm(dim=1)-1).abs().max() < 1e-3 and (g.scales[s].argmin(1) == 2).all()
    assert ((quat_to_rotmat(g.quats)[s, :, 2]*n[s]).sum(1) > .999).all()
    scalp = torch.from_numpy(avatar.head.regions)[avatar.triangle_ids[s]] == REGIONS.index('scalp'); rest = avatar.pose()[s]
    assert ((rest.frames[scalp, :, 2]*rest.means[scalp]).sum(1) > 0).float().mean() > .98


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


def test_strands_are_carried_rigidly_and_grow_with_their_triangle(avatar):
    s = slice(len(avatar.sizes), None); g0, g1 = avatar.pose(), avatar.pose(FACE, TURN); assert len(avatar.strands) > 500
    R0, k0 = triangle_frames(avatar.vertices()[avatar.faces]); R1, k1 = triangle_frames(avatar.vertices(FACE, TURN)[avatar.faces])
    i = avatar.strands.triangle_ids; turn, grown = R1[i]@R0[i].mT, (k1/k0)[i]
    assert torch.allclose(g1.scales[s], g0.scales[s]*grown[:, None], atol=1e-6)
    assert (turn@quat_to_rotmat(g0.quats[s])-quat_to_rotmat(g1.quats[s])).abs().max() < 2e-4
    assert (g1.frames[s, :, :2]-grown[:, None, None]*(turn@g0.frames[s, :, :2])).abs().max() < 2e-4
    c0, c1 = (avatar.vertices(*a)[avatar.faces[i]].mean(1) for a in ((), (FACE, TURN)))
    assert (g1.means[s]-c1-grown[:, None]*(turn@(g0.means[s]-c0)[:, :, None])[:, :, 0]).abs().max() < 1e-6


def test_compiled_and_differentiable_pose_agree(avatar):
    for args in ((), (FACE, TURN)):
        v = avatar.vertices(*args)
        for a, b, eps in zip(_carried(avatar, v), _carried_fast(avatar, v), (1e-6, 1e-4, 1e-7, 1e-4, 1e-4)):
            if a.shape[1:] == (4,): a = a*(a*b).sum(1, keepdim=True).sign()
            assert a.shape == b.shape and (a-b).abs().max() < eps


def test_pose_is_differentiable_in_expression_and_head_pose():
    a = Avatar.create(identity=1, appearance=1, n=400); e = torch.zeros(52, requires_grad=True); p = torch.zeros(6, requires_grad=True)
    g = a.pose(e, p); (g.means.sum()+g.colors.sum()+g.quats.sum()).backward()
    assert e.grad.abs().sum() > 0 and p.grad.abs().sum() > 0 and torch.isfinite(e.grad).all()
    with torch.no_grad(): step = a.pose(torch.eye(52)[0]*1e-2).means.sum()-a.pose().means.sum()
    e.grad = None; a.pose(e).means.sum().backward(); assert step.item()/1e-2 == pytest.approx(e.grad[0].item(), rel=.02, abs=1e-2)


def test_rig_without_normals_takes_the_thinnest_axis_turned_outward():
    corners = torch.tensor([[[0., 0, 0], [1, 0, 0], [0, 1, 0]]]); flip = torch.tensor([[0., 1, 0, 0]])      # upside down
    rig = Rig(torch.tensor([0]), torch.zeros(1, 3), flip, torch.tensor([[.3, .2, .01]]))
    f = rig.pose(corners)[3][0]; assert f[2, 2] > .99 and abs(f[0, 0]) == pytest.approx(1) and torch.linalg.det(f) > 0


def test_gains_scale_the_expression():
    a = Avatar.create(n=300); b = Avatar.create(n=300, gains=np.full(52, 2.)); e = dict(mouthSmileLeft=.4)
    assert torch.allclose(b.vertices(e)-b.rest, 2*(a.vertices(e)-a.rest), atol=1e-7)


def test_labels_say_what_is_where(avatar):
    region = np.array(REGIONS)[avatar.head.regions[avatar.triangle_ids.numpy()]]; labels = np.array(LABELS)[avatar.labels.numpy()]; n = len(avatar.sizes)
    assert set(labels) == {'skin', 'hair', 'eyes', 'mouth'} and (labels[n:] == 'hair').all()
    assert (labels[:n][region[:n] == 'eye'] == 'eyes').all() and (labels[:n][np.isin(region[:n], ('lips', 'teeth', 'tongue'))] == 'mouth').all()
    bald = Avatar.create(appearance=Appearance(hair_style='bald'), n=4000); region = np.array(REGIONS)[bald.head.regions[bald.triangle_ids.numpy()]][:len(bald.sizes)]
    assert (bald.labels[:len(bald.sizes)].numpy()[region == 'scalp'] == 1).all()


def test_people_are_whole_and_beards_grow_on_men():
    people = [sample_person(s) for s in range(60)]; head = Head.load(); t = [traits(head, p.identity) for p in people]
    assert all(p.gains.shape == (52,) for p in people) and (people[0].identity == sample_person(0).identity).all() and people[0].appearance == sample_person(0).appearance
    assert not any(p.appearance.beard > .1 for p, x in zip(people, t) if x['male'] < .4) and any(p.appearance.beard > .1 for p in people)
    looks = lambda x: Avatar.create(identity=7, appearance=x, n=300).appearance
    assert looks(7) == sample_person(7).appearance


def test_without_hair_every_gaussian_sits_on_the_surface():
    a = Avatar.create(n=2000, hair=False); assert len(a.strands) == 0 and len(a.sizes) == 2000 and len(a.pose(FACE)) == 2000


def test_the_lamp_s_shadow_stays_in_the_room_while_the_head_turns(avatar):
    lamp = Light(direction=(1., .1, .3), size=.05); off = Light(direction=(1., .1, .3), key=(0, 0, 0))
    lit = lambda p: avatar.pose(None, p, lamp).colors-avatar.pose(None, p, off).colors
    nose = (avatar.rest[:, 2].argmax() == avatar.faces[avatar.triangle_ids]).any(1); still, turned = lit(None)[nose].mean(), lit((0, -.9, 0, 0, 0, 0))[nose].mean()
    assert still != pytest.approx(turned.item(), rel=.1)
