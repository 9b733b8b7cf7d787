"""Write README.md from nbs/index.ipynb (no Quarto needed).

    python tools/build_readme.py [--check]

Text comes as it is, code cells as code, their stored outputs below; pictures go to README_files/. The directives
`#| hide` (nothing is shown) and `#| echo: false` (only the output is shown) are nbdev's. Links to other notebooks are
made to work from the top folder.
"""
import base64, json, re, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = "<!-- Written by `make readme` from nbs/index.ipynb; edit that. -->\n"
PICTURES = {'image/png': 'png', 'image/webp': 'webp', 'image/jpeg': 'jpg'}


def relink(
    text: str,       # markdown or HTML written for a reader in nbs/
) -> str:            # the same for a reader in the top folder
    "Make relative links work from the top folder."
    def _new(path): return path[3:] if path.startswith('../') else f'nbs/{path}'
    def _sub(m): return m[0] if re.match(r'[a-z]+:|#|/', m[2]) else f'{m[1]}{_new(m[2])}{m[3]}'
    text = re.sub(r'(\]\()([^)\s]+)(\))', _sub, text)
    return re.sub(r'((?:src|href)=")([^"]+)(")', _sub, text)


def output_md(
    out: dict,       # one stored output
    name: str,       # name for a picture's file, without suffix
    files: dict,     # pictures so far; one is added where the output is a picture
) -> str:            # markdown
    "Show one stored output."
    if out['output_type'] == 'stream': return f"```text\n{''.join(out['text']).rstrip()}\n```"
    data = {k: ''.join(v) if isinstance(v, list) else v for k, v in out.get('data', {}).items()}
    if 'text/markdown' in data: return relink(data['text/markdown'].strip())
    for mime, suffix in PICTURES.items():
        if mime in data:
            files[f'{name}.{suffix}'] = base64.b64decode(data[mime])
            return f"![](README_files/{name}.{suffix})"
    if 'text/html' in data: return relink(data['text/html'].strip())
    return f"```text\n{data.get('text/plain', '').rstrip()}\n```"


def cell_md(
    cell: dict,      # a cell of the notebook
    files: dict,     # pictures so far
) -> list[str]:      # markdown blocks
    "Show one cell."
    src = ''.join(cell['source']).strip()
    if cell['cell_type'] == 'markdown': return [relink(src)]
    flags = {re.sub(r'\s', '', f) for f in re.findall(r'^#\|\s*(.*)$', src, flags=re.M)}
    code = re.sub(r'^#\|.*\n?', '', src, flags=re.M).strip()
    if cell['cell_type'] != 'code' or 'hide' in flags or not code: return []
    outs = [output_md(o, f"{cell['id']}-{i}", files) for i, o in enumerate(cell['outputs'])]
    return outs if 'echo:false' in flags else [f"```python\n{code}\n```", *outs]


def build(
    notebook: Path=ROOT/'nbs/index.ipynb', # where the text is
) -> tuple[str, dict]:                     # README.md, and its pictures: name -> bytes
    "README.md and its pictures, as they should be."
    files = {}
    cells = json.loads(notebook.read_text(encoding='utf-8'))['cells']
    blocks = [b for c in cells for b in cell_md(c, files)]
    return HEAD + '\n' + '\n\n'.join(b for b in blocks if b) + '\n', files


def out_of_step() -> list[str]:  # one line for each file that differs
    "What `make readme` would change."
    text, files = build()
    want = {'README.md': text.encode(), **{f'README_files/{k}': v for k, v in files.items()}}
    res = [f"{n}: run `make readme`" for n, v in want.items() if not (ROOT/n).exists() or (ROOT/n).read_bytes() != v]
    return res + [f"README_files/{p.name}: no longer shown; run `make readme`" for p in ROOT.glob('README_files/*') if p.name not in files]


def write():
    "Write README.md and its pictures; remove pictures that it no longer shows."
    text, files = build()
    (ROOT/'README.md').write_text(text, encoding='utf-8', newline='\n')
    for p in ROOT.glob('README_files/*'):
        if p.name not in files: p.unlink()
    for n, v in files.items():
        (ROOT/'README_files').mkdir(exist_ok=True)
        (ROOT/'README_files'/n).write_bytes(v)


if __name__ == '__main__':
    if '--check' in sys.argv:
        if bad := out_of_step(): sys.exit('\n'.join(bad))
    else:
        write()
        print("readme: README.md written from nbs/index.ipynb")
