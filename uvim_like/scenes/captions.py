"""Five sentences about a view from a small grammar: counts, colours, left and right. Lower case, no punctuation."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from uvim_like.scenes.annotate import Segment
from uvim_like.scenes.classes import COLORS, LABELS, NAMES, is_thing
from uvim_like.scenes.world import Thing

PER_IMAGE = 5
_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "many")
_PLURALS = {"box": "boxes", "person": "people"}
_PLACES = ("in a room", "inside a room", "on the floor")
_RELATIONS = ("to the left of", "to the right of", "in front of", "behind")
_WORDS = ("a", "an", "and", "are", "is", "on", "pile", "piles", "room", "shirt", "spheres", "there", "with", "empty")
VOCABULARY = tuple(sorted(
    {*_WORDS, *_NUMBERS[2:], *COLORS, *NAMES} | {_PLURALS.get(n, n + "s") for n in NAMES[:5]}
    | {word for phrase in _PLACES + _RELATIONS for word in phrase.split()}))


def describe(things: Sequence[Thing], segments: Sequence[Segment], rng: np.random.RandomState) -> list[str]:
  """Five captions of the annotated things.

  Args:
    things: of the world.
    segments: what is annotated in this view.
    rng: chooses among equivalent sentences; always the same number of draws.
  """
  draws = rng.uniform(size=4)
  seen = sorted((s for s in segments if is_thing(s.label)), key=lambda s: -s.area)
  if not seen:
    return ["an empty room"] * PER_IMAGE
  place = _PLACES[int(draws[0] * 2)]
  counted = _counted(seen)
  named = [_with_article(_name(things[s.thing], s.is_crowd)) for s in seen]
  verb = "is" if counted[0].split()[0] in ("a", "an") else "are"
  first, last = named[0], named[-1]
  texts = [f"{_join(counted)} {place}", f"there {verb} {_join(counted)}"]
  if len(seen) > 1:
    other = 1 + int(draws[1] * (len(seen) - 1))
    texts += [f"{first} {_relation(seen[0], seen[other])} {named[other]}", f"{first} and {named[1]} {place}"]
  else:
    texts += [f"there is {first} {_PLACES[2]}", f"{first} {place}"]
  return texts + [_support(things, seen) or f"a room with {last}" + _stuff_tail(segments, draws[2])]


def _name(thing, is_crowd) -> str:
  if is_crowd:
    return f"pile of {thing.color} {_plural(NAMES[thing.label])}"
  return f"person in a {thing.color} shirt" if thing.joints is not None else f"{thing.color} {NAMES[thing.label]}"


def _plural(name) -> str:
  return _PLURALS.get(name, name + "s")


def _with_article(words) -> str:
  return ("an " if words[0] in "aeiou" else "a ") + words


def _counted(seen) -> list[str]:
  """["two boxes", "a pile of spheres", …] in the order of the labels."""
  phrases = []
  for (label, crowd), count in sorted(Counter((s.label, s.is_crowd) for s in seen).items()):
    one, many = NAMES[label], _plural(NAMES[label])
    if crowd:
      one, many = f"pile of {many}", f"piles of {many}"
    phrases.append(_with_article(one) if count == 1 else f"{_NUMBERS[min(count, len(_NUMBERS) - 1)]} {many}")
  return phrases


def _join(phrases) -> str:
  return " and ".join(phrases)


def _relation(one, two) -> str:
  """Where the first box is from the second, from the viewer's side: by columns, else by which ends lower."""
  x1, x2 = (one.bbox[1] + one.bbox[3]) / 2, (two.bbox[1] + two.bbox[3]) / 2
  if abs(x1 - x2) > 0.08:
    return _RELATIONS[0] if x1 < x2 else _RELATIONS[1]
  return _RELATIONS[2] if one.bbox[2] > two.bbox[2] else _RELATIONS[3]


def _support(things, seen) -> str:
  """"a red sphere on a box" for the largest stacked thing whose support is annotated too, or nothing."""
  labels = {s.label for s in seen}
  for s in seen:
    support = things[s.thing].on
    if support is not None and support in labels:
      return f"{_with_article(_name(things[s.thing], s.is_crowd))} on {_with_article(NAMES[support])}"
  return ""


def _stuff_tail(segments, draw) -> str:
  """" and a window" when there is one, or a rug; "" otherwise and in a third of all cases."""
  labels = {s.label for s in segments}
  named = [name for name in ("window", "rug") if LABELS[name] in labels]
  return f" and a {named[0]}" if named and draw < 0.67 else ""
