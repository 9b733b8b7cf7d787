"""Meshes and heads from files: there and back, every form that the formats allow, and what must be refused."""
import base64, json, struct

import numpy as np
import pytest
import torch
from _fuzz import hunt
from PIL import Image

from srflow_nb.avatar import Avatar
from srflow_nb.core import InputError
from srflow_nb.head import Head
from srflow_nb.head_files import Paint, arkit_name, drive, load_head, missing_units, save_head
from srflow_nb.mesh_files import Mesh, read_mesh, write_glb, write_obj

TRIANGLE = 'v 0 0 0\nv 1 0 0\nv 0 1 0\n'


def mesh(**changes):
    "Two triangles of two parts with a morph, colours and a texture coordinate."
    v = np.array([[0., 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, .5]])
    f = np.array([[0, 1, 2], [0, 2, 3]])
    return Mesh(**dict(vertices=v, faces=f, uv=v[f][..., :2], parts=np.array([0, 1]), names=['face', 'Eye'], base=np.array([[.5, .25, .125], [np.nan]*3]), pictures=[None, None],
                       colors=None, morphs={'lift': np.float32([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]), 'all': np.ones((4, 3), 'f4')}) | changes)


def gltf(path, positions=((0, 0, 0), (1, 0, 0), (0, 1, 0)), indices=(0, 1, 2), code=5123, extra=None, primitive=None, blob=b'', views=(), accessors=(), **top):
    "A small glTF with a data URI."
    kind = {5121: 'B', 5123: 'H', 5125: 'I'}[code]
    data = np.array(positions, '<f4').tobytes() + struct.pack(f'<{len(indices)}{kind}', *indices)
    data += bytes(-len(data) % 4)
    start = len(data); data += blob
    doc = dict(asset=dict(version='2.0'), nodes=[dict(mesh=0)], meshes=[dict(primitives=[dict(attributes=dict(POSITION=0), indices=1) | (primitive or {})]) | (extra or {})],
               accessors=[dict(bufferView=0, componentType=5126, count=len(positions), type='VEC3'), dict(bufferView=1, componentType=code, count=len(indices), type='SCALAR'), *accessors],
               bufferViews=[dict(buffer=0, byteLength=12*len(positions)), dict(buffer=0, byteOffset=12*len(positions), byteLength=start-12*len(positions)),
                            *[dict(buffer=0, byteOffset=start+a, byteLength=n) for a, n in views]],
               buffers=[dict(byteLength=len(data), uri='data:;base64,' + base64.b64encode(data).decode())]) | top
    path.write_text(json.dumps(doc))
    return path


def points(m, morph=None):
    "Centres of the triangles, sorted."
    v = m.vertices if morph is None else m.vertices + m.morphs[morph]
    return np.unique(v[m.faces].mean(1).round(5), axis=0)


# ---- there and back ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize('kind', ['glb', 'obj'])
def test_what_is_written_is_read(kind, tmp_path):
    m = mesh(colors=np.array([[1., 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]))
    if kind == 'glb': write_glb(tmp_path/'a.glb', m); back = read_mesh(tmp_path/'a.glb')
    else: write_obj(tmp_path/'a.obj', m, tmp_path/'m'); back = read_mesh(tmp_path/'a.obj', tmp_path/'m')
    assert np.allclose(points(back), points(m), atol=1e-5) and np.allclose(points(back, 'lift'), points(m, 'lift'), atol=1e-5) and np.allclose(points(back, 'all'), points(m, 'all'), atol=1e-5)
    assert len(back.vertices) == 4 and np.allclose(np.sort(back.colors, 0), np.sort(m.colors, 0), atol=1e-4)
    order = np.argsort(back.vertices[back.faces].mean(1)[:, 0]); want = np.argsort(m.vertices[m.faces].mean(1)[:, 0])
    assert np.allclose(back.uv[order], m.uv[want], atol=1e-6)
    assert [n.split()[-1] for n in back.names] == ['face', 'Eye']
    if kind == 'glb': assert np.allclose(back.base[0], [.5, .25, .125]) and np.isnan(back.base[1]).all()


def test_an_independent_reader_agrees_on_the_shape(tmp_path):
    trimesh = pytest.importorskip('trimesh')
    m = mesh(); write_glb(tmp_path/'a.glb', m); write_obj(tmp_path/'a.obj', m)
    for f in ('a.glb', 'a.obj'):
        t = trimesh.load(tmp_path/f, force='mesh', process=False)
        assert np.allclose(np.unique(t.triangles.mean(1).round(5), axis=0), points(m), atol=1e-5)


def test_the_shipped_head_survives_glb_exactly(tmp_path):
    save_head(tmp_path/'h.glb'); loaded = load_head(tmp_path/'h.glb'); h = Head.load()
    assert missing_units(loaded.head) == [] and len(loaded.head.faces) == len(h.faces)
    for e in (None, dict(jawOpen=.7, eyeBlinkLeft=1.)):
        a, b = (np.unique(x.pose(e)[x.faces].mean(1).round(5), axis=0) for x in (loaded.head, h))
        assert abs(len(a)-len(b)) < 20 and abs(a.mean(0)-b.mean(0)).max() < 1e-5
    assert {h.REGIONS[r] for r in np.unique(loaded.head.regions)} >= {'skin', 'eye', 'teeth', 'tongue', 'lashes', 'lips'}


# ---- OBJ ---------------------------------------------------------------------------------------------------------

def test_obj_polygons_become_fans_and_every_index_form_is_read(tmp_path):
    p = tmp_path/'a.obj'
    p.write_text('# a pentagon\n' + TRIANGLE + 'v -1 1 0\nv -1 0 0\nvt 0 0\nvt 1 1\nvn 0 0 1\nf 1/1/1 2/2 3//1 -2 5\n')
    m = read_mesh(p, sew=False)
    assert m.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 3, 4]] and m.uv[0, 1].tolist() == [1, 1]


@pytest.mark.parametrize('line, says', [('f 1 2', 'less than 3'), ('f 1 2 9', 'line 4.*9'), ('f 0 1 2', "'0'"), ('f -9 1 2', "'-9'"), ('v 1 2', 'line 4'), ('f 1/7 2/7 3/7', 'texture'),
                                        ('f a b c', 'line 4'), ('vt', 'line 4'), ('v 1 2 x', 'line 4')])
def test_obj_errors_name_file_and_line(line, says, tmp_path):
    p = tmp_path/'broken.obj'; p.write_text(TRIANGLE + line + '\nf 1 2 3\n')
    with pytest.raises(InputError, match=says) as e: read_mesh(p)
    assert 'broken.obj' in str(e.value) and '\n' not in str(e.value)


def test_obj_without_polygons_or_with_nan_is_refused(tmp_path):
    p = tmp_path/'a.obj'; p.write_text(TRIANGLE)
    with pytest.raises(InputError, match='no polygons'): read_mesh(p)
    p.write_text(TRIANGLE + 'v nan 0 0\nf 1 2 3\n')
    with pytest.raises(InputError, match='NaN'): read_mesh(p)
    p.write_text(TRIANGLE + 'f 1 1 1\n')
    with pytest.raises(InputError, match='two corners'): read_mesh(p)


def test_obj_morphs_need_the_same_vertices_and_polygons(tmp_path):
    base, other = tmp_path/'a.obj', tmp_path/'smile.obj'
    base.write_text(TRIANGLE + 'f 1 2 3\n'); other.write_text(TRIANGLE.replace('1 0 0', '1 0 2') + 'f 1//1 2//1 3//1\n')
    assert read_mesh(base, [other]).morphs['smile'].max() == 2 and read_mesh(base, {'x': other}).morphs['x'].max() == 2 and list(read_mesh(base, tmp_path).morphs) == ['smile']
    other.write_text(TRIANGLE + 'f 2 1 3\n')
    with pytest.raises(InputError, match='smile.obj.*other polygons'): read_mesh(base, [other])
    other.write_text(TRIANGLE + 'v 0 0 0\nf 1 2 3\n')
    with pytest.raises(InputError, match='smile.obj.*4 vertices; expected 3'): read_mesh(base, [other])
    with pytest.raises(FileNotFoundError): read_mesh(base, tmp_path/'nowhere')


def test_obj_materials_bring_colours_and_pictures_but_only_from_beside(tmp_path):
    Image.new('RGB', (4, 4), (200, 100, 50)).save(tmp_path/'skin.png')
    p = tmp_path/'a.obj'; p.write_text('mtllib a.mtl\n' + TRIANGLE + 'vt .5 .5\nusemtl face\nf 1/1 2/1 3/1\nusemtl eye\nf 1 3 2\n')
    (tmp_path/'a.mtl').write_text('newmtl face\nmap_Kd skin.png\nnewmtl eye\nKd 0 1 0\n')
    l = load_head(p); bary = np.full((2, 3), 1/3)
    assert np.allclose(l.paint.albedo(l.head, np.array([0, 1]), bary), [(np.array([200, 100, 50])/255)**2.2, [0, 1, 0]], atol=1e-5)
    assert l.head.REGIONS[l.head.regions[1]] == 'eye'
    (tmp_path/'a.mtl').write_text('newmtl face\nmap_Kd ../../etc/passwd\n')
    with pytest.raises(InputError, match='leads out'): load_head(p)
    (tmp_path/'a.mtl').unlink(); assert any('a.mtl' in n for n in load_head(p).notes)


# ---- glTF --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('code', [5121, 5123, 5125])
def test_gltf_indices_of_every_size(code, tmp_path): assert read_mesh(gltf(tmp_path/'a.gltf', code=code), sew=False).faces.tolist() == [[0, 1, 2]]


def test_gltf_strips_fans_and_no_indices(tmp_path):
    square = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0))
    strip = read_mesh(gltf(tmp_path/'a.gltf', square, (0, 1, 2, 3), primitive=dict(mode=5)), sew=False); fan = read_mesh(gltf(tmp_path/'a.gltf', square, (0, 1, 3, 2), primitive=dict(mode=6)), sew=False)
    assert strip.faces.tolist() == [[0, 1, 2], [2, 1, 3]] and fan.faces.tolist() == [[0, 1, 3], [0, 3, 2]]
    doc = json.loads(gltf(tmp_path/'a.gltf').read_text()); del doc['meshes'][0]['primitives'][0]['indices']; (tmp_path/'a.gltf').write_text(json.dumps(doc))
    assert read_mesh(tmp_path/'a.gltf', sew=False).faces.tolist() == [[0, 1, 2]]


def test_gltf_nodes_place_meshes_and_mirrors_keep_the_outside(tmp_path):
    half = np.sqrt(.5)
    nodes = [dict(children=[1], translation=[1, 0, 0], scale=[2, 2, 2]), dict(mesh=0, rotation=[0, 0, half, half])]            # first turn by 90 degrees about z, then grow, then move
    m = read_mesh(gltf(tmp_path/'a.gltf', nodes=nodes), sew=False)
    assert np.allclose(m.vertices, [[1, 0, 0], [1, 2, 0], [-1, 0, 0]], atol=1e-6)
    m = read_mesh(gltf(tmp_path/'a.gltf', nodes=[dict(mesh=0, matrix=[-1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 5, 0, 0, 1])]), sew=False)
    assert m.vertices[1].tolist() == [4, 0, 0] and m.faces.tolist() == [[2, 1, 0]]


def test_gltf_sparse_and_quantised_targets_and_their_names(tmp_path):
    blob = np.array([[0, 0, .5]], '<f4').tobytes() + struct.pack('<Bxxx', 2) + np.array([[0, 0, 0], [0, 0, 32767], [0, 0, 0]], '<i2').tobytes()
    m = read_mesh(gltf(tmp_path/'a.gltf', primitive=dict(targets=[dict(POSITION=2), dict(POSITION=3), dict(NORMAL=2)]), extra=dict(extras=dict(targetNames=['a']), name='M'), blob=blob,
                       views=[(0, 12), (12, 4), (16, 18)],
                       accessors=[dict(componentType=5126, count=3, type='VEC3', sparse=dict(count=1, indices=dict(bufferView=3, componentType=5121), values=dict(bufferView=2))),
                                  dict(bufferView=4, componentType=5122, normalized=True, count=3, type='VEC3')]), sew=False)
    assert list(m.morphs) == ['a', 'M_1'] and m.morphs['a'][2].tolist() == [0, 0, .5] and m.morphs['M_1'][1].tolist() == [0, 0, 1]


def test_gltf_takes_a_buffer_beside_it_and_nothing_from_elsewhere(tmp_path):
    (tmp_path/'in').mkdir(); p = gltf(tmp_path/'in'/'a.gltf'); doc = json.loads(p.read_text()); data = base64.b64decode(doc['buffers'][0]['uri'].split(',')[1])
    def with_uri(uri): doc['buffers'][0]['uri'] = uri; p.write_text(json.dumps(doc)); return p
    (p.parent/'my data.bin').write_bytes(data); (tmp_path/'out.bin').write_bytes(data)
    assert len(read_mesh(with_uri('my%20data.bin')).faces) == 1
    (p.parent/'link.bin').symlink_to(tmp_path/'out.bin')
    for uri in ('../out.bin', '%2e%2e/out.bin', str(tmp_path/'out.bin'), 'link.bin', 'https://example.org/a.bin', 'file:///etc/passwd', 'data:,abc', 'data:;base64,%%%', 3, 'a\0b'):
        with pytest.raises(InputError, match='a.gltf'): read_mesh(with_uri(uri))


def test_gltf_that_claims_more_than_it_holds_is_refused_at_once(tmp_path):
    big = dict(componentType=5126, count=10**9, type='VEC3')
    for changes in (dict(accessors=(big,), primitive=dict(attributes=dict(POSITION=2))), dict(primitive=dict(targets=[dict(POSITION=0)]*10**5)),
                    dict(nodes=[dict(children=[0], mesh=0)]), dict(nodes=[dict(mesh=0), dict(mesh=0, children=[0, 0])]), dict(extensionsRequired=['KHR_draco_mesh_compression']), dict(asset=3, scenes=5, scene=[])):
        with pytest.raises(InputError) as e: read_mesh(gltf(tmp_path/'a.gltf', **changes))
        assert 'a.gltf' in str(e.value) and len(str(e.value)) < 500


def test_glb_headers_are_checked(tmp_path):
    p = tmp_path/'a.glb'; write_glb(p, mesh()); good = p.read_bytes()
    for bad in (good[:40], good[:4] + b'\1' + good[5:], good[:8] + b'\xff\xff\xff\x7f' + good[12:], good[:12] + b'\xff\xff\xff\x7f' + good[16:], b'glTF', b''):
        p.write_bytes(bad)
        with pytest.raises(InputError, match='a.glb'): read_mesh(p)


def test_a_skinned_mesh_lies_where_its_first_joint_puts_it(tmp_path):
    bind = np.eye(4); bind[:3, 3] = -1
    m = read_mesh(gltf(tmp_path/'a.gltf', nodes=[dict(mesh=0, skin=0, translation=[9, 9, 9]), dict(translation=[1, 1, 3])], skins=[dict(joints=[1], inverseBindMatrices=2)],
                       blob=bind.T.astype('<f4').tobytes(), views=[(0, 64)], accessors=[dict(bufferView=2, componentType=5126, count=1, type='MAT4')]), sew=False)
    assert m.vertices[0].tolist() == [0, 0, 2]


def test_unknown_kinds_missing_files_and_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='none.glb'): load_head(tmp_path/'none.glb')
    (tmp_path/'a.fbx').write_text('x')
    with pytest.raises(InputError, match='kind of file'): load_head(tmp_path/'a.fbx')
    write_glb(tmp_path/'a.glb', mesh())
    with pytest.raises(InputError, match='no part is called wig; found: .*Eye'): load_head(tmp_path/'a.glb', only='wig')
    assert len(load_head(tmp_path/'a.glb', only=['eye']).head.faces) == 1


# ---- heads -------------------------------------------------------------------------------------------------------

ROTATIONS = [('y', 'z', np.eye(3)), ('z', '-y', np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]])), ('x', 'y', np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]])), ('-y', '-z', np.diag([1, -1, -1]))]


@pytest.mark.parametrize('up, front, R', ROTATIONS)
@pytest.mark.parametrize('size', [1., 100., 1000., 7.3])
def test_named_units_tell_axes_and_scale(up, front, R, size, tmp_path):
    h = Head.load(); names = ['eyeBlinkLeft', 'eyeBlinkRight', 'mouthPucker']; put = lambda x: size*x @ R.T
    write_glb(tmp_path/'h.glb', Mesh(put(h.vertices) + 3*size, h.faces, h.uv, 0*h.regions, ['head'], np.full((1, 3), np.nan), [None], None, {n: put(h.units[h.unit_names.index(n)]) for n in names}))
    l = load_head(tmp_path/'h.glb')
    assert abs(np.ptp(l.head.vertices, axis=0)-np.ptp(h.vertices, axis=0)).max() < 2e-5 and abs(l.head.vertices.mean(0)-h.vertices.mean(0)).max() < .003
    assert f"up is {up if up[0] == '-' else '+'+up}" in l.notes[1] and f"front is {front if front[0] == '-' else '+'+front}" in l.notes[1]
    given = load_head(tmp_path/'h.glb', scale=1/size, up=up, front=front)
    assert np.allclose(given.head.vertices, l.head.vertices, atol=1e-4) and 'as given' in given.notes[1]


def test_without_names_the_format_is_believed_and_said(tmp_path):
    h = Head.load(); m = Mesh(h.vertices*100, h.faces, h.uv, 0*h.regions, ['head'], np.full((1, 3), np.nan), [None]); write_obj(tmp_path/'h.obj', m)
    l = load_head(tmp_path/'h.obj')
    assert abs(np.ptp(l.head.vertices, axis=0)-np.ptp(h.vertices, axis=0)).max() < 1e-4 and 'assumed' in l.notes[1] and 'assumed' in l.notes[2] and '0 of the 52' in l.notes[0]
    for bad in (dict(up='u'), dict(up='y', front='-y')):
        with pytest.raises(InputError, match='axis'): load_head(tmp_path/'h.obj', **bad)


def test_triangles_that_look_inwards_are_turned(tmp_path):
    h = Head.load(); write_glb(tmp_path/'h.glb', Mesh(h.vertices, h.faces[:, ::-1], h.uv[:, ::-1], 0*h.regions, ['head'], np.full((1, 3), np.nan), [None]))
    l = load_head(tmp_path/'h.glb'); a, b, c = (l.head.vertices[l.head.faces[:, k]] for k in range(3))
    assert (a*np.cross(b, c)).sum() > 0 and any('inwards' in n for n in l.notes)


@pytest.mark.parametrize('name, want', [('jawOpen', 'jawOpen'), ('JawOpen', 'jawOpen'), ('jaw_open', 'jawOpen'), ('mouthSmile_L', 'mouthSmileLeft'), ('head.browDown_R', 'browDownRight'), ('mouthLeft', 'mouthLeft'),
                                        ('mouth_L', 'mouthLeft'), ('vrc.v_aa', None), ('Smile', None), ('', None)])
def test_arkit_names_are_recognised(name, want): assert arkit_name(name) == want


def test_drive_keeps_names_and_gradients():
    h = Head.load(); other = Head(h.vertices, h.faces, h.uv, h.regions, ('grin', 'jawOpen'), h.units[:2], (), h.identity_targets[:0], h.masks)
    w = torch.rand(3, 52, requires_grad=True); out = drive(other, w)
    assert out.shape == (3, 2) and torch.equal(out[:, 0], torch.zeros(3)) and torch.equal(out[:, 1], w[:, h.unit_names.index('jawOpen')])
    out.sum().backward(); assert w.grad.sum() == 3
    with pytest.raises(InputError, match='52'): drive(other, np.zeros(7))


def test_a_head_from_a_file_becomes_an_avatar(tmp_path):
    save_head(tmp_path/'h.glb', units=['jawOpen', 'eyeBlinkLeft', 'eyeBlinkRight']); l = load_head(tmp_path/'h.glb')
    a = Avatar.create(l.head, appearance=l.paint, n=3000, hair=False)
    g0, g1 = a.pose(), a.pose(dict(jawOpen=1.))
    assert len(g0) == 3000 and torch.isfinite(g0.colors).all() and .01 < (g1.means-g0.means).norm(dim=1).max() < .1


def test_pictures_that_unpack_to_too_much_or_are_none_are_refused(tmp_path):
    p = tmp_path/'a.obj'; p.write_text('mtllib a.mtl\n' + TRIANGLE + 'usemtl m\nf 1 2 3\n'); (tmp_path/'a.mtl').write_text('newmtl m\nmap_Kd s.png\n')
    Image.new('1', (12000, 12000)).save(tmp_path/'s.png')
    with pytest.raises(InputError, match='s.png.*12000x12000'): load_head(p)
    (tmp_path/'s.png').write_bytes(b'no picture')
    with pytest.raises(InputError, match='s.png'): load_head(p)


def test_paint_multiplies_what_gltf_multiplies():
    h = Head.load(); half = np.full((len(h.vertices), 3), .5); grey = np.full((2, 2, 3), 255, np.uint8)
    out = Paint(np.zeros(len(h.faces), int), np.array([[1., .5, .2]]), [grey], half).albedo(h, np.arange(5), np.full((5, 3), 1/3))
    assert np.allclose(out, [.5, .25, .1], atol=1e-6)


# ---- damaged files -----------------------------------------------------------------------------------------------

def right(l):
    h = l.head
    return np.isfinite(h.vertices).all() and np.isfinite(h.units).all() and len(h.faces) and h.faces.min() >= 0 and h.faces.max() < len(h.vertices) and h.units.shape == (len(h.unit_names), len(h.vertices), 3)


@pytest.mark.parametrize('kind', ['obj', 'glb', 'gltf'])
def test_damaged_files_give_a_head_or_one_clear_line(kind, tmp_path, n=250):
    m = mesh(morphs={'eyeBlinkLeft': np.float32([[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 1]]), 'b': np.ones((4, 3), 'f4')}, colors=np.full((4, 3), .5))
    path = tmp_path/f'x.{kind}'
    if kind == 'obj': write_obj(path, m)
    elif kind == 'glb': write_glb(path, m)
    else: gltf(path, nodes=[dict(mesh=0, scale=[2, 2, 2])], primitive=dict(targets=[dict(POSITION=0)]), extra=dict(extras=dict(targetNames=['jawOpen'])))
    seeds = [path.read_bytes()]
    if kind == 'glb': save_head(path, units=['jawOpen']); seeds.append(path.read_bytes())
    count = hunt(load_head, seeds, tmp_path/f'y.{kind}', n=n, ok=right)
    assert count['refused'] > n//10


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['obj', 'glb', 'gltf'])
def test_many_damaged_files(kind, tmp_path): test_damaged_files_give_a_head_or_one_clear_line(kind, tmp_path, n=20_000)
