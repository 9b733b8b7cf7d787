"Cameras: the numbers of other people's code, derivatives that autograd confirms, and a clear line for what is no camera."
import cv2
import numpy as np
import pytest
import torch

from srflow_nb.camera import CAMERA_KINDS, HEAD_HEIGHT, Camera, Pinhole, frontal_camera, nersemble_arc, orbit_rig, phone_camera, sample_camera
from srflow_nb.core import InputError, rng


@pytest.fixture
def points(): return torch.from_numpy(rng(0, 'points').uniform(-.2, .2, (500, 3)))


def rig(): return [*orbit_rig(5, yaw=80, pitch=20, width=370, height=230), frontal_camera(55, 80, distance=.6), Camera.look_at((3., -1, 2), (.1, 0, .2), (0, 0, 1), 333., 41, 63)]


@pytest.mark.parametrize('camera', rig())
def test_projection_is_that_of_opencv(camera, points):
    m, K = camera.viewmat.double().numpy(), camera.K.double().numpy()
    R = cv2.Rodrigues(m[:3, :3])[0]
    want, dR = cv2.projectPoints(points.numpy(), R, m[:3, 3], K, None)
    uv, depth = camera.project(points)
    np.testing.assert_allclose(uv.numpy(), want[:, 0], atol=2e-3)
    np.testing.assert_allclose(depth.numpy(), (points.numpy() @ m[:3, :3].T + m[:3, 3])[:, 2], atol=1e-12)
    d_by_t = dR.reshape(-1, 2, 15)[:, :, 3:6]                          # OpenCV's own derivative to its translation, in camera axes
    np.testing.assert_allclose(camera.jacobian(points).numpy(), d_by_t @ m[:3, :3], rtol=1e-4, atol=.05)


@pytest.mark.parametrize('camera', rig())
def test_jacobian_is_the_derivative(camera, points):
    near = points[:7]
    auto = torch.autograd.functional.jacobian(lambda x: camera.project(x)[0], near)
    torch.testing.assert_close(camera.jacobian(near), torch.stack([auto[i, :, i] for i in range(7)]))
    h = 1e-6
    steps = torch.eye(3).double()*h
    nudged = torch.stack([(camera.project(points+s)[0]-camera.project(points-s)[0])/(2*h) for s in steps], -1)
    torch.testing.assert_close(camera.jacobian(points), nudged, rtol=1e-6, atol=1e-4)


def test_rays_and_projection_are_inverse():
    for camera in orbit_rig(5, yaw=80, pitch=20, width=37, height=23):
        origin, d = camera.rays()
        uv, depth = camera.project(origin + 1.7*d)
        y, x = torch.meshgrid(torch.arange(23)+.5, torch.arange(37)+.5, indexing='ij')
        assert torch.allclose(uv, torch.stack([x, y], -1), atol=1e-2) and torch.allclose(depth, torch.full_like(depth, 1.7), atol=1e-4)


@pytest.mark.parametrize('s', [.1, .5, 2., 3.3])
def test_a_scaled_camera_sees_the_same_view(s, points):
    camera = frontal_camera(101, 67)
    small = camera.scaled(s)
    size = torch.tensor([small.width/101, small.height/67], dtype=torch.float64)
    torch.testing.assert_close(small.project(points)[0], camera.project(points)[0]*size, rtol=1e-5, atol=1e-4)


def test_opengl_cameras_see_what_blender_sees(points):
    "A point that OpenGL's camera has to its right, above and in front lands right of and above the middle of the picture."
    c2w = np.eye(4); c2w[:3, :3] = cv2.Rodrigues(np.array([.3, -.5, .2]))[0]; c2w[:3, 3] = .4, .1, 2
    K = [[500., 0, 100], [0, 500., 80], [0, 0, 1]]
    camera = Camera.from_opengl(torch.from_numpy(c2w), K, 200, 160)
    in_camera = points.numpy()*[1, 1, .5] + [0, 0, -1]
    uv, depth = camera.project(torch.from_numpy(in_camera @ c2w[:3, :3].T + c2w[:3, 3]))
    x, y, z = in_camera.T
    np.testing.assert_allclose(uv.numpy(), np.stack([100+500*x/-z, 80-500*y/-z], 1), atol=1e-3)
    np.testing.assert_allclose(depth.numpy(), -z, atol=1e-6)
    torch.testing.assert_close(camera.position, torch.tensor([.4, .1, 2.]).double(), atol=1e-6, rtol=0)


I4, I3 = torch.eye(4), torch.eye(3)


def changed(m, **cells):
    m = m.clone()
    for ij, v in cells.items(): m[int(ij[1]), int(ij[2])] = v
    return m


@pytest.mark.parametrize('args, match', [
    ((I4, I4, 5, 5), r'K: shape \(4, 4\); expected \(3, 3\)'), ((changed(I4, _12=torch.nan), I3, 5, 5), 'viewmat: 1 of 16'), ((I4, changed(I3, _00=torch.inf), 5, 5), 'K: 1 of 9'),
    ((I4, changed(I3, _00=0.), 5, 5), 'K: focal lengths 0 and 1 px; expected both above 0'), ((I4, changed(I3, _11=-800.), 5, 5), 'K: focal lengths 1 and -800'),
    ((I4, changed(I3, _01=.1), 5, 5), 'K: .*expected .*fx, 0, cx'), ((I4, changed(I3, _20=3.), 5, 5), 'K: .*expected .*fx, 0, cx'), ((I4, 0*I3, 5, 5), 'focal lengths 0 and 0'),
    ((changed(I4, _00=0.), I3, 5, 5), 'viewmat: its upper left 3x3 is no rotation'), ((changed(I4, _00=2., _11=2., _22=2.), I3, 5, 5), 'no rotation'),
    ((changed(I4, _22=-1.), I3, 5, 5), 'is a mirror'), ((changed(I4, _30=1.), I3, 5, 5), 'last row .*is the matrix transposed'), ((0*I4, I3, 5, 5), 'viewmat: last row'),
    ((I4, I3, 0, 5), '0x5 px'), ((I4, I3, 5, -1), '5x-1 px'), ((I4, I3, 5.5, 5), '5.5x5 px'), ((I4, I3, float('nan'), 5), 'nanx5 px')])
def test_what_is_no_camera_is_refused_in_one_line(args, match):
    with pytest.raises(InputError, match=match) as e: Camera(*args)
    assert '\n' not in str(e.value)


def test_a_rotation_that_went_through_text_is_still_a_camera():
    m = orbit_rig(3)[0].viewmat
    assert Pinhole((m*1e4).round()/1e4, I3).viewmat.shape == (4, 4)


@pytest.mark.parametrize('make, match', [
    (lambda: Camera.look_at((0, 0, 1), focal=0.), 'focal lengths 0'), (lambda: Camera.look_at((0, 0, float('nan'))), 'eye: 1 of 3'), (lambda: Camera.look_at((0, 0, 1), (0, 0, 1)), 'eye apart from target'),
    (lambda: frontal_camera().scaled(0), 's = 0'), (lambda: frontal_camera().scaled(float('nan')), 's = nan'), (lambda: frontal_camera(distance=-1.), 'distance -1'),
    (lambda: nersemble_arc(distance=0.), 'distance 0'), (lambda: phone_camera(zoom=0.), 'zoom 0'), (lambda: sample_camera(9, 9, 0, kind='fone'), 'nearest: phone'),
    (lambda: orbit_rig(0), 'n = 0'), (lambda: Camera.from_opengl(2*I4, I3, 5, 5), 'c2w: last row'), (lambda: Camera.from_opengl(0*I3, I3, 5, 5), r'c2w: shape \(3, 3\)')])
def test_camera_makers_refuse_what_they_cannot_make(make, match):
    with pytest.raises(InputError, match=match): make()


def test_cameras_are_differentiable():
    m = frontal_camera().viewmat.double().requires_grad_()
    uv, _ = Camera(m, frontal_camera().K.double(), 550, 802).project(torch.zeros(1, 3).double())
    uv.sum().backward()
    assert m.grad.abs().max() > 0


def angles(c): x, y, z = (c.position/c.position.norm()).tolist(); return np.degrees([np.arctan2(x, z), np.arcsin(y)])


def test_the_arc_has_the_angles_and_the_field_of_view_of_the_studio():
    arc = nersemble_arc(); yaw, pitch = np.transpose([angles(c) for c in arc])
    assert len(arc) == 16 and (arc[0].width, arc[0].height) == (1100, 1604) and np.ptp(yaw) == pytest.approx(93, abs=1e-3) and np.ptp(pitch) == pytest.approx(32, abs=1e-3)
    assert nersemble_arc(550, 802)[3].K[0, 0] == pytest.approx(2048.66) and all(abs(c.position.norm()-1) < 1e-5 for c in arc)
    near = [np.abs(yaw[i]-yaw[j])+np.abs(pitch[i]-pitch[j]) for i in range(16) for j in range(i)]; assert min(near) > 10          # no two at one place


@pytest.mark.parametrize('make', [lambda w, h: nersemble_arc(w, h), lambda w, h: [sample_camera(w, h, s, kind=k) for s in range(25) for k in CAMERA_KINDS], lambda w, h: [phone_camera(w, h)]])
@pytest.mark.parametrize('size', [(550, 802), (256, 256), (640, 360)])
def test_every_camera_sees_the_face(make, size):
    face = torch.tensor([[0, .07, .09], [0, -.10, .08], [.06, 0, .06], [-.06, 0, .06], [0, 0, .11]])      # forehead, chin, cheeks, nose
    for c in make(*size):
        uv, depth = c.project(face); assert (depth > .1).all()
        assert (uv > 0).all() and (uv < torch.tensor([c.width, c.height])).all()


@pytest.mark.parametrize('kind', list(CAMERA_KINDS))
def test_drawn_cameras_stay_within_the_table_and_follow_their_seed(kind):
    k, drawn = CAMERA_KINDS[kind], [sample_camera(550, 802, s, kind=kind) for s in range(60)]
    for s, c in enumerate(drawn):
        (yaw, pitch), d = angles(c), c.position.norm().item()
        assert k.distance[0] <= d*1.001 and d <= k.distance[1]*1.001 and abs(yaw) <= k.yaw+.01 and abs(pitch) <= k.pitch+.01
        assert k.fill[0] <= c.K[0, 0].item()*HEAD_HEIGHT/(d-.06)/min(802, 1.3*550)*1.001 and torch.equal(c.viewmat, sample_camera(550, 802, s, kind=kind).viewmat)
    assert np.std([c.K[0, 0].item() for c in drawn]) > 100 and np.std([angles(c)[0] for c in drawn]) > 5


def test_kinds_of_cameras_are_drawn_by_their_share():
    assert sum(k.share for k in CAMERA_KINDS.values()) == pytest.approx(1)
    near = np.mean([sample_camera(64, 64, s).position.norm().item() < .4 for s in range(300)])         # only phones come this close
    phone = CAMERA_KINDS['phone']; want = phone.share*np.log(.4/phone.distance[0])/np.log(phone.distance[1]/phone.distance[0])
    assert near == pytest.approx(want, abs=.06)


def test_zoom_changes_the_size_and_not_the_perspective():
    ratio = lambda c: torch.linalg.norm(torch.diff(c.project(torch.tensor([[0, 0, .1], [.01, 0, .1], [0, 0, 0], [.01, 0, 0]]))[0], dim=0)[::2], dim=1)
    (a, b), (c, d) = ratio(phone_camera(pitch=0.)).tolist(), ratio(phone_camera(pitch=0., zoom=2.)).tolist()
    assert c/d == pytest.approx(a/b, rel=1e-3) and c == pytest.approx(2*a, rel=1e-3) and a/b == pytest.approx(.45/.35, rel=1e-3)


def test_a_tilted_phone_tilts_the_picture():
    up = torch.tensor([[0., 0, 0], [0, .1, 0]]); straight, tilted = (c.project(up)[0] for c in (phone_camera(pitch=0.), phone_camera(pitch=0., roll=8.)))
    turn = [np.degrees(np.arctan2(*(uv[1]-uv[0]).tolist())) for uv in (straight, tilted)]
    assert min((turn[1]-turn[0]) % 360, (turn[0]-turn[1]) % 360) == pytest.approx(8, abs=.05)
