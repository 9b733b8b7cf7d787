"Gaussians on disk and in motion: what we write others read, a lying file gives one clear line, a moved splat obeys A Sigma A^T."
import numpy as np
import pytest
import torch
from plyfile import PlyData, PlyElement

from srflow_nb.camera import Camera
from srflow_nb.core import InputError, rng
from srflow_nb.flow import splat_flow
from srflow_nb.gaussians import PLY_FIELDS, SH_C0, Gaussians, quat_multiply, quat_to_rotmat, read_ply, read_sequence, rotmat_to_quat, write_ply


@pytest.fixture
def cloud():
    r, t = rng(0, 'ply test'), lambda a: torch.from_numpy(np.asarray(a, 'f4'))
    return Gaussians(t(r.normal(size=(40, 3))), torch.nn.functional.normalize(t(r.normal(size=(40, 4))), dim=1), t(r.uniform(.001, .1, (40, 3))),
                     t(r.uniform(.01, .99, 40)), t(r.uniform(0, 1, (40, 3))))


def test_ply_round_trip(tmp_path, cloud):
    write_ply(tmp_path/'a.ply', cloud)
    back = read_ply(tmp_path/'a.ply')
    for name in ('means', 'quats', 'scales', 'opacities', 'colors'):
        assert torch.allclose(getattr(back, name), getattr(cloud, name), atol=1e-6, rtol=1e-5), name


def test_ply_holds_the_standard_3dgs_fields_before_activation(tmp_path, cloud):
    write_ply(tmp_path/'a.ply', cloud)
    header, data = (tmp_path/'a.ply').read_bytes().split(b'end_header\n')
    lines = header.decode().split('\n')
    assert lines[:3] == ['ply', 'format binary_little_endian 1.0', 'element vertex 40']
    names = [l.split()[2] for l in lines if l.startswith('property float ')]
    assert names == ['x', 'y', 'z', 'nx', 'ny', 'nz', 'f_dc_0', 'f_dc_1', 'f_dc_2', 'opacity', 'scale_0', 'scale_1', 'scale_2', 'rot_0', 'rot_1', 'rot_2', 'rot_3']
    row = dict(zip(names, np.frombuffer(data, '<f4').reshape(40, 17)[7]))
    o = cloud.opacities[7].item()
    assert row['opacity'] == pytest.approx(np.log(o/(1-o)), abs=1e-4) and row['scale_1'] == pytest.approx(np.log(cloud.scales[7, 1].item()), abs=1e-5)
    assert row['f_dc_2']*.28209479177387814+.5 == pytest.approx(cloud.colors[7, 2].item(), abs=1e-6) and SH_C0 == pytest.approx(.28209479177387814)


def as_rows(g, types='f4', names=PLY_FIELDS):
    "The rows that another program would write for these Gaussians: numpy alone, by the formulas of the 3DGS paper's code."
    rows = np.zeros(len(g), [(n, types) for n in names])
    n = {k: getattr(g, k).double().numpy() for k in ('means', 'quats', 'scales', 'opacities', 'colors')}
    for i, k in enumerate('xyz'): rows[k] = n['means'][:, i]
    for i in range(3): rows[f'f_dc_{i}'], rows[f'scale_{i}'] = (n['colors'][:, i]-.5)/.28209479177387814, np.log(n['scales'][:, i])
    for i in range(4): rows[f'rot_{i}'] = n['quats'][:, i]
    rows['opacity'] = np.log(n['opacities']/(1-n['opacities']))
    return rows


def assert_same(a, b, **kw):
    for name in ('means', 'quats', 'scales', 'opacities', 'colors'): torch.testing.assert_close(getattr(a, name), getattr(b, name), **kw)


SH = {0: 0, 1: 9, 2: 24, 3: 45}
ORDERS = dict(standard=PLY_FIELDS, reversed=PLY_FIELDS[::-1], **{f'degree {d}': [*PLY_FIELDS[:9], *(f'f_rest_{i}' for i in range(n)), *PLY_FIELDS[9:]] for d, n in SH.items()},
              **{'no normals': [f for f in PLY_FIELDS if f not in ('nx', 'ny', 'nz')], 'more fields': ['red', *PLY_FIELDS, 'time', 'semantic']})


@pytest.mark.parametrize('layout', ORDERS)
@pytest.mark.parametrize('written', [dict(text=True), dict(byte_order='<'), dict(byte_order='>')], ids=['text', 'little endian', 'big endian'])
@pytest.mark.parametrize('types', ['f4', 'f8'])
def test_files_of_plyfile_are_read(tmp_path, cloud, layout, written, types):
    rows = as_rows(cloud, types, ORDERS[layout])
    for n in rows.dtype.names:
        if n.startswith('f_rest') or n in ('red', 'time', 'semantic'): rows[n] = 99
    PlyData([PlyElement.describe(rows, 'vertex')], comments=['by another tool'], obj_info=['none'], **written).write(tmp_path/'a.ply')
    back = read_ply(tmp_path/'a.ply')
    assert_same(back, cloud, rtol=2e-6, atol=1e-7); assert back.frames is None
    assert torch.equal(back.means, cloud.means)


def test_integer_properties_and_further_elements_of_plyfile_are_skipped(tmp_path, cloud):
    rows = as_rows(cloud)
    mixed = np.zeros(40, [('red', 'u1'), *[(n, 'f4') for n in PLY_FIELDS], ('id', 'i4'), ('flag', 'i2')])
    for n in PLY_FIELDS: mixed[n] = rows[n]
    faces = np.array([([0, 1, 2],)], [('vertex_indices', 'i4', (3,))])
    for text in (False, True):
        PlyData([PlyElement.describe(mixed, 'vertex'), PlyElement.describe(faces, 'face')], text=text).write(tmp_path/'a.ply')
        assert_same(read_ply(tmp_path/'a.ply'), cloud, rtol=2e-6, atol=1e-7)


def test_elements_before_the_splats_as_in_compressed_files_are_refused_clearly(tmp_path, cloud):
    first = np.zeros(1, [('min_x', 'f4')])
    PlyData([PlyElement.describe(first, 'chunk'), PlyElement.describe(as_rows(cloud), 'vertex')]).write(tmp_path/'a.ply')
    with pytest.raises(InputError, match="element chunk 1; expected 'element vertex COUNT' first"): read_ply(tmp_path/'a.ply')


def test_plyfile_reads_what_we_write(tmp_path, cloud):
    write_ply(tmp_path/'a.ply', cloud)
    ply = PlyData.read(tmp_path/'a.ply'); rows, want = ply['vertex'].data, as_rows(cloud, 'f8')
    assert not ply.text and ply.byte_order == '<' and [e.name for e in ply.elements] == ['vertex']
    assert list(rows.dtype.names) == PLY_FIELDS and set(t for t, _ in rows.dtype.fields.values()) == {np.dtype('<f4')}
    for n in PLY_FIELDS: np.testing.assert_allclose(rows[n], want[n], rtol=3e-7, atol=1e-6, err_msg=n)
    for n in 'xyz': assert (rows[n] == want[n].astype('f4')).all()


def test_round_trip_keeps_what_float32_can_keep(tmp_path, cloud):
    write_ply(tmp_path/'a.ply', cloud); once = read_ply(tmp_path/'a.ply')
    write_ply(tmp_path/'b.ply', once)
    assert_same(once, cloud, rtol=5e-7, atol=1e-7); assert torch.equal(once.means, cloud.means)
    assert_same(read_ply(tmp_path/'b.ply'), once, rtol=5e-7, atol=1e-7)


def test_normals_go_through_the_file_and_zeros_mean_unknown(tmp_path, cloud):
    n = torch.nn.functional.normalize(cloud.means, dim=1)
    n[:10] = 0
    flat = cloud.replace(scales=cloud.scales*torch.tensor([1., 1, .001])).with_frames(outward=n)
    write_ply(tmp_path/'a.ply', flat); back = read_ply(tmp_path/'a.ply')
    torch.testing.assert_close(back.frames, flat.frames, rtol=1e-5, atol=1e-6)
    assert (back.frames[:10, :, 2] == 0).all() and (back.frames[10:, :, 2].norm(dim=1)-1).abs().max() < 1e-6


@pytest.mark.parametrize('text', [False, True])
def test_a_file_without_splats(tmp_path, cloud, text):
    write_ply(tmp_path/'a.ply', cloud[torch.zeros(40, dtype=torch.bool)])
    if text: PlyData([PlyData.read(tmp_path/'a.ply', mmap=False)['vertex']], text=True).write(tmp_path/'a.ply')
    g = read_ply(tmp_path/'a.ply')
    assert len(g) == 0 and g.frames is None and len(g.moved(torch.eye(3)*2)) == 0


def test_a_million_splats(tmp_path):
    r, n = rng(0, 'million'), 1_000_000
    t = lambda a: torch.from_numpy(a.astype('f4'))
    g = Gaussians(t(r.normal(size=(n, 3))), torch.nn.functional.normalize(t(r.normal(size=(n, 4))), dim=1), t(r.uniform(.001, .1, (n, 3))),
                  t(r.uniform(.01, .99, n)), t(r.uniform(0, 1, (n, 3))))
    write_ply(tmp_path/'a.ply', g)
    assert (tmp_path/'a.ply').stat().st_size < 69e6
    assert_same(read_ply(tmp_path/'a.ply'), g, rtol=2e-6, atol=1e-6)


def test_ply_of_another_tool_with_more_fields_and_elements(tmp_path, cloud):
    "Field order, extra spherical harmonics, doubles, comments and further elements are all legal."
    names = ['opacity', 'f_rest_0', *[f for f in PLY_FIELDS if f not in ('opacity', 'nx', 'ny', 'nz')], 'f_rest_1']
    rows = np.zeros(3, [(n, '<f8' if n == 'x' else '<f4') for n in names])
    rows['x'], rows['rot_0'], rows['f_rest_0'] = [1, 2, 3], 2, 99
    header = ['ply', 'format binary_little_endian 1.0', 'comment by someone', 'element vertex 3',
              *[f"property {'double' if n == 'x' else 'float'} {n}" for n in names], 'element face 1', 'property list uchar int vertex_indices', 'end_header']
    (tmp_path/'b.ply').write_bytes('\n'.join(header).encode()+b'\n'+rows.tobytes()+b'\x03'+b'\0'*12)
    g = read_ply(tmp_path/'b.ply')
    assert g.means[:, 0].tolist() == [1, 2, 3] and torch.equal(g.quats, torch.tensor([[1., 0, 0, 0]]*3)) and torch.equal(g.opacities, torch.full((3,), .5))


@pytest.mark.parametrize('edit, match', [
    (lambda b: b'', "no 'end_header' line"), (lambda b: b'\x89PNG\r\n\x1a\n'+b, "does not begin with 'ply'"), (lambda b: b[:100], "no 'end_header' line"),
    (lambda b: b[:-1], 'expected a complete file'), (lambda b: b.replace(b'vertex 40', b'vertex 4000000000000000'), 'the file has 2720'),
    (lambda b: b.replace(b'vertex 40', b'vertex -4'), "expected 'element vertex COUNT'"), (lambda b: b.replace(b'vertex 40', b'face 40'), 'element vertex COUNT'),
    (lambda b: b.replace(b'binary_little_endian', b'ascii'), 'line of text does not hold 17 numbers'), (lambda b: b.replace(b'binary_little_endian', b'zip'), 'expected format binary_little_endian'), (lambda b: b.replace(b' opacity', b' opaqueness'), 'no property opacity'),
    (lambda b: b.replace(b'float x', b'quad x'), "'property quad x'"), (lambda b: b.replace(b'float y', b'float x'), "'property float x'"),
    (lambda b: b.replace(b'property float nx', b'property list uchar int nx'), 'property list'), (lambda b: b[:-68]+b'\xff'*68, 'NaN or infinite'),
    (lambda b: b'ply\n'+b'comment x\n'*100000, "no 'end_header' line"), (lambda b: b'ply\nend_header\n', 'no format line')])
def test_malformed_ply_gives_one_line_that_names_the_file(tmp_path, cloud, edit, match):
    path = tmp_path/'c.ply'
    write_ply(path, cloud); path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(InputError, match=match) as e: read_ply(path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('edit, match', [
    (lambda b: b.replace(b'vertex 40', b'vertex 1000000000'), 'the file has'), (lambda b: b[:-200], 'expected a complete file|does not hold'),
    (lambda b: b.rsplit(b'\n', 3)[0]+b'\n'+b' '*2000, '40 vertices claimed, 38 lines of numbers found'), (lambda b: b.replace(b'\n0.', b'\nzero.'), 'does not hold 17 numbers'),
    (lambda b: b[:b.rfind(b' ')], 'does not hold 17 numbers'), (lambda b: b[:-60]+b' nan'*15+b'\n', 'NaN or infinite|does not hold')])
def test_malformed_text_ply_gives_one_line_that_names_the_file(tmp_path, cloud, edit, match):
    path = tmp_path/'c.ply'
    write_ply(path, cloud.replace(means=cloud.means.abs()/100))
    PlyData([PlyData.read(path, mmap=False)['vertex']], text=True).write(path); path.write_bytes(edit(path.read_bytes()))
    with pytest.raises(InputError, match=match) as e: read_ply(path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)


def test_a_claim_of_a_thousand_million_splats_costs_no_memory(tmp_path, cloud):
    import tracemalloc
    path = tmp_path/'c.ply'
    write_ply(path, cloud); path.write_bytes(path.read_bytes().replace(b'vertex 40', b'vertex 1000000000'))
    tracemalloc.start()
    with pytest.raises(InputError, match='1000000000 vertices of 17 properties need 68000000000 bytes, the file has 2720'): read_ply(path)
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize('field, value, match', [
    ('opacity', np.nan, 'opacity: 1 of 40'), ('scale_1', 200., 'scale_0_to_2: 1 of 120'), ('x', 1e300, 'means: 1 of 120'), ('f_dc_0', np.inf, 'f_dc_0: 1 of 40'),
    (('rot_0', 'rot_1', 'rot_2', 'rot_3'), 0., 'rot_0 to rot_3: 1 of 40 quaternions are 0')])
def test_a_number_that_is_no_splat_is_refused_by_its_field(tmp_path, cloud, field, value, match):
    rows = as_rows(cloud, 'f8')
    for f in np.atleast_1d(field): rows[f][7] = value
    PlyData([PlyElement.describe(rows, 'vertex')]).write(tmp_path/'n.ply')
    with pytest.raises(InputError, match=match) as e: read_ply(tmp_path/'n.ply')
    assert 'n.ply' in str(e.value)


def test_missing_ply_is_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such file'): read_ply(tmp_path/'none.ply')


def test_refused_gaussians_leave_no_file(tmp_path, cloud):
    cloud.means[3, 1] = torch.nan
    with pytest.raises(InputError, match='^means: 1 of 120'): write_ply(tmp_path/'d.ply', cloud)
    assert list(tmp_path.iterdir()) == []


def test_covariance_is_rotation_invariant_in_its_spectrum_and_quaternions_round_trip(cloud):
    eigenvalues = torch.linalg.eigvalsh(cloud.covariance().double()).sqrt()
    assert torch.allclose(eigenvalues.float(), cloud.scales.sort(1).values, rtol=1e-3)
    R = quat_to_rotmat(cloud.quats)
    assert torch.allclose(R @ R.mT, torch.eye(3).expand(40, 3, 3), atol=1e-5) and torch.allclose(quat_to_rotmat(rotmat_to_quat(R)), R, atol=1e-5)


# ---- motion ------------------------------------------------------------------------------------------------------

@pytest.fixture
def maps():
    "40 affine maps: rotations, stretches, shears, mirrors, flattening ones and the identity."
    r, A = rng(0, 'maps'), np.empty((40, 3, 3))
    A[:10] = np.linalg.qr(r.normal(size=(10, 3, 3)))[0]
    A[:10] *= np.linalg.det(A[:10])[:, None, None]
    A[10:] = r.normal(size=(30, 3, 3))
    A[10:15] = np.eye(3)*r.uniform(.5, 2, (5, 1, 1))
    A[15:18], A[18] = np.diag([1., 1, -1]), np.diag([1., 1, 0])
    A[19] = np.eye(3)
    return torch.from_numpy(A.astype('f4'))


def test_moved_covariance_is_A_Sigma_At_for_every_kind_of_map(cloud, maps):
    got, A = cloud.moved(maps, t=(1., 2, 3), about=(.5, 0, 0)), maps.double()
    want = A @ cloud.to(torch.float64).covariance() @ A.mT
    torch.testing.assert_close(got.to(torch.float64).covariance(), want, rtol=1e-4, atol=1e-8)
    assert torch.allclose(got.quats.norm(dim=1), torch.ones(40), atol=1e-5) and (torch.linalg.det(quat_to_rotmat(got.quats)) > .999).all()
    p = cloud.means.double()-torch.tensor([.5, 0, 0])
    torch.testing.assert_close(got.means.double(), (A @ p[:, :, None])[:, :, 0]+torch.tensor([1.5, 2, 3]).double(), rtol=0, atol=1e-5)


def test_thin_needles_and_equal_axes_survive_a_shear():
    n = 60
    scales = torch.tensor([[1., 1e-4, 1e-6], [.1, .1, .1], [.2, .2, .001]]).repeat_interleave(20, 0)
    quats = torch.nn.functional.normalize(torch.from_numpy(rng(0, 'needles').normal(size=(n, 4)).astype('f4')), dim=1)
    g, A = Gaussians(torch.zeros(n, 3), quats, scales, torch.ones(n), torch.ones(n, 3)), torch.tensor([[1., .6, 0], [0, 1, .3], [0, 0, .8]])
    moved, M = g.moved(A), A.double() @ (quat_to_rotmat(quats.double())*scales.double()[:, None, :])
    torch.testing.assert_close(moved.scales.double(), torch.linalg.svdvals(M), rtol=1e-6, atol=0)
    spread = torch.linalg.svdvals(quat_to_rotmat(moved.quats.double()).mT @ M) - moved.scales.double()
    assert spread.abs().max() < 1e-6


def test_rotation_keeps_sizes_to_the_bit_and_no_motion_keeps_everything(cloud):
    q = torch.nn.functional.normalize(torch.tensor([.9, .1, -.3, .2]), dim=0)
    turned = cloud.moved_rigidly(q, t=(0, .1, 0))
    assert torch.equal(turned.scales, cloud.scales)
    torch.testing.assert_close(quat_to_rotmat(turned.quats), quat_to_rotmat(q) @ quat_to_rotmat(cloud.quats), rtol=0, atol=1e-6)
    framed = cloud.with_frames(outward=cloud.means)
    still = framed.moved(torch.eye(3), about=cloud.means*7)
    for name in ('means', 'quats', 'scales', 'opacities', 'colors'): assert torch.equal(getattr(still, name), getattr(cloud, name)), name
    assert torch.equal(still.frames[:, :, :2], framed.frames[:, :, :2])


def test_one_map_for_all_is_the_same_as_one_for_each(cloud, maps):
    one, each = cloud.moved(maps[12], t=maps[0, 0], about=maps[0, 1]), cloud.moved(maps[12].expand(40, 3, 3), maps[0, :1].expand(40, 3), maps[0, 1:2].expand(40, 3))
    for name in ('means', 'quats', 'scales', 'frames'): torch.testing.assert_close(getattr(one, name), getattr(each, name), rtol=0, atol=0)
    assert torch.equal(cloud.moved(maps, about=cloud.means).means, cloud.means)


def test_frames_are_carried_and_normals_stay_perpendicular(cloud, maps):
    g = cloud.with_frames(outward=cloud.means)
    g.frames[30:, :, 2] = 0
    n0 = torch.linalg.cross(g.frames[:, :, 0], g.frames[:, :, 1])
    g.frames[:30, :, 2] = torch.nn.functional.normalize(n0[:30]*(n0[:30]*g.means[:30]).sum(1, keepdim=True).sign(), dim=1)
    got, A = g.moved(maps), maps
    torch.testing.assert_close(got.frames[:, :, :2], A @ g.frames[:, :, :2])
    n, T = got.frames[:, :, 2], torch.nn.functional.normalize(got.frames[:, :, :2], dim=1)
    assert (n[:, :, None]*T).sum(1).abs().max() < 2e-5 and (n[30:] == 0).all() and (n[18] == 0).all()
    solid = torch.tensor([i for i in range(30) if i != 18])
    assert (n[solid].norm(dim=1)-1).abs().max() < 1e-5
    out = (g.frames[solid, :, 2]*.01)[:, :, None]                                # a point just outside stays outside, in a mirror too
    assert ((A[solid] @ out)[:, :, 0]*n[solid]).sum(1).min() > 0


def test_frames_without_a_surface_are_two_longest_axes_with_unknown_normal(cloud):
    f, R = cloud.with_frames().frames, quat_to_rotmat(cloud.quats)*cloud.scales[:, None, :]
    length, _ = cloud.scales.sort(1, descending=True)
    torch.testing.assert_close(f[:, :, :2].norm(dim=1), length[:, :2]); assert (f[:, :, 2] == 0).all()
    overlap = (f[:, :, :2, None]*R[:, :, None, :]).sum(1).abs() / (f[:, :, :2].norm(dim=1)[:, :, None]*cloud.scales[:, None, :])
    torch.testing.assert_close(overlap.max(2).values, torch.ones(40, 2), atol=1e-5, rtol=0)
    grown = cloud.replace(scales=cloud.scales.flip(1))
    order = cloud.scales.argsort(1, descending=True)[:, :2]
    torch.testing.assert_close(grown.with_frames(like=cloud).frames[:, :, :2].norm(dim=1), grown.scales.gather(1, order))


def test_gradients_reach_a_rigid_motion(cloud):
    g = cloud.to(torch.float64)
    def loss(q, t, means, quats):
        m = g.replace(means=means, quats=quats).moved_rigidly(q, t, about=(.1, .2, .3))
        return torch.cat([m.means.flatten(), m.quats.flatten(), m.scales.flatten(), m.frames[:, :, :2].flatten()])
    few = torch.arange(3)
    g = g[few]
    inputs = [torch.tensor([.9, .1, -.3, .2]).double(), torch.tensor([.1, 0, .2]).double(), g.means, g.quats]
    assert torch.autograd.gradcheck(loss, [i.clone().requires_grad_() for i in inputs])


def test_gradients_of_an_affine_motion_go_through_places_and_frames_and_stay_finite(cloud):
    A = torch.diag(torch.tensor([1., 1, .5])).requires_grad_()
    round_ = cloud.replace(scales=torch.full((40, 3), .1))                       # equal axes: the derivative of an SVD would be infinite
    m = round_.moved(A)
    assert not m.scales.requires_grad
    (m.means.sum()+m.quats.sum()+m.frames.sum()).backward()
    assert torch.isfinite(A.grad).all() and A.grad.abs().max() > 0


def test_quaternion_product_is_the_product_of_rotations():
    q = torch.from_numpy(rng(0, 'q').normal(size=(2, 100, 4)))
    torch.testing.assert_close(quat_to_rotmat(quat_multiply(*q)), quat_to_rotmat(q[0]) @ quat_to_rotmat(q[1]))


@pytest.mark.parametrize('kw, match', [
    (dict(A=torch.eye(4)), r'A: shape \(4, 4\); expected \(3, 3\) or \(40, 3, 3\)'), (dict(A=torch.eye(3)*torch.nan), 'A: 9 of 9 values are NaN'),
    (dict(t=torch.zeros(39, 3)), r't: shape \(39, 3\)'), (dict(about=(1., 2)), r'about: shape \(2,\)')])
def test_moved_refuses_what_is_no_motion(cloud, kw, match):
    with pytest.raises(InputError, match=match): cloud.moved(**kw)
    with pytest.raises(InputError, match='quats: one of length 0'): cloud.moved_rigidly((0., 0, 0, 0))


def test_scenes_are_joined_and_taken_apart(cloud):
    both = Gaussians.cat([cloud, cloud.with_frames(outward=cloud.means)])
    assert len(both) == 80 and (both.frames[:40, :, 2] == 0).all() and torch.equal(both[torch.arange(40, 80)].means, cloud.means)
    assert Gaussians.cat([cloud, cloud]).frames is None
    with pytest.raises(InputError, match='no parts'): Gaussians.cat([])


@pytest.mark.parametrize('A', [[[1., .04, 0], [-.03, 1, 0], [0, 0, 1]], [[1.03, 0, 0], [0, .98, 0], [.05, .02, 1]], [[.9995, -.03, 0], [.03, .9995, 0], [0, 0, 1]]],
                         ids=['shear', 'stretch and tilt', 'spin'])
@pytest.mark.parametrize('normals', ['known', 'unknown'])
def test_splat_flow_sees_shear_stretch_and_spin_of_moved_splats(A, normals):
    "A plane of splats moved by A about its middle: its exact flow is that of the plane."
    A, camera = torch.tensor(A), Camera.look_at((0, 0, 1.), focal=100., width=64, height=48)
    at = torch.cartesian_prod(torch.arange(-.5, .5, .02), torch.arange(-.4, .4, .02), torch.zeros(1))
    plane = Gaussians(at, torch.tensor([[1., 0, 0, 0]]).expand(len(at), 4), torch.tensor([[.015, .012, .001]]).expand(len(at), 3), torch.full((len(at),), .9), torch.ones(len(at), 3))
    if normals == 'known': plane = plane.with_frames(outward=(0, 0, 1.))
    flow = splat_flow(plane, plane.moved(A, t=(.02, .01, 0)), camera).flow
    origin, rays = camera.rays()
    x = origin+rays*(-origin[2]/rays[..., 2:])
    want = (camera.project(x @ A.T + torch.tensor([.02, .01, 0]))[0]-camera.project(x)[0]).permute(2, 0, 1)
    assert (flow-want).norm(dim=0)[2:-2, 2:-2].max() < .01 and want.norm(dim=0).max() > 2


# ---- films -------------------------------------------------------------------------------------------------------

def test_a_film_is_read_in_the_order_of_its_numbers(tmp_path, cloud):
    for i in (1, 2, 10): write_ply(tmp_path/f'f{i}.ply', cloud.replace(means=cloud.means+i))
    assert [round((g.means-cloud.means).mean().item()) for g in read_sequence(tmp_path)] == [1, 2, 10]
    assert [round((g.means-cloud.means).mean().item()) for g in read_sequence([tmp_path/'f10.ply', tmp_path/'f1.ply'])] == [10, 1]


def test_a_film_of_other_splats_is_refused(tmp_path, cloud):
    write_ply(tmp_path/'1.ply', cloud); write_ply(tmp_path/'2.ply', cloud[torch.arange(39)])
    with pytest.raises(InputError, match=r'2\.ply: 39 splats, 40 in the file before'): read_sequence(tmp_path)
    write_ply(tmp_path/'2.ply', cloud[torch.arange(39, -1, -1)])
    with pytest.raises(InputError, match=r'2\.ply: the median splat moves by'): read_sequence(tmp_path)
    assert len(read_sequence(tmp_path, max_step=9.)) == 2
    with pytest.raises(FileNotFoundError, match='no .ply files here'): read_sequence(tmp_path/'none')


def test_a_film_with_normals_follows_the_same_axes_at_each_moment(tmp_path, cloud):
    "Here the two longer axes change places in size; their tangents must not."
    flat = cloud.replace(scales=torch.tensor([[.2, .1, .01]]).expand(40, 3)).with_frames(outward=cloud.means)
    swapped = flat.replace(scales=torch.tensor([[.1, .2, .01]]).expand(40, 3))
    for i, g in enumerate((flat, swapped)): write_ply(tmp_path/f'{i}.ply', g)
    g0, g1 = read_sequence(tmp_path)
    unit = [torch.nn.functional.normalize(g.frames, dim=1) for g in (g0, g1)]
    torch.testing.assert_close(*unit, atol=1e-5, rtol=0)
    assert (g1.frames[:, :, 0].norm(dim=1) < g1.frames[:, :, 1].norm(dim=1)).all()
