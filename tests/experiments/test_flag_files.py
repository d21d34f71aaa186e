"""Files of flags, a model each, and the table that takes them."""

import json

import pytest

from eain_jax.errors import InputError
from experiments.flag_files import find_files, read_flags, unequal_note
from tests.experiments.binary import call


def test_lines_of_a_file(tmp_path):
  file = tmp_path / 'din.flags'
  file.write_text('# why\n\n--mlp=64,32\n  --dropout=0.5\n--mirror=\n')
  expected = {'mlp': '64,32', 'dropout': '0.5', 'mirror': ''}
  assert read_flags(file) == expected


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('--a=1\nb=2\n', "line 2: 'b=2' is not written as --name=value"),
    ('--a\n', "line 1: '--a' is not written"),
    ('--a=1\n#\n--a=1\n', 'line 3: --a is there twice'),
  ],
)
def test_flags_that_are_none(tmp_path, text, message):
  file = tmp_path / 'f'
  file.write_text(text)
  with pytest.raises(InputError, match=message):
    read_flags(file)
  with pytest.raises(InputError, match='cannot be read as a file of flags'):
    read_flags(tmp_path)


def test_each_model_has_its_file_in_one_of_the_folders(tmp_path):
  one, two = tmp_path / 'one', tmp_path / 'two'
  for folder, model in ((one, 'lr'), (two, 'din')):
    folder.mkdir()
    with pytest.raises(InputError, match=r'holds none of lr\.flags, mf\.flags'):
      find_files([one, two])
    (folder / f'{model}.flags').write_text('')
  files = find_files([one, two])
  assert files == {'lr': one / 'lr.flags', 'din': two / 'din.flags'}
  assert find_files([]) == {}
  (two / 'lr.flags').write_text('')
  with pytest.raises(InputError, match=r'names .*one/lr.flags and .*two/lr'):
    find_files([one, two])


def test_models_without_a_file_beside_others_are_named(tmp_path):
  files = {'eain': tmp_path / 'eain.flags', 'lr': tmp_path / 'lr.flags'}
  note = unequal_note(('lr', 'mf', 'din', 'eain'), files)
  assert 'for mf, din there is no file' in note
  assert not unequal_note(('lr', 'eain'), files)
  assert not unequal_note(('lr', 'mf'), {})
  assert not unequal_note(('mf', 'din'), files)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('--embedding_dim=8', '--embedding_dim is no setting of lr'),
    ('--seed=1', '--seed is no setting of lr'),
    ('--skip_above=on', '--skip_above changes the data of all models'),
    ('--table_l2=much', '--table_l2=much'),
    ('--table_l2=-1', '--table_l2=-1'),
    ('--optimizer=lion', '--optimizer=lion'),
  ],
)
def test_a_file_that_does_not_suit_its_model(tmp_path, text, message):
  (tmp_path / 'lr.flags').write_text(text)
  out = tmp_path / 'out'
  done = call(
    'table1', f'--output_dir={out}', f'--flags_dir={tmp_path}', '--models=lr'
  )
  assert done.returncode == 1
  assert f'lr.flags: {message}' in done.stderr
  assert len(done.stderr.strip().splitlines()) == 1
  assert not out.exists()


@pytest.mark.slow
def test_each_model_has_its_own_and_the_command_line_stands_above(
  dataset, tmp_path
):
  folder, out = tmp_path / 'flags', tmp_path / 'out'
  folder.mkdir()
  (folder / 'mf.flags').write_text(
    '# found\n--embedding_dim=8\n--learning_rate=0.01\n--epochs=3\n'
  )
  # A file of a model that the table leaves out does no harm.
  (folder / 'din.flags').write_text('--attention_softmax=false\n')
  flags = (
    f'--dataset_dir={dataset.path}',
    f'--output_dir={out}',
    f'--flags_dir={folder}',
    '--models=lr,mf',
    '--epochs=1',
    '--batch_size=256',
  )
  done = call('table1', *flags)
  assert done.returncode == 0, done.stderr
  models = json.loads((out / 'table1.json').read_text())['settings']['models']
  assert models['mf']['model_config']['embedding_dim'] == 8
  rates = [models[m]['train_config']['learning_rate'] for m in ('lr', 'mf')]
  assert rates == [0.001, 0.01]
  assert [models[m]['train_config']['epochs'] for m in ('lr', 'mf')] == [1, 1]
  # What is its own stands with the model, not with all.
  text = (out / 'table1.md').read_text()
  assert '--learning_rate=0.01' in text.partition('MF:')[2]
  # Another file is another plan.
  (folder / 'mf.flags').write_text('--embedding_dim=16\n')
  done = call('table1', *flags)
  assert done.returncode == 1
  assert 'holds what other flags made' in done.stderr


def test_a_flag_that_no_model_of_the_table_has(tmp_path):
  done = call(
    'table1', f'--output_dir={tmp_path / "out"}', '--models=lr,mf', '--mlp=8'
  )
  assert done.returncode == 2, done.stderr
  assert '--mlp is not a setting of lr, mf' in done.stderr
  assert not (tmp_path / 'out').exists()
