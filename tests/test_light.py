"Light: what it must do whatever it shines on."
from dataclasses import replace

import numpy as np
import pytest
import torch

from srflow_nb.core import InputError
from srflow_nb.head import Head, normals, rigid
from srflow_nb.light import Light, encode, environment, irradiance, sample_light, sh_basis, shade, shadow


def directions(n=500, seed=0): return torch.nn.functional.normalize(torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)), dim=1)


def plate(z, half=.05): return np.array([[-half, -half, z], [half, -half, z], [half, half, z], [-half, half, z]], np.float32)


WALL_AND_PLATE = np.concatenate([plate(0., .2), plate(.05)]), np.array([[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7]])


def on_wall(x): return torch.tensor(np.stack([x, 0*x, 0*x], 1)).float(), torch.tensor([[0., 0, 1]]).repeat(len(x), 1)


def test_harmonics_are_orthonormal():
    k = torch.arange(20000)+.5
    up, turn = 1-2*k/20000, torch.pi*(1+5**.5)*k
    d = torch.stack([(1-up**2).sqrt()*turn.cos(), up, (1-up**2).sqrt()*turn.sin()], 1).double()
    b = sh_basis(d)
    assert (4*torch.pi*b.T@b/len(d)-torch.eye(9)).abs().max() < 2e-3


def test_an_environment_from_one_side_lights_that_side():
    e = environment(lambda d: (d[:, :1] > .5).double().expand(-1, 3))
    light = Light(key=(0, 0, 0), ambient=(1, 1, 1), environment=e)
    n = torch.tensor([[1., 0, 0], [-1., 0, 0], [0, 1., 0]])
    right, left, up = irradiance(light, n)[:, 0].tolist()
    assert right == pytest.approx(.75, abs=.06) and 0 <= left < .03 and left < up < right     # cone of 60 degrees: sin^2 = .75


def test_shade_follows_lambert_where_nothing_is_added():
    light = Light(direction=(0, 0, 2), key=(.6, .5, .4), ambient=(0, 0, 0), wrap=0.)
    n, albedo = directions(), torch.rand(500, 3, generator=torch.Generator().manual_seed(1))
    want = encode(albedo*n[:, 2:].clamp_min(0)*torch.tensor(light.key))
    assert torch.allclose(shade(albedo, n, light), want, atol=1e-5)


@pytest.mark.parametrize('seed', range(8))
def test_values_stay_in_range_and_gradients_finite(seed):
    n = directions(seed=seed).requires_grad_()
    albedo = torch.cat([torch.zeros(250, 3), torch.ones(250, 3)]).requires_grad_()
    gloss = torch.linspace(0, 1, 500)
    out = shade(albedo, n, sample_light(seed), 1-gloss, shadow=gloss, gloss=gloss, view=directions(seed=seed+50))
    out.sum().backward()
    assert out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    assert albedo.grad.isfinite().all() and n.grad.isfinite().all()


def test_the_same_seed_gives_the_same_light_and_lights_differ():
    lights = [sample_light(k) for k in range(60)]
    assert lights == [sample_light(k) for k in range(60)] and len(set(lights)) == 60
    sides = np.array([l.direction[0] for l in lights])
    sizes = np.array([l.size for l in lights])
    assert (sides < -.3).sum() > 8 and (sides > .3).sum() > 8 and sizes.min() < .03 and sizes.max() > .4


@pytest.mark.parametrize('start', range(0, 200, 50))
def test_no_sampled_light_leaves_a_face_black_or_burnt(start):
    n = directions(2000)
    n = n[n[:, 2] > .3]
    for k in range(start, start+50):
        fair, deep = (shade(torch.tensor([c]).expand(len(n), 3), n, sample_light(k), gloss=torch.full((len(n),), .3)).amax(1) for c in ((.62, .44, .34), (.09, .045, .028)))
        assert fair.quantile(.95) < .995 and deep.median() > .17, k


def test_the_shadow_of_a_plate_is_where_geometry_says():
    x = np.linspace(-.15, .15, 301)
    p, n = on_wall(x)
    s = shadow(p, n, *WALL_AND_PLATE, Light(direction=(1., 0, 1), size=.01)).numpy()            # 45 degrees: shifted by the plate's height
    inside, outside = (x > -.096) & (x < -.004), (x < -.106) | (x > .006)            # a texel is 2 mm wide
    assert s[inside].max() < .02 and s[outside].min() > .98


@pytest.mark.parametrize('size', [.1, .2, .4])
def test_the_penumbra_grows_with_the_lamp(size):
    x = np.linspace(.02, .08, 601)
    p, n = on_wall(x)
    s = shadow(p, n, *WALL_AND_PLATE, Light(direction=(0., 0, 1), size=size)).numpy()
    width = np.interp(.9, np.maximum.accumulate(s), x)-np.interp(.1, np.maximum.accumulate(s), x)
    disc = .6875*2*.05*np.tan(size/2)                                                          # 10-90 % of a disc's profile, a plate .05 m above
    assert .5*disc-.001 < width < 1.8*disc+.003
    assert s.min() < .05 and s.max() > .95


@pytest.mark.parametrize('lift', [0., .0005, .002, .006])
@pytest.mark.parametrize('size', [.01, .15, .5])
def test_what_is_on_or_above_a_lit_surface_does_not_shadow_itself(lift, size):
    head = Head.load()
    v = torch.from_numpy(head.vertices)
    n = normals(v, torch.from_numpy(head.faces))
    forehead = (v[:, 1] > .03) & (v[:, 1] < .09) & (v[:, 2] > .05)                              # convex: nothing stands before it
    light = Light(direction=(.3, .4, 1.), size=size)
    s = shadow((v+lift*n)[forehead], n[forehead], v, head.faces, light)
    facing = n[forehead]@torch.nn.functional.normalize(torch.tensor(light.direction), dim=0) > .3
    assert facing.sum() > 50 and s[facing].min() > .93


def test_the_shadow_stays_with_the_lamp_when_everything_turns():
    head = Head.load()
    v = torch.from_numpy(head.vertices)
    n, turn = normals(v, torch.from_numpy(head.faces)), torch.tensor([0, .6, 0, 0, 0, 0.])
    light = Light(direction=(.8, .5, .6), size=.1)
    fixed = shadow(rigid(v, turn), rigid(n, turn), rigid(v, turn), head.faces, light)
    carried = replace(light, direction=tuple(rigid(torch.tensor([light.direction]), turn)[0].tolist()))
    front = (v[:, 2] > .03).numpy()
    along = shadow(rigid(v, turn), rigid(n, turn), rigid(v, turn), head.faces, carried)
    first = shadow(v, n, v, head.faces, light)
    assert (along-first).abs()[front].mean() < .02                                             # a lamp that turns along sees the same
    assert (fixed-first).abs()[front].mean() > .05                                             # a lamp that stays does not


def test_shadow_takes_any_kind_of_array_and_keeps_the_scale_of_the_world():
    head = Head.load()
    v = torch.from_numpy(head.vertices)
    n = normals(v, torch.from_numpy(head.faces))
    a = shadow(v, n, v, torch.from_numpy(head.faces), Light())
    b = shadow(v.double().requires_grad_(), n, head.vertices, head.faces, Light())
    assert not b.requires_grad and torch.allclose(a, b, atol=1e-4) and 0 <= a.min() and a.max() <= 1
    with pytest.raises(InputError, match='resolution=4'): shadow(v, n, v, head.faces, Light(), resolution=4)


def test_gloss_shines_towards_the_mirrored_lamp_and_wider_when_rough():
    n = directions(4000)
    n = n[n[:, 2] > 0]
    light, albedo, one = Light(direction=(0, .6, .8), ambient=(0, 0, 0), size=.02), torch.zeros(len(n), 3), torch.ones(len(n))
    half = torch.nn.functional.normalize(torch.tensor([0, .6, 1.8]), dim=0)
    for rough in (.15, .3, .5):
        lit = shade(albedo, n, light, gloss=one, roughness=rough)[:, 1]
        assert n[lit.argmax()]@half > .97
    wide, narrow = ((shade(albedo, n, light, gloss=one, roughness=r)[:, 1] > .1).float().mean() for r in (.5, .15))
    assert wide > 3*narrow > 0
