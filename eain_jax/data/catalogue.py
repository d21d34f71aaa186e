"""Amazon's product data as its owners publish it: names, files, addresses.

Three releases of the McAuley Lab, each with files of its own shape. A dataset
is one category of one release, `electronics_2014`. What a file is called here
stands here too, and is never taken from a server.
"""

import dataclasses
import difflib
import urllib.parse
from collections.abc import Mapping
from pathlib import PurePosixPath

from eain_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Release:
  """One release.

  Attributes:
    page: where its owners describe it.
    base: the address that all its files lie under; a mirror has another one.
    paths: the path of a category's file under `base`, by what it holds.
    categories: as the paths spell them.
  """

  page: str
  base: str
  paths: Mapping[str, str]
  categories: tuple[str, ...]


RELEASES = {
  '2014': Release(
    'https://jmcauley.ucsd.edu/data/amazon/',
    'https://snap.stanford.edu/data/amazon/productGraph',
    {
      '5core': 'categoryFiles/reviews_{}_5.json.gz',
      'all': 'categoryFiles/reviews_{}.json.gz',
      'ratings': 'categoryFiles/ratings_{}.csv',
      'metadata': 'categoryFiles/meta_{}.json.gz',
    },
    (
      'Amazon_Instant_Video',
      'Apps_for_Android',
      'Automotive',
      'Baby',
      'Beauty',
      'Books',
      'CDs_and_Vinyl',
      'Cell_Phones_and_Accessories',
      'Clothing_Shoes_and_Jewelry',
      'Digital_Music',
      'Electronics',
      'Grocery_and_Gourmet_Food',
      'Health_and_Personal_Care',
      'Home_and_Kitchen',
      'Kindle_Store',
      'Movies_and_TV',
      'Musical_Instruments',
      'Office_Products',
      'Patio_Lawn_and_Garden',
      'Pet_Supplies',
      'Sports_and_Outdoors',
      'Tools_and_Home_Improvement',
      'Toys_and_Games',
      'Video_Games',
    ),
  ),
  '2018': Release(
    'https://nijianmo.github.io/amazon/',
    'https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2',
    {
      '5core': 'categoryFilesSmall/{}_5.json.gz',
      'all': 'categoryFiles/{}.json.gz',
      'ratings': 'categoryFilesSmall/{}.csv',
      'metadata': 'metaFiles2/meta_{}.json.gz',
    },
    (
      'AMAZON_FASHION',
      'All_Beauty',
      'Appliances',
      'Arts_Crafts_and_Sewing',
      'Automotive',
      'Books',
      'CDs_and_Vinyl',
      'Cell_Phones_and_Accessories',
      'Clothing_Shoes_and_Jewelry',
      'Digital_Music',
      'Electronics',
      'Gift_Cards',
      'Grocery_and_Gourmet_Food',
      'Home_and_Kitchen',
      'Industrial_and_Scientific',
      'Kindle_Store',
      'Luxury_Beauty',
      'Magazine_Subscriptions',
      'Movies_and_TV',
      'Musical_Instruments',
      'Office_Products',
      'Patio_Lawn_and_Garden',
      'Pet_Supplies',
      'Prime_Pantry',
      'Software',
      'Sports_and_Outdoors',
      'Tools_and_Home_Improvement',
      'Toys_and_Games',
      'Video_Games',
    ),
  ),
  '2023': Release(
    'https://amazon-reviews-2023.github.io/',
    'https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023',
    {
      '5core': 'benchmark/5core/rating_only/{}.csv.gz',
      'all': 'raw/review_categories/{}.jsonl.gz',
      'ratings': 'benchmark/0core/rating_only/{}.csv.gz',
      'metadata': 'raw/meta_categories/meta_{}.jsonl.gz',
    },
    (
      'All_Beauty',
      'Amazon_Fashion',
      'Appliances',
      'Arts_Crafts_and_Sewing',
      'Automotive',
      'Baby_Products',
      'Beauty_and_Personal_Care',
      'Books',
      'CDs_and_Vinyl',
      'Cell_Phones_and_Accessories',
      'Clothing_Shoes_and_Jewelry',
      'Digital_Music',
      'Electronics',
      'Gift_Cards',
      'Grocery_and_Gourmet_Food',
      'Handmade_Products',
      'Health_and_Household',
      'Health_and_Personal_Care',
      'Home_and_Kitchen',
      'Industrial_and_Scientific',
      'Kindle_Store',
      'Magazine_Subscriptions',
      'Movies_and_TV',
      'Musical_Instruments',
      'Office_Products',
      'Patio_Lawn_and_Garden',
      'Pet_Supplies',
      'Software',
      'Sports_and_Outdoors',
      'Subscription_Boxes',
      'Tools_and_Home_Improvement',
      'Toys_and_Games',
      'Video_Games',
    ),
  ),
}

DATASETS = {
  f'{category.lower()}_{year}': (release, category)
  for year, release in RELEASES.items()
  for category in release.categories
}


@dataclasses.dataclass(frozen=True)
class RemoteFile:
  """A file of a dataset.

  Attributes:
    name: of the file here, without a folder.
    url: where it is fetched from.
    page: where its owners say how things stand.
  """

  name: str
  url: str
  page: str


def _local_name(path: str) -> str:
  """Its name there; those of all ratings and of the 5-core may be one."""
  file = PurePosixPath(path)
  return f'0core_{file.name}' if '0core' in file.parts else file.name


def _check_mirror(mirror: str) -> None:
  try:
    parts = urllib.parse.urlsplit(mirror)
    is_good = (
      parts.scheme in ('http', 'https')
      and bool(parts.hostname)
      and parts.port != 0
      and not (parts.query or parts.fragment or parts.username is not None)
    )
  except ValueError:
    is_good = False
  if not (is_good and mirror.isascii() and mirror.isprintable()) or (
    ' ' in mirror
  ):
    raise InputError(
      f'mirror={mirror!r} is no address of a folder: write https://HOST/PATH, '
      'without a password'
    )


def _similar(name: str) -> list[str]:
  """Names that may be meant: of that category, its year first, or alike."""
  category = name.lower().rstrip('0123456789').rstrip('_')
  year = name.lower().removeprefix(category)
  near = [known for known in DATASETS if category and category in known]
  near.sort(key=lambda known: not known.endswith(year))
  return (near or difflib.get_close_matches(name.lower(), DATASETS))[:6]


def dataset_files(
  name: str, reviews: str = '5core', metadata: bool = True, mirror: str = ''
) -> tuple[RemoteFile, ...]:
  """The files of a dataset: the reviews, and then the metadata if wanted.

  Args:
    name: a key of DATASETS.
    reviews: '5core', 'all' or 'ratings', a key of a release's `paths`.
    metadata: whether the items' metadata is wanted.
    mirror: what takes the place of the release's `base`; '' for none.

  Raises:
    InputError: there is no such dataset, or the mirror is no address.
  """
  if name not in DATASETS:
    near = _similar(name)
    meant = f' (perhaps {", ".join(near)})' if near else ''
    raise InputError(f'dataset={name} is unknown{meant}: --list names all')
  if mirror:
    _check_mirror(mirror)
  release, category = DATASETS[name]
  base = (mirror or release.base).rstrip('/')
  paths = [
    release.paths[part].format(category)
    for part in (reviews, *(['metadata'] if metadata else []))
  ]
  return tuple(
    RemoteFile(_local_name(path), f'{base}/{path}', release.page)
    for path in paths
  )
