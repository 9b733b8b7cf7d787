"""CASME II, SAMM and SMIC folders of the real form, with their known faults, are read or refused in clear words."""
import openpyxl
import pytest

from srflow_nb.core import InputError
from srflow_nb.me_data import (CLASSES, PUBLISHED_COUNTS, PUBLISHED_SUBJECTS, Clip, count_table, keep_published, list_frames,
                               load_casme2, load_composite, load_samm, load_smic, locate, megc2019_composite)

CASME2_HEAD = ['Subject', 'Filename', None, 'OnsetFrame', 'ApexFrame', 'OffsetFrame', None, 'Action Units', 'Estimated Emotion']
SAMM_HEAD = ['Subject', 'Filename', 'Inducement Code', 'Onset Frame', 'Apex Frame', 'Offset Frame', 'Duration', 'Micro',
             'Action Units', 'Estimated Emotion', 'Objective Classes', 'Notes']

def touch(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for n in names: (folder/n).touch()

def sheet(path, rows):
    book = openpyxl.Workbook()
    for r in rows: book.active.append(r)
    path.parent.mkdir(parents=True, exist_ok=True); book.save(path)

def casme2(root, rows, layout='Cropped', prefix='reg_img', last=90):
    sheet(root/'CASME2-coding-20140508.xlsx', [CASME2_HEAD, *rows])
    for r in rows: touch(root/layout/f'sub{int(r[0]):02d}'/r[1], [f'{prefix}{n}.jpg' for n in range(40, last + 1)])
    return root

@pytest.mark.parametrize('layout,prefix', [('Cropped', 'reg_img'), ('CASME2_RAW_selected', 'img')])
def test_both_casme2_layouts_give_the_same_clip(tmp_path, layout, prefix):
    (c,) = load_casme2(casme2(tmp_path, [[1, 'EP02_01f', None, 46, 59, 86, None, '4+7', 'disgust']], layout, prefix))
    assert (c.dataset, c.subject, c.name, c.label, c.aus) == ('casme2', 'casme2/sub01', 'EP02_01f', 'negative', '4+7')
    assert [c.frames[i].name for i in (c.onset, c.apex, c.offset)] == [f'{prefix}{n}.jpg' for n in (46, 59, 86)]

def test_cropped_frames_win_and_raw_can_be_asked_for(tmp_path):
    row = [[1, 'EP02_01f', None, 46, 59, 86, None, '4', 'disgust']]
    casme2(tmp_path, row); casme2(tmp_path, row, 'CASME2_RAW_selected', 'img')
    assert load_casme2(tmp_path)[0].frames[0].name == 'reg_img40.jpg'
    assert load_casme2(tmp_path, frames='CASME2_RAW_selected')[0].frames[0].name == 'img40.jpg'

def test_rows_without_apex_and_bad_offsets_are_read_as_such(tmp_path):
    rows = [[1, 'a', None, 46, '/', 86, None, '4', 'repression'], [1, 'b', None, 46, 70, 50, None, '4', 'surprise'],
            ['02', 'c', None, '46', '59', None, None, '4', 'happiness'], [3, 'd', None, 46, 200, 86, None, '4', 'others']]
    a, b, c, d = load_casme2(casme2(tmp_path, rows))
    assert a.apex is None and a.apex_or_middle == (a.onset + a.offset)//2
    assert b.frames[b.offset].name == 'reg_img90.jpg' and b.frames[b.apex].name == 'reg_img70.jpg'
    assert c.subject == 'casme2/sub02' and c.frames[c.offset].name == 'reg_img90.jpg'
    assert d.label is None and d.apex is None

@pytest.mark.parametrize('row,words', [
    ([1, 'x', None, 'none', 59, 86, None, '4', 'disgust'], ['CASME2-coding-20140508.xlsx row 2', 'onset', "'none'", '40..90']),
    ([1, 'x', None, 300, 310, 320, None, '4', 'disgust'], ['row 2', 'onset', '300'])])
def test_an_unusable_onset_names_sheet_row_and_field(tmp_path, row, words):
    casme2(tmp_path, [row])
    with pytest.raises(InputError) as e: load_casme2(tmp_path)
    assert all(w in str(e.value) for w in words)

def test_a_subject_without_number_names_the_row(tmp_path):
    casme2(tmp_path, [[1, 'x', None, 46, 59, 86, None, '4', 'disgust']])
    sheet(tmp_path/'CASME2-coding-20140508.xlsx', [CASME2_HEAD, ['who', 'x', None, 46, 59, 86, None, '4', 'disgust']])
    with pytest.raises(InputError, match='row 2, subject'): load_casme2(tmp_path)

def test_missing_parts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such folder'): load_casme2(tmp_path/'nowhere')
    with pytest.raises(FileNotFoundError, match="CASME II's sheet not found"): load_casme2(tmp_path)
    sheet(tmp_path/'CASME2-coding-20140508.xlsx', [CASME2_HEAD, [1, 'x', None, 46, 59, 86, None, '4', 'disgust']])
    with pytest.raises(FileNotFoundError, match="CASME II's frames"): load_casme2(tmp_path)
    (tmp_path/'Cropped').mkdir()
    with pytest.raises(FileNotFoundError, match='sub01/x'): load_casme2(tmp_path)
    touch(tmp_path/'Cropped/sub01/x', ['notes.txt'])
    with pytest.raises(InputError, match='no numbered frame'): load_casme2(tmp_path)

def test_a_sheet_that_is_no_sheet_is_named(tmp_path):
    (tmp_path/'Cropped').mkdir(); (tmp_path/'CASME2-coding-20140508.xlsx').write_bytes(b'hello')
    with pytest.raises(InputError, match='CASME2-coding-20140508.xlsx: not a readable'): load_casme2(tmp_path)
    sheet(tmp_path/'CASME2-coding-20140508.xlsx', [[1, 'x', 2]])
    with pytest.raises(InputError, match='3 columns; expected at least 9'): load_casme2(tmp_path)

def test_two_layouts_mixed_in_one_folder_are_refused(tmp_path):
    touch(tmp_path/'c', ['img46.jpg', 'reg_img46.jpg'])
    with pytest.raises(InputError, match='2 images but 1 different'): list_frames(tmp_path/'c')

def test_samm_header_on_row_14_and_four_or_five_digits(tmp_path):
    rows = [['006', '006_1_2', 1, 5562, 5573, 5588, 27, '1/2', '4 or 7', 'Anger', 3, None],
            [7, '007_3_1', 3, 998, '', 1009, 12, '1/2', '25', 'Surprise', 7, 'x'], [7, '007_3_2', 3, 5, 7, 9, 5, '', '', 'Other', 7, '']]
    sheet(tmp_path/'SAMM_Micro_FACS_Codes_v2.xlsx', [['text']]*13 + [SAMM_HEAD, *rows])
    touch(tmp_path/'006/006_1_2', [f'006_{n:05d}.jpg' for n in range(5562, 5589)])
    touch(tmp_path/'007/007_3_1', [f'007_{n:04d}.jpg' for n in range(998, 1010)])
    touch(tmp_path/'007/007_3_2', [f'007_{n:04d}.jpg' for n in range(5, 10)])
    a, b, c = load_samm(tmp_path)
    assert (a.subject, a.label, a.aus, a.frames[a.apex].name) == ('samm/006', 'negative', '4 or 7', '006_05573.jpg')
    assert (b.subject, b.label, b.apex, b.frames[b.offset].name) == ('samm/007', 'surprise', None, '007_1009.jpg')
    assert c.label is None

@pytest.mark.parametrize('person', ['s1', 's01'])
def test_smic_reads_labels_from_folders(tmp_path, person):
    touch(tmp_path/f'HS/{person}/micro/negative/{person}_ne_01', [f'image{n}.bmp' for n in range(99, 104)])
    touch(tmp_path/f'HS/{person}/non_micro/{person}_01', ['image1.bmp'])
    for root in (tmp_path, tmp_path/'HS'):
        (c,) = load_smic(root)
        assert (c.subject, c.label, c.apex, c.onset, c.offset) == ('smic/s01', 'negative', None, 0, 4)
        assert c.frames[c.apex_or_middle].name == 'image101.bmp'

def test_smic_refuses_an_unknown_class(tmp_path):
    touch(tmp_path/'HS/s1/micro/angry/s1_an_01', ['image1.bmp'])
    with pytest.raises(InputError, match="unknown class 'angry'"): load_smic(tmp_path)

def test_apex_outside_the_clip_is_unknown():
    frames = {n: n for n in range(10, 21)}
    assert locate(frames, 12, 11, 18, 'x')['apex'] is None
    assert locate(frames, 12, 12, 18, 'x')['apex'] is None
    assert locate(frames, 12, 15, 18, 'x') == dict(frames=list(frames.values()), onset=2, apex=5, offset=8)

def published_clips():
    "442 clips without files, with the published counts and numbers of people."
    clips = []
    for d, counts in PUBLISHED_COUNTS.items():
        labels = [c for c, n in zip(CLASSES, counts) for _ in range(n)]
        clips += [Clip(d, f'{d}/{i % PUBLISHED_SUBJECTS[d]:03d}', f'c{i}', c, [], 0, None, 0) for i, c in enumerate(labels)]
    return clips

def test_published_counts_pass_and_any_difference_fails_with_its_size():
    clips = published_clips()
    assert len(megc2019_composite(clips)) == 442
    extra = [*clips, Clip('casme2', 'casme2/001', 'x', 'negative', [], 0, None, 0)]
    with pytest.raises(InputError, match=r'casme2 negative 89 instead of 88 \(\+1\)'): megc2019_composite(extra)
    with pytest.raises(InputError, match='samm negative 0 instead of 92'): megc2019_composite([c for c in clips if c.dataset != 'samm'])
    assert len(megc2019_composite(extra, check_counts=False)) == 443

def test_organisers_list_settles_the_extra_negatives(tmp_path):
    clips = published_clips()
    rows = [f"{c.dataset},{c.subject.split('/')[1].lstrip('0') or '0'},{c.name},{CLASSES.index(c.label)}" for c in clips]
    (tmp_path/'combined_3class_gt.csv').write_text('\n'.join(rows))
    extra = [*clips, Clip('casme2', 'casme2/001', 'x', 'negative', [], 0, None, 0)]
    assert len(megc2019_composite(extra, published=tmp_path/'combined_3class_gt.csv')) == 442
    with pytest.raises(InputError, match='1 listed clips are not on disk'): keep_published(clips[1:], tmp_path/'combined_3class_gt.csv')
    (tmp_path/'bad.csv').write_text('dataset,subject,clip,label\n')
    with pytest.raises(InputError, match='no header'): keep_published(clips, tmp_path/'bad.csv')

def test_load_composite_finds_usual_folder_names(tmp_path):
    touch(tmp_path/'SMIC-HS/HS/s1/micro/positive/s1_po_01', ['image1.bmp', 'image2.bmp'])
    casme2(tmp_path/'CASME II', [[1, 'a', None, 46, 59, 86, None, '4', 'fear']])
    clips = load_composite(tmp_path)
    assert {c.dataset for c in clips} == {'smic', 'casme2'}
    table = count_table(clips)
    assert table.loc['casme2', 'left out'] == 1 and table.loc['smic', 'positive'] == 1
    with pytest.raises(FileNotFoundError, match='none of the folders'): load_composite(tmp_path/'CASME II'/'Cropped')
