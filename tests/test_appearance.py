"Skin, eyes and make-up: what the lessons promise, swept over many people."
import time
from dataclasses import replace

import numpy as np
import pytest

from srflow_nb.appearance import Appearance, MakeUp, lightness, sample_appearance, skin_color
from srflow_nb.eyes import LID_RIMS, eye_albedo, eye_centres
from srflow_nb.head import REGIONS, Head, sample_identity, traits
from srflow_nb.noise import cells, fade, fractal_noise, value_noise

HEAD = Head.load()
G = np.random.Generator(np.random.PCG64(5))
TRIANGLES = np.concatenate([np.arange(len(HEAD.faces)), G.integers(0, len(HEAD.faces), 6000)])      # every triangle, some twice
WEIGHTS = G.dirichlet([1, 1, 1], len(TRIANGLES)).astype(np.float32)
REGION = HEAD.regions[TRIANGLES]


def place(): return (HEAD.vertices[HEAD.faces[TRIANGLES]]*WEIGHTS[..., None]).sum(1)


def of(region): return REGION == REGIONS.index(region)


# ---- noise -------------------------------------------------------------------------------------------------------

def plain(points, size, seed):
    "Value noise as a loop over points and corners, in Python's own integers."
    out, mask = [], 2**64 - 1
    for p in np.asarray(points, float)/size:
        i = np.floor(p).astype(int); t = p - i; t = t*t*(3 - 2*t); total = 0.
        for corner in np.ndindex(2, 2, 2):
            h = (sum((int(a) + c)*k for a, c, k in zip(i, corner, (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D))) + seed*0x27D4EB2F % 2**63) & mask
            for s in (33, 29): h = ((h ^ (h >> s))*0xFF51AFD7ED558CCD) & mask
            total += np.prod([a if c else 1 - a for a, c in zip(t, corner)])*((h >> 40)*2/2**24 - 1)
        out.append(total)
    return np.array(out)


@pytest.mark.parametrize('seed', [0, 3, 10**12, -7])
@pytest.mark.parametrize('size', [.05, .0007])
def test_compiled_noise_is_the_plain_noise(size, seed):
    p = np.random.Generator(np.random.PCG64(1)).uniform(-.2, .2, (60, 3))
    np.testing.assert_allclose(value_noise(p, size, seed), plain(p, size, seed), atol=1e-6)


def test_noise_has_no_preferred_sign_and_fills_its_range():
    x = fractal_noise(np.random.Generator(np.random.PCG64(2)).uniform(-5, 5, (50_000, 3)), .01, 5, 4)
    assert abs(x.mean()) < .02 and .2 < x.std() < .6 and abs(x).max() < 2


def test_detail_finer_than_the_samples_is_gone():
    p = place()
    assert fade(.001, .0011) == 0 and fade(.001, .0005) == 1 and fade(.001, None) == 1
    assert abs(fractal_noise(p, .002, 3, spacing=np.full(len(p), .01))).max() == 0


def test_no_cell_is_empty():
    "The nearest thing is found among the 27 cells around a point, also below zero."
    p = np.random.Generator(np.random.PCG64(3)).uniform(-.01, .01, (300, 3)); far, _ = cells(p, .002, 9)
    wide = min(cells(np.zeros((1, 3)), .002, 9)[0][0], 1); assert (far < .002*1.3).all() and wide < .002*1.3


# ---- people ------------------------------------------------------------------------------------------------------

def test_one_seed_is_one_look():
    assert sample_appearance(12) == sample_appearance(12) and len({sample_appearance(s) for s in range(50)}) == 50


@pytest.mark.parametrize('paint', ['albedo', 'relief', 'gloss', 'roughness', 'opacity'])
def test_paint_does_not_depend_on_order_or_company(paint):
    a, d = replace(sample_appearance(3), stubble=.7, age=.7), np.linspace(.0003, .003, len(TRIANGLES)); more = dict(spacing=d) if paint in ('albedo', 'relief') else {}
    whole = getattr(a, paint)(HEAD, TRIANGLES, WEIGHTS, **more); pick = np.arange(len(TRIANGLES))[::-3]
    part = getattr(a, paint)(HEAD, TRIANGLES[pick], WEIGHTS[pick], **{k: v[pick] for k, v in more.items()})
    np.testing.assert_array_equal(part, whole[pick])


def test_every_person_has_finite_colours_gloss_and_relief():
    for seed in range(8):
        a = sample_appearance(seed)
        c, g, r, o, s = a.albedo(HEAD, TRIANGLES, WEIGHTS, .001), a.gloss(HEAD, TRIANGLES, WEIGHTS), a.roughness(HEAD, TRIANGLES, WEIGHTS), a.opacity(HEAD, TRIANGLES, WEIGHTS), a.relief(HEAD, TRIANGLES, WEIGHTS, .001)
        assert c.dtype == s.dtype == np.float32 and c.shape == s.shape == (len(TRIANGLES), 3)
        for x in (c, g, o): assert x.min() >= 0 and x.max() <= 1
        assert r.min() > 0 and r.max() <= 1 and np.isfinite(s).all() and np.linalg.norm(s[of('skin')], axis=1).max() < 3


def test_dark_and_light_skin_are_equally_common():
    "Also where looks follow the ancestry of the face's shape."
    for people in ([sample_appearance(s) for s in range(600)], [sample_appearance(s, traits(HEAD, sample_identity(HEAD, s))) for s in range(600)]):
        counts, _ = np.histogram(lightness(skin_color(np.array([a.melanin for a in people]), np.full(600, .4))), 5)
        assert counts.min() > .55*counts.max(), counts


def test_looks_follow_traits():
    child, woman, man = (dict(age=0., child=c, male=m, african=0., asian=0., caucasian=1.) for c, m in ((1., 1.), (0., 0.), (0., 1.)))
    assert all(a.makeup == MakeUp() and a.stubble == 0 for a in (sample_appearance(s, child) for s in range(40)))
    made_up = [np.mean([sample_appearance(s, t).makeup != MakeUp() for s in range(100)]) for t in (woman, man)]; assert made_up[0] > .4 > .1 > made_up[1]
    assert {sample_appearance(s, woman).stubble for s in range(40)} == {0.} and max(sample_appearance(s, man).stubble for s in range(40)) > .3
    grey = [np.mean([np.ptp(sample_appearance(s, {**woman, 'age': age}).hair) < .1 and min(sample_appearance(s, woman | {'age': age}).hair) > .1 for s in range(60)]) for age in (0., 1.)]
    assert grey[0] < .1 and grey[1] > .5


# ---- paint -------------------------------------------------------------------------------------------------------

BARE = replace(Appearance(), freckles=0, moles=0, melanin=.4)


def changed(a, b): return abs(a.albedo(HEAD, TRIANGLES, WEIGHTS, .0005) - b.albedo(HEAD, TRIANGLES, WEIGHTS, .0005)).max(1) > .004


@pytest.mark.parametrize('part,where', [(dict(lipstick=1.), 'lips'), (dict(eye_shadow=1.), 'eyes'), (dict(eyeliner=1.), 'eyes'), (dict(blush=1.), 'cheeks')])
def test_make_up_changes_what_it_covers_and_nothing_else(part, where):
    x, y, z = place().T; x = abs(x); hit = changed(BARE, replace(BARE, makeup=MakeUp(**part)))
    near = dict(lips=HEAD.masks['lips'][HEAD.faces[TRIANGLES]].max(1) > 0, eyes=(x > .004) & (x < .065) & (y > -.02) & (y < .03), cheeks=(x > .005) & (y < .012) & (y > -.07))[where]
    assert hit.any() and not (hit & ~near).any()


def test_stubble_grows_on_the_jaw_alone():
    x, y, z = place().T; hit = changed(BARE, replace(BARE, stubble=1.))
    assert hit[of('skin') & (y < -.085) & (z > .06)].mean() > .9 and not hit[y > 0].any() and not hit[of('eye') | of('teeth')].any()


def test_age_deepens_lines():
    steep = [np.linalg.norm(replace(BARE, age=a).relief(HEAD, TRIANGLES, WEIGHTS, .0004)[of('skin')], axis=1).mean() for a in (0., .5, 1.)]
    assert steep[0] < steep[1] < steep[2]


def test_pupils_are_black_and_irises_have_their_colour():
    for centre in eye_centres(HEAD):
        at = lambda deg, c=centre: c[None] + .0145*np.array([[0., -np.sin(np.radians(deg)), np.cos(np.radians(deg))]])
        assert eye_albedo(HEAD, at(2.), (.1, .17, .26)).max() < .02
        rim = eye_albedo(HEAD, at(15.), (.1, .17, .26))[0]; assert rim[2] > rim[0] > .01


def test_lid_rims_lie_on_the_lids():
    lids = HEAD.vertices[np.unique(HEAD.faces[HEAD.regions == REGIONS.index('eyelids')])]
    for rim in LID_RIMS.values(): assert np.linalg.norm(rim[:, None] - lids, axis=2).min(1).max() < .0015 and (np.diff(rim[:, 0]) > 0).all()
    assert LID_RIMS['upper'][:, 1].max() > 0 > LID_RIMS['lower'][:, 1].max()


def test_a_head_without_parts_is_skin_all_over():
    "A user's own head has no eyes, lips or lashes that we know of."
    n = len(HEAD.vertices); bare = replace(HEAD, regions=np.zeros_like(HEAD.regions), masks={})
    c = sample_appearance(2).albedo(bare, TRIANGLES, WEIGHTS, .002); assert np.isfinite(c).all() and c.std() > 0 and n
    for paint in ('relief', 'gloss', 'roughness', 'opacity'): assert np.isfinite(getattr(sample_appearance(2), paint)(bare, TRIANGLES, WEIGHTS)).all()


def test_twenty_thousand_points_are_painted_in_a_quarter_of_a_second():
    t, b = np.resize(TRIANGLES, 20_000), np.resize(WEIGHTS, (20_000, 3)); a = sample_appearance(1); a.albedo(HEAD, t, b, .002)
    took = min(timed(lambda: a.albedo(HEAD, t, b, .002)) for _ in range(3)); assert took < .25, f'{took:.2f} s of CPU'


def timed(f):
    "CPU seconds of this process."
    t = time.process_time(); f(); return time.process_time() - t
