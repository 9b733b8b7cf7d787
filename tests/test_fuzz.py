"""Whatever is in a file: a right array or one clear line. Never a crash, a hang, executed content, or memory beyond a small multiple of the file."""
import io, json, zipfile
from multiprocessing.reduction import ForkingPickler

import cv2
import h5py
import numpy as np
import pytest
import torch

import _fuzz
from _fuzz import hunt, mend_png, mutate_glb, mutate_zip, png
from _tiny import tiny_set
from srflow_nb.core import InputError, rng
from srflow_nb.flowio import read_depth, read_flow, read_image, read_labels, read_mask, write_depth, write_flow, write_image, write_labels, write_mask
from srflow_nb.gaussians import Gaussians, read_ply, write_ply
from srflow_nb.layout import load_annotation, read_manifest, verify_dataset
from srflow_nb.mesh_files import read_mesh, write_glb
from srflow_nb.other_avatars import load_flame

FAST, SLOW = 250, 100_000


def written(write, suffix, *values):
    "Files of values, as bytes."
    def make(folder):
        for i, v in enumerate(values): write(folder/f'good{i}{suffix}', v)
        return [(folder/f'good{i}{suffix}').read_bytes() for i in range(len(values))]
    return make


def flow(h, w, seed=0): return torch.from_numpy(rng(seed, 'fuzz').normal(size=(2, h, w))*3).float()


def picture(h, w): return torch.from_numpy(rng(0, 'picture').random((3, h, w)))


def flo5_kinds(folder):
    "HDF5 as we write it, as Spring does, and as h5py does when it is told nothing."
    out = []
    for i, kw in enumerate((dict(compression='gzip', shuffle=True, fletcher32=True), dict(compression='gzip', chunks=(8, 8, 2)), {})):
        with h5py.File(folder/f'{i}.h5', 'w', libver='latest' if i == 0 else None) as f: f.create_dataset('flow', data=flow(20, 24).permute(1, 2, 0).numpy(), **kw)
        out.append((folder/f'{i}.h5').read_bytes())
    return out


def ply_kinds(folder):
    g = torch.Generator().manual_seed(0)
    r = lambda *n: torch.rand(*n, generator=g)
    cloud = Gaussians(r(9, 3), torch.nn.functional.normalize(r(9, 4), dim=1), r(9, 3)*.01 + .001, r(9)*.8 + .1, r(9, 3))
    write_ply(folder/'a.ply', cloud)
    head, body = (folder/'a.ply').read_bytes().split(b'end_header\n')
    names = head.count(b'property'); rows = np.frombuffer(body, '<f4').reshape(9, names)
    text = head.replace(b'binary_little_endian', b'ascii') + b'end_header\n' + '\n'.join(' '.join(f'{x:.6g}' for x in r) for r in rows).encode() + b'\n'
    return [head + b'end_header\n' + body, text]


def flame_arrays():
    g, V, K, S = rng(0, 'flame'), 9, 3, 4
    return dict(v_template=g.normal(size=(V, 3)), shapedirs=g.normal(size=(V, 3, S)), posedirs=g.normal(size=(V, 3, 9*(K - 1))), J_regressor=np.full((K, V), 1/V),
                weights=np.full((V, K), 1/K), faces=np.array([[0, 1, 2], [2, 3, 4]]), parents=np.array([-1, 0, 1]), n_shape=np.array(2))


def flame_npz(folder):
    out = []
    for save in (np.savez, np.savez_compressed):
        f = io.BytesIO(); save(f, **flame_arrays()); out.append(f.getvalue())
    return out


def flame_pkl(folder):
    a = flame_arrays()
    names = dict(v_template='v_template', shapedirs='shapedirs', posedirs='posedirs', J_regressor='J_regressor', weights='weights', f='faces', kintree_table='parents')
    return [bytes(ForkingPickler.dumps({k: a[v] for k, v in names.items()}, protocol)) for protocol in (2, 4)]


def surface():
    v = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.], [1, 1, 0]])
    f = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 4, 2]])
    return v, f


def meshes(suffix):
    def make(folder):
        v, f = surface()
        if suffix == '.obj':
            lines = [f'v {x} {y} {z}' for x, y, z in v] + ['vt 0 0', 'vt 1 0', 'vt 0 1', 'vn 0 0 1', 'mtllib a.mtl', 'g skin', 'usemtl skin'] + [f'f {" ".join(f"{i+1}/{k+1}/1" for k, i in enumerate(t))}' for t in f]
            return ['\n'.join(lines).encode() + b'\n', b'v 0 0 0\nv 1 0 0\nv 0 1 0\nv 1 1 0\nf 1 2 4 3\n']
        (folder/'a.obj').write_bytes(meshes('.obj')(folder)[0])
        mesh = read_mesh(folder/'a.obj')
        mesh.morphs['jawOpen'] = np.full_like(mesh.vertices, .1)
        write_glb(folder/'a.glb', mesh)
        data = (folder/'a.glb').read_bytes()
        if suffix == '.glb': return [data]
        n = int.from_bytes(data[12:16], 'little'); doc = json.loads(data[20:20+n])
        doc['buffers'][0]['uri'] = 'data:application/octet-stream;base64,' + __import__('base64').b64encode(data[28+n:]).decode()
        (folder/'side.bin').write_bytes(data[28+n:])
        return [json.dumps(doc).encode(), json.dumps(doc | dict(buffers=[doc['buffers'][0] | dict(uri='side.bin')])).encode()]
    return make


def in_a_set(name):
    "A file of a data set, and the data set around it."
    def make(folder):
        root = tiny_set(folder, people=2, frames=2)
        return [(root/name).read_bytes()]
    return make


def of_set(path):
    "Read a folder by its dataset.json: what `srflow verify` does."
    verify_dataset(path.parent); return read_manifest(path.parent)


def flame(path): return load_flame(path, n_shape=2)


def finite_or_nan(f): return f.ndim == 3 and f.shape[0] == 2 and f.dtype == torch.float32 and not f.isinf().any() and torch.equal(f[0].isnan(), f[1].isnan())


def is_picture(p): return p.ndim == 3 and p.shape[0] == 3 and float(p.min()) >= 0 and float(p.max()) <= 1


def is_cloud(g): return all(torch.isfinite(x).all() for x in (g.means, g.scales, g.opacities, g.colors)) and len(g.means) == len(g.colors)


def is_mesh(m): return np.isfinite(m.vertices).all() and len(m.faces) and m.faces.min() >= 0 and m.faces.max() < len(m.vertices)


def is_flame(f): return all(torch.isfinite(x).all() for x in (f.v_template, f.shapedirs, f.posedirs)) and int(f.faces.max()) < len(f.v_template)


disc = torch.arange(20*24).view(20, 24) % 5
READERS = {  # name of the file -> reader, good files, what a result must be like, how to damage
    'a.flo': (read_flow, written(write_flow, '.flo', flow(20, 24), flow(1, 3)), finite_or_nan, {}),
    'a.pfm': (read_flow, written(write_flow, '.pfm', flow(20, 24), flow(7, 1)), finite_or_nan, {}),
    'kitti.png': (read_flow, written(write_flow, '.png', flow(20, 24), flow(64, 64)*0), finite_or_nan, dict(mend=mend_png)),
    'a.flo5': (read_flow, flo5_kinds, finite_or_nan, {}),
    'image.png': (read_image, written(write_image, '.png', picture(20, 24)), is_picture, dict(mend=mend_png)),
    'image.jpg': (read_image, written(write_image, '.jpg', picture(20, 24)), is_picture, {}),
    'image.webp': (read_image, written(write_image, '.webp', picture(20, 24)), is_picture, {}),
    'image.bmp': (read_image, written(write_image, '.bmp', picture(20, 24)), is_picture, {}),
    'labels.png': (read_labels, written(write_labels, '.png', disc), lambda x: x.dtype == torch.uint8 and x.ndim == 2, dict(mend=mend_png)),
    'mask.png': (read_mask, written(write_mask, '.png', disc > 2), lambda x: x.dtype == torch.bool and x.ndim == 2, dict(mend=mend_png)),
    'depth.png': (read_depth, written(write_depth, '.png', disc*.1 + .5), lambda x: x.ndim == 2 and bool((x > 0).all()), dict(mend=mend_png)),
    'a.ply': (read_ply, ply_kinds, is_cloud, {}),
    'flame.npz': (flame, flame_npz, is_flame, dict(damage=mutate_zip)),
    'flame.pkl': (flame, flame_pkl, is_flame, {}),
    'dataset.json': (of_set, in_a_set('dataset.json'), lambda m: isinstance(m['files'], dict), {}),
    'training/annotations/disc_0.json': (load_annotation, in_a_set('training/annotations/disc_0.json'), lambda n: n['head_pose'].shape[1] == 6, {}),
    'a.obj': (read_mesh, meshes('.obj'), is_mesh, {}),
    'a.glb': (read_mesh, meshes('.glb'), is_mesh, dict(damage=mutate_glb)),
    'a.gltf': (read_mesh, meshes('.gltf'), is_mesh, {}),
}


def run(name, folder, n, seed=0):
    read, make, ok, how = READERS[name]
    samples = make(folder)
    counts = hunt(read, samples, folder/name, n, seed, ok, **how)
    assert counts['refused'] > n//20, f"{name}: only {counts['refused']} of {n} damaged files were refused"
    return counts


@pytest.mark.parametrize('name', READERS)
def test_damaged_files_give_a_right_result_or_one_line(tmp_path, name): run(name, tmp_path, FAST)


@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_a_hundred_thousand_damaged_files(tmp_path, name): print(name, run(name, tmp_path, -(-SLOW//len(READERS)), seed=1))


# ---- the hunter itself can catch -----------------------------------------------------------------------------------

def crash(path): import ctypes; ctypes.string_at(0)


def never_ends(path):
    while True: pass


def greedy(path): return np.ones(10**9)


def curious(path):
    try: open('/etc/passwd').close()
    except OSError: pass


@pytest.mark.parametrize('what, says', [(crash, 'died'), (never_ends, 'hung'), (greedy, 'MemoryError'), (curious, '/etc/passwd')])
def test_the_hunt_sees_what_must_not_happen(tmp_path, what, says):
    def read(path):
        if path.read_bytes() != b'a good file': what(path)
    with pytest.raises(AssertionError, match=says): hunt(read, [b'a good file'], tmp_path/'x.bin', n=50, seconds=1)


def test_the_hunt_sees_other_exceptions_and_unclear_messages(tmp_path):
    def bad(e):
        def read(path):
            if path.read_bytes() != b'a good file': raise e
        return read
    for e, says in ((KeyError('x'), 'KeyError'), (InputError('two\nlines x.bin'), '2 lines'), (InputError('something is wrong'), 'does not name')):
        with pytest.raises(AssertionError, match=says): hunt(bad(e), [b'a good file'], tmp_path/'x.bin', n=50)


# ---- bombs: small files that would be huge -------------------------------------------------------------------------

def bomb(name):
    "A small file that claims, or truly unpacks to, far more than its size."
    zeros = bytes(30_000_000)
    if name.endswith('.png'):
        bits, color, channels = dict(kitti=(16, 2, 6), image=(8, 2, 3), labels=(8, 3, 1), mask=(8, 0, 1), depth=(16, 0, 2))[name.split('.')[0]]
        return [png(9000, 9000, bits, color, zeros[:300_000]), png(2**31 - 1, 2**31 - 1, bits, color, zeros[:1000]), png(60000, 60000, bits, color, zeros)]
    if name == 'a.npz' or name.endswith('.npz'):
        f, g = io.BytesIO(), io.BytesIO()
        np.savez_compressed(f, v_template=np.zeros((4_000_000, 3)))
        with zipfile.ZipFile(g, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('v_template.npy', b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000000000), }".ljust(128) + b'\n')
        return [f.getvalue(), g.getvalue()]
    if name == 'a.flo5':
        f, g = io.BytesIO(), io.BytesIO()
        with h5py.File(f, 'w') as h: h.create_dataset('flow', (10**9, 10**9, 2), 'f4', chunks=(64, 64, 2), compression='gzip')
        with h5py.File(g, 'w') as h: h.create_dataset('flow', (20_000, 20_000, 2), 'f4', chunks=(2000, 2000, 2), compression='gzip')[:10, :10] = 1
        return [f.getvalue(), g.getvalue()]
    return {'a.flo': [b'PIEH' + (10**9).to_bytes(4, 'little')*2 + bytes(100)], 'a.pfm': [b'PF\n999999999 999999999\n-1\n' + bytes(99)],
            'a.ply': [b'ply\nformat binary_little_endian 1.0\nelement vertex 999999999999\nproperty float x\nend_header\n' + bytes(40)],
            'dataset.json': [b'[' * 10**6, b'{"files": {' + b'"a": [],' * 10**5, b'{"config": {"width": ' + b'9'*10**6 + b'}}']}[name]


@pytest.mark.parametrize('name', ['a.flo', 'a.pfm', 'a.flo5', 'kitti.png', 'image.png', 'labels.png', 'mask.png', 'depth.png', 'flame.npz', 'a.ply', 'dataset.json'])
def test_bombs_cost_little(tmp_path, name):
    read, make, ok, how = READERS[name]
    good, bad = make(tmp_path), bomb(name)
    def damaged(data, g, others): return bad[int(g.integers(len(bad)))]
    assert hunt(read, good, tmp_path/name, 2*len(bad), damage=damaged)['read'] == 0


def test_a_claim_that_is_true_is_believed(tmp_path):
    "Honest pictures of one colour pack a thousand to one, and are read."
    write_flow(tmp_path/'a.png', torch.zeros(2, 400, 500)); assert (read_flow(tmp_path/'a.png') == 0).all()
    write_image(tmp_path/'b.png', torch.zeros(3, 1604, 1100)); assert read_image(tmp_path/'b.png').shape == (3, 1604, 1100)
    write_labels(tmp_path/'c.png', torch.zeros(1604, 1100, dtype=torch.uint8)); assert read_labels(tmp_path/'c.png').shape == (1604, 1100)
    write_flow(tmp_path/'d.flo5', torch.zeros(2, 1604, 1100)); assert (read_flow(tmp_path/'d.flo5') == 0).all()
    cv2.imwrite(str(tmp_path/'one.png'), np.zeros((33, 65), np.uint8), [cv2.IMWRITE_PNG_BILEVEL, 1]); assert read_image(tmp_path/'one.png').shape == (3, 33, 65)


def test_every_kind_of_mutation_changes_files():
    data = bytes(range(256))*3 + b' 12 34.5e6 {"a": 3} '
    for m in _fuzz.MUTATIONS: assert sum(bytes(m(bytearray(data), np.random.default_rng([i]))) != data for i in range(20)) > 12, m.__name__
