"""Where compiled programs are kept, and that the user has the last word."""

from pathlib import Path

from eain_jax.training.compile_cache import keep_programs

FOLDER = 'JAX_COMPILATION_CACHE_DIR'


def test_the_folder_is_the_users_own(tmp_path):
  environment = {'XDG_CACHE_HOME': str(tmp_path)}
  keep_programs(environment)
  folder = Path(environment[FOLDER])
  assert folder.parent == tmp_path / 'eain-jax'
  assert folder.name.startswith('programs-')
  again = {'XDG_CACHE_HOME': str(tmp_path)}
  keep_programs(again)
  assert again == environment


def test_without_a_cache_home_it_is_under_the_home_folder():
  environment = {}
  keep_programs(environment)
  assert Path(environment[FOLDER]).is_relative_to(Path.home() / '.cache')


def test_what_the_user_has_set_stays():
  environment = {FOLDER: '/elsewhere'}
  keep_programs(environment)
  assert environment == {FOLDER: '/elsewhere'}


def test_a_user_without_a_home_has_no_cache(monkeypatch):
  def no_home():
    raise RuntimeError('Could not determine home directory.')

  monkeypatch.setattr(Path, 'home', no_home)
  environment = {}
  keep_programs(environment)
  assert not environment
