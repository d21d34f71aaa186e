"""A small world with known preferences: the embedded default data.

An event is drawn in two stages whose probabilities are known exactly,

  p(item | state) = p(category | state) p(item | category, type, device),

so the AUC of the true preference is the ceiling that no model can pass. The
state is what the user has done so far, the time, the device, and the user's
type, which the history reveals: types differ in the categories, brands, price
levels and devices that they like, and a user may change type (drift).

  log p(category | state) = popularity + taste[type]      long-term taste
    + attention * h / (h + 1/2)        h: the category's events, fading with age
    + order * [category succeeds the last one]
    + session * [category is the last one, minutes ago]
    + season * (month's and hour's wave)                               + const
  log p(item | category, type, device) = popularity
    + affinity * (type x brand + type x price level)
    + interaction * (device x brand's style x price's side)            + const

A user never has the same item twice: an item that the user already has is drawn
again, which divides the probability of all others by their sum. Negatives are
never items of the user's past either, so nothing is given away by that.

Every draw is a function of (seed, what is drawn, event number, user), so the
world depends on neither block size nor NumPy's generators, and on the platform
only where the last bit of an exponential decides, once in 10^12 draws or so.
"""

import dataclasses
import enum
from collections.abc import Callable, Iterator

import numpy as np
import polars as pl

from eain_jax.config import Settings, setting
from eain_jax.data.events import ContextColumn, EventLog
from eain_jax.data.examples import hash_bits, hash_uniform, user_offsets
from eain_jax.errors import InputError

DEVICES = ('desktop', 'phone', 'tablet')
MIN_USER_EVENTS = 5
MAX_USER_EVENTS = 200
MEAN_USER_EVENTS = 15

_START = 1_609_459_200  # 2021-01-01 00:00 UTC
_DAYS = 1_095  # to the end of 2023
_DAY = 86_400
_SESSION_GAP = 3_600
_CONTINUE_RATE = 0.55
_MAX_MINUTES = 30
_MEAN_DAYS = 13
_FADING = 0.85
_NUM_PRICE_LEVELS = 4
_PRICE_SIDE = np.array([-1, -1, 1, 1, 0])
_DEVICE_SIDE = np.array([1, -1, -1])
_MAX_DRAWS = 10_000
_MAX_TABLE_VALUES = 100_000_000
_MAX_SCORES = 1 << 21
_MAX_STATE_VALUES = 1 << 19


class _Draw(enum.IntEnum):
  """What a number is drawn for. Those up to ITEM are drawn at every event."""

  DRIFT = enum.auto()
  CONTINUES = enum.auto()
  GAP = enum.auto()
  HOUR = enum.auto()
  DEVICE = enum.auto()
  CATEGORY = enum.auto()
  ITEM = enum.auto()
  TYPE = enum.auto()
  NUM_EVENTS = enum.auto()
  FIRST_DAY = enum.auto()
  CATEGORY_POPULARITY = enum.auto()
  LIKED_CATEGORY = enum.auto()
  LIKED_DEPARTMENT = enum.auto()
  LIKED_DEVICE = enum.auto()
  SUCCESSOR = enum.auto()
  WAVE = enum.auto()
  ITEM_PLACE = enum.auto()
  BRAND = enum.auto()
  BRAND_UNTOLD = enum.auto()
  BRAND_AFFINITY = enum.auto()
  BRAND_STYLE = enum.auto()
  PRICE = enum.auto()
  PRICE_UNTOLD = enum.auto()
  PRICE_AFFINITY = enum.auto()


@dataclasses.dataclass(frozen=True)
class WorldConfig(Settings):
  """Size, seed and forces of the world.

  The weights only scale their terms, all else stays as it is: a `World` whose
  weight is set to 0 scores the same events without that term.
  """

  num_events: int = setting(60_000, 'How many events.', at_least=100)
  num_users: int = setting(
    0, f'How many users; 0: one in {MEAN_USER_EVENTS} events.', at_least=0
  )
  num_items: int = setting(
    0,
    'How many items; 0: num_events^0.65, at least 8 a category.',
    at_least=0,
    at_most=1_000_000,
  )
  num_categories: int = setting(
    32, 'How many leaf categories.', at_least=4, at_most=1_000
  )
  num_brands: int = setting(
    0, 'How many brands; 0: one in 20 items, at least 10.', at_least=0
  )
  num_types: int = setting(
    6, 'How many types of users.', at_least=1, at_most=100
  )
  seed: int = setting(0, 'Seed of the whole world.', at_least=0)
  drift_rate: float = setting(
    0.01,
    'Probability that an event finds the user with a new type.',
    at_least=0,
    at_most=1,
  )
  popularity_exponent: float = setting(
    0.3, "Zipf's exponent of an item's rank in its category.", at_least=0
  )
  popularity_weight: float = setting(0.4, 'Popularity of categories.')
  taste_weight: float = setting(1.0, "Long-term taste of the user's type.")
  attention_weight: float = setting(3.4, "The category in the user's past.")
  order_weight: float = setting(1.9, 'Succession from the last category.')
  session_weight: float = setting(1.5, 'The last category, in a session.')
  season_weight: float = setting(0.35, 'Waves over the year and the day.')
  affinity_weight: float = setting(0.7, 'Type x brand and type x price.')
  interaction_weight: float = setting(0.75, 'Device x brand x price.')

  def resolved(self) -> 'WorldConfig':
    """The same config with every size given.

    Raises:
      InputError: the sizes do not fit together.
    """
    num_users = self.num_users or max(1, self.num_events // MEAN_USER_EVENTS)
    num_items = self.num_items or max(
      round(self.num_events**0.65), 8 * self.num_categories
    )
    num_brands = self.num_brands or max(10, num_items // 20)
    least = max(2 * self.num_categories, 4 * MIN_USER_EVENTS)
    if num_items < least:
      raise InputError(
        f'num_items={num_items} must be at least {least}: two for each of '
        f'num_categories={self.num_categories}, and four times the '
        f'{MIN_USER_EVENTS} that every user has'
      )
    num_values = self.num_types * len(DEVICES) * num_items
    if num_values > _MAX_TABLE_VALUES:
      raise InputError(
        f'num_types={self.num_types} times {len(DEVICES)} devices times '
        f'num_items={num_items} is more than {_MAX_TABLE_VALUES}: take fewer'
      )
    longest = _most_events(num_items)
    low, high = num_users * MIN_USER_EVENTS, num_users * longest
    if not low <= self.num_events <= high:
      raise InputError(
        f'num_events={self.num_events} must lie between {low} and {high}: '
        f'{MIN_USER_EVENTS} to {longest} for each of num_users={num_users}'
      )
    return dataclasses.replace(
      self, num_users=num_users, num_items=num_items, num_brands=num_brands
    )


def _most_events(num_items: int) -> int:
  """The most events of a user, who never has an item twice."""
  return min(MAX_USER_EVENTS, num_items // 4)


def _draw_lengths(config: WorldConfig) -> np.ndarray:
  """int64 [U], events of each user: a long tail that sums to num_events."""
  rest = _most_events(config.num_items) - MIN_USER_EVENTS
  uniform = hash_uniform(
    config.seed, _Draw.NUM_EVENTS, np.arange(config.num_users)
  )
  size = (-np.log1p(-uniform)) ** 1.5
  wanted = config.num_events - MIN_USER_EVENTS * config.num_users

  def scaled(scale):
    return np.minimum(size * scale, rest).astype(np.int64)

  low, high = 0.0, 1e6
  for _ in range(60):
    middle = (low + high) / 2
    if scaled(middle).sum() <= wanted:
      low = middle
    else:
      high = middle
  extra = scaled(low)
  while missing := wanted - int(extra.sum()):
    extra[np.flatnonzero(extra < rest)[:missing]] += 1
  return MIN_USER_EVENTS + extra


@dataclasses.dataclass
class _Users:
  """What is known of n users just before their next event.

  Attributes:
    user: int64 [n].
    type: int64 [n].
    recency: float64 [n, C], events of each category, fading with their age.
    category: int64 [n], of the last event; C before the first.
    timestamp: int64 [n], of the last event.
  """

  user: np.ndarray
  type: np.ndarray
  recency: np.ndarray
  category: np.ndarray
  timestamp: np.ndarray

  def select(self, index: slice | np.ndarray) -> '_Users':
    """Some of the users: views of them where the index is a slice."""
    return _Users(
      self.user[index],
      self.type[index],
      self.recency[index],
      self.category[index],
      self.timestamp[index],
    )


class World:
  """The world of a config; its tables take 16 bytes x types x 3 x items.

  Attributes:
    config: the config, every size given.
    user_start: int64 [U + 1], a user's first row in the log.
  """

  def __init__(self, config: WorldConfig):
    """Draws the tables.

    Raises:
      InputError: the config's sizes do not fit together.
    """
    self.config = config.resolved()
    lengths = _draw_lengths(self.config)
    self.user_start = np.concatenate([[0], np.cumsum(lengths)])
    self._event_key = hash_bits(
      self.config.seed,
      np.arange(_Draw.ITEM + 1)[:, None],
      np.arange(MAX_USER_EVENTS),
    )
    self._make_category_tables()
    self._make_item_tables()

  def _table(self, draw: _Draw, *shape: int) -> np.ndarray:
    """float64 of the given shape, uniform in [0, 1)."""
    count = np.arange(int(np.prod(shape)))
    return hash_uniform(self.config.seed, draw, count).reshape(shape)

  def _make_category_tables(self) -> None:
    config = self.config
    size, num_types = config.num_categories, config.num_types
    num_departments = max(1, size // 4)
    self._department = np.arange(size) % num_departments

    def likes(draw, width, liked):
      """1 at `liked` places of each type's row, 0 elsewhere."""
      rank = self._table(draw, num_types, width).argsort(axis=1)
      return (rank.argsort(axis=1) < liked).astype(np.float64)

    taste = likes(_Draw.LIKED_CATEGORY, size, max(1, size // 8))
    department_taste = likes(
      _Draw.LIKED_DEPARTMENT, num_departments, max(1, num_departments // 4)
    )
    taste += 0.5 * department_taste[:, self._department]
    popularity = 2 * self._table(_Draw.CATEGORY_POPULARITY, size) - 1
    self._type_factor = np.exp(
      config.popularity_weight * popularity + config.taste_weight * taste
    )

    # Row `size` is for users without an event; the rows after it for events
    # in the session of the last one.
    succession = np.zeros((size + 1, size))
    step = 1 + (self._table(_Draw.SUCCESSOR, 2, size) * (size - 1)).astype(int)
    succession[np.arange(size), (np.arange(size) + step) % size] = 1
    same = np.eye(size + 1, size)
    order = config.order_weight * succession
    self._last_factor = np.exp(
      np.concatenate([order, order + config.session_weight * same])
    )

    year, day = 2 * np.pi * self._table(_Draw.WAVE, 2, size)
    month_wave = np.cos(2 * np.pi / 12 * np.arange(12)[:, None] - year)
    hour_wave = np.cos(2 * np.pi / 24 * np.arange(24)[:, None] - day)
    wave = month_wave[:, None] + hour_wave
    self._time_factor = np.exp(config.season_weight * wave.reshape(-1, size))
    days = np.datetime64('2021-01-01') + np.arange(_DAYS)
    self._month = days.astype('datetime64[M]').astype(np.int64) % 12

    # A type's own device has probability .6, each other .2.
    likes_device = likes(_Draw.LIKED_DEVICE, len(DEVICES), 1)
    self._device_cumulative = np.cumsum(0.2 + 0.4 * likes_device, axis=1)

  def _make_item_tables(self) -> None:
    """Items stand at places in order of category, then rank of popularity."""
    config = self.config
    size, num_items = config.num_categories, config.num_items
    share = 1 / np.sqrt(np.arange(size) + 4)
    share *= (num_items - size) / share.sum()
    count = 1 + np.diff(np.round(np.cumsum(share)).astype(np.int64), prepend=0)
    self._stop = np.cumsum(count)
    start = self._stop - count
    self._place_category = np.repeat(np.arange(size), count)
    self._item_of_place = np.argsort(
      self._table(_Draw.ITEM_PLACE, num_items), kind='stable'
    ).astype(np.int32)
    self._place_of_item = np.argsort(self._item_of_place).astype(np.int32)

    # The last brand and the last price level are those that are not told.
    no_brand, no_price = config.num_brands, _NUM_PRICE_LEVELS
    brand = self._table(_Draw.BRAND, num_items) ** 1.5 * no_brand
    brand_untold = self._table(_Draw.BRAND_UNTOLD, num_items) < 0.02
    self._brand = np.where(brand_untold, no_brand, brand.astype(np.int64))
    self._price = self._table(_Draw.PRICE, num_items) * no_price
    price_untold = self._table(_Draw.PRICE_UNTOLD, num_items) < 0.03
    level = np.where(price_untold, no_price, self._price.astype(np.int64))
    self._price = np.where(price_untold, np.nan, self._price)

    def affinity(draw, width):
      """Uniform in [-1, 1) by type; 0 for the one that is not told."""
      table = 2 * self._table(draw, config.num_types, width) - 1
      return np.pad(table, ((0, 0), (0, 1)))

    by_brand = affinity(_Draw.BRAND_AFFINITY, no_brand)
    by_price = affinity(_Draw.PRICE_AFFINITY, no_price)
    style = np.where(self._table(_Draw.BRAND_STYLE, no_brand) < 0.5, -1, 1)
    side = np.append(style, 0)[self._brand] * _PRICE_SIDE[level]
    rank = np.arange(num_items) - np.repeat(start, count)
    popularity = -config.popularity_exponent * np.log(rank + 2)
    liking = by_brand[:, self._brand] + by_price[:, level]
    utility = (
      popularity
      + config.affinity_weight * liking[:, None]
      + config.interaction_weight * (_DEVICE_SIDE[:, None] * side)
    ).reshape(-1, num_items)
    weight = np.exp(utility)
    total = np.add.reduceat(weight, start, axis=1)
    self._log_within = utility - np.log(total)[:, self._place_category]

    # Row by row and category by category, one rising sequence: an item of
    # category c is where row * C + c + uniform falls.
    cumulative = np.cumsum(np.exp(self._log_within), axis=1)
    before = np.concatenate(
      [np.zeros((len(weight), 1)), cumulative[:, self._stop[:-1] - 1]], axis=1
    )
    cumulative -= before[:, self._place_category]
    cumulative[:, self._stop - 1] = 1
    cumulative += self._place_category
    cumulative += np.arange(len(weight))[:, None] * size
    self._cumulative = cumulative.reshape(-1)

  def _begin(self, user: np.ndarray) -> _Users:
    """The users before their first event."""
    size = self.config.num_categories
    uniform = hash_uniform(self.config.seed, _Draw.TYPE, user)
    return _Users(
      user=user,
      type=(uniform * self.config.num_types).astype(np.int64),
      recency=np.zeros((len(user), size)),
      category=np.full(len(user), size),
      timestamp=np.full(len(user), _START - _DAY),
    )

  def _drift(self, users: _Users, event: int) -> None:
    """Gives new types to those who change theirs at this event."""
    rate = self.config.drift_rate
    if event == 0 or rate <= 0:
      return
    uniform = self._uniform(_Draw.DRIFT, event, users.user)
    changes = np.flatnonzero(uniform < rate)
    share = uniform[changes] / rate
    users.type[changes] = (share * self.config.num_types).astype(np.int64)

  def _uniform(
    self, draw: _Draw, event: int, user: np.ndarray, attempt: int = 0
  ) -> np.ndarray:
    return hash_uniform(self._event_key[draw, event], attempt, user)

  def _category_weights(
    self, users: _Users, timestamp: np.ndarray
  ) -> np.ndarray:
    """p(category | state) times a positive number for each user, [n, C]."""
    day, second = np.divmod(timestamp - _START, _DAY)
    time = self._month[day] * 24 + second // 3600
    in_session = timestamp - users.timestamp < _SESSION_GAP
    last = users.category + in_session * (self.config.num_categories + 1)
    weights = users.recency + 0.5
    np.divide(users.recency, weights, out=weights)
    weights *= self.config.attention_weight
    np.exp(weights, out=weights)
    weights *= self._type_factor[users.type]
    weights *= self._last_factor[last]
    weights *= self._time_factor[time]
    return weights

  @staticmethod
  def _advance(
    users: _Users, category: np.ndarray, timestamp: np.ndarray
  ) -> None:
    """Adds an event to each user's past."""
    users.recency *= _FADING
    users.recency[np.arange(len(category)), category] += 1
    users.category[:] = category
    users.timestamp[:] = timestamp

  def generate(self, users_per_block: int | None = None) -> EventLog:
    """Draws the events, all in memory: 20 bytes each. See `blocks`.

    Returns:
      The log in canonical order, timestamps of a user strictly increasing from
      2021 to 2023. Item attributes: category (String), category_path
      (List(String), department first), brand (String) and price (Float64),
      the last two with nulls; context: device.

    Raises:
      InputError: the weights leave a user without a new item to choose.
    """
    blocks = list(self.blocks(users_per_block))
    return self.log(*(np.concatenate(c) for c in zip(*blocks, strict=True)))

  def blocks(
    self, users_per_block: int | None = None
  ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Draws the events, those of some users at a time.

    Args:
      users_per_block: how many: it changes nothing but speed and memory. By
        default as many as need about 100 MB.

    Yields:
      user int32, item int32, timestamp int64 and device int32 of the next
      events in canonical order.

    Raises:
      InputError: the weights leave a user without a new item to choose.
    """
    config = self.config
    if users_per_block is None:
      users_per_block = _MAX_STATE_VALUES // config.num_categories
    for begin in range(0, config.num_users, users_per_block):
      end = min(begin + users_per_block, config.num_users)
      users = np.arange(begin, end)
      start = self.user_start[begin : end + 1]
      length = np.diff(start)
      # Longest first: those who still have events are then a leading slice.
      order = np.argsort(-length, kind='stable')
      drawn = self._generate_block(
        users[order], length[order], (start[:-1] - start[0])[order]
      )
      yield np.repeat(users.astype(np.int32), length), *drawn

  def log(
    self,
    user: np.ndarray,
    item: np.ndarray,
    timestamp: np.ndarray,
    device: np.ndarray,
  ) -> EventLog:
    """The log of all that `blocks` gives, wherever it was put meanwhile."""
    config = self.config
    return EventLog(
      user=user,
      item=item,
      timestamp=timestamp,
      users=_numbered('user', config.num_users, 7),
      items=_numbered('item', config.num_items, 6),
      item_attributes=self._item_attributes(),
      context={'device': ContextColumn(device, pl.Series('device', DEVICES))},
      counts={
        'lines': config.num_events,
        'events': config.num_events,
        'users': config.num_users,
        'items': config.num_items,
        'duplicates': 0,
        'rejected': 0,
      },
      notes=(
        'The events are synthetic, drawn from known probabilities '
        f'(seed {config.seed}); no user has an item twice.',
      ),
    )

  def _generate_block(
    self, user, length, start
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """item, timestamp and device of users sorted by falling length.

    The events of a user are to stand from `start` on.
    """
    num_events = int(length.sum())
    item = np.empty(num_events, np.int32)
    device = np.empty(num_events, np.int32)
    timestamp = np.empty(num_events, np.int64)
    times = self._draw_times(user, length)
    history = np.empty(times.shape, np.int32)
    on = np.zeros(len(user), np.int32)
    users = self._begin(user)
    for event in range(len(times)):
      users = users.select(slice(np.searchsorted(-length, -event)))
      count = len(users.user)
      now = times[event, :count]
      self._drift(users, event)

      fresh = now - users.timestamp >= _SESSION_GAP
      uniform = self._uniform(_Draw.DEVICE, event, users.user)
      cumulative = self._device_cumulative[users.type]
      drawn = (uniform[:, None] >= cumulative[:, :-1]).sum(axis=1)
      on[:count] = np.where(fresh, drawn, on[:count])

      weights = self._category_weights(users, now)
      cumulative = np.cumsum(weights, axis=1, out=weights)
      row = users.type * len(DEVICES) + on[:count]
      place = self._draw_places(cumulative, row, users.user, event, 0)
      again = np.flatnonzero((history[:event, :count] == place).any(axis=0))
      attempt = 0
      while len(again):
        attempt += 1
        if attempt > _MAX_DRAWS:
          raise InputError(
            f'a user finds no new item in {_MAX_DRAWS} draws: the world has '
            'too few items for weights as strong as these; lower '
            'popularity_exponent or the weights, or raise num_items'
          )
        place[again] = self._draw_places(
          cumulative[again], row[again], users.user[again], event, attempt
        )
        had = (history[:event, again] == place[again]).any(axis=0)
        again = again[had]
      history[event, :count] = place

      at = start[:count] + event
      item[at] = self._item_of_place[place]
      device[at] = on[:count]
      timestamp[at] = now
      self._advance(users, self._place_category[place], now)
    return item, timestamp, device

  def _draw_places(self, cumulative, row, user, event, attempt) -> np.ndarray:
    """A category each, then an item of it; int64 [n], places of items."""
    uniform = self._uniform(_Draw.CATEGORY, event, user, attempt)
    goal = uniform * cumulative[:, -1]
    category = (goal[:, None] >= cumulative[:, :-1]).sum(axis=1)
    uniform = self._uniform(_Draw.ITEM, event, user, attempt)
    goal = row * self.config.num_categories + category + uniform
    found = np.searchsorted(self._cumulative, goal, side='right')
    # Rounding may lift the goal to the next category's first item.
    return np.minimum(
      found - row * self.config.num_items, self._stop[category] - 1
    )

  def _draw_times(self, user: np.ndarray, length: np.ndarray) -> np.ndarray:
    """int64 [T, n] seconds, for users sorted by falling length.

    Events come in sessions, minutes apart in a session and days between them.
    """
    times = np.zeros((length[0], len(user)), np.int64)
    mean_days = np.minimum(_MEAN_DAYS, 900 / length)
    now = np.zeros(len(user), np.int64)
    for event in range(len(times)):
      count = np.searchsorted(-length, -event)
      who = user[:count]
      wait = -np.log1p(-self._uniform(_Draw.GAP, event, who))
      minutes = np.minimum(wait * 5, _MAX_MINUTES)
      days = 1 + (wait * mean_days[:count]).astype(np.int64)
      # The bound rises by two days an event, so days never stand still.
      day = np.minimum(
        now[:count] // _DAY + days, _DAYS - 2 * (MAX_USER_EVENTS - event)
      )
      # From 6 to 22 o'clock, most often at 14.
      first, second = (
        self._uniform(_Draw.HOUR, event, who, attempt) for attempt in (0, 1)
      )
      later = day * _DAY + ((6 + 8 * (first + second)) * 3600).astype(np.int64)
      soon = now[:count] + 1 + (minutes * 60).astype(np.int64)
      continues = self._uniform(_Draw.CONTINUES, event, who) < _CONTINUE_RATE
      now[:count] = np.where(continues & (event > 0), soon, later)
      times[event, :count] = now[:count]
    free = _DAYS - now // _DAY
    uniform = hash_uniform(self.config.seed, _Draw.FIRST_DAY, user)
    times += _START + (uniform * free).astype(np.int64) * _DAY
    return times

  def _item_attributes(self) -> pl.DataFrame:
    """Attributes in the order of the items; null where they are not told."""
    place = self._place_of_item
    width = len(str(self.config.num_categories - 1))
    category = [f'category_{c:0{width}}' for c in self._place_category[place]]
    department = [
      f'department_{self._department[c]:0{width}}'
      for c in self._place_category[place]
    ]
    brands = [
      *_numbered('brand', self.config.num_brands, 3).to_list(),
      None,
    ]
    # Each level spans a factor of 3: from 5 to 15, to 45, to 135, to 405.
    price = np.round(5 * 3.0 ** self._price[place], 2)
    return pl.DataFrame(
      {
        'category': category,
        'category_path': [
          list(path) for path in zip(department, category, strict=True)
        ],
        'brand': [brands[b] for b in self._brand[place]],
        'price': pl.Series(price).fill_nan(None),
      }
    )

  def log_preference(
    self,
    log: EventLog,
    event_row: np.ndarray,
    item_row: np.ndarray,
    *,
    knows_type: bool = True,
  ) -> np.ndarray:
    """log p(item | the user's true state just before an event, its context).

    Against negatives drawn uniformly this is, up to a constant a request, the
    best possible score. It knows the user's type, which a model must infer.

    Args:
      log: what `generate` returned, whole.
      event_row: int64 [R], rows of the log.
      item_row: int32 [R, C], rows of `log.items`.
      knows_type: if not, log p(item | the user's events before, and the
        context), the best that a model can do: a filter over the types, which
        knows all probabilities of the world and nothing of the user's future.
        It takes as many times as long as there are types.

    Returns:
      float64 [R, C]; -inf for an item that the user already has.

    Raises:
      InputError: the log is not this world's.
    """
    return self.scorer(log, knows_type=knows_type)(event_row, item_row)

  def scorer(
    self, log: EventLog, *, knows_type: bool = True
  ) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """`log_preference` of this log, which is checked once.

    Args:
      log: what `generate` returned, whole.
      knows_type: as of `log_preference`.

    Raises:
      InputError: the log is not this world's.
    """
    config = self.config
    if len(log.items) != config.num_items or not np.array_equal(
      user_offsets(log.user, len(log.users)), self.user_start
    ):
      raise InputError(
        f'the log, {len(log.user)} events of {len(log.users)} users and '
        f'{len(log.items)} items, is not what this world of '
        f'{config.num_events}, {config.num_users} and {config.num_items} '
        'generates: its true preference is known for the whole log only'
      )

    score_block = self._score_block if knows_type else self._infer_block

    def score(event_row: np.ndarray, item_row: np.ndarray) -> np.ndarray:
      event_row = np.asarray(event_row, np.int64)
      preference = np.empty(item_row.shape)
      order = np.argsort(event_row, kind='stable')
      rows_per_block = min(
        max(1, _MAX_SCORES // max(1, item_row.shape[1])),
        _MAX_STATE_VALUES // config.num_categories,
      )
      # Of equal sizes, for a short last one would cost as many steps.
      num_blocks = -(-len(order) // rows_per_block)
      for rows in np.array_split(order, max(1, num_blocks)):
        if len(rows):
          preference[rows] = score_block(log, event_row[rows], item_row[rows])
      return preference

    return score

  def _replay(
    self, log: EventLog, event_row: np.ndarray
  ) -> Iterator[tuple[_Users, np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """The events of some users, side by side, up to given rising rows.

    Yields:
      For the first event, the second, ...: the n users who have one, before
      it, with the types that they have at it; the items that they have had
      [n, t], places; the event's row [n]; which of `event_row` are this event;
      and of which of the n users these are.
    """
    user = log.user[event_row].astype(np.int64)
    event = event_row - self.user_start[user]
    who, slot = np.unique(user, return_inverse=True)
    last = event[np.searchsorted(user, who, side='right') - 1]
    order = np.argsort(-last, kind='stable')
    who, last, slot = who[order], last[order], np.argsort(order)[slot]
    start = self.user_start[who]
    history = np.empty((last[0] + 1, len(who)), np.int32)
    users = self._begin(who)
    by_event = np.argsort(event, kind='stable')
    bounds = np.searchsorted(event[by_event], np.arange(last[0] + 2))
    for number in range(len(history)):
      users = users.select(slice(np.searchsorted(-last, -number, side='right')))
      count = len(users.user)
      self._drift(users, number)
      rows = by_event[bounds[number] : bounds[number + 1]]
      at = start[:count] + number
      yield users, history[:number, :count].T, at, rows, slot[rows]
      history[number, :count] = self._place_of_item[log.item[at]]
      category = self._place_category[history[number, :count]]
      self._advance(users, category, log.timestamp[at])

  def _score_block(self, log, event_row, item_row) -> np.ndarray:
    """`log_preference` of rising event rows: replays their users' events."""
    device = log.context['device'].codes
    score = np.empty(item_row.shape)
    for users, past, at, rows, own in self._replay(log, event_row):
      score[rows] = self._score(
        users.select(own),
        log.timestamp[at[own]],
        device[at[own]],
        past[own],
        self._place_of_item[item_row[rows]],
      )
    return score

  def _infer_block(self, log, event_row, item_row) -> np.ndarray:
    """As `_score_block`, of one who must infer the types: Bayes' filter."""
    device, num_types = log.context['device'].codes, self.config.num_types
    log_device = np.log(np.diff(self._device_cumulative, axis=1, prepend=0))
    rate = self.config.drift_rate
    score = np.empty(item_row.shape)
    # log p(type | the events so far), [n, types]
    belief = None
    for users, past, at, rows, own in self._replay(log, event_row):
      now, on = log.timestamp[at], device[at]
      if belief is None:
        belief = np.full((len(at), num_types), -np.log(num_types))
      else:
        belief = np.exp(belief[: len(at)])
        belief = np.log((1 - rate) * belief + rate / num_types)
      # A session keeps its device, so it tells something at its start alone.
      begins = now - users.timestamp >= _SESSION_GAP
      belief += np.where(begins[:, None], log_device[:, on].T, 0)
      belief -= np.logaddexp.reduce(belief, axis=1, keepdims=True)
      shown = self._place_of_item[item_row[rows]]
      taken = self._place_of_item[log.item[at]][:, None]
      found = np.empty((num_types, *shown.shape))
      likelihood = np.empty(belief.shape)
      for kind in range(num_types):
        of_type = dataclasses.replace(users, type=np.full(len(at), kind))
        found[kind] = self._score(
          of_type.select(own), now[own], on[own], past[own], shown
        )
        likelihood[:, kind] = self._score(of_type, now, on, past, taken)[:, 0]
      score[rows] = np.logaddexp.reduce(
        belief[own].T[:, :, None] + found, axis=0
      )
      belief += likelihood
      belief -= np.logaddexp.reduce(belief, axis=1, keepdims=True)
    return score

  def _score(self, users, timestamp, device, past, place) -> np.ndarray:
    """log p of the items at `place` [n, C]; `past` [n, t]: those had so far."""
    weights = self._category_weights(users, timestamp)
    log_category = np.log(weights / weights.sum(axis=1, keepdims=True))
    row = (users.type * len(DEVICES) + device)[:, None]

    def log_draw(place):
      """log p of one draw, which may give an item that the user has."""
      category = np.take_along_axis(
        log_category, self._place_category[place], axis=1
      )
      return category + self._log_within[row, place]

    fresh = 1 - np.exp(log_draw(past)).sum(axis=1, keepdims=True)
    score = log_draw(place) - np.log(fresh)
    number = np.arange(len(place))[:, None] * self.config.num_items
    score[np.isin(number + place, number + past)] = -np.inf
    return score


def _numbered(name: str, count: int, width: int) -> pl.Series:
  """`count` ids whose order as strings is their order as numbers."""
  width = max(width, len(str(count - 1)))
  numbers = pl.int_range(count, eager=True).cast(pl.String)
  return (name + '_' + numbers.str.zfill(width)).alias(name)
