"What the head promises: a sound mesh, units of the right size, one pose for numpy and torch, names that help."
from dataclasses import replace

import numpy as np
import pytest
import torch

from srflow_nb.core import InputError, data_path
from srflow_nb.head import (ACTION_UNITS, AU_NAMES, REGIONS, Head, expression_from_aus, expression_vector, normals,
                            parse_expression, rotation_matrix, sample_gains, sample_identity, traits)

MACROS = ('african', 'asian', 'caucasian')


@pytest.fixture(scope='module')
def head(): return Head.load()


def edge_counts(faces):
    e = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), 1)
    return np.unique(e, axis=0, return_counts=True)


def part(head, *names): return head.faces[np.isin(head.regions, [REGIONS.index(n) for n in names])]


def test_head_file_is_about_a_megabyte_and_needs_no_pickle():
    path = data_path('head.npz'); assert path.stat().st_size < 1.3e6
    with np.load(path, allow_pickle=False) as z:
        assert tuple(z['region_names'].tolist()) == REGIONS and 'unit_delta' in z


@pytest.mark.parametrize('unit, mm', [('jawOpen', 38.7), ('mouthSmileLeft', 18.7), ('browInnerUp', 5.2), ('eyeLookUpLeft', 2.9), ('eyeBlinkLeft', 15.5)])
def test_units_have_the_peak_that_the_source_gives_them(head, unit, mm):
    peak = 1000*np.linalg.norm(head.units[head.unit_names.index(unit)], axis=1).max()
    assert peak == pytest.approx(mm, abs=.1)


def test_there_are_52_units_and_a_left_for_every_right(head):
    assert len(head.unit_names) == len(set(head.unit_names)) == 52
    assert {n[:-4] for n in head.unit_names if n.endswith('Left') and n[:-4]+'Right' in head.unit_names} >= {'mouthSmile', 'eyeBlink', 'browDown'}
    for n, u in zip(head.unit_names, head.units):      # +x is the person's left
        if n in ('mouthSmileLeft', 'eyeBlinkLeft', 'browDownLeft', 'noseSneerLeft'):
            assert head.vertices[np.linalg.norm(u, axis=1).argmax(), 0] > 0, n


def test_no_edge_has_more_than_two_triangles_and_only_the_neck_lashes_and_teeth_are_open(head):
    assert edge_counts(head.faces)[1].max() == 2
    for name in ('eye', 'tongue'): assert (edge_counts(part(head, name))[1] == 2).all(), name
    edges, count = edge_counts(part(head, *REGIONS[:7])); ring = edges[count == 1]
    assert (np.bincount(ring.ravel())[np.unique(ring)] == 2).all()            # closed loop(s)
    flat = np.linalg.svd(head.vertices[np.unique(ring)]-head.vertices[np.unique(ring)].mean(0))[1][2]
    assert flat < 1e-4                                                        # in one plane: a clean cut
    lid, n = edge_counts(part(head, 'cap')); assert (n == 1).sum() == len(ring)


def test_no_triangle_is_degenerate_and_skin_faces_outward(head):
    v, f = head.vertices, head.faces
    area = np.linalg.norm(np.cross(v[f[:, 1]]-v[f[:, 0]], v[f[:, 2]]-v[f[:, 0]]), axis=1)/2
    assert area.min() > 1e-12
    scalp = np.unique(part(head, 'scalp')); scalp = scalp[v[scalp, 1] > .02]; n = normals(v, f)[scalp]
    assert ((n*(v[scalp]-[0, .02, 0])).sum(1) > 0).mean() > .99


def test_rounding_in_the_file_is_below_a_hundredth_of_a_millimetre():
    with np.load(data_path('head.npz')) as z:
        assert z['unit_delta'].dtype == z['identity_delta'].dtype == np.int16 and z['step']/2 < 1e-5      # metres
        assert np.abs(z['identity_delta'].astype(int)).max() < 32767                                      # nothing was cut off


def test_pose_without_arguments_is_the_template(head):
    assert (head.pose() == head.vertices).all()
    assert np.abs(head.pose(head_pose=np.zeros(6))-head.vertices).max() < 1e-7


def test_numpy_and_torch_agree_with_the_sum_written_out(head):
    g = np.random.default_rng(0); e, i = g.uniform(0, .5, 52).astype('f4'), sample_identity(head, 1); p = np.array([.1, -.2, .05, .01, .02, -.03], 'f4')
    v = head.vertices.astype('f8')
    for w, u in zip(e, head.units): v = v+w*u.astype('f8')
    for w, t in zip(i, head.identity_targets): v = v+w*t.astype('f8')
    a = np.linalg.norm(p[:3]); x, y, z = p[:3]/a; K = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    v = v@(np.eye(3)+np.sin(a)*K+(1-np.cos(a))*K@K).T+p[3:]                   # Rodrigues' formula
    n, t = head.pose(e, i, p), head.pose(torch.tensor(e), torch.tensor(i), torch.tensor(p))
    assert isinstance(n, np.ndarray) and torch.is_tensor(t)
    assert np.abs(n-v).max() < 2e-6 and np.abs(t.numpy()-v).max() < 2e-6


def test_pose_takes_batches_and_matrices(head):
    e = torch.rand(3, 52)*.2; p = torch.zeros(3, 6); p[:, 1] = torch.tensor([.1, .2, .3])
    batch = head.pose(e, head_pose=p); assert batch.shape == (3, *head.vertices.shape)
    M = torch.eye(4); M[:3, :3] = rotation_matrix(p[1, :3])
    assert torch.allclose(batch[1], head.pose(e[1], head_pose=M), atol=1e-6)


def test_pose_is_differentiable(head):
    some = torch.arange(0, len(head.vertices), 701)
    e = (torch.rand(52, dtype=torch.float64)*.2).requires_grad_(); p = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    i = torch.zeros(len(head.identity_names), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda e, p: head.pose(e, head_pose=p)[some], (e, p))
    head.pose(e, i, p).square().sum().backward(); assert i.grad.abs().max() > 0


@pytest.mark.parametrize('bad, says', [(dict(expression=np.zeros(50)), r'expression.*\(50,\)'), (dict(identity=np.zeros(3)), 'identity'), (dict(head_pose=np.zeros(5)), 'head_pose')])
def test_wrong_sizes_are_named(head, bad, says):
    with pytest.raises(InputError, match=says): head.pose(**bad)


@pytest.mark.parametrize('text, says', [('jawOpn=.4', 'jawOpen'), ('mouthsmileleft=1', 'mouthSmileLeft'), ('jawOpen=a', 'weight'), ('jawOpen=-1', r'\[0,1\]'), ('jawOpen=nan', r'\[0,1\]')])
def test_unknown_unit_gives_nearest_names_and_bad_weights_are_refused(text, says):
    with pytest.raises(InputError, match=says): parse_expression(text)


def test_parse_expression_reads_what_a_person_types():
    assert parse_expression('jawOpen=.4, mouthSmileLeft=1') == {'jawOpen': .4, 'mouthSmileLeft': 1.} and parse_expression('') == {}


def test_expression_vector_refuses_nan(head):
    with pytest.raises(InputError): expression_vector(head, {'jawOpen': float('nan')})


def test_people_are_reproducible_plausible_and_different(head):
    people = np.stack([sample_identity(head, s) for s in range(40)])
    assert (people[3] == sample_identity(head, 3)).all() and (people >= 0).all()
    macro = np.array([n.split('-')[0] in MACROS for n in head.identity_names])
    assert np.allclose(people[:, macro].sum(1), 1, atol=1e-5)
    shapes = head.pose(identity=people); face = head.vertices[:, 2] > .05
    apart = np.linalg.norm(shapes[::2, face]-shapes[1::2, face], axis=2).mean(1); assert apart.min() > .001
    height = np.ptp(shapes[:, face, 1], axis=1); assert .12 < height.min() and height.max() < .26


def stranger(head):
    "A head of other making: two units, three nameless targets, no masks."
    return replace(head, unit_names=('open', 'grin'), units=head.units[:2], identity_names=('pc0', 'pc1', 'pc2'),
                   identity_targets=head.identity_targets[:3], masks={})


def test_any_head_can_be_sampled_and_has_traits(head):
    odd = stranger(head); w = np.stack([sample_identity(odd, s) for s in range(50)])
    assert w.shape == (50, 3) and (w < 0).any() and np.abs(w).max() < 1.2 and np.isfinite(odd.pose(identity=w)).all()
    assert traits(odd, w[0]) == traits(odd, w[1]) and sample_gains(odd, 0).shape == (2,)
    assert parse_expression('grin=.5', odd) == {'grin': .5}


def test_traits_follow_the_corners(head):
    for name, want in (('african-male-young', dict(age=0, male=1, african=1)), ('caucasian-female-child', dict(child=1, male=0, caucasian=1))):
        w = np.zeros(len(head.identity_names)); w[head.identity_names.index(name)] = 1; t = traits(head, w)
        assert all(t[k] == v for k, v in want.items()), t
    t = [traits(head, sample_identity(head, s)) for s in range(300)]
    for k in ('african', 'asian', 'caucasian', 'male', 'age'): assert {round(x[k]) for x in t} == {0, 1} and .25 < np.mean([x[k] > .5 for x in t])*(2 if k[-2:] == 'an' else 1) < .9, k


def test_no_variety_is_the_mixture_alone_and_a_seed_keeps_its_person(head):
    plain = sample_identity(head, 5, variety=0.); macro = np.array([n.split('-')[0] in MACROS for n in head.identity_names])
    assert np.allclose(plain[macro], sample_identity(head, 5)[macro]) and plain[~macro & (np.array(head.identity_names) != 'hair-volume')].max() == 0


def test_eyes_stay_open_at_rest(head):
    skin = np.unique(part(head, 'eyelids'))
    shut = head.units[head.unit_names.index('eyeBlinkLeft')][skin]; upper = skin[shut[:, 1].argmin()]; lower = skin[np.linalg.norm(head.vertices[skin]+shut-(head.vertices+head.units[head.unit_names.index('eyeBlinkLeft')])[upper], axis=1).argsort()]
    lower = next(k for k in lower if head.vertices[k, 1] < head.vertices[upper, 1]-.004)
    gap = np.array([np.subtract(*head.pose(identity=sample_identity(head, s))[[upper, lower], 1]) for s in range(100)])
    rest = head.vertices[upper, 1]-head.vertices[lower, 1]; assert rest > .004 and gap.min() > .5*rest and gap.max() < 2*rest


def test_gains_are_a_person_s_own_and_stops_stay_stops(head):
    a, b = sample_gains(head, 1), sample_gains(head, 2)
    assert (a == sample_gains(head, 1)).all() and not np.allclose(a, b) and a.dtype == np.float32 and a.shape == (52,)
    stops = [i for i, n in enumerate(head.unit_names) if n.startswith(('eyeBlink', 'eyeLook'))]
    assert max(np.abs(sample_gains(head, s)[stops]-1).max() for s in range(100)) < .07


def test_no_identity_shows_the_inside_of_its_nose(head):
    inner = np.flatnonzero((head.regions == REGIONS.index('mouth')) & (head.vertices[head.faces].mean(1)[:, 1] > -.05) & (head.vertices[head.faces].mean(1)[:, 2] > .07))
    skin = part(head, 'skin'); assert len(inner)
    for s in range(12):
        v = head.pose(identity=sample_identity(head, s)); c = v[head.faces[inner]].mean(1); n = normals(v, head.faces)
        near = np.unique(skin)[np.linalg.norm(v[np.unique(skin)][:, None]-c[None], axis=2).argmin(0)]
        assert ((c-v[near])*n[near]).sum(1).max() < .004                    # never clearly outside the nearest skin


def test_action_units_cover_what_the_data_sets_are_coded_in(head):
    assert set(ACTION_UNITS) >= {1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 16, 17, 18, 20, 22, 23, 24, 25, 26, 27, 28, 43, 45} and set(AU_NAMES) == set(ACTION_UNITS)
    for au, units in ACTION_UNITS.items():
        assert units and all(u in head.unit_names and 0 < w <= 1 for u, w in units.items()), au
    assert set(expression_from_aus({'14R': .5})) == {'mouthDimpleRight'}
    assert expression_from_aus({6: 1., 7: 1.})['eyeSquintLeft'] == 1.       # clipped
    with pytest.raises(InputError, match='action unit'): expression_from_aus({'3': 1.})
