"""Linear sum assignment: the cheapest way to give every object a slot of its own, as scipy's solver finds it.

On the device the shortest augmenting path method (Crouse 2016, as scipy) runs for many problems side by side; ties are
broken as scipy breaks them. The host form calls scipy. N slots, G objects.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from uvim_like.errors import UserError

Array = jax.Array
SOLVERS = ("device", "scipy")
NONE = -1
_FORBIDDEN = 1e9  # cost that stands in for one that is not finite; a search among infinities would not end


def assign(cost: Array, valid: Array | None = None, *, solver: str = "device") -> Array:
  """The slot of every object, so that the sum of costs is least and no slot is taken twice.

  Args:
    cost: (..., N, G).
    valid: (..., G) bool, the objects that exist; all of them by default.
    solver: "device", or "scipy" by a callback to the host.

  Returns:
    (..., G) int32; NONE for an object that does not exist, or that got no slot where G > N.

  Raises:
    UserError: more objects than slots together with `valid`.
  """
  *lead, slots, objects = cost.shape
  if valid is not None and objects > slots:
    raise UserError(f"matching: {objects} object slots but only {slots} predictions; raise the predictions")
  cost = jax.lax.stop_gradient(cost).astype(jnp.float32)
  cost = jnp.where(jnp.isfinite(cost), cost, _FORBIDDEN)
  by_object = valid is not None or objects < slots  # scipy goes by slots where there are as many, which ties show
  valid = jnp.ones((*lead, objects), bool) if valid is None else jnp.broadcast_to(valid, (*lead, objects))
  if not slots or not objects:
    return jnp.full((*lead, objects), NONE, jnp.int32)
  if solver == "scipy":
    return jax.pure_callback(_scipy, jax.ShapeDtypeStruct((*lead, objects), jnp.int32), cost, valid)
  cost, valid = cost.reshape(-1, slots, objects), valid.reshape(-1, objects)
  if by_object:
    found = jax.vmap(_solve)(cost.swapaxes(1, 2), valid)
  else:
    rows = jax.vmap(_solve)(cost, jnp.ones((cost.shape[0], slots), bool))
    found = jax.vmap(lambda columns: invert(columns, objects))(rows)
  return found.reshape(*lead, objects)


def invert(slot_of: Array, slots: int) -> Array:
  """(..., G) slot of each object to (..., N) object of each slot, NONE where there is none."""
  if not slot_of.shape[-1]:
    return jnp.full((*slot_of.shape[:-1], slots), NONE, jnp.int32)
  hit = slot_of[..., None, :] == jnp.arange(slots)[:, None]  # (..., N, G)
  return jnp.where(hit.any(-1), jnp.argmax(hit, axis=-1), NONE).astype(jnp.int32)


def _scipy(cost: np.ndarray, valid: np.ndarray) -> np.ndarray:
  """(..., N, G), (..., G) to (..., G) on the host."""
  from scipy.optimize import linear_sum_assignment  # only this form needs scipy
  cost, valid = np.asarray(cost, np.float64), np.asarray(valid)
  *lead, slots, objects = cost.shape
  found = np.full((int(np.prod(lead)), objects), NONE, np.int32)
  for row, problem, exists in zip(found, cost.reshape(-1, slots, objects), valid.reshape(-1, objects)):
    columns = np.flatnonzero(exists)
    chosen, which = linear_sum_assignment(problem[:, columns])
    row[columns[which]] = chosen
  return found.reshape(*lead, objects)


class _Duals(NamedTuple):
  """A partial assignment of rows (objects) to columns (slots) with its dual prices; R rows, C columns."""
  row_price: Array     # (R,)
  column_price: Array  # (C,)
  row_of: Array        # (C,) int32
  column_of: Array     # (R,) int32


class _Search(NamedTuple):
  """Dijkstra's search for the cheapest way from one row to a free column."""
  row: Array         # () where the search stands
  distance: Array    # ()
  shortest: Array    # (C,) distance of each column
  parent: Array      # (C,) the row from which it was reached
  rows_seen: Array   # (R,) bool
  closed: Array      # (C,) bool
  place: Array       # (C,) position in the scan, which breaks ties as scipy does
  remaining: Array   # () open columns
  sink: Array        # () the free column that was found


def _solve(cost: Array, valid: Array) -> Array:
  """(R, C) with R <= C, (R,) rows that count -> (R,) columns."""
  rows, columns = cost.shape
  start = _Duals(jnp.zeros(rows), jnp.zeros(columns), jnp.full(columns, NONE), jnp.full(rows, NONE))
  last = jnp.max(jnp.where(valid, jnp.arange(rows) + 1, 0))
  return jax.lax.fori_loop(0, last, lambda row, now: _add_row(row, now, cost, valid), start).column_of


def _add_row(row: Array, now: _Duals, cost: Array, valid: Array) -> _Duals:
  """One more row gets a column; nothing changes for a row that does not count."""
  rows, columns = cost.shape
  search = _Search(row, jnp.float32(0), jnp.full(columns, jnp.inf), jnp.full(columns, NONE),
                   jnp.zeros(rows, bool).at[row].set(True), jnp.zeros(columns, bool),
                   jnp.arange(columns - 1, NONE, -1, dtype=jnp.int32), jnp.int32(columns),
                   jnp.where(valid[row], NONE, 0))
  search = jax.lax.while_loop(lambda s: (s.sink == NONE) & (s.remaining > 0), lambda s: _close(s, now, cost), search)
  distance = search.distance
  own = jnp.where(now.column_of == NONE, 0, now.column_of)
  rise = jnp.where(jnp.arange(rows) == row, distance, distance - search.shortest[own])
  row_price = now.row_price + jnp.where(search.rows_seen & valid[row], rise, 0)
  fall = jnp.where(search.closed, distance - search.shortest, 0)
  column_of, row_of = _augment(row, search, now, valid[row])
  return _Duals(row_price, now.column_price - fall, row_of, column_of)


def _close(now: _Search, duals: _Duals, cost: Array) -> _Search:
  """Reaches the open columns from the present row and closes the nearest."""
  reached = now.distance + cost[now.row] - duals.row_price[now.row] - duals.column_price
  better = ~now.closed & (reached < now.shortest)
  shortest = jnp.where(better, reached, now.shortest)
  distance = jnp.min(jnp.where(now.closed, jnp.inf, shortest))
  tied = ~now.closed & (shortest == distance)
  free = tied & (duals.row_of == NONE)
  # Among equals the last free column of the scan, else the first one.
  column = jnp.where(jnp.any(free), jnp.argmax(jnp.where(free, now.place, NONE)),
                     jnp.argmin(jnp.where(tied, now.place, now.place.size)))
  place = jnp.where(now.place == now.remaining - 1, now.place[column], now.place).at[column].set(NONE)
  owner = duals.row_of[column]
  ended = owner == NONE
  row = jnp.where(ended, now.row, owner)
  return _Search(row, distance, shortest, jnp.where(better, now.row, now.parent), now.rows_seen.at[row].set(True),
                 now.closed.at[column].set(True), place, now.remaining - 1,
                 jnp.where(ended, column, NONE).astype(jnp.int32))


def _augment(row: Array, search: _Search, now: _Duals, wanted: Array) -> tuple[Array, Array]:
  """Hands columns on along the path that was found: the new (column_of, row_of)."""
  def hand_on(state):
    column, column_of, row_of = state
    giver = search.parent[column]
    following = jnp.where(giver == row, NONE, column_of[giver])
    return following, column_of.at[giver].set(column), row_of.at[column].set(giver)

  first = jnp.where(wanted, search.sink, NONE)
  _, column_of, row_of = jax.lax.while_loop(lambda state: state[0] != NONE, hand_on,
                                            (first, now.column_of, now.row_of))
  return column_of, row_of
