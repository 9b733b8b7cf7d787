"""Draw the strip of pictures on the front page: people, a movement, its true flow, and the error of two definitions.

    python tools/build_strip.py
"""
from pathlib import Path

import cv2
import numpy as np
import torch

from srflow_nb.avatar import Avatar
from srflow_nb.camera import frontal_camera
from srflow_nb.core import atomic_write
from srflow_nb.flow import splat_flow
from srflow_nb.mesh_flow import mesh_flow
from srflow_nb.splat import render
from srflow_nb.viz import add_wheel, contact_sheet, error_map, error_vmax, flow_radius, flow_to_rgb, to_uint8

OUT = Path(__file__).resolve().parent.parent/'nbs/images/strip.webp'
SMILE = dict(mouthSmileLeft=.7, mouthSmileRight=.7, cheekSquintLeft=.5, cheekSquintRight=.5, jawOpen=.12)
TURN = np.radians([0, 4, 0, 0, 0, 0]).astype(np.float32)


def label(image, text):  # (H,W,3) bytes, caption -> the picture with its caption under it
    "Write a caption under a picture."
    out = np.concatenate([image, np.full((26, image.shape[1], 3), 255, np.uint8)])
    cv2.putText(out, text, (6, out.shape[0] - 8), cv2.FONT_HERSHEY_SIMPLEX, .5, (60, 60, 60), 1, cv2.LINE_AA)
    return out


def panels() -> list[np.ndarray]:  # seven pictures of one size
    "The pictures of the strip."
    camera, grey = frontal_camera(240, 300, fill=.85), torch.full((3,), .9)
    people = [Avatar.create(identity=s, appearance=s, n=60_000) for s in (3, 11, 26)]
    faces = [label(to_uint8(render(p.pose(), camera, background=grey)[0]), 'from a seed') for p in people]
    who = people[0]
    g0, g1 = who.pose(), who.pose(SMILE, TURN)
    moved = label(to_uint8(render(g1, camera, background=grey)[0]), 'smiles and turns')
    exact = mesh_flow(who.vertices(), who.vertices(SMILE, TURN), who.faces, camera).flow
    ours, centre = (splat_flow(g0, g1, camera, mode=m) for m in ('front_affine', 'centre'))
    inside = exact.isfinite().all(0) & (ours.alpha > .99)
    flow, radius = torch.where(ours.alpha > .5, ours.flow, 0.), flow_radius(exact)
    errors = [torch.where(inside, (f.flow - exact).norm(dim=0), torch.nan) for f in (centre, ours)]
    top = error_vmax(errors[0])
    maps = [label(error_map(torch.nan_to_num(e), top), f'{n}: {e.nanmean():.2f} px') for n, e in zip(('error, centres', 'error, ours'), errors)]
    return faces + [moved, label(add_wheel(flow_to_rgb(flow, radius), radius), 'its true flow'), *maps]


if __name__ == '__main__':
    sheet = contact_sheet(panels(), 7)
    ok, data = cv2.imencode('.webp', sheet[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 88])
    with atomic_write(OUT) as f: f.write(data.tobytes())
    print(f'{OUT}: {sheet.shape[1]}x{sheet.shape[0]}, {len(data)/1024:.0f} KB')
