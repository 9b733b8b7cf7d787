"All labels of a frame agree with each other, with the mesh, and with what an independent hand would compute."
from dataclasses import replace

import numpy as np
import pytest
import torch

from srflow_nb.avatar import LABELS
from srflow_nb.camera import frontal_camera
from srflow_nb.core import InputError
from srflow_nb.film import Film
from srflow_nb.mesh_flow import mesh_flow
from srflow_nb.scene import DatasetConfig, Drawing, Scene, Surface, between, blend, check_config, mesh_surface, occlusion
from srflow_nb.splat import render
from srflow_nb.visibility import forward_backward_occlusion

SKIN, HAIR = LABELS.index('skin'), LABELS.index('hair')
SMALL = DatasetConfig(width=200, height=240, seed=5, gaussians=20_000)


def moving(c=SMALL, index=1, frames=3, expression=True, head=True, turn=2., frontal=True):
    "A scene whose performance we know: a smile that grows, a head that turns."
    s = Scene(c, index, frames)
    n = len(s.performance)
    e, p = np.zeros_like(s.performance.expression), np.zeros_like(s.performance.head_pose)
    units = [s.avatar.head.unit_names.index(u) for u in ('mouthSmileLeft', 'mouthSmileRight', 'browInnerUp')]
    if expression: e[:, units] = np.linspace(0, .5, n)[:, None]
    if head: p[:, 1] = np.radians(turn)*np.arange(n)/s.stride
    s.performance = replace(s.performance, expression=e, head_pose=p)
    if frontal: s.camera = frontal_camera(c.width, c.height, fill=.85)
    return s


@pytest.fixture(scope='module')
def smiling():
    with torch.no_grad(): s = moving(); yield s, [s.frame(t) for t in range(3)]


def visible(frame): return frame.mask & ~frame.occlusion


def test_every_flow_is_a_whole_number_of_1024ths_so_that_parts_add_up_exactly(smiling):
    frame = smiling[1][1]
    for f in (frame.flow, frame.flow_head, frame.flow_backward): assert (f*1024 == (f*1024).round()).all() and f.abs().max() > .1
    expression = frame.flow-frame.flow_head
    assert (frame.flow_head+expression == frame.flow).all() and expression.abs().max() > .1


def test_a_still_face_has_no_expression_flow_and_a_still_head_no_head_flow():
    with torch.no_grad(): turned, smiled = moving(expression=False).frame(0), moving(head=False).frame(0)
    assert (turned.flow-turned.flow_head).abs().max() <= 2/1024 and turned.flow.abs().max() > .5
    assert smiled.flow_head.abs().max() == 0 and smiled.flow.abs().max() > .05


def test_flow_of_skin_is_that_of_the_mesh(smiling):
    s, frames = smiling
    exact = mesh_flow(s.avatar.vertices(**s.state(0)), s.avatar.vertices(**s.state(1)), s.avatar.solid_faces, s.camera)
    inside = -torch.nn.functional.max_pool2d(-(frames[0].labels == SKIN)[None].float(), 7, 1, 3)[0] > 0
    sure = inside & (exact.face >= 0) & visible(frames[0])
    error = (frames[0].flow-exact.flow).norm(dim=0)[sure]
    assert sure.sum() > 3000 and error.mean() < .05 and exact.flow.norm(dim=0)[sure].mean() > .3


def test_flow_back_undoes_flow_there(smiling):
    _, (a, b, _) = smiling
    odd = forward_backward_occlusion(a.flow, b.flow_backward, beta=.25)
    seen = -torch.nn.functional.max_pool2d(-visible(a)[None].float(), 7, 1, 3)[0] > 0
    assert (odd & seen).sum() < .03*seen.sum()


def test_nothing_moves_beside_the_head(smiling):
    for f in smiling[1][:2]: assert (f.flow[:, ~f.mask] == 0).all() and (f.flow_head[:, ~f.mask] == 0).all()


def test_the_last_frame_has_no_next_and_the_first_no_last(smiling):
    first, _, last = smiling[1]
    assert first.flow_backward is None and last.flow is None and last.flow_head is None and last.occlusion is None
    assert first.flow is not None and last.flow_backward is not None and last.depth is not None


def test_a_frame_does_not_depend_on_which_frames_were_drawn_before(smiling):
    with torch.no_grad(): alone = moving().frame(1)
    for k, v in vars(smiling[1][1]).items(): assert torch.equal(v, getattr(alone, k)), k


def test_occlusion_of_skin_is_that_of_the_mesh():
    with torch.no_grad(): s = moving(turn=8., frames=2); frame = s.frame(0)
    exact = mesh_flow(s.avatar.vertices(**s.state(0)), s.avatar.vertices(**s.state(1)), s.avatar.solid_faces, s.camera)
    skin = (frame.labels == SKIN) & (exact.face >= 0)
    assert (exact.occluded & skin).sum() > 20
    assert not (exact.occluded & ~frame.occlusion & skin).any(), 'what the mesh hides is hidden'
    assert (frame.occlusion & ~exact.occluded & skin).sum() < .05*skin.sum(), 'what else is hidden, hair hides'


def test_background_that_the_head_covers_next_is_occluded(smiling):
    s, (a, b, _) = smiling
    assert torch.equal(a.occlusion & ~a.mask, b.mask & ~a.mask) and (a.occlusion & ~a.mask).any()


def flat(camera, label, depth, flow=0.):
    "A drawing of one label at one depth everywhere."
    h, w = camera.height, camera.width
    return Drawing(torch.zeros(3, h, w), torch.ones(h, w, dtype=torch.bool), torch.full((h, w), depth), torch.full((h, w), label, dtype=torch.uint8),
                   dict(flow=torch.full((2, h, w), flow)))


def on_mesh(camera, depth, hidden=False):
    "A surface that stays where it is."
    h, w = camera.height, camera.width
    y, x = torch.meshgrid(torch.arange(h)+.5, torch.arange(w)+.5, indexing='ij')
    return Surface(torch.full((h, w), depth), torch.full((h, w), hidden), torch.stack([x, y, torch.full((h, w), depth)], -1).double())


@pytest.mark.parametrize('here, then, depth_then, hidden', [
    (SKIN, SKIN, .9, False), (SKIN, SKIN, .8, False), (SKIN, HAIR, .897, False), (SKIN, HAIR, .88, True),
    (HAIR, SKIN, .9, False), (HAIR, SKIN, .88, True), (HAIR, HAIR, .895, False), (HAIR, HAIR, .85, True), (HAIR, HAIR, .95, False)])
def test_hair_hides_and_is_hidden_by_depth(here, then, depth_then, hidden):
    c, still = frontal_camera(20, 20), torch.eye(4, dtype=torch.float64)
    found = occlusion(flat(c, here, .9), flat(c, then, depth_then), on_mesh(c, .9), still, c)
    assert (found == hidden).all()


def test_hair_that_leaves_the_picture_or_goes_away_with_the_head_is_judged_there():
    c, still = frontal_camera(20, 20), torch.eye(4, dtype=torch.float64)
    out = occlusion(flat(c, HAIR, .9, flow=15.), flat(c, HAIR, .9), on_mesh(c, .9), still, c)
    assert out[10:, 10:].all() and not out[:5, :5].any()
    back = still.clone(); back[2, 3] = -.05                       # the head steps back: its hair is expected 5 cm farther away
    assert occlusion(flat(c, HAIR, .9), flat(c, HAIR, .9), on_mesh(c, .9), back, c).all()
    assert not occlusion(flat(c, HAIR, .9), flat(c, HAIR, .95), on_mesh(c, .9), back, c).any()


def test_mesh_surface_says_what_mesh_flow_says(smiling):
    s, _ = smiling
    found = mesh_surface(s.moment(1).corners, s.moment(2).corners, 200, 240)
    exact = mesh_flow(s.avatar.vertices(**s.state(1)), s.avatar.vertices(**s.state(2)), s.avatar.solid_faces, s.camera)
    on = exact.face >= 0
    assert torch.equal(found.depth.isfinite(), on) and torch.allclose(found.depth[on].float(), exact.depth[on])
    assert torch.equal(found.hidden, exact.occluded)
    pixels = torch.nonzero(on).flip(1)+.5
    assert ((found.then[on][:, :2]-pixels).T.float()-exact.flow[:, on]).abs().max() < 1e-3


def test_depth_is_the_mesh_on_skin_and_just_in_front_of_it_on_hair(smiling):
    s, (_, frame, _) = smiling
    exact = mesh_surface(s.moment(1).corners, None, 200, 240).depth.float()
    skin, hair = (frame.labels == SKIN) & exact.isfinite(), (frame.labels == HAIR) & exact.isfinite()
    assert torch.equal(frame.depth[skin], exact[skin]) and frame.depth[~frame.mask].isinf().all() and frame.depth[frame.mask].isfinite().all()
    assert hair.sum() > 50 and (frame.depth[hair]-exact[hair]).median() < .005


def test_labels_are_the_largest_share_of_a_pixels_light(smiling):
    s, (_, frame, _) = smiling
    g = s.moment(1).gaussians
    hot = torch.nn.functional.one_hot(s.avatar.labels.long(), len(LABELS)).float()
    with torch.no_grad(): (shares,), alpha = blend(g, [hot], s.camera)
    slow = torch.where(alpha > .5, shares.argmax(0), 0)
    assert (slow != frame.labels).sum() < 5 and set(frame.labels.unique().tolist()) == set(range(5))


def test_one_pass_or_many_draw_the_same_picture(smiling):
    s, (_, frame, _) = smiling
    with torch.no_grad(): rgb, alpha = render(s.moment(1).gaussians, s.camera, background=s.background)
    assert (rgb-frame.clean).abs().max() < 1e-5 and torch.equal(alpha > .5, frame.mask)


def test_fewer_kinds_leave_the_others_as_they_were(smiling):
    few = moving(replace(SMALL, kinds=('clean', 'flow', 'masks')))
    with torch.no_grad(): frame = few.frame(1)
    assert frame.final is frame.depth is frame.occlusion is frame.flow_head is frame.flow_backward is None
    for k in ('clean', 'flow', 'labels'): assert torch.equal(getattr(frame, k), getattr(smiling[1][1], k)), k


def test_an_open_shutter_smears_what_moves_and_nothing_else():
    with torch.no_grad():
        s = moving(frames=2, turn=24.)           # 6 degrees from frame to frame of the performance
        sharp, s.film = s.frame(0).clean, Film(seed=1, shutter=1., defocus=0., exposure=0., white=0., shot=0., read=0., quality=None)
        blurred = s.frame(0)
        s.film = replace(s.film, shutter=0.)
        closed = s.frame(0).final
    change = (blurred.final-sharp).abs().amax(0)
    far = torch.nn.functional.max_pool2d(blurred.mask[None].float(), 21, 1, 10)[0] == 0
    assert change[blurred.mask].max() > .1 and change[far].max() <= .5/255+1e-6, 'eight bits, nothing else'
    assert (closed-sharp).abs().max() <= .5/255+1e-6


def test_a_stride_leaves_a_picture_as_the_camera_took_it():
    "The shutter belongs to the camera: whoever takes every fourth of its frames gets the same frames."
    film, found = Film(seed=1, shutter=1., defocus=0., exposure=0., white=0., shot=0., read=0., quality=None), []
    for stride, t in ((4, 1), (1, 7)):                           # both are frame 8 of the performance
        s = Scene(replace(SMALL, kinds=('final',)), 1, 3)
        s.stride, s.film, n = stride, film, len(s.performance)
        pose = np.zeros_like(s.performance.head_pose)
        pose[:, 1] = np.radians(8)*np.sin(np.arange(n)*np.pi/2)  # there and back within a stride
        s.performance = replace(s.performance, head_pose=pose)
        with torch.no_grad(): found.append((s.frame(t).final, s.drawing(t).rgb))
    assert torch.equal(*[f for f, _ in found]) and (found[0][0]-found[0][1]).abs().max() > .1, 'smeared, and the same'


def test_between_two_moments_lies_on_a_straight_line(smiling):
    s, _ = smiling
    a, b = s.moment(0).gaussians, s.moment(1).gaussians
    half = between(a, b, .5)
    assert torch.allclose(half.means, (a.means+b.means)/2, atol=1e-7) and torch.allclose(between(a, b, 0.).means, a.means)
    flipped = between(a, b.replace(quats=-b.quats), .5)          # q and -q are one orientation
    assert torch.allclose(flipped.covariance(), half.covariance(), atol=1e-9)


def test_facts_name_every_frame(smiling):
    s, _ = smiling
    facts = s.facts()
    assert facts['expression'].shape[0] == facts['head_pose'].shape[0] == 3
    assert np.array_equal(facts['head_pose'][1], s.state(1)['head_pose']) and all(len(v) == 3 for v in facts['action_units'].values())


@pytest.mark.parametrize('change, text', [(dict(kinds=('clean', 'flwo')), 'nearest: flow'), (dict(kinds=('flow',)), "'clean' or 'final'"),
                                          (dict(flow_format='kitti'), 'flow format'), (dict(fps=0), 'fps'), (dict(height=9), 'height')])
def test_a_bad_setting_is_named(change, text):
    with pytest.raises(InputError, match=text): check_config(replace(SMALL, **change))


@pytest.mark.cuda
def test_a_frame_is_the_same_on_both_devices():
    with torch.no_grad(): on = {d: Scene(SMALL, 2, 3, device=d).frame(1) for d in ('cpu', 'cuda')}
    for k in ('clean', 'flow', 'flow_backward', 'flow_head'):
        off = (getattr(on['cuda'], k)-getattr(on['cpu'], k)).abs()
        assert (off > 2e-2).float().mean() < .005, k
    assert (on['cuda'].labels != on['cpu'].labels).float().mean() < .005
