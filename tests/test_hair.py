"Hair: strands keep to the head, to their triangles, to their seed and to what their style promises."
import functools
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from srflow_nb.appearance import Appearance
from srflow_nb.core import InputError, rng
from srflow_nb.hair import BEARDS, HAIR_KINDS, HAIR_STYLES, Strands, grow, sample_hair
from srflow_nb.head import REGIONS, Head, normals, sample_identity

HEAD = Head.load()
PEOPLE = {k: HEAD.pose(identity=sample_identity(HEAD, k)) for k in (1, 5, 12)}
SCALP, BROW, LASH, BEARD = range(4)


@functools.lru_cache(60)
def strands(style='short', person=1, n=6000, seed=0, beard_style=None, **looks):
    looks.setdefault('hairline', dict(bald=5., receding=.8).get(style, 0.))
    return grow(HEAD, PEOPLE[person], Appearance(hair_style=style, **looks), n, seed, beard_style=beard_style)


def roots(s, rest):
    "First Gaussian of every strand, and its distance to the middle of its triangle."
    first = np.flatnonzero(np.r_[True, s.strand[1:] != s.strand[:-1]])
    return first, np.linalg.norm(s.means[first] - rest[HEAD.faces[s.triangle[first]]].mean(1), axis=1)


def depth(s, rest):
    "How far each Gaussian is above the nearest vertex of the outer skin [m], and how far away that is."
    outer = np.unique(HEAD.faces[np.isin(HEAD.regions, [REGIONS.index(r) for r in ('skin', 'lips', 'eyelids', 'ears', 'scalp', 'neck')])])
    d, i = cKDTree(rest[outer]).query(s.means)
    return ((s.means - rest[outer][i]) * normals(rest, HEAD.faces)[outer][i]).sum(1), d


@pytest.mark.parametrize('style', HAIR_STYLES)
def test_every_style_gives_sound_gaussians(style):
    s = strands(style, beard=.4)
    for f in fields(Strands): assert len(getattr(s, f.name)) == len(s) and np.isfinite(getattr(s, f.name)).all()
    for name in ('means', 'quats', 'scales', 'normals', 'opacities', 'albedo', 'gloss'): assert getattr(s, name).dtype == np.float32
    assert (s.scales > 1e-6).all() and s.scales.max() < .12
    assert (s.scales[:, 0] >= s.scales[:, 1] - 1e-9).all()                   # the first axis is the hair's
    assert s.opacities.min() >= 0 and s.opacities.max() <= 1 and s.albedo.min() >= 0 and s.albedo.max() <= 1
    np.testing.assert_allclose(np.linalg.norm(s.quats, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(s.normals, axis=1), 1, atol=1e-5)
    assert 0 <= s.triangle.min() and s.triangle.max() < len(HEAD.faces)


@pytest.mark.parametrize('n', [300, 2000, 6000, 30_000])
@pytest.mark.parametrize('style', ['short', 'long', 'afro', 'bun'])
def test_n_is_kept(style, n): assert len(strands(style, n=n)) == len(strands(style, n=n, beard=.5)) == n


@pytest.mark.parametrize('n', [100, 150])
@pytest.mark.parametrize('style', ['short', 'bun', 'ponytail', 'long'])
def test_a_hundred_gaussians_are_enough(style, n):
    "Brows, lashes and beard may take them all; then the scalp goes without, and nothing fails."
    for person in PEOPLE:
        s = strands(style, person, n, beard=.9)
        assert 20 < len(s) and np.isfinite(s.means).all() and (s.kind == BROW).any()


def test_many_thin_strands_cover_as_few_thick_ones_do():
    "Area of hair (length times width), few against many."
    area = {n: (s.scales[:, 0] * s.scales[:, 1])[s.kind == SCALP].sum() for n in (3000, 40_000) for s in [strands('parted', n=n)]}
    assert .5 < area[3000] / area[40_000] < 2
    assert np.median(strands(n=40_000).scales[:, 1]) < .6 * np.median(strands(n=3000).scales[:, 1])


def test_the_same_seed_gives_the_same_bytes():
    a, b, c = (strands('curly', seed=k, beard=.5) for k in (3, 3, 4))
    assert all(getattr(a, f.name).tobytes() == getattr(b, f.name).tobytes() for f in fields(Strands))
    assert len(a) != len(c) or a.means.tobytes() != c.means.tobytes()


def test_a_bald_head_keeps_brows_and_lashes():
    s = strands('bald')
    assert not (s.kind == SCALP).any() and (s.kind == BROW).sum() > 100 and (s.kind == LASH).sum() > 100
    assert not (s.kind == BEARD).any()


def test_beard_none_is_none_and_more_is_longer():
    assert not (strands(beard=0.).kind == BEARD).any()
    hang = [(lambda s: np.percentile(-s.means[s.kind == BEARD, 1], 99))(strands(beard=b, beard_style='full')) for b in (.1, .5, 1.)]
    assert hang[0] < hang[1] < hang[2]


def test_beard_styles_differ_as_barbers_say():
    at = {b: (lambda s: s.means[s.kind == BEARD])(strands(beard=.4, beard_style=b)) for b in BEARDS}
    mouth = PEOPLE[1][np.unique(HEAD.faces[HEAD.regions == REGIONS.index('lips')])]
    assert np.percentile(at['moustache'][:, 1], 2) > mouth[:, 1].min() - .004            # nothing on the chin
    assert abs(at['full'][:, 0]).max() > .055 > abs(at['moustache'][:, 0]).max()         # sideburns
    above = lambda p: ((p[:, 1] > mouth[:, 1].max()) & (abs(p[:, 0]) < .02)).mean()
    assert above(at['chin strap']) < .02 < above(at['moustache'])


@pytest.mark.parametrize('style,person', [('buzz', 1), ('short', 5), ('curly', 12), ('bob', 1), ('long', 5)])
def test_hair_does_not_pierce_the_head(style, person):
    s = strands(style, person, beard=.6)
    above, near = depth(s, PEOPLE[person])
    assert ((above < -.002) & (near < .02)).mean() < .015


@pytest.mark.parametrize('style', [k for k, v in HAIR_STYLES.items() if k != 'bald' and not v.fringe])
def test_the_face_is_not_covered(style):
    for person, rest in list(PEOPLE.items())[:2]:
        p = (lambda s: s.means[s.kind == SCALP])(strands(style, person))
        eyes = rest[np.unique(HEAD.faces[HEAD.regions == REGIONS.index('eye')])]
        assert not ((abs(p[:, 0]) < .035) & (p[:, 1] < eyes[:, 1].max()) & (p[:, 1] > eyes[:, 1].min() - .07) & (p[:, 2] > .04)).any()


def test_a_fringe_ends_above_the_eyes():
    s = strands('fringe')
    p = s.means[(s.kind == SCALP) & (abs(s.means[:, 0]) < .03) & (s.means[:, 2] > .06)]
    assert len(p) > 50 and p[:, 1].min() > .012


def test_cut_and_tied_styles_end_where_they_should():
    low = {k: (lambda s: s.means[s.kind == SCALP, 1].min())(strands(k)) for k in ('bob', 'long', 'short', 'bun')}
    assert low['long'] < -.18 < low['bob'] < -.06
    top = {k: (lambda s: s.means[s.kind == SCALP, 1].max())(strands(k)) for k in ('bun', 'short')}
    assert top['bun'] > top['short'] + .01


@pytest.mark.parametrize('person', PEOPLE)
def test_strands_begin_at_their_triangle(person):
    s = strands('short', person, beard=.4)
    first, far = roots(s, PEOPLE[person])
    for kind, most in ((BROW, .012), (LASH, .008), (BEARD, .02)): assert far[s.kind[first] == kind].max() < most, HAIR_KINDS[kind]
    assert np.percentile(far[s.kind[first] == SCALP], 99) < .03
    assert (np.array([len(np.unique(s.triangle[s.strand == k])) for k in rng(0).choice(s.strand, 30)]) == 1).all()


def test_lashes_grow_from_what_a_blink_moves_and_brows_from_what_a_frown_moves():
    s, rest = strands(), PEOPLE[1]
    move = lambda expression: np.linalg.norm(HEAD.pose(expression, sample_identity(HEAD, 1)) - rest, axis=1)[HEAD.faces[s.triangle]].mean(1)
    upper = (s.kind == LASH) & (s.means[:, 1] > np.median(s.means[s.kind == LASH, 1]))
    assert np.median(move(dict(eyeBlinkLeft=1., eyeBlinkRight=1.))[upper]) > .003
    assert np.median(move(dict(browInnerUp=1., browOuterUpLeft=1., browOuterUpRight=1.))[s.kind == BROW]) > .002
    assert move(dict(jawOpen=1., eyeBlinkLeft=1.))[s.kind == SCALP].max() < .002


def test_lashes_stand_out_and_curl_to_their_side():
    s, rest = strands(n=20_000), PEOPLE[1]
    eye = rest[np.unique(HEAD.faces[HEAD.regions == REGIONS.index('eye')])]
    for side in (1, -1):
        centre, mine = eye[eye[:, 0] * side > 0].mean(0), (s.kind == LASH) & (s.means[:, 0] * side > 0)
        first = np.flatnonzero(mine & np.r_[True, s.strand[1:] != s.strand[:-1]])
        last = np.flatnonzero(mine & np.r_[s.strand[1:] != s.strand[:-1], True])
        assert (s.means[last, 2] > s.means[first, 2]).mean() > .95                       # away from the eyeball
        up = s.means[first, 1] > centre[1] - .0015
        assert ((s.means[last, 1] - s.means[first, 1])[up] > 0).mean() > .85


def test_brows_are_mirror_images_about():
    p = strands(n=20_000, person=5); p = p.means[p.kind == BROW]
    left, right = p[p[:, 0] > 0], p[p[:, 0] < 0]
    assert .8 < len(left) / len(right) < 1.25 and abs(left[:, 1].mean() - right[:, 1].mean()) < .004


def test_hair_turns_grey_with_age():
    light = [np.median(strands(age=a, hair=(.03, .02, .01)).albedo[:, 0]) for a in (.2, .8, 1.)]
    assert light[0] < light[1] < light[2]


def test_fewer_lashes_where_they_are_thin():
    count = [(strands(lashes=v).kind == LASH).sum() for v in (0., .5, 1.)]
    assert count[0] == 0 and count[1] < count[2]


def test_a_head_without_a_scalp_has_no_hair():
    blank = replace(HEAD, masks={k: np.zeros_like(m) for k, m in HEAD.masks.items()})
    assert len(grow(blank, PEOPLE[1], Appearance())) == 0
    assert len(grow(replace(HEAD, masks={}), PEOPLE[1], Appearance())) == 0


@pytest.mark.parametrize('bad,says', [(dict(appearance=Appearance(hair_style='mohican')), 'hair style'), (dict(n=3), 'n=3'), (dict(n=10**8), 'n='), (dict(beard_style='ful'), 'full')])
def test_mistakes_are_named(bad, says):
    with pytest.raises(InputError, match=says): grow(**(dict(head=HEAD, rest=PEOPLE[1], appearance=Appearance()) | bad))


def test_sampled_hair_is_made_of_fields_of_an_appearance():
    for k in range(40):
        looks = replace(Appearance(), **sample_hair(rng(k, 'hair'), dict(male=.5, age=k / 40)))
        assert looks.hair_style in HAIR_STYLES and 0 <= looks.beard <= 1
        assert (looks.hair_style == 'bald') == (looks.hairline > 2)


def test_children_and_women_have_no_beards_and_children_are_not_bald():
    for traits in (dict(male=1., child=.9), dict(male=0., child=0.)):
        drawn = [sample_hair(rng(k, 'hair'), traits) for k in range(200)]
        assert all(d['beard'] == 0 for d in drawn) and not any(d['hair_style'] in ('bald', 'receding') for d in drawn)
    assert len({d['hair_style'] for d in [sample_hair(rng(k, 'hair'), dict(male=k % 2, age=.6)) for k in range(600)]}) == len(HAIR_STYLES)
