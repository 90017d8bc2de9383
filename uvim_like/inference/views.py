"""What a run predicts, read from its evaluations: preprocessing, the system's function, its options."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from uvim_like import config as configs
from uvim_like.errors import UserError, unknown
from uvim_like.systems.ait.parts import MAPS, Options, check_tasks

IGNORED = ("save_predictions", "mean")   # evaluators that say nothing about what is predicted
UVIM_TWO, UVIM_ONE, AIT, TOKENIZER = "uvim.lm", "uvim.vit", "ait.solver", "ait.vqvae"
MAD = "mad.decoder"
ONE_STAGE = "one_stage"
DECODE = {UVIM_TWO: ("cached", "parallel", "masked"), AIT: ("ar", "parallel"), MAD: ("masked", ONE_STAGE)}
SINGLE = dict.fromkeys(("boxes", "masks", "keypoints", "captions"), (1.0,))   # MAD without refinement


class View(NamedTuple):
  """One way in which a run looks at a picture.

  Attributes:
    name: of the evaluation in the config; "pp_eval" where there is none.
    evaluator: its module; "" where there is none.
    pp: preprocessing string.
    pred: which of the system's predict functions.
    options: of that function.
    metric: of the evaluator; its `dataset` is always there.
    batch_size: of the evaluation.
  """
  name: str
  evaluator: str
  pp: str
  pred: str
  options: dict[str, Any]
  metric: dict[str, Any]
  batch_size: int


def views(config: Any) -> list[View]:
  """The run's evaluations that differ in what they predict, in the config's order.

  Raises:
    UserError: the run has no evaluation and no `pp_eval`.
  """
  values, found = configs.plain(config), []
  for name, evaluator in values["evals"]:
    if evaluator.removeprefix("proj.") in IGNORED:
      continue
    block = values[name]
    view = View(name, evaluator, block["pp"], block["pred"], dict(block["pred_kw"]),
                {"dataset": block["dataset"], **block["metric"]}, block["batch_size"])
    if not any(_alike(view, other) for other in found):
      found.append(view)
  if found:
    return found
  if not values["pp_eval"]:
    raise UserError("config: neither evals nor pp_eval says how a picture is prepared; set one of them: "
                    "--config.pp_eval=…")
  return [View("pp_eval", "", values["pp_eval"], "predict", {}, {"dataset": values["dataset"]}, values["batch_size"])]


def _alike(a: View, b: View) -> bool:
  return (a.evaluator, a.pp, a.pred, a.options) == (b.evaluator, b.pp, b.pred, b.options)


def system_of(config: Mapping[str, Any]) -> str:
  """The system's name without "proj."."""
  return config["model_name"].removeprefix("proj.")


def canvas_of(config: Mapping[str, Any], view: View) -> tuple[int, int]:
  """(H, W) that a picture may fill before AiT's solver: the whole canvas, of a map the part that its code is for."""
  solver = config.get("solver") or {}
  task = view.options.get("task") or check_tasks(solver.get("tasks") or Options().tasks)[0]
  size = solver.get("map_size") if task in MAPS else None
  return tuple(size or config["model"]["input_size"])


def check_predictable(config: Any) -> None:
  """Raises UserError for trainings that cannot predict from a picture alone."""
  system = system_of(config)
  if system == UVIM_ONE and not config.model.get("zero_decoder_seq"):
    raise UserError("UViM stage I cannot predict from a picture: its oracle writes the code from the labels. Give the "
                    "workdir of a stage II that was trained on it (config.oracle.model_init)")
  if system == TOKENIZER:
    raise UserError("an AiT tokenizer (stage I) cannot predict from a picture: it encodes the labels. Give the workdir "
                    "of a solver that was trained on it (config.tokenizers)")
  if system == MAD:
    tasks = tuple((config.get("objectives") or {}).get("tasks") or ("boxes",))
    if "boxes" not in tasks and {"masks", "keypoints"} & set(tasks):
      raise UserError(f"this MAD was trained for {', '.join(tasks)} inside given boxes and does not detect: a picture "
                      "alone does not tell it where to look")


def with_options(view: View, config: Any, *, temperature: float | None = None, decode: str | None = None,
                 samples: int = 1) -> View:
  """A view whose sampling and form of decoding a person has chosen; what is None stays as the evaluation has it.

  Args:
    view: of the run.
    config: of the run.
    temperature: 0 takes the likeliest, 1 samples as learned.
    decode: UViM: "cached", "parallel", "masked"; AiT: "ar", "parallel"; MAD: "masked" in stages or "one_stage".
    samples: several predictions of each picture (UViM's stage II).

  Raises:
    UserError: what the system does not have.
  """
  system, options = system_of(config), dict(view.options)
  autoregressive = system == MAD and (config.get("objectives") or {}).get("form") == "autoregressive"
  if temperature is not None:
    if temperature < 0:
      raise UserError(f"--temperature: {temperature:g} is below 0; 0 takes the likeliest, 1 samples as learned")
    if system == UVIM_TWO and config.model.get("masked"):
      raise UserError("--temperature: a masked language model takes the likeliest words; leave it out (--samples "
                      "differ in what is hidden again)")
    options |= _temperature(system, temperature, autoregressive)
  if decode is not None:
    choices = () if autoregressive else DECODE.get(system, ())
    if decode not in choices:
      raise (unknown("form", decode, choices, where="--decode") if choices else
             UserError(f"--decode: {system} has one form of prediction alone; leave it out"))
    if system == MAD:
      stages = SINGLE if decode == ONE_STAGE else _several(options.pop("stages", None) or {})
      options |= {"stages": stages} if stages else {}
    else:
      options["decode"] = decode
  if samples < 1:
    raise UserError(f"--samples: {samples}; at least 1 is needed")
  if samples > 1:
    if system != UVIM_TWO:
      raise UserError(f"--samples: {system} gives one prediction a picture; several are UViM's stage II")
    options |= {"num_samples": samples}
    if not options.get("temperature") and not config.model.get("masked"):
      raise UserError(f"--samples: {samples} samples at temperature 0 are all the same; add --temperature=1")
  return view._replace(options=options)


def _several(stages: Mapping[str, Any]) -> dict[str, Any]:
  """The stages without those of an evaluation in one stage, whose tasks then have the system's own."""
  return {task: shares for task, shares in stages.items() if len(shares) > 1}


def _temperature(system: str, temperature: float, autoregressive: bool) -> dict[str, Any]:
  """The options that set a temperature; UserError where nothing is sampled."""
  if system in (UVIM_TWO, AIT):
    return {"temperature": temperature}
  if autoregressive:
    if temperature not in (0, 1):
      raise UserError("--temperature: MAD's autoregressive form knows 0 (the likeliest token) and 1 (its nucleus)")
    return {"top_p": dict.fromkeys(SINGLE, 0.0)} if temperature == 0 else {}
  raise UserError(f"--temperature: {system} does not sample; leave it out")
