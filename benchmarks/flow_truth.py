"""How true is the flow of splats? Every definition on an ellipsoid with analytic flow and on a head with exact mesh flow.

python benchmarks/flow_truth.py                         writes benchmarks/results/flow_truth.json
python benchmarks/flow_truth.py --quick --json FILE     a reduced form, under a minute

`interior`: pixels that the surface covers, more than 10 px from its silhouette, alpha above .99, and still visible in frame 2.
`smooth`: of those, pixels more than 2 px from a step of the true flow (over half a pixel from one pixel to the next).
`covered`: every pixel that the surface covers and a splat touches, occluded or not.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')     # threads that wait do not spin; must be set before torch is imported

import math

import numpy as np
import torch
from _common import arguments, bar, write
from trimesh.ray.ray_triangle import ray_triangle_id

from srflow_nb.avatar import Avatar
from srflow_nb.camera import frontal_camera
from srflow_nb.core import rng
from srflow_nb.flow import FLOW_MODES, flow_both, splat_flow
from srflow_nb.gaussians import Gaussians, rotmat_to_quat
from srflow_nb.head import rotation_matrix
from srflow_nb.mesh_flow import mesh_flow, pixel_centres
from srflow_nb.motion import VISEMES
from srflow_nb.visibility import depth_occlusion, forward_backward_occlusion

AXES = torch.tensor([.08, .11, .09])                    # half axes of the ellipsoid, the size of a head [m]
SMILE, BROWS = ('mouthSmileLeft', 'mouthSmileRight'), ('browInnerUp', 'browOuterUpLeft', 'browOuterUpRight')
BLINK, JAW = ('eyeBlinkLeft', 'eyeBlinkRight'), ('jawOpen',)


def same(units, weight): return {u: weight for u in units}


SCENES = {                                              # expression before and after, turn of the head [degrees: nod, shake, tilt]
    'slight smile': ({}, same(SMILE, .15), (0, 2, 0)), 'smile': ({}, same(SMILE, .7), (0, 2, 0)),
    'jaw open': ({}, same(JAW, .35), (0, 1, 0)), 'brow raise': ({}, same(BROWS, .9), (0, -3, 0)),
    'blink': ({}, same(BLINK, .8), (1, 1, 0)), 'speech': (VISEMES[0], VISEMES[2], (1, -1, 0)),
    'turn 1': ({}, {}, (0, 1, 0)), 'turn 3': ({}, {}, (0, 3, 0)), 'turn 5': ({}, {}, (1, 5, 1))}
HARD = {'jaw open wide': ({}, same(JAW, .7), (0, 1, 0)), 'jaw closes': (same(JAW, .6), {}, (0, 1, 0)), 'eyes shut': ({}, same(BLINK, 1.), (0, 0, 0))}


def inside(mask, px):
    "Pixels of the mask with nothing else within `px` of them (a square)."
    return torch.nn.functional.max_pool2d((~mask)[None].float(), 2*px+1, 1, px)[0] == 0


def steps(flow, size=.5):
    "Pixels at which the true flow jumps to a neighbour."
    flow, res = flow.nan_to_num(1e3), torch.zeros(flow.shape[1:], dtype=torch.bool)
    across, down = ((flow[:, :, 1:]-flow[:, :, :-1]).norm(dim=0) > size, (flow[:, 1:]-flow[:, :-1]).norm(dim=0) > size)
    res[:, 1:] |= across; res[:, :-1] |= across; res[1:] |= down; res[:-1] |= down
    return res


def regions(true, visible, alpha):
    "The three sets of pixels that are reported."
    on = true.isfinite().all(0)
    interior = inside(on, 10) & visible & (alpha > .99)
    return dict(interior=interior, smooth=interior & inside(~steps(true), 2), covered=on & (alpha > 0)), on


def scores(found, true, visible):
    "Mean and 99th percentile of the error in each set, and each set's share of the covered pixels."
    sets, on = regions(true, visible, found.alpha)
    error, res = (found.flow-true).norm(dim=0), dict(mean_flow=round(true[:, sets['interior']].norm(dim=0).mean().item(), 3))
    for name, m in sets.items():
        res |= {f'{name}_share': round((m.sum()/on.sum()).item(), 4), f'{name}_mean': round(error[m].mean().item(), 4),
                f'{name}_p99': round(np.quantile(error[m].numpy(), .99).item(), 4)}
    return res


def rotation(degrees): return rotation_matrix(torch.tensor(degrees).deg2rad())


def ellipsoid(n, R):
    "Flat splats on an ellipsoid, turned by R."
    i = torch.arange(n)+.5
    z, a = 1-2*i/n, math.pi*(1+5**.5)*i
    p = torch.stack([(1-z*z).sqrt()*a.cos(), (1-z*z).sqrt()*a.sin(), z], 1)*AXES
    normal = torch.nn.functional.normalize(p/AXES**2, dim=1)
    t1 = torch.nn.functional.normalize(torch.linalg.cross(normal, torch.tensor([[.3, .5, .8]]).expand(n, 3)), dim=1)
    frames = R @ torch.stack([t1, torch.linalg.cross(normal, t1), normal], 2)
    size, r = .8*(4*math.pi*.0933**2/n)**.5, rng(0, 'ellipsoid')
    return Gaussians(p @ R.T, rotmat_to_quat(frames), torch.tensor([size, size, .3*size]).expand(n, 3),
                     torch.from_numpy(r.uniform(.3, 1, n).astype('f4')), torch.from_numpy(r.uniform(0, 1, (n, 3)).astype('f4')), frames)


def ellipsoid_flow(R, camera):
    "Its analytic flow (NaN beside it) and what of it stays visible, in float64: ray, turned point, projection."
    (origin, d), R = (v.double() for v in camera.rays()), R.double()
    o, d = origin/AXES, d/AXES
    a, b, c = d.square().sum(-1), (d*o).sum(-1), o.square().sum()-1
    disc = b*b-a*c
    point = (o+d*((-b-disc.clamp_min(0).sqrt())/a)[..., None])*AXES
    uv, _ = camera.project(point @ R.T)
    visible = (disc > 0) & (((point/AXES**2) @ R.T*(camera.position-point @ R.T)).sum(-1) > 0)
    return torch.where(disc > 0, uv.permute(2, 0, 1)-pixel_centres(camera.width, camera.height, uv), torch.nan).float(), visible


class EveryTriangle:
    "Stands in for trimesh's spatial tree, which needs a further package: every triangle is a candidate for every ray."
    def __init__(self, triangles): self.n, self.bounds = len(triangles), np.r_[triangles.min((0, 1)), triangles.max((0, 1))]
    def intersection(self, bounds): return range(self.n)


def first_hit(triangles, origin, directions):
    "trimesh's rays in float64: distance to the first triangle, as a multiple of each direction (inf: none), where, and which."
    t, where, face = np.full(len(directions), np.inf), np.full((len(directions), 3), np.nan), np.full(len(directions), -1)
    for part in np.array_split(np.arange(len(directions)), max(1, len(directions)*len(triangles)//2_000_000)):
        tri, ray, place = ray_triangle_id(triangles, np.repeat(origin[None], len(part), 0), directions[part], tree=EveryTriangle(triangles), multiple_hits=True)
        ray = part[ray]
        far = ((place-origin)*directions[ray]).sum(1)/(directions[ray]**2).sum(1)
        for i in np.argsort(-far): t[ray[i]], where[ray[i]], face[ray[i]] = far[i], place[i], tri[i]
    return t, where, face


def f1(found, true, where):
    "Harmonic mean of precision and recall of `found`, among the pixels `where`."
    found, true = found & where, true & where
    return 2*(found & true).sum().item()/max(1, (found.sum()+true.sum()).item())


def f1_within(found, true, where, px):
    "The same, when a pixel counts as right if the other mask has one within `px`."
    near = lambda m: torch.nn.functional.max_pool2d(m[None].float(), 2*px+1, 1, px)[0] > 0
    found, true = found & where, true & where
    precision, recall = ((a & near(b)).sum().item()/max(1, a.sum().item()) for a, b in ((found, true), (true, found)))
    return 2*precision*recall/max(1e-9, precision+recall)


def ray_cast_occlusion(v0, v1, faces, camera):
    "Which pixels' skin is hidden in frame 2, and which see the mesh at all; by trimesh alone."
    from trimesh.triangles import points_to_barycentric
    (origin, d), (tri0, tri1) = (v.double().numpy() for v in camera.rays()), (v[faces].double().numpy() for v in (v0, v1))
    t, place, face = first_hit(tri0, origin, d.reshape(-1, 3))
    on = np.isfinite(t)
    moved = (tri1[face[on]]*points_to_barycentric(tri0[face[on]], place[on])[:, :, None]).sum(1)
    hidden = np.zeros(len(t), bool)
    hidden[on] = first_hit(tri1, origin, moved-origin)[0] < 1-1e-6
    shape = camera.height, camera.width
    return torch.from_numpy(hidden.reshape(shape)), torch.from_numpy(on.reshape(shape))


def flow_rows(name, g0, g1, camera, true, visible, modes):
    "One row for each definition of flow."
    with torch.no_grad(): return [dict(scene=name, mode=m, gaussians=len(g0), **scores(splat_flow(g0, g1, camera, mode=m), true, visible)) for m in modes]


def on_ellipsoid(quick):
    "Three degrees, all modes, with and without known normals."
    camera, R = frontal_camera(fill=1.04), rotation((.9, 2.8, .6))       # 3 degrees in all
    true, visible = ellipsoid_flow(R, camera)
    rows = []
    for n in (20_000,) if quick else (20_000, 100_000):
        g0, g1 = ellipsoid(n, torch.eye(3)), ellipsoid(n, R)
        rows += flow_rows('ellipsoid 3 degrees', g0, g1, camera, true, visible, FLOW_MODES)
        rows += flow_rows('ellipsoid 3 degrees, no normals', g0.replace(frames=None), g1.replace(frames=None), camera, true, visible, ['front_affine'])
    return rows


def on_heads(scenes, people, counts, modes):
    "Every scene, person, number of splats and mode."
    camera, rows = frontal_camera(), []
    for seed in people:
        for n in counts:
            avatar = Avatar.create(identity=seed, appearance=seed, n=n, hair=False)      # the mesh, its judge, has none
            for name, (before, after, turn) in scenes.items():
                pose = torch.cat([torch.tensor(turn).deg2rad(), torch.zeros(3)])
                exact = mesh_flow(avatar.vertices(before), avatar.vertices(after, pose), avatar.solid_faces, camera)
                found = flow_rows(name, avatar.pose(before), avatar.pose(after, pose), camera, exact.flow, ~exact.occluded, modes)
                rows += [r | dict(person=seed) for r in found]
                print(f"person {seed}, {n} splats, {name}: "+', '.join(f"{r['mode']} {r['interior_mean']:.3f}" for r in found), flush=True)
    return rows


def on_occlusion(quick):
    "Which pixels cannot be followed: the mesh against independent rays, splats against the mesh."
    avatar, rows = Avatar.create(identity=3, appearance=3, n=50_000, hair=False), []
    small, camera = frontal_camera(28, 40) if quick else frontal_camera(41, 60), frontal_camera()
    for degrees in (15,) if quick else (5, 15, 30):
        pose = torch.cat([torch.tensor((0., degrees, 0.)).deg2rad(), torch.zeros(3)])
        v0, v1 = avatar.vertices(), avatar.vertices(None, pose)
        hidden, on = ray_cast_occlusion(v0, v1, avatar.solid_faces.numpy(), small)
        rows.append(dict(scene=f'occlusion, turn {degrees}', method='mesh', against='trimesh', f1=f1(mesh_flow(v0, v1, avatar.solid_faces, small).occluded, hidden, on), hidden=int(hidden.sum())))
        exact, g0, g1 = mesh_flow(v0, v1, avatar.solid_faces, camera), avatar.pose(), avatar.pose(None, pose)
        on, there, back = exact.face >= 0, *flow_both(g0, g1, camera)
        for method, found in {'depth': depth_occlusion(g0, g1, camera), 'forward-backward': forward_backward_occlusion(there.flow, back.flow)}.items():
            rows.append(dict(scene=f'occlusion, turn {degrees}', method=method, against='mesh', f1=f1(found, exact.occluded, on),
                             f1_within_3px=f1_within(found, exact.occluded, on, 3), hidden=int((exact.occluded & on).sum())))
    return rows


def exact_cases():
    "What must be exact: nothing moves; a wall slides."
    x, y = torch.meshgrid(torch.linspace(-.1, .1, 60), torch.linspace(-.1, .1, 60), indexing='ij')
    wall = Gaussians(torch.stack([x, y, 0*x], -1).reshape(-1, 3), torch.tensor([[1., 0, 0, 0]]).expand(3600, 4), torch.full((3600, 3), .003),
                     torch.full((3600,), .9), torch.full((3600, 3), .5), torch.eye(3).expand(3600, 3, 3))
    camera, g, rows = frontal_camera(275, 401), Avatar.create(n=5000).pose(), []
    for mode in FLOW_MODES:
        slid = splat_flow(wall, wall.replace(means=wall.means+torch.tensor([.002, -.001, 0])), camera, mode=mode)
        flow = slid.flow[:, slid.alpha > .1]
        still = max(splat_flow(s, s, camera, mode=mode).flow.abs().max().item() for s in (g, wall, g.replace(frames=None)))
        rows.append(dict(scene='nothing moves; a wall slides', mode=mode, still_max=still, wall_spread=(flow.amax(1)-flow.amin(1)).max().item()))
    return rows


def bars_of(rows):
    "The bars of the flow section, each from the rows."
    at = lambda **want: [r for r in rows if all(r.get(k) == v for k, v in want.items())]
    ball, = at(scene='ellipsoid 3 degrees', mode='front_affine', gaussians=20_000)
    ours = [r for r in at(mode='front_affine', gaussians=50_000) if r['scene'] in SCENES]
    hard = [r for r in at(mode='front_affine', gaussians=50_000) if r['scene'] in HARD]
    exact, worst = [r for r in rows if 'still_max' in r], lambda rs, k: max(r[k] for r in rs)
    least = lambda method: min(r['f1'] for r in at(method=method))
    bars = dict(ellipsoid_interior_mean_px=bar(ball['interior_mean'], .03, at_most=True), ellipsoid_interior_p99_px=bar(ball['interior_p99'], .10, at_most=True),
                head_interior_mean_px_worst_scene=bar(worst(ours, 'interior_mean'), .05, at_most=True))
    return bars | dict(head_interior_mean_px_worst_hard_scene=bar(worst(hard, 'interior_mean'), .05, at_most=True), occlusion_f1_of_mesh=bar(least('mesh'), .95),
                       occlusion_f1_of_depth=bar(least('depth'), .95), still_max_px=bar(worst(exact, 'still_max'), 0., at_most=True), wall_spread_px=bar(worst([r for r in exact if r['mode'] == 'front_affine'], 'wall_spread'), 1e-3, at_most=True))


def main():
    "Measure, print, write."
    args = arguments(__doc__.splitlines()[0])
    rows = on_ellipsoid(args.quick)
    few = {k: v for k, v in (SCENES | HARD).items() if k in ('smile', 'blink', 'speech', 'turn 5', 'jaw closes')}
    if args.quick: rows += on_heads(few, (3,), (50_000,), ['front_affine'])
    else: rows += on_heads(SCENES | HARD, (3, 8), (20_000, 50_000), FLOW_MODES)
    rows += on_occlusion(args.quick)+exact_cases()
    write('flow_truth', args, rows, bars_of(rows), scenes={k: str(v) for k, v in (SCENES | HARD).items()})


if __name__ == '__main__': main()
