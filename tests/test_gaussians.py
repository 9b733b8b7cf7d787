"Gaussians on disk: what we write others read, what we read comes back, and a lying file gives one clear line."
import numpy as np
import pytest
import torch

from srflow_nb.camera import Camera, orbit_rig
from srflow_nb.core import InputError, rng
from srflow_nb.gaussians import PLY_FIELDS, SH_C0, Gaussians, quat_to_rotmat, read_ply, rotmat_to_quat, write_ply


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


def test_camera_rays_and_projection_are_inverse():
    for camera in orbit_rig(5, yaw=80, pitch=20, width=37, height=23):
        origin, d = camera.rays()
        uv, depth = camera.project(origin + 1.7*d)
        y, x = torch.meshgrid(torch.arange(23)+.5, torch.arange(37)+.5, indexing='ij')
        assert torch.allclose(uv, torch.stack([x, y], -1), atol=1e-2) and torch.allclose(depth, torch.full_like(depth, 1.7), atol=1e-4)


def test_camera_refuses_what_is_no_camera():
    with pytest.raises(InputError, match=r'K: shape \(4, 4\); expected \(3, 3\)'): Camera(torch.eye(4), torch.eye(4), 5, 5)
    bad = torch.eye(4); bad[1, 2] = torch.nan
    with pytest.raises(InputError, match='viewmat: 1 of 16'): Camera(bad, torch.eye(3), 5, 5)
    with pytest.raises(InputError, match='0x5 px'): Camera(torch.eye(4), torch.eye(3), 0, 5)
