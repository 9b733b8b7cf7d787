"Visibility's promises: the mesh's answer equals an independent ray caster's; depth and forward-backward checks find what moves in front."
import pytest
import torch

from srflow_nb.camera import Camera
from srflow_nb.core import InputError
from srflow_nb.flow import flow_both
from srflow_nb.gaussians import Gaussians
from srflow_nb.mesh_flow import mesh_flow
from srflow_nb.visibility import depth_occlusion, forward_backward_occlusion

def card(x, y, z, half, step=.004, size=.004):
    "A square of splats that faces +z, centred at (x, y, z), without frames."
    n = round(2*half/step)+1
    a, b = torch.meshgrid(torch.linspace(-half, half, n), torch.linspace(-half, half, n), indexing='ij')
    means = torch.stack([x+a, y+b, torch.full_like(a, z)], -1).reshape(-1, 3)
    return Gaussians(means, torch.tensor([[1., 0, 0, 0]]).expand(len(means), 4), torch.tensor([size, size, size/10]).expand(len(means), 3),
                     torch.full((len(means),), .95), torch.full((len(means), 3), .5))


def both(a, b): return Gaussians(*[torch.cat([getattr(a, k), getattr(b, k)]) for k in ('means', 'quats', 'scales', 'opacities', 'colors')])


def square(x, y, z, half): return torch.tensor([[x-half, y-half, z], [x+half, y-half, z], [x+half, y+half, z], [x-half, y+half, z]])


def f1(found, true): return (2*(found & true).sum()/(found.sum()+true.sum())).item()


@pytest.fixture(scope='module')
def scene():
    "A small card slides over a wall: splats of both moments, camera, and the mesh's exact answer."
    camera, shift = Camera.look_at((0, 0, 1), focal=600., width=200, height=160), torch.tensor([.03, .01, 0])
    wall, patch = card(0, 0, 0, .3), card(-.03, 0, .1, .03, step=.002, size=.002)
    slid = patch.replace(means=patch.means+shift)
    faces = torch.tensor([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])
    v0, v1 = (torch.cat([square(0, 0, 0, .3), square(-.03, 0, .1, .0335)+s]) for s in (0*shift, shift))      # splats reach beyond their centres
    return both(wall, patch), both(wall, slid), camera, mesh_flow(v0, v1, faces, camera)


def test_depth_finds_what_a_sliding_card_will_cover_without_any_normals(scene):
    g0, g1, camera, exact = scene
    found = depth_occlusion(g0, g1, camera)
    assert exact.occluded.sum() > 800 and f1(found, exact.occluded) > .8
    assert not depth_occlusion(g0, g0, camera).any()


def test_forward_backward_agrees_with_the_mesh_on_a_sliding_card(scene):
    g0, g1, camera, exact = scene
    there, back = flow_both(g0, g1, camera)
    assert f1(forward_backward_occlusion(there.flow, back.flow), exact.occluded) > .7


def test_flow_of_a_cloud_without_normals_follows_each_of_its_parts(scene):
    g0, g1, camera, exact = scene
    there, back = flow_both(g0, g1, camera)
    near = lambda m: torch.nn.functional.max_pool2d(m[None].float(), 13, 1, 6)[0] > 0
    error, edge = (there.flow-exact.flow).norm(dim=0), near(exact.face >= 2) & near(exact.face < 2)
    assert error[~edge].max() < .02 and there.confidence[~edge].min() > .9
    assert (error[edge] > 2).any() and there.confidence[edge].min() < .2       # at the card's border a pixel sees both, and says so
    assert (back.flow[:, exact.face < 0].nelement() == 0) and back.flow.norm(dim=0).max() > 15


def test_what_leaves_the_picture_is_occluded(scene):
    g0, _, camera, _ = scene
    assert depth_occlusion(g0, g0.replace(means=g0.means+torch.tensor([1., 0, 0])), camera).all()


def test_forward_backward_finds_the_strip_that_a_moving_square_covers():
    h, w = 40, 60
    fwd, bwd = torch.zeros(2, h, w), torch.zeros(2, h, w)
    fwd[0, 10:30, 10:30], bwd[0, 10:30, 18:38] = 8, -8           # a square moves 8 px to the right
    found, want = forward_backward_occlusion(fwd, bwd), torch.zeros(h, w, dtype=torch.bool)
    want[10:30, 30:38] = True
    assert torch.equal(found, want)
    fwd[0, :, -4:] = 6; fwd[:, 0, 0] = torch.nan
    found = forward_backward_occlusion(fwd, bwd)
    assert found[:, -4:].all() and found[0, 0] and not found[1, 1]


def test_mistakes_are_named(scene):
    with pytest.raises(InputError, match=r'expected two times \(2, H, W\)'): forward_backward_occlusion(torch.zeros(2, 4, 4), torch.zeros(2, 4, 5))
    with pytest.raises(InputError, match='expected the same ones'): depth_occlusion(scene[0], scene[0][:7], scene[2])
