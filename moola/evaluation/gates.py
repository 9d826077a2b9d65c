"""Gates: the success criteria of a train run, judged on validation against the spec's bounds."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from moola import HIT_BARS
from moola.evaluation.arrays import Floats
from moola.evaluation.detection import Detection
from moola.evaluation.metrics import F1_MACRO, HIT_CENTRE, Evaluation
from moola.specs import GateConfig

SIGMAS = ("sigma_ptr", "sigma_type")
LOSS_OF_SIGMA = {"sigma_ptr": "loss_ptr", "sigma_type": "loss_type"}


@dataclass(frozen=True)
class Gate:
    """One criterion: the value found (None: nothing), its bound, whether it holds.

    `test` is the same value on the test split: it is shown and decides nothing, as does a criterion
    that is not `judged`.
    """

    name: str
    value: float | None
    bound: str
    passed: bool
    test: float | None = None
    judged: bool = True


def all_passed(gates: Iterable[Gate]) -> bool:
    """Whether every gate that is judged passed."""
    return all(gate.passed for gate in gates if gate.judged)


def check_gates(
    validation: Evaluation,
    sigma_history: Mapping[str, ArrayLike],
    loss_history: Mapping[str, ArrayLike],
    config: GateConfig,
    test: Evaluation | None = None,
) -> list[Gate]:
    """All gates. Histories: name -> values in the order of training, from steps that have one.

    Over the last `settled_fraction` of training, sigma^2 must have come to its loss, where the
    weighted loss is least, and sigma must be below its bound. The band of sigma is shown and not
    judged: a model that gets better has a smaller loss, and a smaller sigma with it. A history that
    is missing or empty does not pass: nothing was seen to hold.
    """
    gates = [
        _share_gate(validation, config.min_predicted_share, test),
        _metric_gate(F1_MACRO, config.min_f1_macro, validation, test),
        _metric_gate(
            HIT_CENTRE,
            config.min_hit_centre_3,
            validation,
            test,
        ),
    ]
    for name in SIGMAS:
        sigmas = _last_part(sigma_history.get(name, ()), config)
        losses = _last_part(loss_history.get(LOSS_OF_SIGMA[name], ()), config)
        gates += [
            _settled_gate(name, sigmas, losses, config),
            _largest_gate(name, sigmas, config),
            _band(name, sigmas, config),
        ]
    gates.append(_finite_gate(loss_history))

    return gates


def detection_gates(
    validation: Detection,
    config: GateConfig,
    test: Detection | None = None,
) -> list[Gate]:
    """Gates of a model that says whether there is a move."""
    bounds = {
        "auc": ("AUC, window holds a move", config.min_window_auc),
        "average_precision": (
            f"Average precision of moves, centre ±{HIT_BARS}",
            config.min_average_precision,
        ),
    }
    gates = []
    for field, (title, bound) in bounds.items():
        value = _of_model(validation, field)
        gates.append(
            Gate(
                title,
                value,
                f">= {bound:.2f}",
                passed=value is not None and value >= bound,
                test=_of_model(test, field) if test else None,
            )
        )

    return gates


def _of_model(detection: Detection, field: str) -> float | None:
    """The value of the first finder, which is the model."""
    finder = next(iter(detection["finders"].values()))
    return finder["auc"] if field == "auc" else finder["average_precision"]


def _share_gate(
    validation: Evaluation,
    bound: float,
    test: Evaluation | None,
) -> Gate:
    """The bound is that of two classes; of more, each has a smaller share."""
    value = _smallest_share(validation)
    bound *= 2 / max(2, len(_judged_classes(validation)))
    return Gate(
        "predicted share of the rarer class (balanced)",
        value,
        f"> {bound:.2f}",
        passed=value is not None and value > bound,
        test=_smallest_share(test) if test else None,
    )


def _judged_classes(evaluation: Evaluation) -> list[str]:
    """Those of which there are labels."""
    recalls = {name: f"recall[{name}]" for name in evaluation["class_names"]}
    metrics = evaluation["metrics"]
    return [name for name, recall in recalls.items() if metrics[recall]["value"] is not None]


def _smallest_share(evaluation: Evaluation) -> float | None:
    shares = [
        evaluation["metrics"][f"predicted_share[{name}]"]["value"]
        for name in _judged_classes(evaluation)
    ]
    known = [share for share in shares if share is not None]
    return min(known) if len(known) == len(shares) >= 2 else None


def _metric_gate(
    name: str,
    bound: float,
    validation: Evaluation,
    test: Evaluation | None,
) -> Gate:
    metric = validation["metrics"][name]
    value = metric["value"]
    return Gate(
        metric["title"],
        value,
        f">= {bound:.2f}",
        passed=value is not None and value >= bound,
        test=test["metrics"][name]["value"] if test else None,
    )


def _last_part(history: ArrayLike, config: GateConfig) -> Floats:
    """The last `settled_fraction` of a history, rounded up; empty if a value is not positive."""
    values = np.asarray(history, np.float64).ravel()
    n_last = math.ceil(len(values) * config.settled_fraction)
    last = values[len(values) - n_last :]

    if not np.isfinite(last).all() or (last <= 0).any():
        return np.empty(0)
    return last


def _settled_gate(
    name: str,
    sigmas: Floats,
    losses: Floats,
    config: GateConfig,
) -> Gate:
    """The mean of sigma^2 over the mean of its loss."""
    low = 1 - config.settled_tolerance
    high = 1 + config.settled_tolerance

    ratio = None
    if len(sigmas) and len(losses):
        ratio = float((sigmas**2).mean() / losses.mean())

    return Gate(
        f"{name}^2 / its loss, last {config.settled_fraction:.0%}",
        ratio,
        f"{low:g} to {high:g}",
        passed=ratio is not None and low <= ratio <= high,
    )


def _largest_gate(name: str, sigmas: Floats, config: GateConfig) -> Gate:
    largest = float(sigmas.max()) if len(sigmas) else None
    return Gate(
        f"{name}, last {config.settled_fraction:.0%} of training",
        largest,
        f"< {config.max_sigma:g}",
        passed=largest is not None and largest < config.max_sigma,
    )


def _band(name: str, sigmas: Floats, config: GateConfig) -> Gate:
    """The value furthest out of the band, in ratio."""
    title = f"{name}, the plan's band"
    bound = f"{config.min_sigma:g} to {config.max_sigma:g}"
    if not len(sigmas):
        return Gate(title, None, bound, passed=False, judged=False)

    log_middle = 0.5 * math.log(config.min_sigma * config.max_sigma)
    furthest = float(sigmas[np.abs(np.log(sigmas) - log_middle).argmax()])
    return Gate(
        title,
        furthest,
        bound,
        passed=config.min_sigma <= furthest <= config.max_sigma,
        judged=False,
    )


def _finite_gate(loss_history: Mapping[str, ArrayLike]) -> Gate:
    losses = [np.asarray(values, np.float64).ravel() for values in loss_history.values()]
    recorded = np.concatenate([*losses, np.empty(0)])
    n_bad = float((~np.isfinite(recorded)).sum()) if len(recorded) else None

    return Gate(
        "losses that are NaN or Inf",
        n_bad,
        "0",
        passed=n_bad == 0,
    )
