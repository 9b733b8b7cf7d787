"""The rules that keep the house liveable. Each test lists every offender at once."""
import ast, builtins, functools, io, json, re, statistics, subprocess, tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(ROOT.glob('nbs/*.ipynb'))
COURSE = [p for p in NOTEBOOKS if re.match(r'\d\d[a-z]?_', p.name)]
MAX_MODULE, MAX_CELL, MEDIAN_CELL, MAX_BYTES, MAX_PROSE = 400, 40, 8, 1_000_000, 165
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def fail_if(bad):
    "Fail with all offenders in one message."
    bad = list(bad)
    if bad: pytest.fail(f"{len(bad)} offender(s):\n  " + '\n  '.join(bad), pytrace=False)


# ---- reading notebooks -------------------------------------------------------------------------------------------

def source(cell): return ''.join(cell['source'])


@functools.cache
def cells(path): return json.loads(path.read_text(encoding='utf-8'))['cells']


def flags(cell):
    "nbdev's directives of a cell, without their arguments."
    return {f.split(':')[0].split()[0] for f in re.findall(r'^#\|\s*(\S.*)$', source(cell), flags=re.M)}


def code_cells(path): return [c for c in cells(path) if c['cell_type'] == 'code']


def exported(path): return [c for c in code_cells(path) if flags(c) & {'export', 'exports', 'exporti'}]


def lesson_cells(path): return [c for c in code_cells(path) if not flags(c) & {'export', 'exports', 'exporti', 'default_exp'}]


@functools.cache
def module_of(path):
    "The module that a notebook exports, or None."
    found = re.findall(r'^#\|\s*default_exp\s+(\S+)', '\n'.join(source(c) for c in code_cells(path)), flags=re.M)
    return found[0] if found else None


MODULES = {m: p for p in COURSE if (m := module_of(p))}
ORDER = sorted(MODULES, key=lambda m: MODULES[m].name.split('_')[0])


def module_path(name): return ROOT/f'srflow_nb/{name}.py'


@functools.cache
def tree(name): return ast.parse(module_path(name).read_text(encoding='utf-8'))


def lines_with_code(src):
    "Numbers of the lines that hold code: not blank, not a comment, not a docstring."
    skip = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines = set()
    for t in tokenize.generate_tokens(io.StringIO(src).readline):
        if t.type not in skip: lines |= set(range(t.start[0], t.end[0] + 1))
    for n in ast.walk(ast.parse(src)):
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) and isinstance(n.value.value, str):
            lines -= set(range(n.lineno, n.end_lineno + 1))
    return lines


def code_lines(src): return len(lines_with_code(src))


def thought_lines(src):
    """As `code_lines`, but a signature counts as one line however many arguments it documents: the house asks for one
    commented line for each argument, so those lines are documentation and not something to keep in mind."""
    heads = [range(n.lineno + 1, n.body[0].lineno) for n in ast.walk(ast.parse(src)) if isinstance(n, FUNCTIONS)]
    return len(lines_with_code(src).difference(*heads))


def test_counting_lines_counts_code_alone():
    assert code_lines('# why\ndef f(\n    x,  # input\n):\n    "Say it."\n\n    return """a\nb"""\n') == 5


def test_a_signature_is_one_thought(): assert thought_lines('def f(\n    x,  # input\n    y,  # input\n):\n    "Say it."\n    return x + y\n') == 2


# ---- one notebook, one module ------------------------------------------------------------------------------------

def test_there_are_notebooks(): assert len(COURSE) > 20 and len(MODULES) == len(COURSE)


def test_each_notebook_exports_the_module_of_its_name():
    fail_if(f"{p.name}: exports {module_of(p)!r}" for p in COURSE if module_of(p) != p.stem.split('_', 1)[1])


def test_no_number_is_given_twice():
    numbers = [p.name.split('_')[0] for p in COURSE]
    fail_if(f"number {n} is given {numbers.count(n)} times" for n in sorted(set(numbers)) if numbers.count(n) > 1)


def test_no_module_without_a_notebook():
    fail_if(f"srflow_nb/{p.name}" for p in (ROOT/'srflow_nb').glob('*.py') if p.stem not in MODULES and p.stem[0] != '_')


# ---- imports run downhill ----------------------------------------------------------------------------------------

def imports(node):
    "Modules of this library that a syntax tree imports, wherever it does."
    res = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Import): res |= {a.name.split('.')[1] for a in n.names if a.name.startswith('srflow_nb.')}
        elif isinstance(n, ast.ImportFrom):
            module = n.module or ''
            if n.level: res |= {module.split('.')[0]} if module else {a.name for a in n.names}
            elif module.startswith('srflow_nb.'): res.add(module.split('.')[1])
            elif module == 'srflow_nb': res |= {a.name for a in n.names}
    return res


@pytest.mark.parametrize('src,want', [
    ('from srflow_nb.core import rng', {'core'}), ('import srflow_nb.viz as v', {'viz'}), ('from .flow import splat_flow', {'flow'}),
    ('from . import head', {'head'}), ('from srflow_nb import splat', {'splat'}), ('def f():\n    from .core import rng', {'core'}), ('import numpy', set())])
def test_every_kind_of_import_is_seen(src, want): assert imports(ast.parse(src)) == want


def test_imports_run_downhill():
    fail_if(f"{MODULES[m].name} imports {n}" + (f" ({MODULES[n].name})" if n in MODULES else ", which no notebook exports")
            for i, m in enumerate(ORDER) for n in sorted(imports(tree(m)) - {'__version__'}) if n not in ORDER[:i])


def reached(m):
    "Every module that `m` imports, directly or through others."
    direct = imports(tree(m)) & set(MODULES) - {m}
    return direct.union(*(reached(n) for n in direct)) if direct else direct


PEOPLE = {'head', 'head_files', 'light', 'eyes', 'appearance', 'hair', 'photo_skin', 'avatar', 'other_avatars', 'motion'}
RENDERER = PEOPLE | {'splat', 'flow', 'gaussians', 'scene', 'dataset'}


@pytest.mark.parametrize('module,never', [
    ('splat', PEOPLE), ('flow', PEOPLE), ('metrics', RENDERER), ('losses', RENDERER), ('model', RENDERER),
    ('estimators', RENDERER), ('me_data', RENDERER), ('me_features', RENDERER), ('me_recognition', RENDERER)])
def test_a_room_does_not_know_what_it_must_not(module, never):
    if module not in MODULES: pytest.fail(f"no notebook exports {module}", pytrace=False)
    fail_if(f"{module} reaches {n}" for n in sorted(reached(module) & never))


# ---- sizes -------------------------------------------------------------------------------------------------------

def test_modules_stay_small():
    sizes = {p.name: sum(code_lines(source(c)) for c in exported(p)) for p in COURSE}
    fail_if(f"{n}: {s} exported code lines, at most {MAX_MODULE}" for n, s in sizes.items() if s > MAX_MODULE)


def test_exported_cells_stay_small():
    fail_if(f"{p.name} #{c['id']}: {code_lines(source(c))} code lines, at most {MAX_CELL}"
            for p in COURSE for c in exported(p) if code_lines(source(c)) > MAX_CELL)


def test_most_exported_cells_are_smaller_still():
    medians = {p.name: statistics.median(thought_lines(source(c)) for c in exported(p)) for p in COURSE if exported(p)}
    fail_if(f"{n}: median exported cell has {m:g} code lines beside its signature, below {MEDIAN_CELL} is asked" for n, m in medians.items() if m >= MEDIAN_CELL)


def test_notebooks_are_small_files():
    fail_if(f"{p.name}: {p.stat().st_size/1e6:.2f} MB" for p in NOTEBOOKS if p.stat().st_size >= MAX_BYTES)


# ---- documentation of every exported name ------------------------------------------------------------------------

def is_dataclass(node): return any('dataclass' in ast.unparse(d) for d in node.decorator_list)


def overload(node): return any('overload' in ast.unparse(d) or '.setter' in ast.unparse(d) for d in node.decorator_list)


def public(nodes): return [n for n in nodes if n.name[0] != '_' and not overload(n)]


def explained(annotation):
    "Whether an annotation is one class of this library: then its own docstring tells."
    name = annotation.id if isinstance(annotation, ast.Name) else getattr(annotation, 'value', None)
    return isinstance(name, str) and name in own_classes()


@functools.cache
def own_classes(): return {n.name for m in ORDER if module_path(m).exists() for n in tree(m).body if isinstance(n, ast.ClassDef) and n.name[0] != '_'}


def comments(src):
    "Line number -> whether code stands before the comment."
    toks = [t for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type == tokenize.COMMENT]
    return {t.start[0]: bool(t.line[:t.start[1]].strip()) for t in toks}


def undocumented(src, node, returns):
    """Arguments of a function, and its return, that have no comment as fastcore's docments wants it: at the end of the
    argument's own line (arguments on one line share it: `width: int, height: int, # px`), or alone on the line above.
    The command line's arguments carry a `help=` instead, theirs or that of an option they share."""
    told, a = comments(src), node.args
    args = [x for x in [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg] if x]
    defaults = dict(zip(reversed([*a.posonlyargs, *a.args]), reversed(a.defaults))) | dict(zip(a.kwonlyargs, a.kw_defaults))
    last = {x.lineno: x for x in args}
    shared = {t.id for n in ast.parse(src).body if isinstance(n, ast.Assign) and 'help=' in ast.unparse(n.value) for t in n.targets if isinstance(t, ast.Name)}
    def documented(x):
        parts = [n for n in [x.annotation, defaults.get(x)] if n is not None]
        helped = explained(x.annotation) or any('help=' in ast.unparse(n) or (isinstance(n, ast.Name) and n.id in shared) for n in parts)
        end = max(x.end_lineno, getattr(defaults.get(x), 'end_lineno', 0))
        one_line_signature = x.lineno == node.lineno and len(args) > 1
        return helped or (not one_line_signature and (x.lineno in told or end in told or told.get(x.lineno - 1) is False))
    body = node.body[0].lineno
    after = [i for i in told if max([node.lineno - 1, *last]) < i < body and (not args or i > max(last) or a.args == [])]
    one_line = not args and node.lineno in told
    gives = any(isinstance(n, (ast.Return, ast.Yield)) and n.value is not None for n in own_nodes(node))
    nothing = (isinstance(node.returns, ast.Constant) and node.returns.value is None) or explained(node.returns)
    miss = [x.arg for x in args if x.arg not in ('self', 'cls') and not documented(x)]
    return miss + ['return'] * (returns and gives and not nothing and not after and not one_line)


def own_nodes(node):
    "Syntax nodes of a function without those of functions inside it."
    for n in ast.iter_child_nodes(node):
        if not isinstance(n, (*FUNCTIONS, ast.Lambda)):
            yield n
            yield from own_nodes(n)


def undocumented_fields(src, node):
    "Fields of a dataclass without a comment on their lines or the line above."
    lines = src.splitlines()
    def told(f): return explained(f.annotation) or any('#' in line for line in lines[f.lineno - 1:f.end_lineno]) or lines[f.lineno - 2].lstrip().startswith('#')
    return [f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and f.target.id[0] != '_' and not told(f)]


def poorly_documented(src, where):
    "One line for each exported name that lacks its docstring or a comment beside an argument."
    for node in public(n for n in ast.parse(src).body if isinstance(n, (*FUNCTIONS, ast.ClassDef))):
        if not ast.get_docstring(node): yield f"{where}.{node.name}: no docstring"
        if isinstance(node, FUNCTIONS):
            if miss := undocumented(src, node, returns=True): yield f"{where}.{node.name}: no docment for {', '.join(miss)}"
            continue
        if is_dataclass(node) and (miss := undocumented_fields(src, node)): yield f"{where}.{node.name}: no comment for {', '.join(miss)}"
        for f in [n for n in node.body if isinstance(n, FUNCTIONS) and not overload(n)]:
            if f.name[0] == '_' and f.name not in ('__init__', '__call__'): continue
            if f.name[0] != '_' and not ast.get_docstring(f): yield f"{where}.{node.name}.{f.name}: no docstring"
            if miss := undocumented(src, f, returns=False): yield f"{where}.{node.name}.{f.name}: no docment for {', '.join(miss)}"


@pytest.mark.parametrize('src,want', [
    ('def f(\n    x,  # input\n) -> int:  # output\n    "Do it."\n    return x', 0), ('def f(x):\n    "Do it."', 1), ('def _f(x): pass', 0),
    ('def f():\n    return 1', 2), ('class C:\n    "Be it."\n    def g(\n        self,\n        x,  # in\n    ):\n        "Go."', 0),
    ('class C:\n    def g(self, x): pass', 3), ('@dataclass\nclass C:\n    "Be it."\n    a: int  # first\n    b: int', 1)])
def test_missing_documentation_is_seen(src, want): assert len(list(poorly_documented(src, 'm'))) == want


def test_every_exported_name_is_documented():
    fail_if(line for m in ORDER for line in poorly_documented(module_path(m).read_text(encoding='utf-8'), m))


# ---- each notebook is a lesson -----------------------------------------------------------------------------------

def output_data(cell):
    "All of a cell's stored outputs as (mime type, text)."
    for o in cell.get('outputs', []):
        if 'text' in o: yield 'text/plain', ''.join(o['text'])
        for k, v in o.get('data', {}).items(): yield k, ''.join(v) if isinstance(v, list) else str(v)


def is_picture(mime, text): return mime.startswith('image/') or (mime in ('text/html', 'text/markdown') and re.search(r'<img|<svg|<canvas|Plotly|!\[', text))


def calls(cell):
    "Names of the functions that a cell calls in statements of their own."
    src = re.sub(r'^\s*[%!].*$', '', source(cell), flags=re.M)
    for n in ast.parse(src).body:
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call): yield ast.unparse(n.value.func).split('.')[-1]


def test_each_lesson_has_a_title_and_a_sentence():
    fail_if(f"{p.name}: begins with {source(cells(p)[0])[:50]!r}, expected '# Title' and '> sentence'" for p in NOTEBOOKS
            if not re.match(r'# \S.*\n\n> \S', source(cells(p)[0])))


def test_each_lesson_shows_a_picture():
    fail_if(p.name for p in COURSE if not any(is_picture(*d) for c in code_cells(p) for d in output_data(c)))


def test_each_lesson_has_two_exercises_with_folded_answers():
    text = {p: '\n'.join(source(c) for c in cells(p) if c['cell_type'] == 'markdown') for p in COURSE}
    fail_if(f"{p.name}: {t.count('<details>')} folded answers" for p, t in text.items() if t.count('<details>') < 2 or t.count('<details>') != t.count('</details>'))


def test_each_lesson_checks_itself():
    fail_if(p.name for p in COURSE if not any(re.search(r'\btest_\w+\(|^\s*assert ', source(c), flags=re.M) for c in lesson_cells(p)))


def test_each_lesson_opens_the_next_door():
    nxt = {p: COURSE[i + 1] for i, p in enumerate(COURSE[:-1])}
    fail_if(f"{p.name}: its last cell links to no notebook" for p in nxt if '.ipynb)' not in source(cells(p)[-1]))


def test_what_is_shown_is_stored():
    loud = {'print', 'show', 'display', 'show_flow', 'show_images', 'scrubber'}
    fail_if(f"{p.name} #{c['id']}: shows nothing; run the notebook" for p in NOTEBOOKS for c in lesson_cells(p)
            if loud & set(calls(c)) and not c['outputs'])


def test_no_stored_error():
    fail_if(f"{p.name} #{c['id']}" for p in NOTEBOOKS for c in code_cells(p) if any(o['output_type'] == 'error' for o in c['outputs']))


def test_stored_outputs_are_the_same_on_every_machine():
    "No path of one person's machine, no warning from somewhere inside it."
    personal = re.compile(r'/(?:root|home|Users|work|opt)/[\w.]|site-packages|Warning:')
    for_reader = [(p, c, re.sub(r'data:[^"\')]*', '', t)) for p in NOTEBOOKS for c in code_cells(p) for k, t in output_data(c) if k.startswith('text/')]
    fail_if(f"{p.name} #{c['id']}: {m[0]!r} in ...{t[max(0, m.start()-40):m.end()+40]!r}" for p, c, t in for_reader if (m := personal.search(t)))


def test_pages_load_nothing_from_the_network():
    remote = re.compile(r'<(?:script|img|link|iframe)[^>]+(?:src|href)=["\']https?://[^"\']*')
    fail_if(f"{p.name} #{c['id']}: {m[0][:90]}" for p in NOTEBOOKS for c in cells(p) for t in [source(c), *(t for k, t in output_data(c) if k == 'text/html')]
            if (m := remote.search(t)))


def names(node):
    "Names that a syntax tree binds, and names that it uses."
    bound, used = set(), set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name): (used if isinstance(n.ctx, ast.Load) else bound).add(n.id)
        elif isinstance(n, (ast.Import, ast.ImportFrom)): bound |= {(a.asname or a.name).split('.')[0] for a in n.names}
        elif isinstance(n, (*FUNCTIONS, ast.ClassDef)): bound.add(n.name)
        elif isinstance(n, ast.arg): bound.add(n.arg)
        elif isinstance(n, ast.ExceptHandler) and n.name: bound.add(n.name)
    return bound, used


def docs_cannot_run(path):
    "Cells with an import that use what another lesson cell made: the documentation runs exports and imports alone."
    known = set(dir(builtins)) | {'display', 'get_ipython', '__file__'}
    for c in code_cells(path):
        if 'default_exp' in flags(c) or re.search(r'^#\|\s*eval:\s*false', source(c), flags=re.M): continue
        tree = ast.parse(re.sub(r'^\s*[%!].*$', '', source(c), flags=re.M))
        if c not in exported(path) and not any(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.walk(tree)): continue
        bound, used = names(tree)
        if c not in exported(path) and (miss := used - bound - known): yield f"{path.name} #{c['id']}: imports, and uses {', '.join(sorted(miss))}"
        known |= bound


def test_the_documentation_can_run_what_imports():
    fail_if(line for p in NOTEBOOKS for line in docs_cannot_run(p))


def test_prose_fits_the_page():
    fail_if(f"{p.name} #{c['id']}: {len(line)} characters: {line[:60]}..." for p in NOTEBOOKS for c in cells(p) if c['cell_type'] == 'markdown'
            for line in source(c).splitlines() if len(line) > MAX_PROSE and not re.search(r'https?://|^\s*(?:[|!<]|\$\$)', line))


def test_links_between_notebooks_lead_somewhere():
    fail_if(f"{p.name}: {link}" for p in NOTEBOOKS for c in cells(p) if c['cell_type'] == 'markdown'
            for link in re.findall(r'\]\(([^)\s#:]+)[^)]*\)', source(c)) if re.search(r'\.\w+$', link) and not (p.parent/link).exists())


def test_notebooks_are_clean():
    "No execution counts and no metadata that changes at every run (what nbdev-clean removes)."
    from nbdev.clean import clean_nb
    def cleaned(p):
        nb = json.loads(p.read_text(encoding='utf-8'))
        clean_nb(nb)
        return nb
    fail_if(f"{p.name}: run `make export`" for p in NOTEBOOKS if cleaned(p) != json.loads(p.read_text(encoding='utf-8')))


# ---- what must not be anywhere -----------------------------------------------------------------------------------

PYTHON = sorted(p for d in ['srflow_nb', 'tools', 'benchmarks', 'tests'] for p in (ROOT/d).glob('*.py'))


@functools.cache
def project_files():
    "Every text file that belongs to the project."
    try: out = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard'], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError): pytest.skip("not a git checkout")
    binary = {'.npz', '.safetensors', '.png', '.webp', '.jpg', '.flo', '.flo5', '.xlsx', '.ply', '.pfm', '.h5'}
    return [p for n in out.splitlines() if (p := ROOT/n).is_file() and not p.is_symlink() and p.suffix not in binary]


def unsafe(node):
    "Calls and imports that can run what a file contains."
    for n in ast.walk(node):
        if isinstance(n, (ast.Import, ast.ImportFrom)):
            names = [n.module or ''] if isinstance(n, ast.ImportFrom) else [a.name for a in n.names]
            yield from (f"line {n.lineno}: imports {x}" for x in names if x.split('.')[0] in ('pickle', 'cPickle', 'dill', 'cloudpickle', 'shelve'))
        elif isinstance(n, ast.Call):
            name, kw = ast.unparse(n.func), {k.arg: ast.unparse(k.value) for k in n.keywords}
            if name == 'torch.load' and kw.get('weights_only') != 'True': yield f"line {n.lineno}: torch.load without weights_only=True"
            if kw.get('allow_pickle') == 'True': yield f"line {n.lineno}: allow_pickle=True"
            if name in ('joblib.load', 'joblib.dump', 'eval', 'exec', 'os.system'): yield f"line {n.lineno}: {name}"


@pytest.mark.parametrize('src', ['import pickle', 'from pickle import load', 'torch.load(f)', 'torch.load(f, weights_only=False)', 'np.load(f, allow_pickle=True)'])
def test_unsafe_reading_is_seen(src): assert list(unsafe(ast.parse(src)))


def test_no_file_can_run_code_when_it_is_read():
    fail_if(f"{p.relative_to(ROOT)} {line}" for p in PYTHON for line in unsafe(ast.parse(p.read_text(encoding='utf-8'))))


def test_randomness_comes_from_core():
    "The same seed gives the same bytes only if nobody opens a stream of their own."
    own = re.compile(r'np\.random\.(?!Generator|SeedSequence)\w+\(|(?<!\w)random\.(?:seed|random|choice|randint|shuffle)\(|torch\.manual_seed\(')
    fail_if(f"srflow_nb/{m}.py line {i}: {line.strip()[:80]}" for m in ORDER if m != 'core'
            for i, line in enumerate(module_path(m).read_text(encoding='utf-8').splitlines(), 1) if own.search(line))


def test_no_registry_host_is_named():
    "Where packages come from is the business of whoever installs them."
    hosts = ['.'.join(h) for h in [('pypi', 'org'), ('pythonhosted', 'org'), ('npmjs', 'org'), ('npmjs', 'com'), ('debian', 'org'), ('pytorch', 'org/whl')]]
    fail_if(f"{p.relative_to(ROOT)}: {h}" for p in project_files() for h in hosts if h in p.read_text(encoding='utf-8', errors='ignore'))


def test_no_unfinished_work_is_left():
    words = re.compile(r'\b(?:TO' + r'DO|FIX' + r'ME|X' + r'XX|NotImplemented' + r'Error)\b')
    texts = [p for p in project_files() if p.suffix in ('.py', '.md', '.yml', '.toml', '.ini')]
    fail_if(f"{p.relative_to(ROOT)}: {m[0]}" for p in texts if (m := words.search(p.read_text(encoding='utf-8'))))


# ---- documentation's configuration -------------------------------------------------------------------------------

def test_quarto_configuration_is_one_file_seen_from_both_places():
    link = ROOT/'nbs/_quarto.yml'
    assert link.is_symlink() and link.resolve() == ROOT/'_quarto.yml'


def test_sidebar_lists_every_notebook():
    import yaml
    bar = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['website']['sidebar']['contents']
    listed, have = [n for s in bar for n in s['contents']], [p.name for p in NOTEBOOKS]
    fail_if([f"{n}: not in the sidebar" for n in have if n not in listed] + [f"{n}: in the sidebar, not in nbs/" for n in listed if n not in have])


def test_pages_need_no_network():
    import yaml
    html = yaml.safe_load((ROOT/'_quarto.yml').read_text(encoding='utf-8'))['format']['html']
    scss = (ROOT/'nbs/custom.scss').read_text(encoding='utf-8')
    assert html['html-math-method'] == 'mathml' and '$web-font-path: false' in scss and '@import' not in scss
    assert 'http' not in (ROOT/'nbs/styles.css').read_text(encoding='utf-8')
